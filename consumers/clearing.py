"""Clearing a tier for good: no restart and no replay brings its rows back. Runs in each partition's lane.

What lies below in older versions goes first, so that clearing the newest never uncovers an older one. Hot's rows are
in the log: the manifest remembers below which offset a replay leaves rows out. The lower tiers are cleared only after
hot has been drained and the watermark committed, so that no replay can meet their rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from consumers.commit import Commit
from consumers.ingest import Ingest
from consumers.lane import Lane
from consumers.mover import Mover
from producers.changes import Changes
from tiers import record
from tiers.hot import HotMemory
from tiers.index import Index
from tiers.tier import Location, Tier, TierName

ROWS_MAX = 10_000  # rows drained or evicted in one step


class Clearing:
    """`clear` empties one tier over all partitions; `remember` makes a cleared offset durable before rows go."""

    def __init__(
        self,
        index: Index,
        tiers: Mapping[TierName, Tier],
        hot: HotMemory,
        mover: Mover,
        changes: Changes,
        ingest: Ingest,
        commit: Commit,
        lanes: Mapping[int, Lane],
        remember: Callable[[int, int], None],
    ) -> None:
        self._index, self._tiers, self._hot, self._mover = index, tiers, hot, mover
        self._changes, self._ingest, self._commit, self._lanes = changes, ingest, commit, lanes
        self._remember = remember

    async def clear(self, tier: TierName) -> int:
        """Delete every record whose home is `tier` now; returns how many went."""
        cleared: list[int] = []
        for partition, lane in self._lanes.items():
            job = self._clear_hot if tier is TierName.HOT else partial(self._clear_below, tier)
            await lane.perform(partial(self._count, job, partition, cleared))
        return sum(cleared)

    @staticmethod
    async def _count(job: Callable[[int], object], partition: int, cleared: list[int]) -> None:
        cleared.append(await job(partition))  # type: ignore[misc]

    async def _clear_hot(self, partition: int) -> int:
        await self._evict_older(partition)
        position = self._ingest.applied(partition)
        keys = self._homes(TierName.HOT, partition)
        self._remember(partition, position)
        self._ingest.cleared_below[partition] = position
        keys = [where for where in keys if self._alive(TierName.HOT, where)]
        versions = np.array([where.version for where in keys], np.int64)
        self._hot.evict_now(keys)
        self._hot.copies.evict(self._hot.copies.of(partition), "cleared")  # their records are at home below, and stay
        self._index.drop((where.id, where.version) for where in keys)
        self._ingest.watermarks[partition].settle(record.offsets(versions))
        await self._announce(partition, TierName.HOT, keys)
        return len(keys)

    async def _clear_below(self, tier: TierName, partition: int) -> int:
        target = TierName.COLD if tier is TierName.WARM else TierName.WARM
        position = self._ingest.applied(partition)
        while dirty := [
            w for w in self._homes(TierName.HOT, partition) if record.unpack_version(w.version)[1] < position
        ]:
            pairs = [(where.id, where.version) for where in dirty[:ROWS_MAX]]
            await self._mover.move(partition, TierName.HOT, target, "cleared", pairs)
        await self._commit.step()
        await self._evict_older(partition)
        keys = self._homes(tier, partition)
        await self._announce(partition, tier, keys)
        if tier is TierName.GLACIER:
            await self._mover.rewrite_glacier(partition, keys)
        else:
            await self._tiers[tier].evict(keys, None)
        self._hot.copies.evict([where.id for where in keys if self._alive(tier, where)], "cleared")
        self._index.drop((where.id, where.version) for where in keys)
        return len(keys)

    async def _evict_older(self, partition: int) -> None:
        for tier in (TierName.WARM, TierName.COLD):
            while self._index.queue.list(partition, tier, 1):
                await self._mover.evict_queued(partition, tier, ROWS_MAX)
        while self._index.queue.list(partition, TierName.GLACIER, 1):
            await self._mover.compact(partition, ROWS_MAX)

    def _homes(self, tier: TierName, partition: int) -> list[Location]:
        found: list[Location] = []
        for segment in self._index.segments():
            n = segment.count
            rows = segment.alive[:n] & (segment.home[:n] == tier) & (segment.partition[:n] == partition)
            for row in np.flatnonzero(rows).tolist():
                found.append(Location(segment.ids[row], int(segment.version[row]), partition, int(segment.slot[row])))
        return found

    def _alive(self, tier: TierName, where: Location) -> bool:
        entry = self._index.find(where.id)
        return entry is not None and (entry.version, entry.home) == (where.version, tier)

    async def _announce(self, partition: int, tier: TierName, keys: list[Location]) -> None:
        if keys:
            versions = np.array([where.version for where in keys], np.int64)
            await self._changes.publish(partition, tier, None, "cleared", [where.id for where in keys], versions)
