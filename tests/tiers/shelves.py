"""An index over hot and three tiers that are dictionaries: what happens while a read waits is a test's to say."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np

from tests.tiers.rows import ATTRIBUTES, DIM, batch
from tiers import read, record
from tiers.hot import HotMemory, HotSettings
from tiers.index import Index
from tiers.record import Row
from tiers.tier import Location, Places, Query, Result, TierName, Vectors


async def never() -> None:
    """Wait for ever."""
    await asyncio.Event().wait()


class Shelf:
    """A tier that is a dictionary; `before_answer` is what happens, once, while a read waits for it."""

    def __init__(self, name: TierName) -> None:
        self.name = name
        self.rows: dict[tuple[str, int], Row] = {}
        self.before_answer: Callable[[], Awaitable[None] | None] = lambda: None

    async def get(self, locations: Sequence[Location]) -> list[Row | None]:
        happens, self.before_answer = self.before_answer, lambda: None
        waits = happens()
        if waits is not None:
            await waits
        return [self.rows.get((where.id, where.version)) for where in locations]

    async def vectors(self, places: Places, *, spent: int | None = 0) -> Vectors:
        rows = await self.get(places)
        return Vectors([None if row is None else row.vector for row in rows])

    def vectors_at_once(self, places: Places) -> None:
        pass


class World:
    """Rows wherever a test puts them."""

    def __init__(self, dim: int = DIM, **index: Any) -> None:
        self.shape = record.schema(dim, ATTRIBUTES)
        self.index = Index.of(self.shape, **index)
        self.hot = HotMemory(
            HotSettings(device="cpu", capacity_rows=4_096, slab_rows=64), self.shape, partitions=1, index=self.index
        )
        self.shelves = {name: Shelf(name) for name in (TierName.WARM, TierName.COLD, TierName.GLACIER)}

    async def heat(self, *rows: Row) -> None:
        """Put rows into hot, as ingest does."""
        found = batch(*rows, shape=self.shape)
        slots = await self.hot.reserve(found, 0)
        self.hot.publish(slots)
        for tier, where in self.index.put(found, np.zeros(len(rows), np.int32), TierName.HOT, slots, 0):
            if tier == TierName.HOT:
                self.hot.evict_now([where])

    def put(self, one: Row, tier: TierName) -> None:
        """Put a row onto a shelf."""
        masked = self.index.put(batch(one, shape=self.shape), np.zeros(1, np.int32), tier, np.zeros(1, np.int64), 0)
        self.hot.evict_now([where for name, where in masked if name == TierName.HOT])
        self.shelves[tier].rows[one.id, one.version] = one

    async def place(self, one: Row, tier: TierName) -> None:
        """Put a row into any tier."""
        if tier == TierName.HOT:
            await self.heat(one)
        else:
            self.put(one, tier)

    def move(self, one: Row, source: TierName, target: TierName) -> None:
        """Move a row from shelf to shelf."""
        versions = np.array([one.version], np.int64)
        self.shelves[target].rows[one.id, one.version] = one
        vectors = record.vectors_of(batch(one, shape=self.shape))
        self.index.relocate(target, [one.id], versions, np.zeros(1, np.int64), vectors)
        del self.shelves[source].rows[one.id, one.version]

    async def retrieve(self, now_ms: int = 0, /, **asked: Any) -> Result:
        """Answer a query over all tiers, at this time."""
        tiers = {TierName.HOT: self.hot, **self.shelves}
        return await read.retrieve(self.index, tiers, Query(**asked), now_ms=now_ms)

    async def found(self, **asked: Any) -> list[str]:
        """Return the ids that a query finds."""
        return [hit.row.id for hit in (await self.retrieve(**asked)).hits]

    async def ask(self, *ids: str) -> list[tuple[Row, TierName]]:
        """Return what a read by id finds, and where."""
        return [(hit.row, hit.tier) for hit in (await self.retrieve(ids=ids)).hits]

    async def search(self, one: Row, k: int) -> list[str]:
        """Return the ids nearest to a row."""
        return await self.found(vector=one.vector, k=k)
