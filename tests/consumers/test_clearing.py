"""Clearing, one suspension at a time: whatever dies in the middle, nothing cleared comes back and nothing else goes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest

from consumers.clearing import Clearing
from tests.consumers.world import BELOW, P, World
from tests.tiers.fake import moment
from tiers import record
from tiers.errors import LogUnavailable, OutcomeUnknown, Replaying, TierUnavailable
from tiers.tier import TierName

pytestmark = pytest.mark.unit

TIERS = [TierName.HOT, *BELOW]


class Notes:
    """The manifest: survives a crash."""

    def __init__(self) -> None:
        self.offsets: dict[int, int] = {}
        self.open: dict[int, tuple[TierName, int]] = {}

    def cleared_below(self, partition: int) -> int:
        return self.offsets.get(partition, 0)

    def remember(self, partition: int, offset: int) -> None:
        self.offsets[partition] = offset

    def begin(self, partition: int, tier: TierName, below: int) -> None:
        self.open[partition] = (tier, below)

    def end(self, partition: int) -> None:
        self.open.pop(partition, None)

    def unfinished(self) -> Mapping[int, tuple[TierName, int]]:
        return dict(self.open)


class Commits:
    """Commits a world's watermark: sent, then done, then answered."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def step(self) -> int:
        await moment()
        self._world.committed = self._world.marks[P].value
        await moment()
        self._world.acknowledged = self._world.committed
        return 1

    def acknowledged(self, _: int) -> int:
        return self._world.acknowledged


class Straight:
    """A lane with nothing else to do."""

    async def perform(self, job) -> None:
        await job()


def clearing_of(world: World, notes: Notes) -> Clearing:
    """Return what clears a world."""
    lanes = {P: Straight()}
    world.ingest.replay_until = {P: 0}
    world.ingest.cleared_below = dict(notes.offsets)
    return Clearing(world.index, world.hot, world.mover, world.changes, world.ingest, Commits(world), lanes, notes)


def placed() -> World:
    """A world with ids of every tier, each with company: older versions queued below, and a tombstone.

    `<t>` lies in tier t alone, `<t>-old` has older versions waiting in all tiers below hot but its own, `<t>-gone` is
    a tombstone of which an older row waits elsewhere.
    """
    world = World(hot_rows=128)
    for tier in TIERS:
        word, others = tier.word, [below for below in BELOW if below is not tier]
        for below in others:
            world.take(f"{word}-old")
            world.finish(world.move(TierName.HOT, below, f"{word}-old"))
        world.take(f"{word}-gone")
        world.finish(world.move(TierName.HOT, others[-1], f"{word}-gone"))
        world.take(word, f"{word}-old", f"-{word}-gone")
        if tier is not TierName.HOT:
            world.finish(world.move(TierName.HOT, tier, word, f"{word}-old", f"{word}-gone"))
    return world


def ids_of(tier: TierName) -> set[str]:
    """Return the ids that `placed` put into a tier."""
    return {tier.word, f"{tier.word}-old", f"{tier.word}-gone"}


def shown(world: World) -> dict[str, int | None]:
    """Return the offset of the version that readers see of every id, None for none; a home not there fails."""
    found: dict[str, int | None] = {}
    physical, hot = world.physical(), world.in_hot()
    for name in {name for name, _, _ in world.log}:
        entry = world.index.find(name)
        world._home(name, physical, hot)
        gone = entry is None or entry.deleted
        found[name] = None if gone else record.unpack_version(entry.version)[1]
    return found


def newest(world: World) -> dict[str, int | None]:
    """Return the same by the log alone."""
    return {name: None if gone else at for at, (name, gone, _) in enumerate(world.log)}


def settle(world: World) -> None:
    """Let upkeep do what waits."""
    for tier in (TierName.WARM, TierName.COLD):
        world.finish(world.mover.evict_queued(P, tier, 1_000), check=False)
    world.finish(world.mover.compact(P, 1_000), check=False)


def restarted(world: World, notes: Notes) -> tuple[World, Clearing]:
    """Kill this life; return the next, resumed, replayed, and tidied."""
    life = world.crash()
    clearing = clearing_of(life, notes)
    life.finish(clearing.resume(), check=False)
    if life.ingest.applied(P) < len(life.log):
        life.finish(life.ingest.apply(P, life.messages(life.ingest.applied(P), len(life.log))), check=False)
    return life, clearing


@pytest.mark.parametrize("tier", TIERS)
def test_a_cleared_tier_is_empty_for_good(tier):
    """What had its home there is gone, older versions too; the rest is as it was; a restart changes nothing."""
    world, notes = placed(), Notes()
    before = newest(world)
    cleared = world.finish(clearing_of(world, notes).clear(tier), check=False)
    expected = {name: None if name in ids_of(tier) else at for name, at in before.items()}

    assert 3 == cleared
    assert expected == shown(world)
    assert {} == notes.open

    life, _ = restarted(world, notes)
    settle(life)

    assert expected == shown(life)
    assert not ids_of(tier) & {name for _, name, _, _ in life.physical()}


@pytest.mark.parametrize("committed", [0, 3, 7])
@pytest.mark.parametrize("tier", TIERS)
def test_a_commit_of_the_life_before_that_lands_after_a_clearing_brings_nothing_back(tier, committed):
    """The next start reads more of the log again than this life knew of: what was cleared is left out of it."""
    world, notes = placed(), Notes()
    before = newest(world)
    world.finish(clearing_of(world, notes).clear(tier), check=False)
    world.committed = committed
    expected = {name: None if name in ids_of(tier) else at for name, at in before.items()}
    life, _ = restarted(world, notes)
    settle(life)

    assert expected == shown(life)
    assert not ids_of(tier) & {name for _, name, _, _ in life.physical()}


@pytest.mark.parametrize("tier", TIERS)
def test_a_crash_at_any_moment_of_a_clearing_is_healed(tier):
    """After a crash anywhere, all of the tier is gone or all is there at its newest; nothing older ever shows."""
    seen: set[bool] = set()
    for step in itertools.count():
        world, notes = placed(), Notes()
        before = newest(world)
        if not _driven(world, clearing_of(world, notes).clear(tier), step):
            break
        _everything_is_known(world)
        ledger = list(world.publisher.changes())
        life, clearing = restarted(world, notes)
        found = shown(life)
        kept = {name: at for name, at in before.items() if name not in ids_of(tier)}
        mine = {found[name] for name in (tier.word, f"{tier.word}-old")}

        assert kept == {name: found[name] for name in kept}, step
        assert None is found[f"{tier.word}-gone"], step
        assert mine in ({None}, {before[tier.word], before[f"{tier.word}-old"]}), step
        seen.add(mine == {None})
        _ledger_agrees(life, [*ledger, *life.publisher.changes()], ids_of(tier), tier)

        life.finish(clearing.clear(tier), check=False)
        last, _ = restarted(life, notes)
        settle(last)

        assert {None} == {shown(last)[name] for name in ids_of(tier)}, step
        assert not ids_of(tier) & {name for _, name, _, _ in last.physical()}, step
    assert {True, False} == seen, "the crash has to hit both sides of the point of no return"


def _driven(world: World, coro, step: int) -> bool:
    """Drive to a suspension without the rules of a world that loses nothing; False when it ended before."""
    for _ in range(step + 1):
        try:
            coro.send(None)
        except StopIteration:
            return False
    return True


def _everything_is_known(world: World) -> None:
    """Every physical row below hot is a home or queued (R3)."""
    physical, hot = world.physical(), world.in_hot()
    homes = {row for name, _, _ in world.log for row in world._home(name, physical, hot)}
    queued = {(k.tier, k.id, k.version) for name, _, _ in world.log for k in world.index.queue.of(name)}
    assert set() == {row for row in physical - homes if row[:3] not in queued}


def _ledger_agrees(life: World, changes, ids: set[str], tier: TierName) -> None:
    """Whoever folds the changes knows that a cleared record is gone, and where the others are."""
    placement = {(name, version): change.target for change in changes for name, version in _rows(change)}
    for name in ids:
        at = max(at for at, (other, _, _) in enumerate(life.log) if other == name)
        entry, key = life.index.find(name), (name, record.version_text(life.version(at)))
        if entry is None:
            assert key in placement, f"nobody was told that {name} is gone"
            assert None is placement[key], f"{name} is gone, and the ledger says {placement[key]}"
        elif tier is not TierName.HOT:
            assert TierName(entry.home).word == placement[key]


def _rows(change) -> list[tuple[str, str]]:
    return list(zip(change.ids, change.versions, strict=True))


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("when", range(0, 60, 3))
def test_what_arrives_during_a_clearing_stays(tier, when):
    """An update, a new record and an update elsewhere, at any moment, are there afterwards and after a crash."""
    world, notes = placed(), Notes()
    coro = clearing_of(world, notes).clear(tier)
    alive = _driven(world, coro, when)
    position = len(world.log)
    other = TIERS[(tier + 1) % 4].word
    world.produce(f"{tier.word}-old", "fresh", other, f"{tier.word}-gone")
    world.finish(world.ingest.apply(P, world.messages(position, len(world.log))), check=False)
    if alive:
        world.finish(coro, check=False)
    updated = {
        f"{tier.word}-old": position,
        "fresh": position + 1,
        other: position + 2,
        f"{tier.word}-gone": position + 3,
    }

    assert updated == {name: shown(world)[name] for name in updated}
    assert None is shown(world)[tier.word]

    life, _ = restarted(world, notes)
    settle(life)

    assert updated == {name: shown(life)[name] for name in updated}
    assert None is shown(life)[tier.word]


@pytest.mark.parametrize("tier", TIERS)
def test_an_announcement_that_fails_leaves_everything_there(tier):
    """Without the change on its topic nothing goes, now or after a restart, and clearing can be asked for again."""
    world, notes = placed(), Notes()
    before = newest(world)
    publish = world.changes.publish

    async def refuse(partition, source, target, reason, ids, versions):
        if reason == "cleared":
            raise LogUnavailable("no broker")
        return await publish(partition, source, target, reason, ids, versions)

    world.changes.publish = refuse
    with pytest.raises(LogUnavailable):
        world.finish(clearing_of(world, notes).clear(tier), check=False)

    assert before == shown(world)
    assert before == shown(restarted(world, notes)[0])


@pytest.mark.parametrize("tier", BELOW)
def test_without_an_answered_commit_nothing_below_is_cleared(tier, monkeypatch):
    """As long as a replay could bring the rows back they stay, and the caller is told to ask again."""
    world, notes = placed(), Notes()
    before = newest(world)

    async def unanswered(_) -> int:
        return 0

    monkeypatch.setattr(Commits, "step", unanswered)
    with pytest.raises(LogUnavailable):
        world.finish(clearing_of(world, notes).clear(tier), check=False)

    assert before == shown(world)
    assert before == shown(restarted(world, notes)[0])


@pytest.mark.parametrize("tier", BELOW)
def test_a_tier_that_refuses_the_eviction_ends_the_process(tier, monkeypatch):
    """Rows already out of the index must go before anything moves in beside them: the next start sees to it."""
    world, notes = placed(), Notes()

    async def refuse(*_):
        raise TierUnavailable("not now")

    monkeypatch.setattr(world.mover, "discard", refuse)
    with pytest.raises(OutcomeUnknown):
        world.finish(clearing_of(world, notes).clear(tier), check=False)
    life, _ = restarted(world, notes)

    assert {None} == {shown(life)[name] for name in ids_of(tier)}
    assert {} == notes.open


def test_a_tier_is_not_cleared_before_the_log_is_replayed():
    """A replay that is under way would bring rows that the clearing did not see."""
    world, notes = placed(), Notes()
    clearing = clearing_of(world, notes)
    world.ingest.replay_until = {P: 10_000}
    with pytest.raises(Replaying):
        world.finish(clearing.clear(TierName.WARM), check=False)


def test_a_copy_in_hot_goes_with_its_record():
    """Clearing warm leaves no copy of a promoted record in hot, where nothing would ever free it."""
    world, notes = World(), Notes()
    world.take("a", "b")
    world.finish(world.move(TierName.HOT, TierName.WARM, "a"))
    world.finish(world.promote("a"))
    assert world.hot.copies.has("a")

    world.finish(clearing_of(world, notes).clear(TierName.WARM), check=False)

    assert (False, {"cleared": 1}) == (world.hot.copies.has("a"), dict(world.hot.copies.evicted))
    assert world.index.find("a") is None


def test_cleanup_evicts_what_is_superseded():
    """Afterwards every id lies in one place, and nothing waits."""
    world, notes = placed(), Notes()
    world.commit()
    world.finish(clearing_of(world, notes).cleanup(), check=False)

    assert 0 == len(world.index.queue)
    assert {name: at for name, at in newest(world).items() if at is not None} == {
        name: at for name, at in shown(world).items() if at is not None
    }
