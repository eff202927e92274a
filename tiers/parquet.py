"""The Parquet files of the archive: how records lie in them, how one is written, proven and read.

Vectors are byte-stream-split under zstd, without dictionaries: 16,384 rows of 256 floats and 200 bytes of payload take
0.08 s and 16 MB, where the writer's defaults take 0.31 s and 27 MB (two cores). A row group of 1,024 rows is the unit
of reading: 2 ms.

Pages carry checksums. The footer does not, so a file is read only if its schema and row counts are what they must be:
with that, every one of the 74,000 single-bit flips of a small file gave the same rows or an error (the test flips one
bit of each byte).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tiers import record
from tiers.disk import Disk
from tiers.errors import TierCorrupt, TierUnavailable
from tiers.record import Int64s, Row
from tiers.tier import Location

VECTOR = "vector.list.element"  # the leaf column's path in the file
BLOOM_FPP = 0.01
ROW_BITS = 24  # a slot is file number << ROW_BITS | row in file
FILE_ROWS_MAX = 1 << ROW_BITS
TIME_MS_MAX = 253_402_300_800_000  # the year 10000: ISO 8601 in the log's statistics ends there


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file that the log names, or is about to. `number` is unique in its partition; `stats` is the log's JSON.

    `touched_ms`: when it was written, or, of one about to be removed, when that was decided.
    """

    partition: int
    number: int
    path: str
    rows: int
    bytes: int
    touched_ms: int = 0
    stats: str = ""

    @property
    def key(self) -> tuple[int, int]:
        """Partition and number."""
        return self.partition, self.number

    def slots(self) -> Int64s:
        """Return the slot of each row."""
        return (self.number << ROW_BITS) + np.arange(self.rows, dtype=np.int64)


def place(where: Location) -> tuple[tuple[int, int], int]:
    """Return a location's (partition, file number) and row in the file."""
    return (where.partition, where.slot >> ROW_BITS), where.slot & (FILE_ROWS_MAX - 1)


@dataclass(frozen=True, slots=True)
class Style:
    """How files are written: rows in a row group, codec, and its level."""

    group_rows: int
    compression: str
    level: int


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


def write(disk: Disk, path: str, schema: pa.Schema, style: Style, groups: Iterable[pa.RecordBatch]) -> int:
    """Write a new file, one row group from each batch of `schema`; returns the rows. Not durable yet."""
    rows = 0
    level = {"compression_level": style.level} if style.compression == "zstd" else {}
    with (
        disk.create(path) as sink,
        pq.ParquetWriter(
            sink,
            schema,
            compression=style.compression,
            use_dictionary=False,
            use_byte_stream_split=[VECTOR],
            write_page_checksum=True,
            bloom_filter_options={"id": {"ndv": style.group_rows, "fpp": BLOOM_FPP}},
            **level,
        ) as writer,
    ):
        for group in groups:
            writer.write_batch(group, row_group_size=style.group_rows)
            rows += group.num_rows
    return rows


def prove(disk: Disk, file: DataFile, schema: pa.Schema) -> DataFile:
    """Read the footer of a file just written; returns it with its size and the log's statistics. TierCorrupt if wrong.

    Statistics leave ids out: what the log says of a file outlives the erasure of its rows.
    """
    with disk.open(file.path) as source:
        parquet = pq.ParquetFile(source)
        _check(parquet, file, schema)
        bounds = {name: _bounds(parquet.metadata, schema.get_field_index(name)) for name in ("version", "event_time")}
    stats: dict[str, object] = {"numRecords": file.rows}
    least, most = bounds["event_time"]
    if least >= 0 and most < TIME_MS_MAX * 1000:
        low, high = (f"{np.datetime64(us // 1000, 'ms')}Z" for us in (least, most))
        stats["minValues"] = {"version": bounds["version"][0], "event_time": low}
        stats["maxValues"] = {"version": bounds["version"][1], "event_time": high}
    return replace(file, bytes=disk.size(file.path), stats=json.dumps(stats))


def _bounds(metadata: pq.FileMetaData, column: int) -> tuple[int, int]:
    found = [metadata.row_group(group).column(column).statistics for group in range(metadata.num_row_groups)]
    return min(each.min_raw for each in found), max(each.max_raw for each in found)


def _check(parquet: pq.ParquetFile, file: DataFile, schema: pa.Schema) -> None:
    if not parquet.schema_arrow.equals(schema) or parquet.metadata.num_rows != file.rows:
        raise TierCorrupt(f"{file.path}: its footer does not say {file.rows} rows of this table's columns")


@contextmanager
def _opened(disk: Disk, file: DataFile, schema: pa.Schema) -> Iterator[pq.ParquetFile]:
    """Open a file whose footer is right. FileNotFoundError if it is gone, TierCorrupt if its bytes do not add up."""
    try:
        with disk.open(file.path) as source:
            parquet = pq.ParquetFile(source, page_checksum_verification=True)
            _check(parquet, file, schema)
            yield parquet
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno:
            raise TierUnavailable(f"{file.path}: {error}") from error
        raise TierCorrupt(f"{file.path}: {error}") from error


def _groups(
    parquet: pq.ParquetFile, file: DataFile, groups: Sequence[int], columns: list[str] | None = None
) -> pa.Table:
    expected = sum(parquet.metadata.row_group(group).num_rows for group in groups)
    table = parquet.read_row_groups(groups, columns=columns, use_threads=False)
    if table.num_rows != expected:
        raise TierCorrupt(f"{file.path}: {table.num_rows} rows where its footer says {expected}")
    return table


def scan(
    disk: Disk, file: DataFile, layout: Layout, start: int, rows_max: int, columns: list[str] | None = None
) -> pa.RecordBatch:
    """Return whole row groups from row `start` (the first of a group) on, as many as stay within `rows_max` rows."""
    with _opened(disk, file, layout.file) as parquet:
        size = parquet.metadata.row_group(0).num_rows
        first = start // size
        last = min(parquet.metadata.num_row_groups, first + max(1, rows_max // size))
        return _single(_groups(parquet, file, range(first, last), columns))


def _single(table: pa.Table) -> pa.RecordBatch:
    """Return a table as one batch; the reader makes one chunk of a row group, several of several groups."""
    return table.combine_chunks().to_batches()[0]


def fetch(disk: Disk, file: DataFile, layout: Layout, wanted: Sequence[tuple[int, Location]]) -> list[Row | None]:
    """Return the row at each (row in file, location) if it has the location's id and version. Rows own their memory."""
    found: list[Row | None] = [None] * len(wanted)
    with _opened(disk, file, layout.file) as parquet:
        size = parquet.metadata.row_group(0).num_rows
        by_group: dict[int, list[int]] = {}
        for at, (row, _) in enumerate(wanted):
            by_group.setdefault(row // size, []).append(at)
        for group, members in by_group.items():
            rows = pa.array([wanted[at][0] % size for at in members])
            batch = layout.decode(_single(_groups(parquet, file, [group]).take(rows)))
            for position, at in enumerate(members):
                found[at] = matching(batch, position, wanted[at][1])
    return found


def matching(batch: pa.RecordBatch, at: int, where: Location) -> Row | None:
    """Return row `at` with a vector of its own, or None if it is not this id in this version."""
    if batch["version"][at].as_py() != where.version or batch["id"][at].as_py() != where.id:
        return None
    row = record.row_at(batch, at)
    return row if row.vector is None else replace(row, vector=row.vector.copy())
