"""One question over all tiers: criteria, deadlines, and what an answer says of itself (R6, R7)."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiers.rows import NOW_MS, batch, row
from tests.tiers.shelves import World, never
from tiers import record
from tiers.errors import InvalidRecord
from tiers.score import scores
from tiers.tier import FIELDS, TierName

pytestmark = pytest.mark.unit

ALL = list(TierName)


async def filled(count: int, **index: Any) -> World:
    """Return a world of `count` rows "id-<n>", one tier after the other; user is n mod 3, rank n, time n s later."""
    world = World(**index)
    for at in range(count):
        attributes = {"user": f"u{at % 3}", "rank": at} if at % 5 else {}
        await world.place(
            row(f"id-{at}", at + 1, attributes=attributes, event_time=NOW_MS + at * 1000), ALL[at % len(ALL)]
        )
    return world


QUESTION = row("question", 1).vector


async def test_a_filter_holds_in_every_tier() -> None:
    """Rows of all four tiers are found by their attributes, and no others."""
    world = await filled(40)

    assert {f"id-{at}" for at in range(40) if at % 3 == 1 and at % 5} == set(
        await world.found(vector=QUESTION, k=40, filter="user = 'u1'")
    )
    assert await world.found(vector=QUESTION, k=40, filter="rank < 0") == []
    assert {f"id-{at}" for at in range(0, 40, 5)} == set(
        await world.found(vector=QUESTION, k=40, filter="user IS NULL")
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(ALL), st.integers(0, 3)), min_size=1, max_size=40), st.integers(1, 50))
def test_an_answer_does_not_depend_on_where_records_lie(places: list[tuple[TierName, int]], k: int) -> None:
    """The k best of those that pass, as NumPy finds them over all vectors at once."""
    rows = [row(f"id-{at}", at + 1, attributes={"rank": rank}) for at, (_, rank) in enumerate(places)]

    async def answers() -> list[tuple[str, float]]:
        world = World()
        for one, (tier, _) in zip(rows, places, strict=True):
            await world.place(one, tier)
        hits = (await world.retrieve(vector=QUESTION, k=k, filter="rank >= 2")).hits
        return [(hit.row.id, hit.score or 0.0) for hit in hits]

    passing = [one for one in rows if one.attributes["rank"] >= 2]
    values = scores(QUESTION, record.vectors_of(batch(*passing)), "cosine") if passing else []
    best = sorted(zip((one.id for one in passing), map(float, values), strict=True), key=lambda p: (-p[1], p[0]))[:k]

    assert best == asyncio.run(answers())


async def test_times_tiers_and_namespaces_narrow_too() -> None:
    """A range of event time takes its beginning and not its end; tiers and namespaces are as given."""
    world = await filled(12)
    await world.place(row("ns/a", 100), TierName.COLD)

    span = {"time_from_ms": NOW_MS + 3_000, "time_to_ms": NOW_MS + 6_000}
    assert {"id-3", "id-4", "id-5"} == set(await world.found(vector=QUESTION, k=20, **span))
    assert ["id-3", "id-4", "id-5"] == await world.found(**span)
    assert {"id-2", "id-6", "id-10", "ns/a"} == set(await world.found(tiers=frozenset({TierName.COLD})))
    assert ["ns/a"] == await world.found(vector=QUESTION, namespaces=frozenset({"ns"}))
    assert ["ns/a"] == await world.found(ids=["id-1", "ns/a"], namespaces=frozenset({"ns", "none"}))
    assert await world.found(namespaces=frozenset()) == []


async def test_an_empty_range_of_time_is_refused() -> None:
    """`from` must lie before `to`."""
    with pytest.raises(InvalidRecord, match="empty"):
        await World().retrieve(time_from_ms=5, time_to_ms=5)


@pytest.mark.parametrize("include", [FIELDS, frozenset({"vector"})], ids=["whole rows", "vectors alone"])
async def test_a_row_that_fails_the_filter_once_updated_is_dropped(include: frozenset[str]) -> None:
    """R6: what was updated while it was fetched is filtered as its new version, in the old one's place."""
    world = World()
    old, failing = row("a", 1, attributes={"rank": 1}), row("a", 2, attributes={"rank": 0})
    world.put(old, TierName.WARM)

    def update(new: record.Row) -> None:
        world.put(new, TierName.COLD)
        world.shelves[TierName.WARM].rows.clear()

    world.shelves[TierName.WARM].before_answer = lambda: update(failing)
    assert await world.found(vector=QUESTION, filter="rank = 1", include=include) == []

    passing = row("a", 3, attributes={"rank": 1})
    world.put(row("a", 2, attributes={"rank": 1}), TierName.WARM)
    world.shelves[TierName.WARM].before_answer = lambda: update(passing)
    hits = (await world.retrieve(vector=QUESTION, filter="rank = 1", include=include)).hits

    assert [("a", 3)] == [(hit.row.id, hit.row.version) for hit in hits]


async def test_candidates_that_are_gone_are_replaced_by_the_next_best() -> None:
    """A whole corpus deleted but for a few, while the answer was fetched, still gives those few."""
    world = World()
    rows = [row(f"id-{at}", at + 1) for at in range(200)]
    for one in rows:
        world.put(one, TierName.COLD)
    ranked = await world.found(vector=QUESTION, k=200)

    def delete() -> None:
        for at, identifier in enumerate(ranked[:100]):
            world.put(row(identifier, 1000 + at, deleted=True), TierName.COLD)
            del world.shelves[TierName.COLD].rows[identifier, int(identifier.removeprefix("id-")) + 1]

    world.shelves[TierName.COLD].before_answer = delete

    assert ranked[100:110] == await world.found(vector=QUESTION, k=10)


async def test_an_answer_tells_what_it_looked_at() -> None:
    """Every row of the tiers asked counts, whether the filter lets it pass or not; tombstones do not."""
    world = await filled(40)
    await world.heat(row("id-0", 100, deleted=True))
    result = await world.retrieve(vector=QUESTION, filter="rank = 1")

    assert (39, 39, True, []) == (result.scanned, result.of, result.complete, result.missed)
    assert {"hot": 9, "warm": 10, "cold": 10, "glacier": 10} == {n: s["rows"] for n, s in result.searched.items()}


async def test_what_a_tier_does_not_answer_in_time_is_missed() -> None:
    """A tier that hangs costs its own hits and no more: the answer comes by the deadline and names it."""
    world = await filled(8)
    world.shelves[TierName.WARM].before_answer = never
    loop = asyncio.get_running_loop()
    began = loop.time()
    result = await world.retrieve(vector=QUESTION, k=8, deadline_ms=500)

    assert loop.time() - began < 5.0
    assert (["warm"], False) == (result.missed, result.complete)
    assert {f"id-{at}" for at in range(8) if at % 4 != TierName.WARM} == {hit.row.id for hit in result.hits}


async def test_a_scan_stops_at_its_deadline() -> None:
    """With no time at all nothing is scanned, and the answer says so of every tier that holds something."""
    world = await filled(8)
    result = await world.retrieve(vector=QUESTION, filter="rank >= 0", deadline_ms=1e-6)

    assert ([], 0, 8) == (result.hits, result.scanned, result.of)
    assert ["cold", "glacier", "hot", "warm"] == result.missed


async def test_rows_without_a_code_are_named_as_not_searched() -> None:
    """At the index's limit the oldest glacier rows lose their codes: a search misses them, ids and filters do not."""
    world = await filled(8, bytes_limit=2 * 4 * len(QUESTION))
    search = await world.retrieve(vector=QUESTION, k=8)
    listing = await world.retrieve(filter="rank = 7")

    assert ("glacier" in search.missed, search.complete) == (True, False)
    assert search.scanned < search.of == 8
    assert [True, ["id-7"]] == [listing.complete, [hit.row.id for hit in listing.hits]]


async def test_an_update_in_hot_hides_what_lies_below() -> None:
    """Re-embedding everything keeps returning k hits, each once, at the new version."""
    world = await filled(120)
    await world.heat(*(row(f"id-{at}", 1_000 + at, attributes={"rank": -1}) for at in range(120)))
    hits = (await world.retrieve(vector=QUESTION, k=20, filter="rank < 0")).hits

    assert len({hit.row.id for hit in hits}) == 20
    assert all(hit.row.version >= 1_000 for hit in hits)
    assert np.all(np.diff([hit.score or 0.0 for hit in hits]) <= 0)


async def test_a_search_explains_what_it_did() -> None:
    """Rows scanned by vector and by code, candidates, what was fetched where and looked up again, bytes, times."""
    world = await filled(40)
    moved = (await world.retrieve(ids=["id-1"])).hits[0].row
    world.shelves[TierName.WARM].before_answer = lambda: world.move(moved, TierName.WARM, TierName.COLD)
    result = await world.retrieve(vector=QUESTION, k=8, explain=True)
    told = result.explain or {}

    assert {"hot": 12, "warm": 11, "cold": 12, "glacier": 13} == told["fetched"], "40 vectors, 8 rows"
    assert (1, 40, 40, 40, 1) == tuple(told[k] for k in ("looks", "by_vector", "candidates", "reranked", "rechecked"))
    assert (8, 0, 0, 0) == tuple(told[k] for k in ("rows", "shared", "skipped", "row_groups"))
    assert 40 * 2 * 4 * len(QUESTION) <= told["bytes_read"] < 10_000
    assert {"look", "filter", "scan", "fetch"} == told["steps_ms"].keys()
    assert sum(told["steps_ms"].values()) <= result.took_ms
    assert (await world.retrieve(vector=QUESTION)).explain is None
