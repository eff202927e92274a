"""Glacier's rows in numbered Parquet files: written, read by slot, and dropped by rewriting the files that hold them.

A slot is `file number << 24 | row in file`. A replaced file is read on until it is vacuumed (a reader may have looked
up its slots just before), except for the rows that were dropped from it.

`append`, `rewrite`, `clear`, `vacuum` and `raise_epochs` run on the writer thread; `fetch` and `scan` on the readers';
`find`, `live`, `bytes` and `census` anywhere: the maps they look in are never changed in place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from errno import EDQUOT, ENOSPC
from itertools import chain

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tiers import failpoint, parquet, rewrite
from tiers.archive import Archive
from tiers.census import Census, Done
from tiers.deltalog import folder_of, path_of
from tiers.errors import Fenced, OutcomeUnknown, TierCorrupt, TierError, TierFull, TierUnavailable
from tiers.layout import Layout
from tiers.listed import Known, all_known
from tiers.parquet import DataFile, Key, Reader, Style, place
from tiers.record import Int64s, Row
from tiers.replay import parse
from tiers.retired import Retired
from tiers.rewrite import MERGE_FILES, Bools, Kept, Rewrite, is_small, regroup, small
from tiers.tier import Location

REWRITE_FILES = 4  # that one rewrite takes to drop rows from: some seconds of a lane


class Files:
    """The files of one archive. `clock` gives seconds since 1970; `bytes_limit` 0 = none."""

    def __init__(
        self, archive: Archive, layout: Layout, style: Style, *, bytes_limit: int, clock: Callable[[], float]
    ) -> None:
        self.archive, self.layout, self._style = archive, layout, style
        self._reader = Reader(archive.storage, layout)
        self._bytes_limit, self._clock = bytes_limit, clock
        self._retired = Retired(clock)
        self._owned: dict[int, int] = {}
        self._number = 1  # of the next file
        self.done = Done()

    # -- looking -----------------------------------------------------------------------------------------------------

    def find(self, where: Location) -> tuple[DataFile, int] | None:
        """Return the file and row of a location; None if there is none, or the row was dropped."""
        key, row = place(where)
        file = self.archive.files.get(key)
        if file is not None:
            return (file, row) if row < file.rows else None
        replaced = self._retired.find(key, row)
        return None if replaced is None else (replaced, row)

    def groups(self, rows: Sequence[tuple[DataFile, int]]) -> list[tuple[Key, int]]:
        """Return the row group of each row; of files whose footer is not known yet, the footers are read."""
        return [(file.key, self._group(file, row)) for file, row in rows]

    def _group(self, file: DataFile, row: int) -> int:
        try:
            return self._reader.group(file, row)
        except FileNotFoundError as error:
            self._vacuumed(file, error)
            return 0

    def live(self) -> list[DataFile]:
        """Return the files of the current snapshot by partition and number."""
        return [file for _, file in sorted(self.archive.files.items())]

    def bytes(self) -> int:
        """Return the bytes on disk: live files, and replaced ones until they are vacuumed."""
        return sum(file.bytes for file in self.archive.files.values()) + self._retired.bytes()

    def census(self) -> Census:
        """Return how many files there are, of which kind."""
        files = self.archive.files.values()
        return Census(
            files=len(files),
            bytes=sum(file.bytes for file in files),
            small_files=sum(is_small(file, self._style) for file in files),
            waiting_files=len(self._retired),
            waiting_bytes=self._retired.bytes(),
            log_entries=self.archive.log.entries,
            done=self.done,
            requests=self.archive.storage.traffic.counts(),
        )

    def crowded(self, partition: int) -> bool:
        """Say whether a rewrite of a partition would merge small files unasked."""
        mine = (file for file in self.archive.files.values() if file.partition == partition)
        return sum(is_small(file, self._style) for file in mine) >= MERGE_FILES

    def together(self, keys: Sequence[Location]) -> list[Location]:
        """Return the rows in the REWRITE_FILES files of which most is to go, and the rows in no file."""
        named = [place(where)[0] for where in keys]
        files, rows = self.archive.files, Counter(named)
        there = sorted((key for key in rows if key in files), key=lambda key: rows[key] / files[key].rows)
        late = set(there[:-REWRITE_FILES])
        return [where for where, key in zip(keys, named, strict=True) if key not in late] if late else list(keys)

    def fetch(self, file: DataFile, wanted: Sequence[tuple[int, Location]]) -> list[Row | None]:
        """Return the rows, None where another one lies or the file was vacuumed; TierCorrupt if it got lost."""
        try:
            return self._reader.fetch(file, wanted)
        except FileNotFoundError as error:
            self._vacuumed(file, error)
            return [None] * len(wanted)

    def scan(self, file: DataFile, start: int, rows_max: int, columns: list[str] | None = None) -> pa.RecordBatch:
        """Return the next row groups of a file, as they are stored; TierUnavailable if it was vacuumed."""
        try:
            return self._reader.scan(file, start, rows_max, columns)
        except FileNotFoundError as error:
            self._vacuumed(file, error)
            raise TierUnavailable(f"{file.path} was replaced and vacuumed while it was read; begin again") from error

    def entries(self, file: DataFile, rows_max: int, known: Known) -> list[pa.RecordBatch]:
        """Return the rows of a file without vectors, or with them in a stretch where one is not known by its code."""
        found: list[pa.RecordBatch] = []
        start = 0
        while start < file.rows:
            columns = [name for name in self.layout.file.names if name not in ("vector", "payload")]
            part = self.layout.entries(self.scan(file, start, rows_max, columns), file.partition, file.slots()[start:])
            if not all_known(part, known):
                stored = self.scan(file, start, rows_max, [*columns, "vector"])
                part = self.layout.entries(stored, file.partition, file.slots()[start:])
            found.append(part)
            start += part.num_rows
        return found

    def _vacuumed(self, file: DataFile, error: FileNotFoundError) -> None:
        if file.key in self.archive.files:
            raise TierCorrupt(f"{file.path} is in the archive's log and not in its place") from error

    # -- changing ----------------------------------------------------------------------------------------------------

    def raise_epochs(self, epochs: Mapping[int, int]) -> None:
        """Own these partitions (R4a), and number new files after all that exist."""
        self.archive.raise_epochs(epochs)
        self._owned.update(epochs)
        named = {file.path for file in self.archive.files.values()}
        there = [path for partition in epochs for path in self.archive.storage.list(folder_of(partition))]
        numbers = [name[1] for name in map(parse, there) if name] + [number for _, number in self.archive.files]
        self._number = max(self._number, 1 + max(numbers, default=0))
        self._retired.note(path for path in there if parse(path) and path not in named)

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
                files = self._write(number, regroup([self.layout.encode(part)], self._style), written)
                slots[rows] = np.concatenate([file.slots() for file in files])
            self.archive.commit(owners, add=written)
        return slots

    def rewrite(self, partition: int, drop: Sequence[Location], merge_below_rows: int | None) -> Rewrite:
        """Drop exactly these rows and merge small files of the partition, in one durable commit."""
        owners = self.owned(partition)
        mine = {file.key: file for file in self.live() if file.partition == partition}
        doomed = rewrite.doomed(mine, drop, self._batches)
        merged = small([file for file in mine.values() if file.key not in doomed], merge_below_rows, self._style)
        sources = [file for file in mine.values() if file.key in doomed or file in merged]
        if not sources:
            return Rewrite.nothing()
        kept = Kept()
        with self._writing() as written:
            self._write(
                partition, regroup(rewrite.survivors(sources, doomed, kept, self._batches), self._style), written
            )
            self._replace(owners, sources, doomed, written)
        dropped = sum(int(mask.sum()) for mask in doomed.values())
        self.done.rewrites += 1
        self.done.rewritten_files += len(sources)
        self.done.dropped_rows += dropped
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
        """Commit new files for old ones. Readers find the old among the retired before they leave the live ones."""
        now_ms = int(self._clock() * 1000)
        with self._retired.replacing(sources, doomed):
            gone = [replace(file, touched_ms=now_ms) for file in sources]
            self.archive.commit(owners, add=written, remove=gone)

    def vacuum(self, after_s: float) -> int:
        """Remove files that the log has not named for `after_s`; returns how many. Fenced if they are not ours."""
        due = self._retired.due(after_s)
        if not due:
            return 0
        gone = self.archive.unnamed(self._owned, due)
        failpoint.reach("archive.vacuum_due")
        self.archive.storage.remove(gone)
        self._retired.forget(due)
        self.done.vacuumed_files += len(gone)
        self.done.vacuumed_s = self._clock()
        return len(gone)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _write(self, partition: int, groups: Iterator[pa.RecordBatch], written: list[DataFile]) -> Sequence[DataFile]:
        """Write row groups to as many files as they fill, durably, and read their footers back; returns these files."""
        storage, start = self.archive.storage, len(written)
        while (first := next(groups, None)) is not None:
            groups = chain([first], groups)
            path = path_of(partition, self._owned[partition], self._number)
            written.append(DataFile(partition, self._number, path, 0, 0, int(self._clock() * 1000)))
            self._number += 1
            try:
                rows = parquet.write(storage, path, self.layout.file, self._style, groups)
            except FileExistsError:
                written.pop()  # not ours to remove
                raise
            failpoint.reach("archive.file_written")
            storage.sync([path])
            failpoint.reach("archive.file_synced")
            written[-1] = parquet.prove(storage, replace(written[-1], rows=rows), self.layout.file)
        return written[start:]

    @contextmanager
    def _writing(self) -> Iterator[list[DataFile]]:
        """Collect the files of one commit, and remove them if it did not come; one that may have come keeps them.

        Vacuum removes them again: a write that was not answered may end after the removal.
        """
        written: list[DataFile] = []
        try:
            yield written
        except OutcomeUnknown:
            raise
        except BaseException as error:
            self._retired.note(file.path for file in written)
            with suppress(OSError, TierError):
                self.archive.storage.remove([file.path for file in written])
            if isinstance(error, OSError):
                full = error.errno in (ENOSPC, EDQUOT)
                raise (TierFull if full else TierUnavailable)(f"glacier did not write: {error}") from error
            raise

    def _batches(self, file: DataFile, columns: list[str] | None) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield a file as it is stored, with the row that each batch starts at."""
        start = 0
        while start < file.rows:
            batch = self.scan(file, start, self._style.group_rows, columns)
            yield start, batch
            start += batch.num_rows
