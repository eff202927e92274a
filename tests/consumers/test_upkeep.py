"""When glacier's files are written again: not for every few rows that were superseded, and never too late."""

from __future__ import annotations

from unittest.mock import AsyncMock

import numpy as np
import pytest

from consumers.demote import MoveSettings
from consumers.lane import Lane
from consumers.upkeep import WORTH, Upkeep
from tests.tiers.rows import NOW_MS, SHAPE, batch, row
from tiers.index import Index
from tiers.tier import Location, TierName

pytestmark = pytest.mark.unit

ROWS = 40


class World:
    """Two partitions, one of which has all rows of glacier: each has half of them on average."""

    def __init__(self, compact_rows: int = 2) -> None:
        self.index, self.now_ms = Index.of(SHAPE), NOW_MS
        self.lanes = {partition: Lane(partition, 8) for partition in (0, 1)}
        given = MoveSettings(compact_rows=compact_rows, compact_s=300.0)
        self.upkeep = Upkeep(given, self.index, AsyncMock(), self.lanes, AsyncMock(), lambda: self.now_ms)
        rows = [row(f"id-{at}", at) for at in range(ROWS)]
        self.index.put(batch(*rows), np.zeros(ROWS, np.int32), TierName.GLACIER, np.arange(ROWS), NOW_MS)

    def supersede(self, count: int) -> None:
        """Queue so many older rows of partition 0."""
        for at in range(count):
            self.index.queue.add(TierName.GLACIER, Location(f"old-{at}", 1, 0, 1_000 + at))

    def jobs(self) -> list[int]:
        """Look once; returns how many jobs wait in each lane."""
        self.upkeep.step()
        return [lane.waiting for lane in self.lanes.values()]


def test_a_rewrite_has_to_be_worth_it() -> None:
    """A few rows of many wait: to drop them, each of their neighbours would be written again."""
    worth = int(WORTH * ROWS / 2)
    few, enough = World(), World()
    few.supersede(worth - 1)
    enough.supersede(worth)
    assert ([0, 0], [1, 0]) == (few.jobs(), enough.jobs())


def test_a_small_archive_waits_for_some_rows() -> None:
    """A quarter of nearly nothing is not worth a commit."""
    world = World(compact_rows=20)
    world.supersede(19)
    assert [0, 0] == world.jobs()
    world.supersede(20)
    assert [1, 0] == world.jobs()


def test_what_is_not_worth_it_is_done_in_time_all_the_same() -> None:
    """Superseded rows, and deleted ones above all, do not lie about for ever."""
    world = World()
    world.supersede(1)
    assert [0, 0] == world.jobs()
    world.now_ms += 300_000
    assert [1, 1] == world.jobs()
