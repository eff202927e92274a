"""The glacier tier: the coldest rows, as Parquet files under a Delta log that any lakehouse engine reads.

The event-loop face of tiers/files.py (files and slots), tiers/archive.py (the commit path) and tiers/recent.py (the
cache). All writes run on one thread, reads of files on two.

Every write carries the partition's ownership epoch, and the archive refuses an older one (R4a): call `raise_epoch` for
each partition before anything else, `retrieve_all` included. A tier used alone raises all of its own at open.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tiers import disk, recent, record
from tiers.alone import choose, find, open_alone, settle
from tiers.archive import Archive
from tiers.disk import Disk
from tiers.errors import SettingsError
from tiers.files import Files
from tiers.index import Index
from tiers.parquet import FILE_ROWS_MAX, DataFile, Layout, Style
from tiers.recent import Recent
from tiers.record import Int64s, Row
from tiers.rewrite import Rewrite
from tiers.tier import Location, Query, Receipt, Result, TierName, Usage
from tiers.worker import SerialExecutor

BATCH_ROWS_MAX = 8192  # of what `retrieve_all` yields
READ_THREADS = 2
COMPRESSIONS = ("zstd", "snappy", "none")
PROOF = "file, directory and Delta log entry fsynced and read back"


class GlacierSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`path` is a local directory; empty means `glacier` below the data directory. `level` is zstd's.

    A row group of `row_group_rows` is what one read decodes; a file has up to `file_rows_max` rows. `cache_bytes`
    bounds the rows kept in memory. Replaced files are unlinked `vacuum_after_s` later: so long a reader may hold on to
    a version. `bytes_limit` bounds the bytes on disk, replaced files among them (0 = none).
    """

    path: str = ""
    row_group_rows: int = 1024
    file_rows_max: int = 65_536
    compression: str = "zstd"
    level: int = 3
    cache_bytes: int = 268_435_456
    vacuum_after_s: float = 3600.0
    bytes_limit: int = 0


def check(settings: GlacierSettings) -> None:
    """Refuse what cannot work."""
    wrong = [
        ("path", not settings.path, "name the directory of the archive"),
        ("row_group_rows", not 1 <= settings.row_group_rows <= BATCH_ROWS_MAX, f"1 to {BATCH_ROWS_MAX}"),
        (
            "file_rows_max",
            not settings.row_group_rows <= settings.file_rows_max < FILE_ROWS_MAX,
            f"at least row_group_rows ({settings.row_group_rows}), less than {FILE_ROWS_MAX}",
        ),
        ("compression", settings.compression not in COMPRESSIONS, f"one of {', '.join(COMPRESSIONS)}"),
        ("level", not 1 <= settings.level <= 22, "1 to 22"),
        *((key, getattr(settings, key) < 0, "0 or more") for key in ("cache_bytes", "vacuum_after_s", "bytes_limit")),
    ]
    for key, bad, reason in wrong:
        if bad:
            raise SettingsError(f"glacier.{key} = {getattr(settings, key)!r}: {reason}")


class GlacierMemory:
    """The glacier tier. A slot is a file's number and a row in it; `rewrite` gives rows new ones."""

    name = TierName.GLACIER

    def __init__(self, settings: GlacierSettings, shape: pa.Schema, *, partitions: int, index: Index | None) -> None:
        self.settings, self.shape, self.partitions = settings, shape, partitions
        self._alone = index is None
        self.index = index if index is not None else Index.of(shape)
        self._turn = asyncio.Lock()  # alone, a store chooses by what the store before it has settled
        self._recent = Recent(settings.cache_bytes)
        self._writer = SerialExecutor("glacier")
        self._readers = SerialExecutor("glacier-read", READ_THREADS)
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
        glacier = cls(settings, shape, partitions=partitions, index=index)
        try:
            glacier._files = await glacier._writer.run(
                _open, settings, shape, partitions, Disk(settings.path, fsync), clock
            )
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
        choice = choose(self.index, self.name, batch)
        slots = np.empty(0, np.int64)
        if choice.winners.num_rows:
            partition = record.partitions(choice.winners["id"], self.partitions)
            slots, stored = await self._writer.run(self._append, choice.winners, partition)
            self._recent.keep_blocks(stored)
        return choice.receipt(self.name, slots, PROOF)

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

    def _scan(self, file: DataFile, start: int) -> pa.RecordBatch:
        return self._files.layout.decode(self._files.scan(file, start, BATCH_ROWS_MAX))

    async def get(self, locations: Sequence[Location]) -> list[Row | None]:
        """See Tier. From the cache at once, else from the files on the reading threads. TierCorrupt is raised."""
        found: list[Row | None] = [None] * len(locations)
        missing: dict[tuple[DataFile, int], list[tuple[int, int]]] = {}  # by stretch of a file, for both threads
        for at, where in enumerate(locations):
            place = self._files.find(where)
            if place is None:
                continue
            found[at] = self._recent.find(where)
            if found[at] is None:
                missing.setdefault((place[0], place[1] // BATCH_ROWS_MAX), []).append((at, place[1]))
        jobs = [
            self._readers.run(self._files.fetch, file, [(row, locations[at]) for at, row in rows])
            for (file, _), rows in missing.items()
        ]
        for rows, answer in zip(missing.values(), await asyncio.gather(*jobs), strict=True):
            for (at, _), row in zip(rows, answer, strict=True):
                found[at] = row
            self._recent.keep_rows(row for row in answer if row is not None)
        return found

    async def evict(self, keys: Sequence[Location], receipt: Receipt | None) -> int:  # noqa: ARG002 - the protocol's
        """See Tier. The rows that stay in the rewritten files get new slots, which the index follows."""
        dropped = 0
        for partition in dict.fromkeys(where.partition for where in keys):
            done = await self.rewrite(partition, [where for where in keys if where.partition == partition])
            self.index.relocate_slots(self.name, done.ids, done.versions, done.old_slots, done.new_slots)
            dropped += done.dropped
        return dropped

    async def rewrite(self, partition: int, drop: Sequence[Location], merge_below_rows: int | None = None) -> Rewrite:
        """Drop exactly these rows by rewriting their files, in one commit; the caller moves the others' slots.

        Old slots of the others stay readable until `vacuum`. Small files are merged on the way: those below
        `merge_below_rows`, or, where None, those below half a file once there are 16.
        """
        return await self._writer.run(self._files.rewrite, partition, drop, merge_below_rows)

    async def vacuum(self) -> int:
        """Unlink files replaced, or left by a crash, longer ago than the settings say; returns how many."""
        return await self._writer.run(self._files.vacuum, self.settings.vacuum_after_s)

    async def clear(self) -> None:
        """See Tier: one commit that takes every file of our partitions out."""
        async with self._turn:
            await self._writer.run(self._files.clear)
            self._recent.clear()
            if self._alone:
                self.index = Index.of(self.shape, self.index.metric)

    async def usage(self) -> Usage:
        """See Tier. Superseded rows count; so do the bytes of replaced files until they are vacuumed."""
        rows = sum(file.rows for file in self._files.live())
        return Usage(rows, self._files.bytes(), bytes_limit=self.settings.bytes_limit)

    async def cleanup(self) -> None:
        """See Tier."""
        self._writer.close()
        self._readers.close()


def _open(
    settings: GlacierSettings, shape: pa.Schema, partitions: int, where: Disk, clock: Callable[[], float]
) -> Files:
    layout = Layout(shape)
    return Files(
        Archive.open(where, layout.table, partitions, layout.facts(partitions)),
        layout,
        Style(settings.row_group_rows, settings.compression, settings.level),
        rows_max=settings.file_rows_max,
        bytes_limit=settings.bytes_limit,
        clock=clock,
    )
