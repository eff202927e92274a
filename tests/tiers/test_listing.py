"""Pages by id: stable whatever happens between them."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiers.rows import IDS, row
from tests.tiers.shelves import World, never
from tiers import listing
from tiers.errors import InvalidRecord, TierUnavailable
from tiers.reading import Reading
from tiers.scan import Scanner
from tiers.tier import Query, TierName

pytestmark = pytest.mark.unit

BELOW = [TierName.WARM, TierName.COLD, TierName.GLACIER]


async def pages(world: World, between: list[set[str]], limit: int) -> list[str]:
    """List everything in pages; before each next page these ids are deleted, and others come."""
    version, out = 1_000, []
    result = await world.retrieve(limit=limit)
    for at in range(1_000):
        out += [hit.row.id for hit in result.hits]
        if result.cursor is None:
            return out
        for identifier in between[at] if at < len(between) else ():
            version += 1
            world.put(row(identifier, version, deleted=True), TierName.WARM)
        if at < 5:
            await world.heat(row(f"new-{version}", version := version + 1))
        result = await world.retrieve(limit=limit, cursor=result.cursor)
    raise AssertionError("the listing has no end")


@settings(max_examples=60, deadline=None)
@given(st.sets(IDS, max_size=30), st.data(), st.integers(1, 7))
def test_what_is_there_throughout_comes_exactly_once_and_in_order(
    ids: set[str], data: st.DataObject, limit: int
) -> None:
    """Deletes, updates, moves and arrivals between pages shift nothing."""
    between = data.draw(st.lists(st.sets(st.sampled_from(sorted(ids))), max_size=5)) if ids else []

    async def listed() -> list[str]:
        world = World()
        for at, identifier in enumerate(ids):
            await world.place(row(identifier, at + 1), list(TierName)[at % 4])
        return await pages(world, between, limit)

    found = asyncio.run(listed())
    stayed = ids - set().union(*between)

    assert sorted(stayed, key=str.encode) == [identifier for identifier in found if identifier in stayed]
    assert len(set(found)) == len(found)


async def test_a_page_is_limited_and_the_last_has_no_cursor() -> None:
    """Five records in pages of two: two, two, one."""
    world = World()
    for at in range(5):
        world.put(row(f"id-{at}", at + 1), TierName.COLD)
    first = await world.retrieve(limit=2)
    second = await world.retrieve(limit=2, cursor=first.cursor)
    third = await world.retrieve(limit=2, cursor=second.cursor)

    found = [[hit.row.id for hit in page.hits] for page in (first, second, third)]
    assert [["id-0", "id-1"], ["id-2", "id-3"], ["id-4"]] == found
    assert third.cursor is None


async def test_a_page_of_large_payloads_ends_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page holds about so many bytes at most; the cursor goes on right after it."""
    monkeypatch.setattr(listing, "FETCH_ROWS", 2)
    monkeypatch.setattr(listing, "PAGE_BYTES", 1)
    world = World()
    for at in range(5):
        world.put(row(f"id-{at}", at + 1), TierName.COLD)
    first = await world.retrieve()
    rest = await world.retrieve(cursor=first.cursor)

    assert [["id-0", "id-1"], ["id-2", "id-3"]] == [[hit.row.id for hit in page.hits] for page in (first, rest)]


@pytest.mark.parametrize("cursor", ["", "x", "====", "bnVsbA", "WyJhIiwiYiIsImMiXQ", "é"])
async def test_a_cursor_from_elsewhere_is_refused(cursor: str) -> None:
    """What no listing gave is no cursor."""
    with pytest.raises(InvalidRecord) as found:
        await World().retrieve(cursor=cursor)

    assert found.value.reason == "cursor"


async def test_a_cursor_of_another_question_is_refused() -> None:
    """Filter, times, tiers and namespaces must be those that the cursor was given for; the limit may change."""
    world = World()
    for at in range(3):
        world.put(row(f"id-{at}", at + 1), TierName.COLD)
    cursor = (await world.retrieve(limit=1)).cursor

    assert len((await world.retrieve(limit=5, cursor=cursor)).hits) == 2
    with pytest.raises(InvalidRecord, match="another question"):
        await world.retrieve(limit=1, cursor=cursor, filter="rank = 1")
    for spaces in (frozenset(), frozenset({"default"})):
        with pytest.raises(InvalidRecord, match="another question"):
            await world.retrieve(limit=1, cursor=cursor, namespaces=spaces)


async def test_a_listing_without_time_goes_on_where_it_stood() -> None:
    """A deadline that leaves segments unread gives no page that could skip a record."""
    world = World()
    world.put(row("a", 1), TierName.COLD)
    result = await world.retrieve(deadline_ms=1e-6)
    again = await world.retrieve(cursor=result.cursor)

    assert ([], False) == (result.hits, result.complete)
    assert ["a"] == [hit.row.id for hit in again.hits]


async def test_everything_raises_rather_than_leave_out() -> None:
    """A stream of everything cannot say what it missed, so it fails."""
    world = World()
    for at, tier in enumerate(BELOW):
        world.put(row(f"id-{at}", at + 1), tier)
    world.shelves[TierName.COLD].before_answer = never
    reading = Reading(world.index, world.shelves, Query(deadline_ms=50))

    with pytest.raises(TierUnavailable, match="cold"):
        [hits async for hits in listing.everything(reading, Scanner())]
