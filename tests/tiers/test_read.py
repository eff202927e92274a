"""A read beside moves, updates and deletes: what it returns was the newest version during the read (R6)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.tiers.rows import row
from tests.tiers.shelves import World
from tiers import read
from tiers.errors import TierUnavailable
from tiers.tier import Query, TierName

pytestmark = pytest.mark.unit


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
    result = await world.retrieve(ids=["a", "b"])

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


@pytest.mark.parametrize(("now_ms", "expected"), [(999, {"soon", "hot"}), (1_000, set())])
async def test_what_has_expired_is_absent_from_that_moment(now_ms, expected):
    """By id, by search, by filter, in a listing, and from the counts of what was scanned and of what there is."""
    world, soon = World(), replace(row("soon", 1), expires_at=1_000)
    await world.place(soon, TierName.COLD)
    await world.place(replace(row("hot", 2), expires_at=1_000), TierName.HOT)
    tiers = {TierName.HOT: world.hot, **world.shelves}
    await world.retrieve(vector=soon.vector)  # a view of before is kept, and must not be shown
    questions = [
        Query(ids=["soon", "hot"]),
        Query(vector=soon.vector),
        Query(vector=soon.vector, filter="id <> ''"),
        Query(),
    ]
    answers = [await read.retrieve(world.index, tiers, query, now_ms=now_ms) for query in questions]

    assert [expected] * 4 == [{hit.row.id for hit in answer.hits} for answer in answers]
    assert [(len(expected), True)] * 3 == [(answer.of, answer.complete) for answer in answers[1:]]


async def test_a_copy_answers_when_its_home_does_not():
    """With a copy in hot the record is there though the tier of its home is down, and the answer is complete."""
    world, one = World(), row("a", 1, attributes={"user": "u"})
    await world.place(one, TierName.WARM)
    world.hot.copies.publish(await world.hot.copies.reserve([one]), 0, "test")
    for asked in ({"ids": ["a"]}, {"vector": one.vector}, {"vector": one.vector, "filter": "user = 'u'"}, {}):

        def fail() -> None:
            raise TierUnavailable("down")

        world.shelves[TierName.WARM].before_answer = fail
        result = await world.retrieve(**asked)

        assert ([("a", TierName.HOT)], True) == ([(hit.row.id, hit.tier) for hit in result.hits], result.complete)


async def test_a_filter_and_a_search_of_some_tiers_see_copies():
    """Asked of hot alone, or of the home alone, a filtered search finds the record there; a view kept is not stale."""
    world, one = World(), row("a", 1, attributes={"user": "u"})
    await world.place(one, TierName.COLD)
    asked = {"vector": one.vector, "filter": "user = 'u'"}
    for copied in (False, True, False):
        if copied:
            world.hot.copies.publish(await world.hot.copies.reserve([one]), 0, "test")
        else:
            world.hot.copies.evict(["a"], "test")
        for tier in TierName:
            found = (await world.retrieve(**asked, tiers=frozenset({tier}))).hits
            expected = tier is TierName.COLD or (tier is TierName.HOT and copied)
            assert [("a", tier)] * expected == [(hit.row.id, hit.tier) for hit in found]
        (hit,) = (await world.retrieve(**asked)).hits
        assert (TierName.HOT if copied else TierName.COLD) is hit.tier


@pytest.mark.parametrize("spaces", [frozenset({"a"}), frozenset({"default"}), frozenset()])
async def test_a_tier_is_not_asked_for_what_lies_in_another_namespace(spaces):
    """A tier that does not answer would else tell that the id is there: by its silence (R12)."""
    world = World()
    world.put(row("b/1", 1), TierName.WARM)

    def refuse() -> None:
        raise TierUnavailable("down")

    world.shelves[TierName.WARM].before_answer = refuse
    foreign = await world.retrieve(ids=["b/1"], namespaces=spaces)
    own = await world.retrieve(ids=["b/1"], namespaces=frozenset({"b"}))

    assert ([], True, []) == (foreign.hits, foreign.complete, foreign.missed)
    assert ([], False, ["warm"]) == (own.hits, own.complete, own.missed)


async def test_a_record_of_hot_is_answered_at_once_as_by_any_read():
    """Whatever lies where, and whoever asks: the same hits, and everything else is left to the read that waits."""
    world = World()
    ids = ["app/dirty", "app/copied", "warm", "deleted", "expired", "updated"]
    await world.heat(row("app/dirty", 1), row("deleted", 2, deleted=True), replace(row("expired", 3), expires_at=50))
    await world.heat(row("updated", 4))
    await world.heat(row("updated", 5))
    for at, name in ((6, "app/copied"), (7, "warm")):
        world.put(row(name, at), TierName.WARM)
    copied = row("app/copied", 6)
    world.hot.copies.publish(await world.hot.copies.reserve([copied]), 0, "heat")

    answered = set()
    for spaces in (None, frozenset({"app"}), frozenset({"default"})):
        for tiers in (frozenset(TierName), frozenset({TierName.HOT}), frozenset({TierName.WARM})):
            for name in [*ids, "nobody"]:
                query = Query(ids=[name], tiers=tiers, namespaces=spaces)
                at_once = read.at_once(world.index, world.hot, name, 60, spaces) if read.plain(query) else None
                whole = await read.retrieve(world.index, {TierName.HOT: world.hot, **world.shelves}, query, now_ms=60)
                if at_once is not None:
                    (one,) = whole.hits
                    assert (TierName.HOT, one.row.vector.tolist()) == (one.tier, at_once.vector.tolist())
                    assert replace(one.row, vector=None) == replace(at_once, vector=None)
                    assert (whole.complete, whole.scanned, whole.of) == (True, 1, 1)
                    answered.add(name)

    assert {"app/dirty", "app/copied", "updated"} == answered


@pytest.mark.parametrize(
    "asked",
    [{"ids": ["a", "b"]}, {"filter": "score > 1"}, {"time_from_ms": 1}, {"explain": True}, {"ids": None, "limit": 1}],
)
def test_other_questions_are_not_answered_at_once(asked):
    """One id and nothing else: a filter would have to be asked, and a page looked for."""
    assert read.plain(Query(ids=["a"], namespaces=frozenset({"a"})))
    assert not read.plain(Query(**{"ids": ["a"], **asked}))
