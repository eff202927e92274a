"""Glacier's rows in numbered Parquet files: written, read by slot, and dropped by rewriting the files that hold them.

A slot is `file number << 24 | row in file`. A replaced file is read on until it is vacuumed (a reader may have looked
up its slots just before), except for the rows that were dropped from it.

`append`, `rewrite`, `clear`, `vacuum` and `raise_epochs` run on the writer thread; `fetch` and `scan` on the readers';
`find` and `live` anywhere: the maps they look in change by single assignments.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from errno import EDQUOT, ENOSPC
from itertools import chain, islice

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tiers import parquet, record
from tiers.archive import Archive
from tiers.deltalog import parse, path_of
from tiers.errors import Fenced, OutcomeUnknown, TierFull, TierUnavailable
from tiers.parquet import DataFile, Layout, Style
from tiers.record import Int64s, Row
from tiers.rewrite import Kept, Rewrite, regroup, small
from tiers.tier import Location

ROW_BITS = 24
FILE_ROWS_MAX = 1 << ROW_BITS

Bools = npt.NDArray[np.bool_]


def slots_of(number: int, rows: int) -> Int64s:
    """Return the slots of a file's rows."""
    return (number << ROW_BITS) + np.arange(rows, dtype=np.int64)


class Files:
    """The files of one archive. `clock` gives seconds since 1970; `bytes_limit` 0 = none."""

    def __init__(
        self,
        archive: Archive,
        layout: Layout,
        style: Style,
        *,
        rows_max: int,
        bytes_limit: int,
        clock: Callable[[], float],
    ) -> None:
        self.archive, self.layout, self._style = archive, layout, style
        self._rows_max, self._bytes_limit, self._clock = rows_max, bytes_limit, clock
        self._retired: dict[tuple[int, int], tuple[DataFile, Bools]] = {}  # with which rows are dropped
        self._owned: dict[int, int] = {}
        self._number = 0

    # -- looking -----------------------------------------------------------------------------------------------------

    def find(self, where: Location) -> tuple[DataFile, int] | None:
        """Return the file and row of a location; None if there is none, or the row was dropped."""
        key, row = (where.partition, where.slot >> ROW_BITS), where.slot & (FILE_ROWS_MAX - 1)
        file = self.archive.files.get(key)
        if file is None and key in self._retired:
            file, dropped = self._retired[key]
            if row < file.rows and dropped[row]:
                return None
        return (file, row) if file is not None and row < file.rows else None

    def live(self) -> list[DataFile]:
        """Return the files of the current snapshot by partition and number."""
        return [file for _, file in sorted(self.archive.files.items())]

    def bytes(self) -> int:
        """Return the bytes on disk: live files, and replaced ones until they are vacuumed."""
        retired = [file for file, _ in list(self._retired.values())]
        return sum(file.bytes for file in chain(list(self.archive.files.values()), retired))

    def fetch(self, file: DataFile, wanted: Sequence[tuple[int, Location]]) -> list[Row | None]:
        """Return the rows, None where another one lies or the file is gone."""
        try:
            return parquet.fetch(self.archive.disk, file, self.layout, wanted)
        except FileNotFoundError:
            return [None] * len(wanted)

    def scan(self, file: DataFile, start: int, rows_max: int) -> pa.RecordBatch:
        """Return the next rows of a file as records; TierUnavailable if it is gone."""
        try:
            return self.layout.decode(parquet.scan(self.archive.disk, file, self.layout, start, rows_max))
        except FileNotFoundError as error:
            raise TierUnavailable(f"{file.path} was replaced and vacuumed while it was read; begin again") from error

    # -- changing ----------------------------------------------------------------------------------------------------

    def raise_epochs(self, epochs: Mapping[int, int]) -> None:
        """Own these partitions (R4a), and number new files after all that exist."""
        self.archive.raise_epochs(epochs)
        self._owned.update(epochs)
        on_disk = [parse(found.path) for found in self.archive.disk.list("partition=*/e*.parquet")]
        numbers = [name[1] for name in on_disk if name] + [number for _, number in self.archive.files]
        self._number = max(self._number, *numbers, 0) + 1

    def owned(self, partition: int) -> dict[int, int]:
        """Return our epoch of a partition; Fenced if this process never raised one."""
        if partition not in self._owned:
            raise Fenced(f"this process never raised the epoch of partition {partition}")
        return {partition: self._owned[partition]}

    def append(self, batch: pa.RecordBatch, partition: npt.NDArray[np.int32]) -> Int64s:
        """Write rows to new files of their partitions, in one durable commit; returns their slots."""
        if self._bytes_limit and self.bytes() + batch.nbytes > self._bytes_limit:
            raise TierFull(f"glacier has no room for {batch.nbytes} bytes more (glacier.bytes_limit)")
        slots = np.empty(batch.num_rows, np.int64)
        numbers = np.unique(partition).tolist()
        owners = {number: epoch for each in numbers for number, epoch in self.owned(each).items()}
        with self._writing() as written:
            for number in numbers:
                rows = np.flatnonzero(partition == number)
                part = batch if len(rows) == batch.num_rows else batch.take(pa.array(rows))
                encoded = self.layout.encode(part)
                for start in range(0, len(rows), self._rows_max):
                    groups = regroup([encoded.slice(start, self._rows_max)], self._style.group_rows)
                    file = self._write(number, groups, written)
                    slots[rows[start : start + file.rows]] = slots_of(file.number, file.rows)
            self.archive.commit(owners, add=written)
        return slots

    def rewrite(self, partition: int, drop: Sequence[Location], merge_below_rows: int | None) -> Rewrite:
        """Drop exactly these rows and merge small files of the partition, in one durable commit."""
        owners = self.owned(partition)
        mine = [file for file in self.live() if file.partition == partition]
        doomed = self._doomed(drop)
        merged = small([file for file in mine if file.number not in doomed], merge_below_rows, self._rows_max)
        sources = [file for file in mine if file.number in doomed or file in merged]
        if not sources:
            return Rewrite.nothing()
        for file in sources:
            self.archive.disk.touch(file.path, self._clock())
        sources = [replace(file, touched_ms=int(self._clock() * 1000)) for file in sources]
        kept = Kept()
        with self._writing() as written:
            groups = regroup(self._survivors(sources, doomed, kept), self._style.group_rows)
            while (first := next(groups, None)) is not None:
                self._write(
                    partition, chain([first], islice(groups, self._rows_max // self._style.group_rows - 1)), written
                )
            self._replace(owners, sources, doomed, written)
        new_slots = [slots_of(file.number, file.rows) for file in written]
        return kept.rewrite(sum(int(rows.sum()) for rows in doomed.values()), new_slots)

    def _replace(
        self, owners: Mapping[int, int], sources: list[DataFile], doomed: Mapping[int, Bools], written: list[DataFile]
    ) -> None:
        """Commit new files for old ones. The old are found among the retired before they leave the live ones."""
        for file in sources:
            dropped = doomed.get(file.number, np.zeros(file.rows, bool))
            self._retired[file.partition, file.number] = (file, dropped)
        try:
            self.archive.commit(owners, add=written, remove=sources)
        except BaseException:
            for file in sources:
                del self._retired[file.partition, file.number]
            raise

    def clear(self) -> None:
        """Take every file of our partitions out of the archive, durably."""
        now_s = self._clock()
        sources = [replace(file, touched_ms=int(now_s * 1000)) for file in self.live() if file.partition in self._owned]
        for file in sources:
            self.archive.disk.touch(file.path, now_s)
        if sources:
            everything = {file.number: np.ones(file.rows, bool) for file in sources}
            for owner in sorted({file.partition for file in sources}):
                self._replace(self.owned(owner), [file for file in sources if file.partition == owner], everything, [])

    def vacuum(self, after_s: float) -> int:
        """Unlink files replaced, or left by a crash, more than `after_s` ago; returns how many."""
        gone = self.archive.vacuum(self._owned, self._clock() - after_s)
        for key in [key for path in gone if (key := self._key(path)) in self._retired]:
            del self._retired[key]
        return len(gone)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _write(self, partition: int, groups: Iterator[pa.RecordBatch], written: list[DataFile]) -> DataFile:
        """Write one file, durably, and read its footer back."""
        path = path_of(partition, self._owned[partition], self._number)
        now_ms = int(self._clock() * 1000)
        written.append(DataFile(partition, self._number, path, 0, 0, now_ms))
        self._number += 1
        rows = parquet.write(self.archive.disk, path, self.layout.file, self._style, groups)
        self.archive.disk.sync([path])
        written[-1] = parquet.prove(self.archive.disk, replace(written[-1], rows=rows), self.layout.file)
        return written[-1]

    @contextmanager
    def _writing(self) -> Iterator[list[DataFile]]:
        """Collect the files of one commit, and unlink them if it did not come; one that may have come keeps them."""
        written: list[DataFile] = []
        try:
            yield written
        except OutcomeUnknown:
            raise
        except BaseException as error:
            for file in written:
                self.archive.disk.remove(file.path)
            if isinstance(error, OSError):
                full = error.errno in (ENOSPC, EDQUOT)
                raise (TierFull if full else TierUnavailable)(f"glacier did not write: {error}") from error
            raise

    def _doomed(self, drop: Sequence[Location]) -> dict[int, Bools]:
        """Return, by file number, which rows are to go: those that really are the id and version asked for."""
        asked: defaultdict[DataFile, dict[int, Location]] = defaultdict(dict)
        for where in drop:
            file = self.archive.files.get((where.partition, where.slot >> ROW_BITS))
            if file is not None:
                asked[file][where.slot & (FILE_ROWS_MAX - 1)] = where
        doomed: dict[int, Bools] = {}
        for file, rows in asked.items():
            mask = np.zeros(file.rows, bool)
            for start, batch in self._batches(file, ["id", "version"]):
                versions, ids = record.versions_of(batch), batch["id"]
                for row in [row for row in rows if start <= row < start + batch.num_rows]:
                    mask[row] = versions[row - start] == rows[row].version and ids[row - start].as_py() == rows[row].id
            if mask.any():
                doomed[file.number] = mask
        return doomed

    def _batches(self, file: DataFile, columns: list[str] | None = None) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield a file as it is stored, with the row that each batch starts at."""
        start = 0
        while start < file.rows:
            batch = parquet.scan(self.archive.disk, file, self.layout, start, self._style.group_rows, columns)
            yield start, batch
            start += batch.num_rows

    def _survivors(
        self, sources: Sequence[DataFile], doomed: Mapping[int, Bools], kept: Kept
    ) -> Iterator[pa.RecordBatch]:
        for file in sources:
            for start, batch in self._batches(file):
                slots = slots_of(file.number, file.rows)[start : start + batch.num_rows]
                if file.number in doomed:
                    stay = ~doomed[file.number][start : start + batch.num_rows]
                    batch, slots = batch.filter(pa.array(stay)), slots[stay]
                kept.add(batch, slots)
                yield batch

    def _key(self, path: str) -> tuple[int, int]:
        name = parse(path)
        assert name is not None, "the archive vacuums only names of ours"
        return name
