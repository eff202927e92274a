"""What a file's batches must be before they are sent as Arrow events: the same values, in types that the log takes."""

from __future__ import annotations

import msgspec
import pyarrow as pa

from producers import columns


def conform(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a file's batch with the types of an Arrow event: views, dictionaries and structured payloads are common.

    InvalidRecord names a column that is none of ours or has a type that cannot be meant.
    """
    arrays = {name: _conformed(name, batch[name]) for name in batch.schema.names}
    rows = pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))
    columns.check_schema(rows.schema)
    return columns.plain(rows)


def _conformed(name: str, column: pa.Array) -> pa.Array:
    kind, types = column.type, pa.types
    if types.is_dictionary(kind):
        return _conformed(name, column.dictionary_decode())
    if name == "payload" and (types.is_nested(kind) or types.is_primitive(kind)) and not types.is_null(kind):
        values = (None if value is None else msgspec.json.encode(value) for value in column.to_pylist())
        return pa.array(values, pa.binary())
    if types.is_string_view(kind):
        return column.cast(pa.string())
    if types.is_binary_view(kind):
        return column.cast(pa.binary())
    if name == "attributes" and types.is_struct(kind):
        children = [_conformed("attribute", child) for child in column.flatten()]
        return columns.struct_of(children, [field.name for field in kind], len(column))
    return column
