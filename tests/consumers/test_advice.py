"""Advice carried out: age events become moves, access events become heat, and what strangers send becomes nothing."""

from __future__ import annotations

import pyarrow as pa
import pytest

from consumers.demote import Demote, MoveSettings
from consumers.heat import Heat
from consumers.lane import Lane
from consumers.placement import Placement
from producers import events
from producers.events import Change, Message
from tests.consumers.world import P, World
from tests.tiers.rows import NOW_MS
from tiers import record
from tiers.errors import InvalidRecord, TierUnavailable
from tiers.policy import PolicySettings
from tiers.tier import TierName, Usage

pytestmark = pytest.mark.unit

HOT, WARM, COLD, GLACIER = TierName
STRANGE = [None, b"", b"noise", b"\xff" * 64]


def advice(value: bytes | None) -> Message:
    return Message(None, value, (), NOW_MS, 0)


def ages(*rows: tuple[str, int], tier: int = HOT, reason: str = "age") -> pa.RecordBatch:
    """Return age advice for (id, version) pairs, old and cold."""
    listed = [
        {"id": name, "version": v, "tier": tier, "age_ms": 9**9, "idle_ms": 9**9, "heat": 0.0, "reason": reason}
        for name, v in rows
    ]
    return pa.RecordBatch.from_pylist(listed, schema=events.AGE)


class Demoting:
    """A world, its lane, and the handler of the age topic."""

    def __init__(self, jobs_max: int = 8, rows_max: int = 2) -> None:
        self.world, self.lane = World(), Lane(P, jobs_max)
        settings = MoveSettings(rows_max=rows_max)
        usages = dict.fromkeys(TierName, Usage(0, 0))

        async def usage() -> dict[TierName, Usage]:
            return usages

        evict = self.world.hot.copies.evict
        self.demote = Demote(
            settings, PolicySettings(), self.world.index, self.world.mover, {P: self.lane}, usage, evict
        )

    async def apply(self, *batches: pa.RecordBatch) -> None:
        await self.demote.apply(P, [advice(events.encode_arrow(batch)) for batch in batches])

    async def work(self) -> None:
        """Run the jobs that the lane holds."""
        while self.lane.waiting:
            await self.lane._jobs.get_nowait()()


async def away() -> dict[TierName, Usage]:
    raise TierUnavailable("Valkey does not answer")


def heat_of(world: World) -> Heat:
    return Heat(world.index, 300, world.promotion, lambda: NOW_MS)


async def test_advice_becomes_moves_of_bounded_size():
    """Rows that are still where the advice says move down, at most `rows_max` in a job."""
    demoting = Demoting(rows_max=2)
    demoting.world.take("a", "b", "c")
    await demoting.apply(ages(*((name, demoting.world.version(at)) for at, name in enumerate("abc"))))

    assert 2 == demoting.lane.waiting

    await demoting.work()

    assert [["cold"]] * 3 == [demoting.world.where(name) for name in "abc"]


async def test_advice_about_what_has_changed_is_left_out():
    """A row that was superseded, has moved or is unknown is not touched by late advice."""
    demoting = Demoting()
    demoting.world.take("a", "b")
    old = ages(("a", 0), ("unknown", 7))
    demoting.world.take("a")
    await demoting.apply(old, ages(("b", demoting.world.version(1)), tier=WARM))

    assert 0 == demoting.lane.waiting


async def test_a_tier_that_does_not_say_how_full_it_is_costs_the_advice_only():
    """Without usages nothing is planned and nothing ends; the same advice is carried out later."""
    demoting = Demoting()
    demoting.world.take("a")
    usages, demoting.demote._usages = demoting.demote._usages, away
    await demoting.apply(ages(("a", 0)))

    assert 0 == demoting.lane.waiting

    demoting.demote._usages = usages
    await demoting.apply(ages(("a", 0)))

    assert 1 == demoting.lane.waiting


async def test_a_full_lane_drops_advice_and_counts_it():
    """What a lane does not take is dropped: it comes again."""
    demoting = Demoting(jobs_max=1, rows_max=1)
    demoting.world.take("a", "b")
    await demoting.apply(ages(("a", 0), ("b", demoting.world.version(1))))

    assert (1, 1) == (demoting.lane.waiting, demoting.demote.dropped)


@pytest.mark.parametrize("tier", [-1, 4, 127])
async def test_age_advice_about_no_tier_is_rejected(tier):
    """Advice that names a tier that does not exist costs itself only; what follows is carried out."""
    demoting = Demoting()
    demoting.world.take("a")
    await demoting.apply(ages(("a", 0), tier=tier), ages(("a", 0)))

    assert 1 == demoting.lane.waiting


@pytest.mark.parametrize("value", STRANGE)
async def test_strange_advice_is_rejected(value):
    """Bytes that are no advice cost themselves only, on both topics."""
    demoting = Demoting()
    await demoting.demote.apply(P, [advice(value)])
    await heat_of(demoting.world).apply(P, [advice(value)])

    assert 0 == demoting.lane.waiting


async def test_empty_advice_is_nothing():
    """An age event without rows asks for nothing."""
    demoting = Demoting()
    await demoting.apply(ages())

    assert 0 == demoting.lane.waiting


async def test_accesses_become_heat():
    """Counts are added to the ids that are known; unknown ones do no harm."""
    world = World()
    world.take("a")
    rows = [{"id": name, "tier": 0, "count": 3, "last": NOW_MS} for name in ("a", "unknown")]
    value = events.encode_arrow(pa.RecordBatch.from_pylist(rows, schema=events.ACCESS))
    await heat_of(world).apply(P, [advice(value)])

    assert 4.0 == world.index.segments()[0].heat[0]


async def test_a_strangers_reads_neither_cool_nor_reach_into_the_future():
    """A negative count is none, and a last access that lies ahead is now."""
    world = World()
    world.take("a")
    rows = [{"id": "a", "tier": 0, "count": -3, "last": NOW_MS + 10**9}]
    await heat_of(world).apply(P, [advice(events.encode_arrow(pa.RecordBatch.from_pylist(rows, schema=events.ACCESS)))])
    segment = world.index.segments()[0]

    assert (1.0, NOW_MS) == (segment.heat[0], segment.used[0])


async def test_what_is_read_often_enough_is_offered_to_the_lane():
    """An access event that makes a row below hot enough leads to one promotion; one that does not leads to none."""
    world = World()
    world.take("a", "b", "c")
    world.finish(world.move(HOT, COLD, "a", "b"))
    rows = [{"id": name, "tier": 2, "count": count, "last": NOW_MS} for name, count in (("a", 3), ("b", 2), ("c", 9))]
    value = events.encode_arrow(pa.RecordBatch.from_pylist(rows, schema=events.ACCESS))
    await heat_of(world).apply(P, [advice(value)])
    assert 1 == world.lane.waiting
    await world.lane._jobs.get_nowait()()

    assert [["hot", "cold"], ["cold"], ["hot"]] == [world.where(name) for name in "abc"]


async def test_demoting_a_copy_takes_it_away():
    """Advice that a row should leave hot, where it is a copy, evicts the copy and moves nothing."""
    demoting = Demoting()
    world = demoting.world
    world.take("a")
    world.finish(world.move(HOT, COLD, "a"))
    world.finish(world.promote("a"))
    await demoting.apply(ages(("a", 0), tier=HOT, reason="operator"))

    assert (["cold"], 0) == (world.where("a"), demoting.lane.waiting)
    assert [("a", None, "operator")] == [(one.id, one.target, one.reason) for one in world.told()]


# -- the feed ----------------------------------------------------------------------------------------------------------


def home(*keys: tuple[str, str], target: str = "warm", kind: str = "home") -> Change:
    ids, versions = [list(part) for part in zip(*keys, strict=True)]
    return Change(kind=kind, source="hot", target=target, reason="age", policy="p", at=1, ids=ids, versions=versions)


def test_a_repeated_home_move_is_dropped():
    """A subscriber sees each home move once, although delivery is at least once."""
    placement = Placement(100)

    assert home(("a", "0.1.0")) == placement.advance(home(("a", "0.1.0")))
    assert placement.advance(home(("a", "0.1.0"))) is None
    assert home(("b", "0.2.0")) == placement.advance(home(("a", "0.1.0"), ("b", "0.2.0")))


def test_other_moves_of_the_same_row_are_kept():
    """A deeper target or a newer version is another move, and copies are always told."""
    placement = Placement(100)
    given = [home(("a", "0.1.0")), home(("a", "0.1.0"), target="cold"), home(("a", "0.2.0"))]
    copies = [home(("a", "0.1.0"), kind="copy")] * 2

    assert [*given, *copies] == [placement.advance(change) for change in [*given, *copies]]


def test_what_a_dead_node_tells_late_moves_nothing():
    """Behind what its successor has told: a place above, or an older version, even one that goes deeper."""
    placement = Placement(100)
    told = [home(("a", "1.1.0"), target="cold"), home(("a", "1.1.0"), target=None)]
    late = [home(("a", "1.1.0")), home(("a", "0.9.0"), target="glacier"), home(("a", "1.1.0"), target="glacier")]

    assert placement.home("a") is None
    assert told[0] == placement.advance(told[0])
    assert (record.parse_version("1.1.0"), "cold") == placement.home("a")
    assert told[1] == placement.advance(told[1])
    assert [None] * 3 == [placement.advance(change) for change in late]
    assert (record.parse_version("1.1.0"), None) == placement.home("a")


@pytest.mark.parametrize(
    ("version", "target"), [("1.2", "warm"), ("a.b.c", "warm"), ("99.0.0", "warm"), ("0.1.0", "x")]
)
def test_what_is_no_change_is_said_to_be_none(version, target):
    """Anyone can write to a topic."""
    with pytest.raises(InvalidRecord):
        Placement(100).advance(home(("a", version), target=target))


def test_what_a_subscriber_remembers_is_bounded():
    """Only so many ids are remembered; the one told of longest ago is forgotten first."""
    placement = Placement(2)
    for name in "abc":
        placement.advance(home((name, "0.1.0")))

    assert 2 == len(placement)
    assert placement.advance(home(("c", "0.1.0"))) is None
    assert placement.advance(home(("a", "0.1.0"))) is not None
