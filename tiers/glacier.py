"""The glacier tier: the coldest rows, as Parquet files under a Delta log that any lakehouse engine reads.

The event-loop face of tiers/files.py (files and slots), tiers/archive.py (the commit path) and tiers/recent.py (the
cache). All writes run on one thread, reads of files on a few. Where it lies is behind tiers/storage.py.

Every write carries the partition's ownership epoch, and the archive refuses an older one (R4a): call `raise_epoch` for
each partition before anything else, `retrieve_all` included. A tier used alone raises all of its own at open.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tiers import disk, recent, record
from tiers.alone import choose, find, open_alone, settle
from tiers.archive import Archive
from tiers.census import Census
from tiers.errors import TierCorrupt
from tiers.files import Files
from tiers.glacier_settings import BATCH_ROWS_MAX, GlacierSettings, check, storage, style
from tiers.index import Index
from tiers.layout import Layout
from tiers.listed import Known
from tiers.parquet import DataFile
from tiers.recent import Recent, same, same_vector
from tiers.record import Bools, Int64s, Row
from tiers.rewrite import Rewrite
from tiers.storage import Storage
from tiers.takeout import take_out
from tiers.tier import AT_ONCE_ROWS, SKIPPED, Location, Places, Query, Receipt, Result, TierName, Usage, Vectors
from tiers.worker import SerialExecutor

ENTRY_ROWS = 16_384  # of a file, looked through at once for rows that need their vectors

T = TypeVar("T")


class Missing(NamedTuple):
    """A row asked for that the cache does not have: which of those asked, and the file and row where it lies."""

    at: int
    where: Location
    file: DataFile
    row: int


class GlacierMemory:
    """The glacier tier. A slot is a file's number and a row in it; `rewrite` gives rows new ones."""

    name = TierName.GLACIER

    def __init__(
        self, settings: GlacierSettings, shape: pa.Schema, where: Storage, *, partitions: int, index: Index | None
    ) -> None:
        self.settings, self.shape, self.partitions = settings, shape, partitions
        self._alone = index is None
        self.index = index if index is not None else Index.of(shape)
        self._turn = asyncio.Lock()  # alone, a store chooses by what the store before it has settled
        self._recent = Recent(settings.cache_bytes)
        self._groups_max = settings.search_groups_max if where.remote else 0
        self._writer = SerialExecutor("glacier")
        self._readers = SerialExecutor("glacier-read", where.readers)
        self._files: Files

    @classmethod
    async def open(
        cls,
        settings: GlacierSettings,
        shape: pa.Schema,
        *,
        partitions: int,
        index: Index | None = None,
        fsync: Callable[[Path], None] = disk.fsync,
        clock: Callable[[], float] = time.time,
    ) -> GlacierMemory:
        """Open the archive, creating it if absent; ServiceMissing if it cannot be, or was made for another shape."""
        check(settings)
        where = storage(settings, fsync)
        glacier = cls(settings, shape, where, partitions=partitions, index=index)
        try:
            glacier._files = await glacier._writer.run(_open, settings, shape, partitions, where, clock)
            if glacier._alone:
                epochs = {number: epoch + 1 for number, epoch in glacier._files.archive.epochs.items()}
                await glacier._writer.run(glacier._files.raise_epochs, epochs)
                await open_alone(glacier, glacier.index, partitions)
        except BaseException:
            await glacier.cleanup()
            raise
        return glacier

    def __repr__(self) -> str:
        return f"<GlacierMemory {self._files.archive!r}, {self._recent.bytes} bytes cached>"

    # -- the fence ---------------------------------------------------------------------------------------------------

    def epoch(self, partition: int) -> int:
        """Return the partition's ownership epoch as this process last saw it, 0 if none was ever raised."""
        return self._files.archive.epochs.get(partition, 0)

    async def raise_epoch(self, partition: int, epoch: int) -> None:
        """Make this process the partition's owner, durably (R4a); Fenced if the archive has a higher epoch."""
        await self._writer.run(self._files.raise_epochs, {partition: epoch})

    # -- the tier ----------------------------------------------------------------------------------------------------

    async def store(self, batch: pa.RecordBatch) -> Receipt:
        """Put if newer: a file a partition, all in one commit."""
        if not self._alone:
            return await self._store(batch)
        async with self._turn:
            receipt = await self._store(batch)
            await settle(self, self.index, self.partitions, receipt, batch)
            return receipt

    async def _store(self, batch: pa.RecordBatch) -> Receipt:
        choice = await choose(self.index, self.name, batch)
        slots = np.empty(0, np.int64)
        if choice.winners.num_rows:
            partition = record.partitions(choice.winners["id"], self.partitions)
            slots, stored = await self._writer.run(self._append, choice.winners, partition)
            self._recent.keep_blocks(stored)
        return choice.receipt(self.name, slots, self._files.archive.storage.proof)

    def _append(
        self, batch: pa.RecordBatch, partition: npt.NDArray[np.int32]
    ) -> tuple[Int64s, list[tuple[recent.Block, pa.RecordBatch]]]:
        slots = self._files.append(batch, partition)
        return slots, recent.blocks(batch, partition, slots)

    async def retrieve(self, query: Query) -> Result:
        """See Tier."""
        return await find(self, self.index, query)

    async def retrieve_all(self) -> AsyncIterator[pa.RecordBatch]:
        """See Tier; by partition, file and row, of the snapshot at the call."""
        for file in self._files.live():
            start = 0
            while start < file.rows:
                batch = await self._readers.run(self._scan, file, start)
                slots = file.slots()[start : start + batch.num_rows]
                yield batch.append_column("slot", pa.array(slots))
                start += batch.num_rows

    async def entries(self, known: Known) -> AsyncIterator[pa.RecordBatch]:
        """See rebuild.Sparse; by partition, file and row, of the snapshot at the call."""
        jobs = (partial(self._files.entries, file, ENTRY_ROWS, known) for file in self._files.live())
        async for batches in self._readers.ahead(jobs):
            for batch in batches:
                yield batch

    def _scan(self, file: DataFile, start: int) -> pa.RecordBatch:
        return self._files.layout.decode(self._files.scan(file, start, BATCH_ROWS_MAX))

    async def get(self, locations: Sequence[Location]) -> list[Row | None]:
        """See Tier. From the cache at once, else from the files on the reading threads. TierCorrupt is raised."""
        found, missing = self._cached(locations, self._recent.find)
        for at, row in await self._read(missing):
            found[at] = row
        return found

    async def sizes(self, places: Places) -> Int64s:
        """See Tier; what a row of its file takes on the average."""
        files = [self._files.find(where) for where in places]
        return np.array([0 if found is None else found[0].bytes // found[0].rows for found in files], np.int64)

    async def gather(self, places: Places) -> tuple[pa.RecordBatch, Bools]:
        """See Tier; row by row, since nothing moves out of here but single records on their way up."""
        return record.present(await self.get(places), self.shape)

    async def vectors(self, places: Places, *, spent: int | None = 0) -> Vectors:
        """See Tier. From a bucket at most `search_groups_max` row groups are read, those of the most wanted rows."""
        found, missing = self._cached(places, self._recent.vector)
        if not missing:
            return Vectors(found)
        groups = await self._readers.run(self._files.groups, [(each.file, each.row) for each in missing])
        read = list(dict.fromkeys(groups))
        if spent is not None and self._groups_max:
            read = read[: max(0, self._groups_max - spent)]
        chosen = [each for each, group in zip(missing, groups, strict=True) if group in read]
        for each in missing:
            found[each.at] = SKIPPED
        for at, row in await self._read(chosen):
            found[at] = None if row is None else row.vector
        return Vectors(found, len(read))

    def vectors_at_once(self, places: Places) -> Vectors | None:
        """See Tier: what is in the cache."""
        if len(places) > AT_ONCE_ROWS:
            return None
        found, missing = self._cached(places, self._recent.vector)
        return None if missing else Vectors(found)

    def _cached(
        self, locations: Sequence[Location], look: Callable[[Location], T | None]
    ) -> tuple[list[T | None], list[Missing]]:
        """Return what a look into the cache finds of each, and which rows have to be read."""
        found: list[T | None] = [None] * len(locations)
        missing: list[Missing] = []
        for at, where in enumerate(locations):
            place = self._files.find(where)
            if place is not None:
                found[at] = look(where)
                if found[at] is None:
                    missing.append(Missing(at, where, *place))
        return found, missing

    async def _read(self, missing: Sequence[Missing]) -> list[tuple[int, Row | None]]:
        """Read rows from their files and keep them."""
        found = await self._fetch(missing)
        self._recent.keep_rows(row for _, row in found if row is not None)
        return found

    async def _fetch(self, missing: Sequence[Missing]) -> list[tuple[int, Row | None]]:
        """Read rows from their files; a stretch of a file is one job, so that all threads have some."""
        stretches: dict[tuple[DataFile, int], list[Missing]] = {}
        for each in missing:
            stretches.setdefault((each.file, each.row // BATCH_ROWS_MAX), []).append(each)
        jobs = [
            self._readers.run(self._files.fetch, file, [(each.row, each.where) for each in members])
            for (file, _), members in stretches.items()
        ]
        found: list[tuple[int, Row | None]] = []
        for members, rows in zip(stretches.values(), await asyncio.gather(*jobs), strict=True):
            found += [(each.at, row) for each, row in zip(members, rows, strict=True)]
        return found

    async def evict(self, keys: Sequence[Location], receipt: Receipt | None) -> int:  # noqa: ARG002 - the protocol's
        """See Tier. The rows that stay in the rewritten files get new slots, which the index follows."""
        dropped = 0
        for partition in dict.fromkeys(where.partition for where in keys):
            done = await self.rewrite(partition, [where for where in keys if where.partition == partition])
            self.index.relocate_slots(self.name, done.ids, done.versions, done.old_slots, done.new_slots)
            dropped += done.dropped
        return dropped

    def together(self, keys: Sequence[Location]) -> list[Location]:
        """Return those of these rows that one rewrite should drop: of a few files, where it is worth most."""
        return self._files.together(keys)

    def crowded(self, partition: int) -> bool:
        """Say whether a partition has so many small files that a rewrite would merge some."""
        return self._files.crowded(partition)

    async def rewrite(self, partition: int, drop: Sequence[Location], merge_below_rows: int | None = None) -> Rewrite:
        """Drop exactly these rows by rewriting their files, in one commit; the caller moves the others' slots.

        Old slots of the others stay readable until `vacuum`. Small files are merged on the way: those below
        `merge_below_rows`, or, where None, those below half a file once there are 16.
        """
        return await self._writer.run(self._files.rewrite, partition, drop, merge_below_rows)

    async def vacuum(self) -> int:
        """Remove files replaced, or left by a crash, longer ago than the settings say; returns how many."""
        return await self._writer.run(self._files.vacuum, self.settings.vacuum_after_s)

    async def clear(self) -> None:
        """See Tier: one commit that takes every file of our partitions out."""
        async with self._turn:
            await self._writer.run(self._files.clear)
            self._recent.clear()
            if self._alone:
                self.index = Index.of(self.shape, self.index.metric)

    def file_of(self, where: Location) -> DataFile | None:
        """Return the file that holds a location now, replaced ones that are not vacuumed yet among them."""
        place = self._files.find(where)
        return None if place is None else place[0]

    @property
    def uri(self) -> str:
        """Where the archive is."""
        return self._files.archive.storage.uri

    async def state(self) -> tuple[int, list[DataFile]]:
        """Return a version of the Delta table, and its files by partition and number; of one moment between commits."""
        return await self._writer.run(lambda: (self._files.archive.log.version, self._files.live()))

    async def survey(self, file: DataFile) -> tuple[list[str], Int64s]:
        """Return ids and versions of a file's rows, all of it read and held against its checksums.

        TierCorrupt when something is wrong with it; TierUnavailable when it was replaced and vacuumed.
        """
        return await self._readers.run(self._survey, file)

    def _survey(self, file: DataFile) -> tuple[list[str], Int64s]:
        try:
            size = self._files.archive.storage.size(file.path)
        except FileNotFoundError:
            size = -1
        if size != file.bytes and file.key in self._files.archive.files:
            raise TierCorrupt(f"{file.path} has {size} bytes, and the log says {file.bytes}")
        ids: list[str] = []
        versions = np.empty(file.rows, np.int64)
        while len(ids) < file.rows:
            batch = self._files.scan(file, len(ids), BATCH_ROWS_MAX)
            versions[len(ids) : len(ids) + batch.num_rows] = batch["version"].to_numpy()
            ids += batch["id"].to_pylist()
        return ids, versions

    async def look(self, where: Location) -> Row | None:
        """Return a row from its file, past the cache; None where another one lies, or the file was replaced."""
        place = self._files.find(where)
        if place is None or place[0].key not in self._files.archive.files:
            return None
        return (await self._readers.run(self._files.fetch, place[0], [(place[1], where)]))[0]

    async def miscached(self, locations: Sequence[Location]) -> list[Location]:
        """Return those of these rows that the cache shows otherwise than their files do; TierCorrupt."""
        held = {at: self._recent.find(where) for at, where in enumerate(locations)}
        shown = [at for at, row in held.items() if row is not None and self._files.find(locations[at]) is not None]
        vectors = {at: self._recent.vector(locations[at]) for at in shown}
        wanted = [Missing(at, locations[at], *self._files.find(locations[at])) for at in shown]  # type: ignore[misc]
        return [
            locations[at]
            for at, row in await self._fetch(wanted)
            if row is not None and not (same(row, held[at]) and same_vector(row.vector, vectors[at]))
        ]

    def forget(self, locations: Iterable[Location]) -> None:
        """Take rows out of the cache: the next read has them from their files."""
        for where in locations:
            self._recent.forget(where)

    async def take_out(self, file: DataFile, target: Path) -> int:
        """Put a file of the archive in a directory of this machine; returns the bytes that had to be copied.

        Linked where it lies on the same disk. FileNotFoundError when it was vacuumed; TierUnavailable.
        """
        return await self._readers.run(take_out, self._files.archive.storage, file, target)

    async def usage(self) -> Usage:
        """See Tier. Superseded rows count; so do the bytes of replaced files until they are vacuumed."""
        rows = sum(file.rows for file in self._files.live())
        return Usage(rows, self._files.bytes(), bytes_limit=self.settings.bytes_limit)

    def census(self) -> Census:
        """Return how many files there are, what upkeep has done, and what was asked of a bucket."""
        return self._files.census()

    async def cleanup(self) -> None:
        """See Tier."""
        self._writer.close()
        self._readers.close()


def _open(
    settings: GlacierSettings, shape: pa.Schema, partitions: int, where: Storage, clock: Callable[[], float]
) -> Files:
    layout = Layout(shape)
    archive = Archive.open(where, layout.table, partitions, layout.facts(partitions))
    return Files(archive, layout, style(settings), bytes_limit=settings.bytes_limit, clock=clock)
