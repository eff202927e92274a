"""The age monitor: whom it names, in which order, and how often."""

from __future__ import annotations

import asyncio
from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producers import events
from producers.age import AgeMonitor, AgeSettings, Proposal
from tests.consumers.world import FakePublisher
from tests.tiers.rows import NOW_MS, SHAPE, batch, row
from tiers import policy
from tiers.errors import LogUnavailable, TierUnavailable
from tiers.index import Index
from tiers.policy import PolicySettings
from tiers.tier import TierName, Usage

pytestmark = pytest.mark.unit

HOT, WARM, COLD, GLACIER = TierName
RULES = PolicySettings(hot_age_s=10, warm_idle_s=100, cold_idle_s=1_000, heat_half_life_s=100)
SETTINGS = AgeSettings(ask_again_s=5, rows_max=100, glacier_flush_s=60, glacier_flush_rows=5)
EMPTY = Usage(0, 0)


class Clock:
    """Milliseconds that only a test moves."""

    def __init__(self) -> None:
        self.now_ms = NOW_MS

    def __call__(self) -> int:
        return self.now_ms

    def pass_s(self, seconds: float) -> None:
        self.now_ms += int(seconds * 1000)


class Monitored:
    """An index of rows and the monitor over it."""

    def __init__(self, settings: AgeSettings = SETTINGS) -> None:
        self.index, self.clock, self.publisher = Index.of(SHAPE), Clock(), FakePublisher([])
        self.usages = dict.fromkeys(TierName, EMPTY)
        self.behind: set[int] = set()
        self.monitor = AgeMonitor(
            settings, RULES, self.index, self._usage, self.publisher, "t.age", self.clock, lambda: self.behind
        )

    async def _usage(self) -> dict[TierName, Usage]:
        return self.usages

    def put(self, tier: TierName, *ids: str, partition: int = 0, first: int = 0) -> None:
        """Make rows that were born now the newest of their ids."""
        rows = [row(name, first + at, event_time=self.clock.now_ms) for at, name in enumerate(ids)]
        where = np.full(len(rows), partition, np.int32)
        self.index.put(batch(*rows), where, tier, np.arange(len(rows)) + first, self.clock.now_ms)

    def named(self, tier: TierName) -> list[str]:
        """Return the ids that the monitor proposes now, in order."""
        return [name for proposal in self.propose(tier) for name in proposal.batch["id"].to_pylist()]

    def propose(self, tier: TierName) -> list[Proposal]:
        return self.monitor.candidates(tier, self.usages[tier], self.clock.now_ms)


@pytest.mark.parametrize("tier", [HOT, WARM, COLD])
def test_what_is_behind_is_not_asked_for_more(tier):
    """Rows of a partition whose moves have not kept up are named once they have; they do not count as named before."""
    monitored = Monitored()
    monitored.put(tier, "a", "b")
    monitored.put(tier, "c", partition=1, first=2)
    monitored.clock.pass_s(3_600)
    for behind, named in (({0}, ["c"]), (set(), ["a", "b"])):
        monitored.behind = behind
        if tier is COLD:
            assert [] == monitored.named(tier), "it waits for the rows of a file"
            monitored.clock.pass_s(60)
        found = monitored.named(tier)
        assert found == named or (tier is COLD and not behind and found == ["a", "b", "c"])  # "c" so long ago, again


def test_rows_of_an_age_leave_hot():
    """A row is named when it is as old as the limit, not before."""
    monitored = Monitored()
    monitored.put(HOT, "a")
    monitored.clock.pass_s(5)
    monitored.put(HOT, "b", first=1)

    assert [] == monitored.named(HOT)

    monitored.clock.pass_s(5)

    assert ["a"] == monitored.named(HOT)


@settings(max_examples=200, deadline=None)
@given(
    tier=st.sampled_from([HOT, WARM, COLD]),
    rows=st.lists(st.tuples(*[st.integers(-12, 12)] * 3), min_size=1, max_size=30),
    limit_s=st.sampled_from([0.0, 0.0015, 0.005, 3.0]),
)
def test_whom_it_names_does_not_depend_on_how_few_rows_it_looks_at(tier, rows, limit_s):
    """Rows that are not old, or were named, are left out before anything is computed of them: that changes nothing."""
    monitored = Monitored(AgeSettings(ask_again_s=0.005, glacier_flush_s=0))
    monitored.monitor._rules = PolicySettings(hot_age_s=limit_s, warm_idle_s=limit_s, cold_idle_s=limit_s)
    monitored.put(tier, *(f"id-{at}" for at in range(len(rows))))
    (segment,) = monitored.index.segments()
    for at, column in enumerate(("born", "used", "asked")):
        getattr(segment, column)[: len(rows)] = NOW_MS + np.array([row[at] for row in rows])
    asked = segment.asked.copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy, "old_until", lambda *_: ("born", np.iinfo(np.int64).max))
        everything = monitored.named(tier)
    segment.asked[:] = asked

    assert everything == monitored.named(tier)


def test_rows_leave_hot_in_log_order():
    """Candidates out of hot come by version, whatever the order in the index and their heat."""
    monitored = Monitored()
    monitored.put(HOT, "late", first=9)
    monitored.put(HOT, "early", "middle", first=1)
    monitored.index.touch(["early"], [100], [monitored.clock.now_ms], 1_000)
    monitored.clock.pass_s(10)

    assert ["early", "middle", "late"] == monitored.named(HOT)


def test_a_row_is_not_named_twice_within_the_time_allowed():
    """What was named is left alone for `ask_again_s`, then named again if it is still there."""
    monitored = Monitored()
    monitored.put(HOT, "a")
    monitored.clock.pass_s(10)

    assert ["a"] == monitored.named(HOT)
    assert [] == monitored.named(HOT)

    monitored.clock.pass_s(5)

    assert [] == monitored.named(HOT)

    monitored.clock.pass_s(0.001)

    assert ["a"] == monitored.named(HOT)


def test_pressure_does_not_name_the_next_rows_instead():
    """While the rows that must go are on their way, a pressed tier names no others in their place."""
    monitored = Monitored()
    monitored.put(HOT, *"abcdefghij")
    monitored.usages[HOT] = Usage(10, 0, rows_limit=10)

    assert ["a", "b", "c"] == monitored.named(HOT)
    assert [] == monitored.named(HOT)


def test_a_row_that_has_moved_may_be_named_at_once():
    """Moving clears the mark: in its new tier a row is judged anew."""
    monitored = Monitored()
    monitored.put(WARM, "a")
    monitored.clock.pass_s(1_000)

    assert ["a"] == monitored.named(WARM)

    entry = monitored.index.find("a")
    monitored.index.relocate(COLD, ["a"], np.array([entry.version]), np.array([0]), np.ones((1, 4), np.float32))
    monitored.monitor._flushed[0] = 0

    assert ["a"] == monitored.named(COLD)


def test_reads_keep_a_row_in_warm():
    """Idleness counts from the last access, and the idlest leave first."""
    monitored = Monitored()
    monitored.put(WARM, "read", "idle", "idler")
    monitored.clock.pass_s(50)
    monitored.index.touch(["read"], [1], [monitored.clock.now_ms], 100_000)
    monitored.index.touch(["idle"], [0], [monitored.clock.now_ms - 10_000], 100_000)
    monitored.clock.pass_s(90)

    assert ["idler", "idle"] == sorted(monitored.named(WARM), reverse=True)


def test_rows_for_glacier_gather_until_the_flush_time():
    """Rows of cold wait so that a file is worth its commit: they are named together after `glacier_flush_s`."""
    monitored = Monitored()
    monitored.put(COLD, "a", "b")
    monitored.clock.pass_s(1_000)

    assert [] == monitored.named(COLD)

    monitored.clock.pass_s(59)

    assert [] == monitored.named(COLD)

    monitored.clock.pass_s(1)

    assert ["a", "b"] == monitored.named(COLD)


def test_enough_rows_for_a_file_go_at_once():
    """A partition with `glacier_flush_rows` candidates does not wait; another with fewer does."""
    monitored = Monitored()
    monitored.put(COLD, *"abcde", partition=0)
    monitored.put(COLD, "f", partition=1, first=10)
    monitored.clock.pass_s(1_000)

    assert list("abcde") == monitored.named(COLD)


def test_pressure_does_not_wait_for_a_file():
    """Rows that must leave cold because it is full are named at once, with their reason."""
    monitored = Monitored()
    monitored.put(COLD, "a", "b", "c", "d")
    monitored.usages[COLD] = Usage(4, 0, rows_limit=4)
    (proposal,) = monitored.propose(COLD)

    assert ["pressure"] == proposal.batch["reason"].to_pylist()


def test_at_most_rows_max_are_named_at_once():
    """What is in flight is bounded; the rest is named in the next round."""
    monitored = Monitored(AgeSettings(ask_again_s=60, rows_max=2))
    monitored.put(HOT, "a", "b", "c")
    monitored.clock.pass_s(10)

    assert [["a", "b"], ["c"], []] == [monitored.named(HOT) for _ in range(3)]


def test_each_partition_and_reason_has_its_own_event():
    """One event names rows of one partition that leave for one reason, with their age, idleness and heat."""
    monitored = Monitored()
    monitored.put(HOT, "a", "b", partition=0)
    monitored.put(HOT, "c", partition=1, first=5)
    monitored.clock.pass_s(10)
    monitored.put(HOT, "d", partition=1, first=7)
    monitored.usages[HOT] = Usage(4, 0, rows_limit=1)
    proposals = monitored.propose(HOT)

    assert [(0, "age", ["a", "b"]), (1, "age", ["c"])] == [
        (p.partition, p.batch["reason"][0].as_py(), p.batch["id"].to_pylist()) for p in proposals if p.partition < 2
    ][:2]
    assert [10_000, 10_000] == proposals[0].batch["age_ms"].to_pylist()
    assert [0, 0] == proposals[0].batch["tier"].to_pylist()


def test_masked_rows_are_not_named():
    """Only the newest version of an id has an age."""
    monitored = Monitored()
    monitored.put(HOT, "a")
    monitored.put(HOT, "a", first=5)
    monitored.clock.pass_s(10)

    assert ["a"] == monitored.named(HOT)


async def test_advice_is_published_on_its_partition():
    """`propose` sends what the tiers' candidates are, readable by the demotion worker, and counts the rows."""
    monitored = Monitored()
    monitored.put(HOT, "a", "b")
    monitored.put(WARM, "c", first=5)
    monitored.clock.pass_s(1_000)

    assert 3 == await monitored.monitor.propose()
    sent = [events.decode_arrow(value, events.AGE) for _, value, _ in monitored.publisher.sent["t.age"]]
    assert [["a", "b"], ["c"]] == [one["id"].to_pylist() for one in sent]


async def test_a_log_that_is_away_is_the_callers_to_know():
    """An event that cannot be sent raises; the rows are named again when their time has come."""
    monitored = Monitored()
    monitored.put(HOT, "a")
    monitored.clock.pass_s(10)

    async def away(*_: object, **__: object) -> None:
        raise LogUnavailable("away")

    monitored.publisher.send = away
    with pytest.raises(LogUnavailable):
        await monitored.monitor.propose()
    monitored.clock.pass_s(6)

    assert ["a"] == monitored.named(HOT)


async def test_a_tier_that_is_away_costs_one_interval():
    """The monitor goes on, and names the rows once the tier says again how full it is."""
    monitored, stop, asked = Monitored(AgeSettings(interval_ms=1)), asyncio.Event(), count()
    monitored.put(HOT, "a")
    monitored.clock.pass_s(10)

    async def usage() -> dict[TierName, Usage]:
        if not next(asked):
            raise TierUnavailable("Valkey does not answer")
        stop.set()
        return monitored.usages

    monitored.monitor._usages = usage
    await monitored.monitor.run(stop)

    assert 1 == len(monitored.publisher.sent["t.age"])
