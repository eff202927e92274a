"""ColdMemory: rows in one DuckDB file, and beside it the same rows packed, for reads in microseconds.

DuckDB is the durable truth (cold_table); the side file (side) is derived, complete while the tier is open, and never
believed: every row read from it is checked, and read again from DuckDB when the check fails. One thread writes both
(cold_rows), two read the side file.

Back of the envelope, 256 floats, 200 bytes of payload and three attributes: 1.2 KB a row in DuckDB, 1.3 KB in the side
file, 24 bytes in memory. Measured on two shared cores, one caller, over 200,000 rows with the checkpoints they need:
31,000-36,000 rows/s stored 1,000 at a time, 38,000-40,000 10,000 at a time; 10 rows read in 0.1 ms, 100 in 0.6 ms.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from tiers import packed, record
from tiers.alone import choose, find, open_alone, settle
from tiers.cold_rows import PAGE_ROWS, ColdRows
from tiers.cold_settings import ColdSettings
from tiers.errors import ServiceMissing, SettingsError
from tiers.index import Index
from tiers.listed import Known
from tiers.record import Bools, Int64s, Row
from tiers.tier import AT_ONCE_ROWS, Location, Places, Query, Receipt, Result, TierName, Usage, Vectors
from tiers.worker import SerialExecutor

READERS = 2  # threads
ROWS_AT_ONCE = 16  # read on the loop if the kernel has them in memory: a thread's wake costs more than they do
ENTRY_ROWS = 16_384  # listed at once without their vectors; with them, where some are needed, 18 MB at 256 dimensions
PROOF = "fdatasync of DuckDB's WAL at commit"


class ColdMemory:
    """The cold tier. Used alone, it takes one store at a time; otherwise an id's lane keeps its stores apart."""

    name = TierName.COLD

    _rows: ColdRows

    def __init__(self, settings: ColdSettings, shape: pa.Schema, partitions: int, index: Index | None) -> None:
        self.settings, self.shape, self.partitions = settings, shape, partitions
        self._alone = index is None
        self.index = index if index is not None else Index.of(shape)
        self._turn: AbstractAsyncContextManager[object] = asyncio.Lock() if self._alone else nullcontext()
        self._writer = SerialExecutor("cold-write")
        self._packer = SerialExecutor("cold-pack")  # so that no search waits behind thousands of rows
        self._readers = SerialExecutor("cold-read", READERS)
        self._closed = False

    @classmethod
    async def open(
        cls, settings: ColdSettings, shape: pa.Schema, *, partitions: int, index: Index | None = None
    ) -> ColdMemory:
        """Open the file and bring the side file up to it; ServiceMissing or SettingsError says what to do."""
        if not settings.path:
            raise SettingsError("cold.path: name the directory that holds the DuckDB file")
        cold = cls(settings, shape, partitions, index)
        try:
            await cold._writer.run(cold._open)
            if cold._alone:
                await open_alone(cold, cold.index, partitions)
        except OSError as error:
            await cold.cleanup()
            raise ServiceMissing(f"cold.path: {settings.path} cannot be used: {error}") from error
        except BaseException:
            await cold.cleanup()
            raise
        return cold

    def __repr__(self) -> str:
        rows = len(self._rows) if hasattr(self, "_rows") else "no"
        return f"<ColdMemory {self.settings.path}: {rows} rows>"

    async def cleanup(self) -> None:
        """Close the files and end the threads."""
        if self._closed:
            return
        self._closed = True
        await self._writer.run(self._close)
        self._writer.close()
        self._packer.close()
        self._readers.close()

    def _open(self) -> None:
        self._rows = ColdRows(self.settings, self.shape)

    def _close(self) -> None:
        if hasattr(self, "_rows"):  # asked in the thread: an opening that was cancelled may end after all
            self._rows.close()

    async def store(self, batch: pa.RecordBatch) -> Receipt:
        """Put each row if newer, in one transaction; durable when it returns.

        TierFull, TierUnavailable, InvalidRecord: nothing is stored. OutcomeUnknown: only a restart tells.
        """
        async with self._turn:
            choice = await choose(self.index, self.name, batch)
            winners, slots = choice.winners, np.empty(0, np.int64)
            if winners.num_rows:
                rows = await self._packer.run(packed.pack, winners)  # while another lane's rows are written
                partition = record.partitions(winners["id"], self.partitions)
                slots = await self._writer.run(self._rows.add, winners, partition, rows)
            receipt = choice.receipt(self.name, slots, PROOF)
            if self._alone:
                await settle(self, self.index, self.partitions, receipt, batch)
        return receipt

    async def evict(self, keys: Sequence[Location], receipt: Receipt | None) -> int:  # noqa: ARG002 - see Tier
        """See Tier: one transaction; a key whose slot holds another id or version drops nothing."""
        return await self._writer.run(self._rows.remove, Places.of(keys)) if len(keys) else 0

    async def clear(self) -> None:
        """See Tier."""
        async with self._turn:
            await self._writer.run(self._rows.clear)
            if self._alone:
                self.index = Index.of(self.shape, self.index.metric)

    async def get(self, locations: Sequence[Location]) -> list[Row | None]:
        """See Tier. A row that the side file cannot show is read from DuckDB and put right; TierCorrupt: in neither."""
        if len(locations) <= ROWS_AT_ONCE and (near := self._rows.read_at_once(locations)) is not None:
            return near
        rows, doubtful = await self._readers.run(self._rows.read, locations)
        for at, row in zip(doubtful, await self._recover([locations[at] for at in doubtful]), strict=True):
            rows[at] = row
        return rows

    async def sizes(self, places: Places) -> Int64s:
        """See Tier."""
        return await self._readers.run(self._rows.sizes, places)

    async def gather(self, places: Places) -> tuple[pa.RecordBatch, Bools]:
        """See Tier. Rows that the side file cannot show are read by `get`, which looks in DuckDB."""
        batch, there = await self._packer.run(self._rows.gather, places)
        if there.all():
            return batch, there
        return record.present(await self.get(places), self.shape)

    async def vectors(self, places: Places, *, spent: int | None = 0) -> Vectors:  # noqa: ARG002 - all are near at hand
        """See Tier."""
        found, doubtful = await self._readers.run(self._rows.vectors, places)
        if doubtful:
            rows = await self._recover([places[at] for at in doubtful])
            for at, row in zip(doubtful, rows, strict=True):
                found[at] = row.vector if row is not None else None
        return Vectors(found)

    def vectors_at_once(self, places: Places) -> Vectors | None:
        """See Tier: what the kernel has of the side file in memory."""
        found = self._rows.vectors_at_once(places) if len(places) <= AT_ONCE_ROWS else None
        return None if found is None else Vectors(found)

    async def _recover(self, locations: Sequence[Location]) -> list[Row | None]:
        """Return rows that the side file cannot show from DuckDB, and put the side file right."""
        pages = [locations[start : start + PAGE_ROWS] for start in range(0, len(locations), PAGE_ROWS)]
        return [row for page in pages for row in await self._writer.run(self._rows.recover, page)]

    async def retrieve(self, query: Query) -> Result:
        """See Tier."""
        return await find(self, self.index, query)

    async def retrieve_all(self) -> AsyncIterator[pa.RecordBatch]:
        """See Tier; in slot order, the rows there were when it began."""
        slots = await self._readers.run(self._rows.slots)
        for start in range(0, len(slots), PAGE_ROWS):
            page = slots[start : start + PAGE_ROWS]
            batch = await self._writer.run(self._rows.page, int(page[0]), int(page[-1]))
            if batch.num_rows:
                yield batch

    async def slots(self) -> tuple[Int64s, Int64s]:
        """Return the slots of all rows, and those that the side file alone has, in growing order."""
        return await self._writer.run(self._rows.both_slots)

    async def survey(self, first: int, last: int) -> tuple[pa.RecordBatch, list[int]]:
        """Return the rows of slots first to last as DuckDB has them, and the positions where the side file differs."""
        return await self._writer.run(self._rows.survey, first, last)

    async def mend(self, wrong: Sequence[Location], extra: Int64s) -> None:
        """Make the side file what DuckDB has: rows that it shows otherwise, and slots that it alone has."""
        await self._writer.run(self._rows.recover, wrong)
        await self._writer.run(self._rows.release, extra)

    async def copy(self, target: Path, bytes_max: int) -> int:
        """Copy the database file as it is at one moment; every row there is has a slot below the one returned.

        Writes wait meanwhile (about 0.6 s for 360 MB). TierFull, TierUnavailable: there is no copy.
        """
        return await self._writer.run(self._rows.copy, target, bytes_max)

    async def entries(self, known: Known) -> AsyncIterator[pa.RecordBatch]:
        """See rebuild.Sparse; in slot order, the rows there were when it began."""
        slots = await self._readers.run(self._rows.slots)
        pages = (slots[start : start + ENTRY_ROWS] for start in range(0, len(slots), ENTRY_ROWS))
        jobs = (partial(self._rows.entries, int(page[0]), int(page[-1]), known) for page in pages)
        async for batch in self._writer.ahead(jobs):
            if batch.num_rows:
                yield batch

    async def usage(self) -> Usage:
        """See Tier; bytes of both files, free blocks inside them left out."""
        return await self._writer.run(self._rows.usage)
