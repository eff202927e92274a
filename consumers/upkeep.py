"""Background work that no event asks for: evicting superseded rows, compacting glacier, the index's own segments.

Offered to each partition's lane, so that it never runs beside a move of the same partition.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from consumers.demote import MoveSettings
from consumers.lane import Lane
from consumers.mover import Mover
from producers.ticks import ticks
from tiers.index import Index
from tiers.tier import TierName

PIECES = 64  # of an index's segment, rewritten at one look: some 30,000 rows
WORTH = 0.25  # of an average partition's rows in glacier: superseded so many, a rewrite copies three for each it drops


class Upkeep:
    """`run` looks every `upkeep_ms`; `step` is one look.

    `vacuum` unlinks files that no reader can hold any more, `crowded` says that a partition has small ones to merge.
    """

    name = "upkeep"

    def __init__(
        self,
        settings: MoveSettings,
        index: Index,
        mover: Mover,
        lanes: Mapping[int, Lane],
        vacuum: Callable[[], Awaitable[object]],
        now_ms: Callable[[], int],
        crowded: Callable[[int], bool] = lambda _: False,
    ) -> None:
        self._settings, self._index, self._mover, self._lanes = settings, index, mover, lanes
        self._vacuum, self._now_ms, self._crowded = vacuum, now_ms, crowded
        self._compacting: set[int] = set()
        self._compacted: dict[int, int] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Look until stopped."""
        async for _ in ticks(stop, self._settings.upkeep_ms):
            self.step()
            await self.compact()

    def step(self) -> None:
        """Offer each lane what its partition needs now; a lane that is full gets it at the next look."""
        limit = self._settings.rows_max
        for partition, lane in self._lanes.items():
            for tier in (TierName.WARM, TierName.COLD):
                if self._index.queue.list(partition, tier, 1):
                    lane.offer(partial(self._mover.evict_queued, partition, tier, limit))
            waited_ms = self._now_ms() - self._compacted.setdefault(partition, self._now_ms())
            late = waited_ms >= self._settings.compact_s * 1000
            due = late or self._worth(partition) or self._crowded(partition)
            if due and partition not in self._compacting and lane.offer(partial(self._compact, partition)):
                self._compacting.add(partition)
                self._compacted[partition] = self._now_ms()

    def _worth(self, partition: int) -> bool:
        """Say whether so many rows of a partition are superseded in glacier that files should be written again."""
        queued = self._index.queue.count(partition, TierName.GLACIER)
        share = self._index.rows(TierName.GLACIER) / len(self._lanes)
        return queued >= max(self._settings.compact_rows, WORTH * share)

    async def compact(self) -> None:
        """Rewrite mostly dead segments of the index, a loop step at a time, so that nobody waits for long."""
        for _ in range(PIECES):
            if not self._index.compact():
                return
            await asyncio.sleep(0)

    async def _compact(self, partition: int) -> None:
        try:
            await self._mover.compact(partition, self._settings.rows_max * 8)
            await self._vacuum()
        finally:
            self._compacting.discard(partition)
