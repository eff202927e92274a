"""The index against a plain model, and its rebuilding from what the tiers hold (R3)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import count

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import tiers.index
import tiers.segment
from tests.tiers.rows import DIM, SHAPE, batch, row, vector_of
from tiers import record, score
from tiers.index import Index
from tiers.rebuild import load
from tiers.segment import NO_COPY, View
from tiers.tier import NO_SLOT, Location, TierName

pytestmark = pytest.mark.unit

SMALL = 8  # rows a segment, so that a few dozen puts fill, rewrite and cross several
PARTITIONS = 2
IDS = ("a", "b", "c", "user/d", "é", "f")


@pytest.fixture(autouse=True)
def small_segments(monkeypatch) -> None:
    monkeypatch.setattr(tiers.index, "SEGMENT_ROWS", SMALL)
    monkeypatch.setattr(tiers.segment, "SEGMENT_ROWS", SMALL)


def put(index: Index, tier: TierName, *rows: record.Row, slots: Sequence[int]) -> list[tuple[TierName, Location]]:
    """Put rows into the index as a tier's caller does."""
    given_batch = batch(*rows)
    partition = record.partitions(given_batch["id"], PARTITIONS)
    return index.put(given_batch, partition, tier, np.array(slots, np.int64), 0)


def where(identifier: str, version: int, slot: int) -> Location:
    return Location(identifier, version, record.partition(identifier, PARTITIONS), slot)


class IndexMachine(RuleBasedStateMachine):
    """What the index says of each id is what a dict of the same operations says."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(tiers.index, "SEGMENT_ROWS", SMALL)
        self.patch.setattr(tiers.segment, "SEGMENT_ROWS", SMALL)
        self.slots = count(1)
        self.versions = count(1)
        self.homes: dict[str, tuple[int, TierName, int, bool]] = {}  # id -> version, tier, slot, deleted
        self.queued: set[tuple[TierName, str, int, int]] = set()
        self.index = Index(DIM)

    @initialize(metric=st.sampled_from(["cosine", "dot"]))
    def open(self, metric: str) -> None:
        self.index = Index(DIM, metric)

    def teardown(self) -> None:
        self.patch.undo()

    @rule(ids=st.sets(st.sampled_from(IDS), min_size=1), tier=st.sampled_from(list(TierName)), data=st.data())
    def put(self, ids: set[str], tier: TierName, data: st.DataObject) -> None:
        """A newer row becomes the home; what it masks is returned, once."""
        names = sorted(ids)
        rows = [row(name, next(self.versions), deleted=data.draw(st.booleans())) for name in names]
        slots = [next(self.slots) for _ in rows]
        expected = {
            (tier_, name, v, s) for name in names if name in self.homes for v, tier_, s, _ in [self.homes[name]]
        }
        masked = put(self.index, tier, *rows, slots=slots)
        assert expected == {(name, at.id, at.version, at.slot) for name, at in masked}
        assert len(expected) == len(masked)
        for one, slot in zip(rows, slots, strict=True):
            self.homes[one.id] = (one.version, tier, slot, one.deleted)
        for name, at in masked:
            self.index.queue.add(name, at)
            self.queued.add((name, at.id, at.version, at.slot))

    @precondition(lambda self: self.homes)
    @rule(data=st.data(), tier=st.sampled_from(list(TierName)), stale=st.booleans())
    def relocate(self, data: st.DataObject, tier: TierName, stale: bool) -> None:
        """A home follows its row only while the version is unchanged."""
        name = data.draw(st.sampled_from(sorted(self.homes)))
        version, _, _, deleted = self.homes[name]
        asked, slot = version - stale, next(self.slots)
        vectors = np.zeros((1, DIM), np.float32) if deleted else vector_of(name, version)[None, :]
        same = self.index.relocate(tier, [name], np.array([asked]), np.array([slot]), vectors)
        assert [not stale] == same.tolist()
        if not stale:
            self.homes[name] = (version, tier, slot, deleted)

    @precondition(lambda self: self.homes)
    @rule(data=st.data(), stale=st.booleans())
    def drop(self, data: st.DataObject, stale: bool) -> None:
        """An entry is forgotten only at exactly its version."""
        name = data.draw(st.sampled_from(sorted(self.homes)))
        assert int(not stale) == self.index.drop([(name, self.homes[name][0] + stale)])
        if not stale:
            del self.homes[name]

    @precondition(lambda self: self.queued)
    @rule(data=st.data(), follow=st.booleans())
    def answer(self, data: st.DataObject, follow: bool) -> None:
        """A queued row leaves when its eviction is answered, and follows when its file is rewritten."""
        tier, name, version, slot = data.draw(st.sampled_from(sorted(self.queued)))
        self.queued.discard((tier, name, version, slot))
        if follow:
            new = next(self.slots)
            self.index.relocate_slots(tier, [name], np.array([version]), np.array([slot]), np.array([new]))
            self.queued.add((tier, name, version, new))
        else:
            self.index.queue.remove(tier, where(name, version, slot))

    @precondition(lambda self: self.homes)
    @rule(data=st.data())
    def follow_home(self, data: st.DataObject) -> None:
        """A home follows its row within its tier."""
        name = data.draw(st.sampled_from(sorted(self.homes)))
        version, tier, slot, deleted = self.homes[name]
        new = next(self.slots)
        self.index.relocate_slots(tier, [name], np.array([version]), np.array([slot]), np.array([new]))
        self.homes[name] = (version, tier, new, deleted)

    @rule()
    def compact(self) -> None:
        """Rewriting mostly dead segments changes nothing that can be seen."""
        while self.index.compact():
            pass

    @invariant()
    def agrees(self) -> None:
        """Entries, counts, queue and what a search would read are those of the model."""
        found = {name: self.index.find(name) for name in IDS}
        assert {name: None if e is None else (e.version, e.home, e.slot, e.deleted) for name, e in found.items()} == {
            name: self.homes.get(name) for name in IDS
        }
        assert len(self.homes) == len(self.index)
        assert [sum(home[1] == tier for home in self.homes.values()) for tier in TierName] == [
            self.index.rows(tier) for tier in TierName
        ]
        assert [
            [sum(h[1] == tier and h[3] == gone for h in self.homes.values()) for gone in (False, True)]
            for tier in TierName
        ] == self.index.census().tolist()
        assert self.queued == {key for name in IDS for key in self.index.queue.of(name)}
        assert len(self.queued) == len(self.index.queue)
        self.agrees_to_a_search()

    def agrees_to_a_search(self) -> None:
        """A scan sees exactly the live rows below hot, each with its own vector; none stays unseen."""
        seen = dict(pair for view in self.index.views(TierName) for pair in scannable(view))
        below = {name: home for name, home in self.homes.items() if home[1] != TierName.HOT and not home[3]}
        assert {name: scaled(name, home[0], self.index.metric) for name, home in below.items()} == seen
        assert all((view.seen(view.mask) == view.live).all() for view in self.index.views(TierName))


IndexMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestIndexMachine = IndexMachine.TestCase


def scaled(name: str, version: int, metric: str) -> list[float]:
    """Return the vector of a row as searches read it."""
    vectors = vector_of(name, version)[None, :]
    return list((vectors * score.scales(vectors, metric)[:, None])[0].tolist())


def scannable(view: View) -> list[tuple[str, list[float]]]:
    """Return the ids and codes that a search would read of a segment."""
    vectors = {row: vector.tolist() for chunk in view.rest for row, vector in zip(*chunk, strict=True)}
    return [(view.ids[at], vectors[at]) for at in np.flatnonzero(view.below).tolist()]


# -- single facts --------------------------------------------------------------------------------------------------


def test_newer_compares_with_what_is_known():
    """Only a higher version than the known one is newer; an unknown id is always."""
    index = Index.of(SHAPE)
    put(index, TierName.WARM, row("a", 5), slots=[NO_SLOT])

    assert index.newer(["a", "a", "a", "b"], np.array([4, 5, 6, 0])).tolist() == [False, False, True, True]


def test_held_names_home_copy_and_queued_rows():
    """Every physical row of an id in a tier is named, and none of another tier."""
    index = Index.of(SHAPE)
    put(index, TierName.COLD, row("a", 5), slots=[7])
    segment = index.segments()[0]
    segment.copy[0] = 3
    index.queue.add(TierName.COLD, where("a", 4, 6))
    index.queue.add(TierName.WARM, where("a", 3, NO_SLOT))

    assert sorted(index.held(TierName.COLD, "a")) == [(4, 6), (5, 7)]
    assert index.held(TierName.HOT, "a") == [(5, 3)]
    assert index.held(TierName.WARM, "a") == [(3, NO_SLOT)]
    assert index.held(TierName.GLACIER, "a") == []
    assert index.held(TierName.COLD, "b") == []


def test_a_copy_is_masked_with_its_home():
    """Superseding a promoted record names both of its rows: the home below and the copy in hot."""
    index = Index.of(SHAPE)
    put(index, TierName.COLD, row("a", 5), slots=[7])
    index.segments()[0].copy[0] = 3

    masked = put(index, TierName.HOT, row("a", 6), slots=[1])

    assert [(TierName.COLD, where("a", 5, 7)), (TierName.HOT, where("a", 5, 3))] == masked
    assert index.find("a").copy == NO_COPY


def test_touch_adds_heat_and_forgets_nothing():
    """An access adds to what is left of the heat after the elapsed half-lives; a late one only adds."""
    index = Index.of(SHAPE)
    put(index, TierName.WARM, row("a", 1, event_time=0), slots=[NO_SLOT])
    index.touch(["a", "unknown"], [2, 9], [1_000, 1_000], half_life_ms=1_000)
    segment = index.segments()[0]

    assert (segment.heat[0], segment.used[0]) == (2.5, 1_000)

    index.touch(["a"], [1], [500], half_life_ms=1_000)

    assert (segment.heat[0], segment.used[0]) == (3.5, 1_000)


def test_a_tombstone_begins_without_heat():
    """A deletion is nobody's access."""
    index = Index.of(SHAPE)
    put(index, TierName.HOT, row("a", 1), row("b", 2, deleted=True), slots=[0, 1])

    assert index.segments()[0].heat[:2].tolist() == [1.0, 0.0]


def test_age_counts_from_the_earlier_of_event_and_arrival():
    """An event time ahead of the clock does not make a record younger than its arrival."""
    index = Index.of(SHAPE)
    given_batch = batch(row("a", 1, event_time=50), row("b", 2, event_time=500))
    index.put(given_batch, np.zeros(2, np.int32), TierName.HOT, np.array([0, 1]), 100)

    assert index.segments()[0].born[:2].tolist() == [50, 100]


def test_a_scan_that_has_begun_sees_what_it_saw():
    """A search's snapshot keeps its rows although they are masked, moved and rewritten meanwhile."""
    index = Index.of(SHAPE)
    for at in range(SMALL):
        put(index, TierName.COLD, row(f"id-{at}", at + 1), slots=[at])
    (view, *_) = index.views(TierName)
    before = scannable(view)
    for at in range(SMALL):
        put(index, TierName.COLD, row(f"id-{at}", at + 100), slots=[at + 100])
    while index.compact():
        pass

    assert before == scannable(view)
    assert int(view.mask.sum()) == SMALL


def test_at_its_limit_the_index_drops_codes_of_glacier_and_says_so():
    """Beyond the bytes allowed, glacier's codes go first; the rows stay known and are counted as unseen."""
    index = Index(DIM, bytes_limit=2 * 4 * DIM)
    put(index, TierName.GLACIER, row("a", 1), row("b", 2), slots=[0, 1])
    put(index, TierName.COLD, row("c", 3), slots=[0])
    (view,) = index.views(TierName)

    assert int((view.live - view.seen(view.mask)).sum()) == 2
    assert [identifier for identifier, _ in scannable(view)] == ["c"]
    assert index.find("a").home == TierName.GLACIER


def test_what_has_no_slot_yet_waits():
    """A row queued before its store was answered is not handed out for eviction, but counts and is known."""
    index = Index.of(SHAPE)
    index.queue.add(TierName.COLD, Location("a", 1, 0))
    index.queue.add(TierName.WARM, Location("a", 1, 0))

    assert index.queue.list(0, TierName.COLD, 10) == []
    assert [Location("a", 1, 0)] == index.queue.list(0, TierName.WARM, 10)
    assert (index.queue.count(0, TierName.COLD), len(index.queue)) == (1, 2)


# -- rebuilding ----------------------------------------------------------------------------------------------------


class Listed:
    """A tier of which only the listing is asked: the physical rows as (row, slot), `page` rows a batch."""

    def __init__(self, name: TierName, rows: Sequence[tuple[record.Row, int]], page: int) -> None:
        self.name, self.rows, self.page = name, rows, page

    async def retrieve_all(self) -> AsyncIterator[pa.RecordBatch]:
        for start in range(0, len(self.rows), self.page):
            part = self.rows[start : start + self.page]
            slots = pa.array([slot for _, slot in part], pa.int64())
            yield batch(*(one for one, _ in part)).append_column("slot", slots)


PHYSICAL = st.sets(
    st.tuples(
        st.sampled_from([TierName.WARM, TierName.COLD, TierName.GLACIER]),
        st.sampled_from(["a", "b", "c"]),
        st.integers(1, 4),
        st.integers(0, 1),  # the same version may lie in two slots of a tier
    ),
    max_size=16,
)


def deleted(identifier: str, version: int) -> bool:
    """Say whether a version is a tombstone, the same wherever it lies."""
    return (len(identifier) + version + ord(identifier)) % 3 == 0


def pages(keys, random) -> Iterator[Listed]:
    for tier in (TierName.WARM, TierName.COLD, TierName.GLACIER):
        here = [key for key in sorted(keys) if key[0] is tier]
        random.shuffle(here)
        rows = [(row(name, v, deleted=deleted(name, v)), slot_of(tier, name, v, at)) for _, name, v, at in here]
        yield Listed(tier, rows, page=random.randint(1, 5))


def slot_of(tier: TierName, name: str, version: int, at: int) -> int:
    """Return a slot that no other row of the tier has; warm has none."""
    return NO_SLOT if tier is TierName.WARM else 100 * ord(name) + 10 * version + at


async def rebuilt(listed: Sequence[Listed]) -> tuple[Index, list[tuple[TierName, Location]]]:
    index = Index.of(SHAPE)
    twice = []
    for tier in listed:
        twice += await load(index, tier, PARTITIONS, 0)
    return index, twice


@settings(max_examples=150, deadline=None)
@given(PHYSICAL, st.randoms(use_true_random=False))
def test_rebuild_finds_home_and_queue_whatever_the_order(keys, random):
    """The highest version wins, of equal ones the lowest tier is home, and every other physical row is queued."""
    keys = {key for key in keys if key[0] is not TierName.WARM or key[3] == 0}  # warm: one value an id and version
    physical = {(tier, name, v, slot_of(tier, name, v, at)) for tier, name, v, at in keys}
    index, _ = asyncio.run(rebuilt(list(pages(keys, random))))
    homes = set()
    for name in {key[1] for key in physical}:
        entry = index.find(name)
        best = max((v, tier) for tier, other, v, _ in physical if other == name)
        assert best == (entry.version, entry.home)
        assert deleted(name, entry.version) == entry.deleted
        homes.add((TierName(entry.home), name, entry.version, entry.slot))

    assert homes <= physical
    assert physical - homes == {tuple(key) for name in "abc" for key in index.queue.of(name)}
    assert len({key[1] for key in physical}) == len(index)


@settings(max_examples=60, deadline=None)
@given(PHYSICAL, st.randoms(use_true_random=False))
def test_rebuild_does_not_depend_on_the_order_of_the_tiers(keys, random):
    """Loading the tiers bottom up gives the same homes and the same queue."""
    keys = {key for key in keys if key[3] == 0}
    listed = list(pages(keys, random))
    down, _ = asyncio.run(rebuilt(listed))
    up, _ = asyncio.run(rebuilt(listed[::-1]))

    assert [down.find(name) for name in "abc"] == [up.find(name) for name in "abc"]
    assert [set(down.queue.of(name)) for name in "abc"] == [set(up.queue.of(name)) for name in "abc"]


async def test_a_row_found_in_two_tiers_is_named_for_its_announcement():
    """Equal versions in warm and cold mean a move that died, perhaps unannounced: the load says from where to where."""
    one = row("a", 5)
    _, twice = await rebuilt([Listed(TierName.WARM, [(one, NO_SLOT)], 5), Listed(TierName.COLD, [(one, 9)], 5)])

    assert [(TierName.WARM, where("a", 5, 9))] == twice


async def test_a_rebuilt_index_searches_what_it_loaded():
    """Every live home below hot can be scanned after a rebuild, also one that was relocated while loading."""
    one, other = row("a", 5), row("b", 6)
    index, _ = await rebuilt(
        [Listed(TierName.WARM, [(one, NO_SLOT), (other, NO_SLOT)], 5), Listed(TierName.COLD, [(one, 9)], 5)]
    )
    (view,) = index.views(TierName)

    assert (2, 0) == (len(scannable(view)), int((view.live - view.seen(view.mask)).sum()))
