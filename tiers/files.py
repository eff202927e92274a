"""Glacier's rows in numbered Parquet files: written, read by slot, and dropped by rewriting the files that hold them.

A slot is `file number << 24 | row in file`. A replaced file is read on until it is vacuumed (a reader may have looked
up its slots just before), except for the rows that were dropped from it.

`append`, `rewrite`, `clear`, `vacuum` and `raise_epochs` run on the writer thread; `fetch` and `scan` on the readers';
`find`, `live` and `bytes` anywhere: the maps they look in are never changed in place.
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

from tiers import parquet
from tiers.archive import Archive
from tiers.deltalog import parse, path_of
from tiers.errors import Fenced, OutcomeUnknown, TierCorrupt, TierFull, TierUnavailable
from tiers.parquet import DataFile, Layout, Style, place
from tiers.record import Int64s, Row
from tiers.rewrite import KEYS, Bools, Kept, Rewrite, matching, none_of, regroup, small
from tiers.tier import Location

Key = tuple[int, int]  # partition, file number


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
        self._retired: dict[Key, tuple[DataFile, Bools]] = {}  # replaced files, and which of their rows were dropped
        self._owned: dict[int, int] = {}
        self._number = 1  # of the next file

    # -- looking -----------------------------------------------------------------------------------------------------

    def find(self, where: Location) -> tuple[DataFile, int] | None:
        """Return the file and row of a location; None if there is none, or the row was dropped."""
        key, row = place(where)
        file = self.archive.files.get(key)
        if file is not None:
            return (file, row) if row < file.rows else None
        held = self._retired.get(key)
        if held is None or row >= held[0].rows or held[1][row]:
            return None
        return held[0], row

    def live(self) -> list[DataFile]:
        """Return the files of the current snapshot by partition and number."""
        return [file for _, file in sorted(self.archive.files.items())]

    def bytes(self) -> int:
        """Return the bytes on disk: live files, and replaced ones until they are vacuumed."""
        retired = (file for file, _ in self._retired.values())
        return sum(file.bytes for file in chain(self.archive.files.values(), retired))

    def fetch(self, file: DataFile, wanted: Sequence[tuple[int, Location]]) -> list[Row | None]:
        """Return the rows, None where another one lies or the file was vacuumed; TierCorrupt if it got lost."""
        try:
            return parquet.fetch(self.archive.disk, file, self.layout, wanted)
        except FileNotFoundError as error:
            self._vacuumed(file, error)
            return [None] * len(wanted)

    def scan(self, file: DataFile, start: int, rows_max: int, columns: list[str] | None = None) -> pa.RecordBatch:
        """Return the next row groups of a file, as they are stored; TierUnavailable if it was vacuumed."""
        try:
            return parquet.scan(self.archive.disk, file, self.layout, start, rows_max, columns)
        except FileNotFoundError as error:
            self._vacuumed(file, error)
            raise TierUnavailable(f"{file.path} was replaced and vacuumed while it was read; begin again") from error

    def _vacuumed(self, file: DataFile, error: FileNotFoundError) -> None:
        if file.key in self.archive.files:
            raise TierCorrupt(f"{file.path} is in the archive's log and not on its disk") from error

    # -- changing ----------------------------------------------------------------------------------------------------

    def raise_epochs(self, epochs: Mapping[int, int]) -> None:
        """Own these partitions (R4a), and number new files after all that exist."""
        self.archive.raise_epochs(epochs)
        self._owned.update(epochs)
        on_disk = [parse(found.path) for found in self.archive.disk.list("partition=*/e*.parquet")]
        numbers = [name[1] for name in on_disk if name] + [number for _, number in self.archive.files]
        self._number = max(self._number, 1 + max(numbers, default=0))

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
                    slots[rows[start : start + file.rows]] = file.slots()
            self.archive.commit(owners, add=written)
        return slots

    def rewrite(self, partition: int, drop: Sequence[Location], merge_below_rows: int | None) -> Rewrite:
        """Drop exactly these rows and merge small files of the partition, in one durable commit."""
        owners = self.owned(partition)
        mine = [file for file in self.live() if file.partition == partition]
        doomed = self._doomed([where for where in drop if where.partition == partition])
        merged = small([file for file in mine if file.key not in doomed], merge_below_rows, self._rows_max)
        sources = [file for file in mine if file.key in doomed or file in merged]
        if not sources:
            return Rewrite.nothing()
        kept = Kept()
        with self._writing() as written:
            groups = regroup(self._survivors(sources, doomed, kept), self._style.group_rows)
            while (first := next(groups, None)) is not None:
                others = islice(groups, self._rows_max // self._style.group_rows - 1)
                self._write(partition, chain([first], others), written)
            self._replace(owners, sources, doomed, written)
        dropped = sum(int(rows.sum()) for rows in doomed.values())
        return kept.rewrite(dropped, [file.slots() for file in written])

    def clear(self) -> None:
        """Take every file of our partitions out of the archive, in one durable commit."""
        sources = [file for file in self.live() if file.partition in self._owned]
        owners = {file.partition: self._owned[file.partition] for file in sources}
        if sources:
            with self._writing() as nothing:
                self._replace(owners, sources, {file.key: np.ones(file.rows, bool) for file in sources}, nothing)

    def _replace(
        self,
        owners: Mapping[int, int],
        sources: Sequence[DataFile],
        doomed: Mapping[Key, Bools],
        written: Sequence[DataFile],
    ) -> None:
        """Commit new files for old ones, which are touched first (see Archive.vacuum).

        Readers find the old ones among the retired before they leave the live ones.
        """
        now_s, before = self._clock(), self._retired
        for file in sources:
            self.archive.disk.touch(file.path, now_s)
        self._retired = {**before, **{file.key: (file, doomed.get(file.key, none_of(file))) for file in sources}}
        try:
            gone = [replace(file, touched_ms=int(now_s * 1000)) for file in sources]
            self.archive.commit(owners, add=written, remove=gone)
        except BaseException:
            self._retired = before
            raise

    def vacuum(self, after_s: float) -> int:
        """Unlink files replaced, or left by a crash, more than `after_s` ago; returns how many."""
        gone = self.archive.vacuum(self._owned, self._clock() - after_s)
        self._retired = {key: held for key, held in self._retired.items() if held[0].path not in gone}
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

    def _doomed(self, drop: Sequence[Location]) -> dict[Key, Bools]:
        """Return, by file, which rows are to go: those that really are the id and version asked for."""
        asked: defaultdict[Key, list[tuple[int, Location]]] = defaultdict(list)
        for where in drop:
            key, row = place(where)
            asked[key].append((row, where))
        doomed: dict[Key, Bools] = {}
        for key, rows in asked.items():
            file = self.archive.files.get(key)
            if file is not None and (mask := matching(file, rows, self._batches(file, KEYS))).any():
                doomed[key] = mask
        return doomed

    def _batches(self, file: DataFile, columns: list[str] | None = None) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield a file as it is stored, with the row that each batch starts at."""
        start = 0
        while start < file.rows:
            batch = self.scan(file, start, self._style.group_rows, columns)
            yield start, batch
            start += batch.num_rows

    def _survivors(
        self, sources: Sequence[DataFile], doomed: Mapping[Key, Bools], kept: Kept
    ) -> Iterator[pa.RecordBatch]:
        for file in sources:
            for start, batch in self._batches(file):
                slots = file.slots()[start : start + batch.num_rows]
                stay = ~doomed.get(file.key, none_of(file))[start : start + batch.num_rows]
                part = batch if stay.all() else batch.filter(pa.array(stay))
                kept.add(part, slots[stay])
                yield part
