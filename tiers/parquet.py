"""The Parquet files of the archive: how one is written, proven and read.

Vectors are byte-stream-split under zstd, without dictionaries: 16,384 rows of 256 floats and 200 bytes of payload take
0.08 s and 16 MB, where the writer's defaults take 0.31 s and 27 MB (two cores). A row group is the unit of reading: one
range of the file, some 1,024 rows, 2 ms; the footer is read once and kept (Reader).

Pages carry checksums. The footer does not, so a file is read only if its schema and row counts are what they must be:
with that, every one of the 74,000 single-bit flips of a small file gave the same rows or an error (the test flips one
bit of each byte).
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tiers import record
from tiers.errors import TierCorrupt, TierUnavailable
from tiers.layout import Layout
from tiers.record import Int64s, Row
from tiers.storage import Storage
from tiers.tier import Location

VECTOR = "vector.list.element"  # the leaf column's path in the file
BLOOM_FPP = 0.01
ROW_BITS = 24  # a slot is file number << ROW_BITS | row in file
FILE_ROWS_MAX = 1 << ROW_BITS
TIME_MS_MAX = 253_402_300_800_000  # the year 10000: ISO 8601 in the log's statistics ends there
SCAN_BYTES = 1 << 26  # that one step of a scan holds
FOOTERS = 64  # kept, of the files read last: some 100 KB each for the largest

Key = tuple[int, int]  # partition, file number


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
    def key(self) -> Key:
        """Partition and number."""
        return self.partition, self.number

    def slots(self) -> Int64s:
        """Return the slot of each row."""
        return (self.number << ROW_BITS) + np.arange(self.rows, dtype=np.int64)


def place(where: Location) -> tuple[Key, int]:
    """Return a location's (partition, file number) and row in the file."""
    return (where.partition, where.slot >> ROW_BITS), where.slot & (FILE_ROWS_MAX - 1)


@dataclass(frozen=True, slots=True)
class Style:
    """How files are written: rows and bytes (in memory) of a row group, codec and its level, rows and bytes of a file.

    A file ends with the row group that reaches a bound: it is at most that and a footer longer than `file_bytes`.
    """

    group_rows: int
    compression: str
    level: int
    group_bytes: int = 1 << 24
    file_rows: int = 1_048_576
    file_bytes: int = 1 << 27


def write(storage: Storage, path: str, schema: pa.Schema, style: Style, groups: Iterator[pa.RecordBatch]) -> int:
    """Write a new file, a row group from each batch of `schema`, until it is full; returns the rows. Not synced yet."""
    rows = 0
    level = {"compression_level": style.level} if style.compression == "zstd" else {}
    with (
        storage.create(path) as sink,
        pq.ParquetWriter(
            sink,
            schema,
            compression=style.compression,
            use_dictionary=False,
            use_byte_stream_split=[VECTOR],
            write_page_checksum=True,
            write_statistics=_ordered(schema),
            bloom_filter_options={"id": {"ndv": style.group_rows, "fpp": BLOOM_FPP}},
            **level,
        ) as writer,
    ):
        while (rows + style.group_rows <= style.file_rows and sink.tell() < style.file_bytes) or not rows:
            group = next(groups, None)
            if group is None:
                break
            writer.write_batch(group, row_group_size=style.group_rows)
            rows += group.num_rows
    return rows


def _ordered(schema: pa.Schema) -> list[str]:
    """Return the columns whose bounds help a reader. Of payloads and vectors they do not, and payloads' are large."""
    flat = [(field.name, field.type) for field in schema if field.name not in ("payload", "vector")]
    return [
        path
        for name, kind in flat
        for path in ([f"{name}.{field.name}" for field in kind] if pa.types.is_struct(kind) else [name])
    ]


def prove(storage: Storage, file: DataFile, schema: pa.Schema) -> DataFile:
    """Read the footer of a file just written; returns it with its size and the log's statistics. TierCorrupt if wrong.

    Statistics leave ids out: what the log says of a file outlives the erasure of its rows.
    """
    size = storage.size(file.path)
    with storage.open(file.path, size) as source:
        parquet = pq.ParquetFile(source)
        _check(parquet, file, schema)
        bounds = {name: _bounds(parquet.metadata, schema.get_field_index(name)) for name in ("version", "event_time")}
    stats: dict[str, object] = {"numRecords": file.rows}
    least, most = bounds["event_time"]
    if least >= 0 and most < TIME_MS_MAX * 1000:
        low, high = (f"{np.datetime64(us // 1000, 'ms')}Z" for us in (least, most))
        stats["minValues"] = {"version": bounds["version"][0], "event_time": low}
        stats["maxValues"] = {"version": bounds["version"][1], "event_time": high}
    return replace(file, bytes=size, stats=json.dumps(stats))


def _bounds(metadata: pq.FileMetaData, column: int) -> tuple[int, int]:
    found = [metadata.row_group(group).column(column).statistics for group in range(metadata.num_row_groups)]
    return min(each.min_raw for each in found), max(each.max_raw for each in found)


def _check(parquet: pq.ParquetFile, file: DataFile, schema: pa.Schema) -> None:
    if not parquet.schema_arrow.equals(schema) or parquet.metadata.num_rows != file.rows:
        raise TierCorrupt(f"{file.path}: its footer does not say {file.rows} rows of this table's columns")


class Reader:
    """Reads proven files, from several threads at once. A file never changes, so its footer is kept once checked."""

    def __init__(self, storage: Storage, layout: Layout) -> None:
        self._storage, self._layout = storage, layout
        self._lock = threading.Lock()
        self._footers: OrderedDict[str, tuple[pq.FileMetaData, Int64s]] = OrderedDict()

    def scan(self, file: DataFile, start: int, rows_max: int, columns: list[str] | None = None) -> pa.RecordBatch:
        """Return whole row groups from row `start` (the first of one) on: what stays within the bounds, or one.

        The bounds are `rows_max`, and SCAN_BYTES in memory.
        """
        with self._opened(file) as (parquet, starts):
            first = int(np.searchsorted(starts, start))
            last = int(np.searchsorted(starts, start + rows_max, "right")) - 1
            sizes = [parquet.metadata.row_group(group).total_byte_size for group in range(first, last)]
            last = first + max(1, int(np.searchsorted(np.cumsum(sizes), SCAN_BYTES, "right")))
            return _single(_groups(parquet, file, range(first, last), columns))

    def fetch(self, file: DataFile, wanted: Sequence[tuple[int, Location]]) -> list[Row | None]:
        """Return the row at each (row in file, location) if it has that id and version. Rows own their memory."""
        found: list[Row | None] = [None] * len(wanted)
        with self._opened(file) as (parquet, starts):
            of_row = np.searchsorted(starts, [row for row, _ in wanted], "right") - 1
            for group in np.unique(of_row).tolist():
                members = np.flatnonzero(of_row == group).tolist()
                rows = pa.array([wanted[at][0] - int(starts[group]) for at in members])
                batch = self._layout.decode(_single(_groups(parquet, file, [group]).take(rows)))
                for position, at in enumerate(members):
                    found[at] = matching(batch, position, wanted[at][1])
        return found

    def group(self, file: DataFile, row: int) -> int:
        """Return the number of the row group that holds a row; FileNotFoundError, TierCorrupt as in `fetch`."""
        known = self._footers.get(file.path)
        if known is None:
            with self._opened(file) as (_, starts):
                return int(np.searchsorted(starts, row, "right")) - 1
        return int(np.searchsorted(known[1], row, "right")) - 1

    @contextmanager
    def _opened(self, file: DataFile) -> Iterator[tuple[pq.ParquetFile, Int64s]]:
        """Open a file whose footer is right, with the first row of each group, and their end.

        FileNotFoundError if it is gone, TierCorrupt if its bytes do not add up.
        """
        known = self._footers.get(file.path)
        try:
            with self._storage.open(file.path, file.bytes) as source:
                metadata = None if known is None else known[0]
                parquet = pq.ParquetFile(source, metadata=metadata, page_checksum_verification=True, pre_buffer=True)
                if known is None:
                    _check(parquet, file, self._layout.file)
                    known = self._keep(file, parquet.metadata)
                yield parquet, known[1]
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            if isinstance(error, OSError) and error.errno:
                raise TierUnavailable(f"{file.path}: {error}") from error
            raise TierCorrupt(f"{file.path}: {error}") from error

    def _keep(self, file: DataFile, metadata: pq.FileMetaData) -> tuple[pq.FileMetaData, Int64s]:
        rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        known = metadata, np.cumsum([0, *rows], dtype=np.int64)
        if known[1][-1] != file.rows:
            raise TierCorrupt(f"{file.path}: its row groups do not add up to {file.rows} rows")
        with self._lock:
            self._footers[file.path] = known
            while len(self._footers) > FOOTERS:
                self._footers.popitem(last=False)
        return known


def _groups(
    parquet: pq.ParquetFile, file: DataFile, groups: Sequence[int], columns: list[str] | None = None
) -> pa.Table:
    expected = sum(parquet.metadata.row_group(group).num_rows for group in groups)
    table = parquet.read_row_groups(groups, columns=columns, use_threads=False)
    if table.num_rows != expected:
        raise TierCorrupt(f"{file.path}: {table.num_rows} rows where its footer says {expected}")
    return table


def _single(table: pa.Table) -> pa.RecordBatch:
    """Return a table as one batch; the reader makes one chunk of a row group, several of several groups."""
    return table.combine_chunks().to_batches()[0]


def matching(batch: pa.RecordBatch, at: int, where: Location) -> Row | None:
    """Return row `at` with a vector of its own, or None if it is not this id in this version."""
    if batch["version"][at].as_py() != where.version or batch["id"][at].as_py() != where.id:
        return None
    row = record.row_at(batch, at)
    return row if row.vector is None else replace(row, vector=row.vector.copy())
