"""Arrow events: many records of one partition in one message, read and judged column by column.

    id          string, the record's id (the message's key is ignored)
    vector      fixed_size_list<float>[dim] or list<float>; null exactly in a deleted row
    payload     binary or string, optional
    attributes  struct of declared attributes, optional
    event_time  timestamp with a time zone, optional (the message's time)
    expires_at  timestamp with a time zone, optional
    deleted     bool, optional: true deletes the id
    version     ignored: the log gives it

`read` takes a stream apart without trusting it: `ipc.inspect` sees rows and decompressed bytes before anything is
allocated, the schema is held against the list above, every buffer is validated before it is used. Which rows are bad is
for `judge`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from producers import ipc
from tiers import record
from tiers.errors import InvalidRecord

BYTES_MAX = 8 * 1024 * 1024  # of a message when decompressed: nine times what it may have on the wire
BATCH_BYTES = 900_000  # of a message that we write; the broker's limit is 1 MiB
BATCH_ROWS = 1_000  # likewise: 500 rows a message already reach 300,000 rows/s

_READ = pa.ipc.IpcReadOptions(use_threads=False)
TIMES = ("event_time", "expires_at")
NAMES = ("id", "vector", "payload", "attributes", *TIMES, "deleted", "version")


def rows_max(dim: int) -> int:
    """Return how many rows of `dim` floats a message may have."""
    return max(1, min(record.ROW_MAX + 1, BYTES_MAX // (4 * dim)))


def read(value: bytes, limit: int, bytes_max: int = BYTES_MAX) -> pa.RecordBatch:
    """Return the rows of a stream as they were sent, in one batch; text columns as bytes, all buffers checked.

    InvalidRecord: "arrow" (no stream), "arrow_schema" (another one), "arrow_size" (beyond `limit` rows or the bytes).
    """
    ipc.inspect(value, limit, bytes_max)
    try:
        with pa.ipc.open_stream(pa.py_buffer(value), options=_READ) as reader:
            schema = reader.schema
            check_schema(schema)
            batches = [plain(batch) for batch in reader]
        whole = pa.Table.from_batches(batches).combine_chunks().to_batches() if len(batches) > 1 else batches
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InvalidRecord("arrow", f"not an Arrow IPC stream: {error}") from error
    return whole[0] if whole else pa.RecordBatch.from_pylist([], schema=pa.schema([("id", pa.binary())]))


def encode(rows: pa.RecordBatch) -> bytes:
    """Return rows as an Arrow IPC stream; text that `read` made bytes becomes text again, unchecked."""
    arrays = [_text_again(name, rows[name]) for name in rows.schema.names]
    batch = pa.RecordBatch.from_arrays(arrays, names=rows.schema.names)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def messages(rows: pa.RecordBatch, limit: int = BATCH_ROWS) -> Iterator[bytes]:
    """Yield rows (as `plain` returns them) in order, as streams of at most `limit` rows and BATCH_BYTES bytes."""
    step = max(1, min(limit, int(rows.num_rows * BATCH_BYTES * 0.9 / max(1, rows.nbytes))))
    for start in range(0, rows.num_rows, step):
        yield from _halves(rows.slice(start, step))


def _halves(rows: pa.RecordBatch) -> Iterator[bytes]:
    value = encode(rows)
    if len(value) <= BATCH_BYTES:
        yield value
        return
    if rows.num_rows == 1:
        raise InvalidRecord("event_size", f"a record has at most {BATCH_BYTES} bytes, this one {len(value)}")
    half = rows.num_rows // 2
    yield from _halves(rows.slice(0, half))
    yield from _halves(rows.slice(half))


def _text_again(name: str, column: pa.Array) -> pa.Array:
    if pa.types.is_struct(column.type):
        children = [_text_again("id", child) for child in column.flatten()]
        return struct_of(children, [field.name for field in column.type], len(column))
    return column.view(pa.string()) if name == "id" and pa.types.is_binary(column.type) else column


def struct_of(children: Sequence[pa.Array], names: Sequence[str], rows: int) -> pa.Array:
    """Return children as the fields of one column."""
    if not children:  # Arrow cannot infer the length of a struct without children
        return pa.StructArray.from_buffers(pa.struct([]), rows, [None], children=[])
    return pa.StructArray.from_arrays(children, names=names)


# -- the schema ------------------------------------------------------------------------------------------------------


def check_schema(schema: pa.Schema) -> None:
    """Raise InvalidRecord("arrow_schema") unless every column is one of ours, once, of a type we read."""
    names = schema.names
    for name in names:
        if name not in NAMES or names.count(name) > 1:
            text = "comes twice" if name in NAMES else f"is not one of {', '.join(NAMES)}"
            raise InvalidRecord("arrow_schema", f"column {name[:64]!r} {text}")
        if not _fits(name, schema.field(name).type):
            raise InvalidRecord("arrow_schema", f"column {name} cannot be {str(schema.field(name).type)[:200]}")
    if "id" not in names:
        raise InvalidRecord("arrow_schema", "there is no column id")


def _fits(name: str, kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_null(kind):
        return name != "id"
    if name == "version":
        return bool(types.is_integer(kind))
    if name == "id":
        return bool(types.is_string(kind) or types.is_large_string(kind))
    if name == "payload":
        text = types.is_string(kind) or types.is_large_string(kind)
        return bool(text or types.is_binary(kind) or types.is_large_binary(kind))
    if name == "vector":
        listed = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
        return bool(listed and types.is_floating(kind.value_type))
    if name == "deleted":
        return bool(types.is_boolean(kind))
    if name in TIMES:
        return bool(types.is_timestamp(kind) and kind.tz)
    return bool(types.is_struct(kind)) and len({field.name for field in kind}) == kind.num_fields


def plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch without version, metadata and field names of the sender's choice, every buffer validated."""
    names = [name for name in batch.schema.names if name != "version"]
    return pa.RecordBatch.from_arrays([_plain(batch[name]) for name in names], names=names)


def _plain(column: pa.Array) -> pa.Array:
    kind = column.type
    if pa.types.is_struct(kind):
        column.validate()  # children are validated one by one, as bytes where they are text
        children = [_plain(child) for child in column.flatten()]
        return struct_of(children, [field.name for field in kind], len(column))
    if pa.types.is_string(kind):
        column = column.view(pa.binary())
    elif pa.types.is_large_string(kind):
        column = column.view(pa.large_binary())
    column.validate(full=True)
    if pa.types.is_large_binary(kind) or pa.types.is_large_string(kind):
        return column.cast(pa.binary())
    if pa.types.is_fixed_size_list(kind):
        return column.cast(pa.list_(kind.value_type, kind.list_size))
    return column.cast(pa.list_(kind.value_type)) if _listed(kind) else column


def _listed(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def dim_of(rows: pa.RecordBatch) -> int:
    """Return how many floats the vectors have: their type's, else the first one's, 1 where there is none."""
    column = rows["vector"] if "vector" in rows.schema.names else pa.nulls(0)
    if pa.types.is_fixed_size_list(column.type):
        return int(column.type.list_size)
    given = column.drop_null()
    return max(1, len(given[0])) if len(given) else 1
