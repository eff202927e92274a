"""How records lie in the archive's Parquet files: the columns, and both ways between a batch and a file."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from tiers import record
from tiers.record import Int64s


class Layout:
    """Record batches to file columns and back: microseconds instead of ms, lists without a fixed size, no empty struct.

    `file` is the schema of a file; `table` the Delta table's, which has the partition in front.
    """

    def __init__(self, shape: pa.Schema) -> None:
        self.shape = shape
        kinds = {field.name: _stored(field.type) for field in shape}
        fields = [pa.field(field.name, kinds[field.name], nullable=field.nullable) for field in shape]
        self.file = pa.schema([field for field in fields if not _empty(field.type)])
        self.table = pa.schema([pa.field("partition", pa.int32(), nullable=False), *self.file])

    def facts(self, partitions: int) -> dict[str, str]:
        """Return what the table is made for, in words; another table's differ."""
        attributes = self.shape.field("attributes").type
        return {
            "dim": str(self.shape.field("vector").type.list_size),
            "partitions": str(partitions),
            "attributes": ", ".join(f"{field.name} {field.type}" for field in attributes) or "none",
        }

    def encode(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the batch as a file holds it."""
        columns = [batch[field.name].cast(field.type) for field in self.file]
        return pa.RecordBatch.from_arrays(columns, schema=self.file)

    def decode(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return a file's batch with the record schema."""
        columns = [
            record.attribute_array([{}] * batch.num_rows, field.type)
            if _empty(field.type)
            else batch[field.name].cast(field.type)
            for field in self.shape
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self.shape)

    def entries(self, batch: pa.RecordBatch, partition: int, slots: Int64s) -> pa.RecordBatch:
        """Return a file's batch, of some columns, as `record.entries` has it; `slots` may go on beyond it."""
        rows = batch.num_rows
        said = {
            "slot": pa.array(slots[:rows]),
            "partition": pa.array(np.full(rows, partition, np.int32)),
        }
        if "attributes" not in batch.schema.names:
            said["attributes"] = record.attribute_array([{}] * rows, pa.struct([]))
        shape = record.entries(self.shape)
        if "vector" in batch.schema.names:
            shape = shape.append(self.shape.field("vector"))
        columns = [
            batch[field.name].cast(field.type) if field.name in batch.schema.names else said[field.name]
            for field in shape
        ]
        return pa.RecordBatch.from_arrays(columns, schema=shape)


def _empty(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind)) and kind == pa.struct([])


def _stored(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", "UTC")
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_type)
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _stored(field.type)) for field in kind])
    return kind
