"""A read beside moves, updates and deletes: what it returns was the newest version during the read (R6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from tests.tiers.rows import DIM, batch, row
from tiers import read, record
from tiers.errors import TierUnavailable
from tiers.index import Index
from tiers.record import Row
from tiers.tier import Location, Query, TierName

pytestmark = pytest.mark.unit


class Shelf:
    """A tier that is a dictionary; `before_answer` is what happens while a read waits for it."""

    def __init__(self, name: TierName) -> None:
        self.name = name
        self.rows: dict[tuple[str, int], Row] = {}
        self.before_answer: Callable[[], None] = lambda: None

    async def get(self, locations: Sequence[Location]) -> list[Row | None]:
        happens, self.before_answer = self.before_answer, lambda: None
        happens()
        return [self.rows.get((where.id, where.version)) for where in locations]


class World:
    """An index over warm, cold and glacier shelves."""

    def __init__(self) -> None:
        self.index = Index(DIM)
        self.shelves = {name: Shelf(name) for name in (TierName.WARM, TierName.COLD, TierName.GLACIER)}

    def put(self, one: Row, tier: TierName) -> None:
        self.index.put(batch(one), np.zeros(1, np.int32), tier, np.zeros(1, np.int64), 0)
        self.shelves[tier].rows[one.id, one.version] = one

    def move(self, one: Row, source: TierName, target: TierName) -> None:
        versions = np.array([one.version], np.int64)
        self.shelves[target].rows[one.id, one.version] = one
        vectors = record.vectors_of(batch(one))
        self.index.relocate(target, [one.id], versions, np.zeros(1, np.int64), vectors)
        del self.shelves[source].rows[one.id, one.version]

    async def ask(self, *ids: str) -> list[tuple[Row, TierName]]:
        result = await read.retrieve(self.index, self.shelves, Query(ids=ids))
        return [(hit.row, hit.tier) for hit in result.hits]

    async def search(self, one: Row, k: int) -> list[str]:
        result = await read.retrieve(self.index, self.shelves, Query(vector=one.vector, k=k))
        return [hit.row.id for hit in result.hits]


async def test_a_row_that_moves_while_it_is_fetched_is_fetched_where_it_went():
    """Two moves during one read: the read follows both."""
    world, one = World(), row("a", 1)
    world.put(one, TierName.WARM)
    world.shelves[TierName.WARM].before_answer = lambda: world.move(one, TierName.WARM, TierName.COLD)
    world.shelves[TierName.COLD].before_answer = lambda: world.move(one, TierName.COLD, TierName.GLACIER)

    assert [(one, TierName.GLACIER)] == await world.ask("a")


async def test_a_search_follows_its_hits_too():
    """A candidate that moved after the scan is in the answer."""
    world, one, other = World(), row("a", 1), row("b", 2)
    world.put(one, TierName.WARM)
    world.put(other, TierName.COLD)
    world.shelves[TierName.WARM].before_answer = lambda: world.move(one, TierName.WARM, TierName.GLACIER)

    assert {"a", "b"} == set(await world.search(one, 2))


async def test_a_row_updated_while_it_is_fetched_is_returned_as_its_new_version():
    """The old version is gone when the tier looks: the new one stands in its place, once."""
    world, old, new = World(), row("a", 1), row("a", 2)
    world.put(old, TierName.WARM)

    def update() -> None:
        world.put(new, TierName.COLD)
        del world.shelves[TierName.WARM].rows["a", 1]

    world.shelves[TierName.WARM].before_answer = update

    assert [(new, TierName.COLD)] == await world.ask("a")


async def test_a_row_deleted_while_it_is_fetched_is_dropped():
    """Only a deletion drops a hit."""
    world, one = World(), row("a", 1)
    world.put(one, TierName.WARM)

    def delete() -> None:
        world.put(row("a", 2, deleted=True), TierName.COLD)
        del world.shelves[TierName.WARM].rows["a", 1]

    world.shelves[TierName.WARM].before_answer = delete

    assert [] == await world.ask("a")


async def test_a_tier_that_does_not_answer_is_named_and_the_answer_is_not_complete():
    """Degraded is never the same as empty (R7)."""
    world = World()
    world.put(row("a", 1), TierName.WARM)
    world.put(row("b", 2), TierName.COLD)

    def fail() -> None:
        raise TierUnavailable("down")

    world.shelves[TierName.WARM].before_answer = fail
    result = await read.retrieve(world.index, world.shelves, Query(ids=["a", "b"]))

    assert ["b"] == [hit.row.id for hit in result.hits]
    assert (False, ["warm"]) == (result.complete, result.missed)


async def test_a_row_that_never_stands_still_is_an_error_not_an_absence():
    """A home whose tier has nothing there is looked for again a bounded number of times."""
    world, one = World(), row("a", 1)
    world.put(one, TierName.WARM)
    world.shelves[TierName.WARM].rows.clear()

    with pytest.raises(TierUnavailable, match="moved"):
        await world.ask("a")


# -- expiry and copies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("now_ms", "expected"), [(999, ["soon"]), (1_000, [])])
async def test_what_has_expired_is_absent_from_that_moment(now_ms, expected):
    """By id, by search, and from the counts of what was scanned and of what there is."""
    world, soon = World(), replace(row("soon", 1), expires_at=1_000)
    world.put(soon, TierName.COLD)
    by_id = await read.retrieve(world.index, world.shelves, Query(ids=["soon"]), now_ms=now_ms)
    found = await read.retrieve(world.index, world.shelves, Query(vector=soon.vector), now_ms=now_ms)

    assert [expected, expected] == [[hit.row.id for hit in result.hits] for result in (by_id, found)]
    assert (len(expected), len(expected), True) == (found.scanned, found.of, found.complete)


async def test_a_copy_answers_when_its_home_does_not():
    """With a copy in hot the record is there though the tier of its home is down, and the answer is complete."""
    world, one = World(), row("a", 1)
    world.put(one, TierName.WARM)
    hot = Shelf(TierName.HOT)
    hot.rows["a", 1] = one
    world.index.place_copy("a", 1, 0)

    def fail() -> None:
        raise TierUnavailable("down")

    world.shelves[TierName.WARM].before_answer = fail
    result = await read.retrieve(world.index, {TierName.HOT: hot, **world.shelves}, Query(ids=["a"]))

    assert ([(one, TierName.HOT)], True) == ([(hit.row, hit.tier) for hit in result.hits], result.complete)
