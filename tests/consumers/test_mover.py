"""The order of a move (R3, R4, R5): stopped, failed, interleaved at every await, and the model check's traces."""

from __future__ import annotations

from functools import partial
from itertools import count
from random import Random

import numpy as np
import pytest

from tests.consumers.world import BELOW, P, World
from tiers import steps
from tiers.errors import LogUnavailable, OutcomeUnknown, TierFull, TierUnavailable
from tiers.record import Int64s
from tiers.tier import NO_SLOT, Location, Places, TierName

pytestmark = pytest.mark.unit

HOT, WARM, COLD, GLACIER = TierName
HOPS = [(HOT, WARM), (HOT, COLD), (HOT, GLACIER), (WARM, COLD), (WARM, GLACIER), (COLD, GLACIER)]
WAYS = {HOT: [], WARM: [(HOT, WARM)], COLD: [(HOT, COLD)]}  # how a row comes to lie where a move begins
hops = pytest.mark.parametrize(("source", "target"), HOPS, ids=[f"{s.word}-{t.word}" for s, t in HOPS])


@pytest.fixture(autouse=True, params=[1, steps.STEP_ROWS], ids=["a row a step", "one step"])
def step_rows(request, monkeypatch):
    """Every test holds for a move of one step, and for one that lets others have their turn after each row."""
    monkeypatch.setattr(steps, "STEP_ROWS", request.param)
    monkeypatch.setattr(steps, "LOOKS", 1)


def world_with(tier: TierName, *ids: str) -> World:
    """Return a world where these ids lie in `tier`."""
    world = World()
    world.take(*ids)
    for source, target in WAYS[tier]:
        world.finish(world.move(source, target, *(name.removeprefix("-") for name in ids)))
    world.commit()
    world.trace.clear()
    return world


def steps_of(source: TierName, target: TierName) -> list[str]:
    """Return the names of the moments of a move of three ids, one of them a tombstone."""
    world = world_with(source, "a", "b", "-c")
    world.finish(world.move(source, target, "a", "b", "c"))
    return world.trace


def at_every_step(source: TierName, target: TierName):
    """Yield (moment, world, move) with the move suspended at or after it, for every suspension there is."""
    for step in count():
        world = world_with(source, "a", "b", "-c")
        move = world.move(source, target, "a", "b", "c")
        if not world.until(move, step):
            return
        yield world.trace[-1] if world.trace else "begun", world, move


def settle(world: World, source: TierName, target: TierName) -> None:
    """Do what the lane does after a move that did not end: the advice again, then what is queued."""
    world.finish(world.move(source, target, "a", "b", "c"))
    world.evict_all()
    if GLACIER in (source, target):
        world.finish(world.mover.compact(P, 100))


# -- the order -------------------------------------------------------------------------------------------------------


@hops
def test_a_move_brings_rows_down_and_leaves_nothing_behind(source, target):
    """After a move its rows lie in the target and nowhere else, and the index and the change say so."""
    world = world_with(source, "a", "b", "-c")
    before = len(world.publisher.changes())

    assert 3 == world.finish(world.move(source, target, "a", "b", "c"))
    assert [[target.word]] * 3 == [world.where(name) for name in "abc"]
    assert [target] * 3 == [world.index.find(name).home for name in "abc"]
    (change,) = world.publisher.changes()[before:]
    assert ("home", source.word, target.word, ["a", "b", "c"]) == (
        change.kind,
        change.source,
        change.target,
        change.ids,
    )
    world.quiet()


def test_the_order_of_a_move():
    """Copy, confirm, announce, evict: a move sends its requests in this order, each after the last answer."""
    requests = ["warm.get", "cold.store", "publish", "warm.evict"]

    assert [f"{r}.{when}" for r in requests for when in ("sent", "answered")] == steps_of(WARM, COLD)


def test_target_rows_are_queued_before_their_store_is_sent():
    """From before the request that may create it, a row below hot is known (R3)."""
    world = world_with(HOT, "a")
    move = world.move(HOT, COLD, "a")
    while "cold.store.sent" not in world.trace:
        move.send(None)

    assert [(COLD, "a", 0, NO_SLOT)] == [tuple(key) for key in world.index.queue.of("a")]

    world.finish(move)


def test_a_move_settles_the_watermark_only_when_the_row_is_durable():
    """The committed offset may pass a row of hot only after its move has its receipt and was announced (R2)."""
    world = world_with(HOT, "a")
    move = world.move(HOT, WARM, "a")
    passed = []
    while world.until(move, 0):
        passed.append((world.trace[-1], world.marks[P].value))

    announced = [moment for moment, _ in passed].index("publish.answered")  # whether copies stay is looked at after it
    assert {0} == {value for _, value in passed[: announced + 1]}
    assert 1 == world.marks[P].value


@hops
def test_what_has_gone_elsewhere_is_not_moved(source, target):
    """A move of rows that are not at home in its source, or at another version, touches nothing."""
    world = world_with(source, "a")
    stale = [("a", world.index.find("a").version + 1), ("unknown", 1)]

    assert 0 == world.finish(world.mover.move(P, source, target, "test", stale))
    assert 0 == world.finish(world.mover.move(P, target, GLACIER, "test", [("a", 0)]))
    assert [] == world.trace


def test_a_key_named_twice_is_moved_once():
    """Advice may repeat itself within one event."""
    world = world_with(HOT, "a")

    assert 1 == world.finish(world.mover.move(P, HOT, COLD, "test", [("a", 0), ("a", 0)]))
    world.quiet()


# -- stopped, refused, unknown ---------------------------------------------------------------------------------------


@hops
def test_cancelled_at_every_await(source, target):
    """A move cancelled anywhere loses nothing and forgets nothing; done again, it ends where it would have."""
    for moment, world, move in at_every_step(source, target):
        world.cancel(move)
        settle(world, source, target)
        world.quiet()
        assert [target.word] == world.where("a"), moment


@hops
def test_refused_at_every_await(source, target):
    """A request that a tier refuses, or the log does not take, costs the move only; done again, it ends well."""
    for moment, world, move in at_every_step(source, target):
        if moment.startswith("publish"):
            world.stop(move, LogUnavailable("away"))
        elif moment.endswith("sent"):
            world.stop(move, TierUnavailable("away"))
        else:
            move.close()
            continue
        settle(world, source, target)
        world.quiet()


def test_a_full_target_costs_the_move_only():
    """TierFull leaves the rows where they are and nothing queued."""
    world = world_with(HOT, "a")
    move = world.move(HOT, WARM, "a")
    world.until(move, 0)
    world.stop(move, TierFull("full"))

    assert (["hot"], 0, 0) == (world.where("a"), len(world.index.queue), world.marks[P].value)


@hops
def test_crashed_at_every_await(source, target):
    """Killed anywhere, before or after the effect of a request: the next life has every newest version and no other."""
    for moment, world, move in at_every_step(source, target):
        move.close()
        life = world.crash()
        life.replay()
        for name in "abc":
            home = TierName(life.index.find(name).home)
            if home < target:
                life.finish(life.move(home, target, name))
        life.evict_all()
        life.finish(life.mover.compact(P, 100))
        life.quiet()
        assert [target.word] == life.where("a"), moment


@hops
def test_an_unknown_outcome_is_raised(source, target):
    """A request without an answer ends the move with its error, and every row it may have made stays known."""
    for moment, world, move in at_every_step(source, target):
        if moment.endswith("answered") and not moment.startswith("publish"):
            world.stop(move, OutcomeUnknown("sent"))
        move.close()
        world.crash().check()


# -- superseded meanwhile --------------------------------------------------------------------------------------------


@hops
@pytest.mark.parametrize("newer", ["a", "-a"])
def test_superseded_between_any_two_steps(source, target, newer):
    """A version ingested at any moment of the move wins; the moved row stays queued until it is evicted."""
    for moment, world, move in at_every_step(source, target):
        world.take(newer)
        newest = world.version(len(world.log) - 1)
        assert newest == world.index.find("a").version, moment
        world.finish(move)
        entry = world.index.find("a")
        assert (newest, HOT) == (entry.version, entry.home), moment
        world.evict_all()
        world.finish(world.mover.compact(P, 100))
        assert ["hot"] == world.where("a"), moment
        world.quiet()
        world.finish(world.move(HOT, target, "a"))
        world.quiet()


def test_a_row_superseded_before_it_was_read_is_not_stored():
    """Hot drops a superseded row at once: a move that was planned for it stores nothing."""
    world = world_with(HOT, "a")
    keys = [("a", 0)]
    world.take("a")

    assert 0 == world.finish(world.mover.move(P, HOT, WARM, "test", keys))
    assert ["hot"] == world.where("a")


def test_superseded_twice_during_a_move():
    """Two newer versions within one move leave exactly the last."""
    world = world_with(WARM, "a")
    move = world.move(WARM, COLD, "a")
    for step in range(4):
        world.until(move, 0)
        if step in (1, 3):
            world.take("a")
    world.finish(move)
    world.evict_all()

    assert ["hot"] == world.where("a")
    world.quiet()


# -- queued rows (R3) ------------------------------------------------------------------------------------------------


def test_a_queued_row_that_has_become_the_home_only_leaves_the_queue():
    """An eviction looks again: the home is never evicted, whatever the queue says."""
    world = world_with(COLD, "a")
    entry = world.index.find("a")
    world.index.queue.add(COLD, Location("a", entry.version, P, entry.slot))

    assert 0 == world.finish(world.mover.evict_queued(P, COLD, 100))
    assert ["cold"] == world.where("a")
    world.quiet()


def test_a_refused_eviction_stays_queued():
    """A queued row leaves the queue when its eviction is answered, and not before."""
    world = world_with(WARM, "a")
    world.take("a")
    eviction = world.mover.evict_queued(P, WARM, 100)
    world.until(eviction, 0)
    world.stop(eviction, TierUnavailable("away"))

    assert 1 == len(world.index.queue)

    world.evict_all()
    world.quiet()


def test_the_other_slot_of_the_same_version_goes():
    """A second row of the home's very version is not the home: it is evicted, and the home stays."""
    world = world_with(COLD, "a")
    entry = world.index.find("a")
    rows = world.stores[COLD].rows
    rows[77] = rows[entry.slot]
    world.index.queue.add(COLD, Location("a", entry.version, P, 77))
    world.evict_all()

    assert {(COLD, "a", entry.version, entry.slot)} == world.physical()
    world.quiet()


# -- tombstones (R5) -------------------------------------------------------------------------------------------------


def deleted_below(*, older_in: TierName | None = None) -> World:
    """Return a world with a tombstone of a at home in glacier, committed, and perhaps an older row queued."""
    world = World()
    world.take("a")
    if older_in is not None:
        world.finish(world.move(HOT, older_in, "a"))
    world.take("-a")
    world.finish(world.move(HOT, GLACIER, "a"))
    world.commit()
    return world


def compact(world: World) -> int:
    return world.finish(world.mover.compact(P, 100))


def test_a_finished_tombstone_goes_and_is_announced():
    """With nothing else of the id anywhere and nothing to replay, the tombstone leaves glacier and the index."""
    world = deleted_below()

    assert 1 == compact(world)
    assert ([], None, 0) == (world.where("a"), world.index.find("a"), len(world.index))
    change = world.publisher.changes()[-1]
    assert ("glacier", None, "tombstone", ["a"]) == (change.source, change.target, change.reason, change.ids)


@pytest.mark.parametrize("tier", [WARM, COLD])
def test_a_tombstone_stays_while_an_older_row_waits_above(tier):
    """A tombstone is not dropped while anything else of the id is queued in warm or cold."""
    world = deleted_below(older_in=tier)

    assert 0 == compact(world)
    assert [tier.word, "glacier"] == world.where("a")

    world.evict_all()

    assert 1 == compact(world)
    assert [] == world.where("a")


def test_a_tombstone_stays_until_its_offset_is_committed():
    """A tombstone is not dropped while a replay could bring back what it covers."""
    world = World()
    world.take("a", "-a")
    world.finish(world.move(HOT, GLACIER, "a"))

    assert 0 == compact(world)

    world.commit()

    assert 1 == compact(world)


def test_a_tombstone_takes_along_the_older_rows_of_its_compaction():
    """Older versions in glacier go in the same commit as the tombstone that covers them."""
    world = deleted_below(older_in=GLACIER)

    assert ["glacier", "glacier"] == world.where("a")
    assert 2 == compact(world)
    assert [] == world.where("a")
    world.quiet()


def test_a_tombstone_waits_for_older_rows_beyond_the_compaction():
    """When not all older rows fit the compaction, the tombstone is not in it either."""
    world = World()
    world.take("b")
    world.finish(world.move(HOT, GLACIER, "b"))
    world.take("a")
    world.finish(world.move(HOT, GLACIER, "a"))
    world.take("-b", "-a")  # b's older row is queued first
    world.finish(world.move(HOT, GLACIER, "a", "b"))
    world.commit()
    world.finish(world.mover.compact(P, 1))

    assert "glacier" in world.where("a")
    while world.finish(world.mover.compact(P, 1)):
        pass
    assert ([], []) == (world.where("a"), world.where("b"))


def test_a_compaction_takes_a_few_files_and_the_next_the_others():
    """Rows in too many files go in several compactions, each with what lies together, and then the tombstones."""
    world = World()
    glacier = world.below[GLACIER]
    for name in "abcd":
        world.take(name)
        world.finish(world.move(HOT, GLACIER, name))
    world.take("-a", "-b", "-c", "-d")
    world.finish(world.move(HOT, GLACIER, "a", "b", "c", "d"))
    world.commit()
    glacier.file_slots = 2
    dropped = []
    while done := compact(world):
        dropped.append(done)
        world.check()

    assert sum(dropped) == 8
    assert len(dropped) > 1
    assert [] == [where for name in "abcd" for where in world.where(name)]
    world.quiet()


def test_a_superseded_tombstone_stays_while_an_older_row_waits_above():
    """A tombstone that a newer version covers may not go either before the older rows above it."""
    world = deleted_below(older_in=WARM)
    world.take("a")

    assert 0 == compact(world)
    assert ["hot", "warm", "glacier"] == world.where("a")

    world.evict_all()

    assert 1 == compact(world)
    world.quiet()


def test_an_update_during_a_compaction_survives_it():
    """A version ingested while the tombstone is being dropped is the home, and the dropped row is forgotten."""
    world = deleted_below()
    move = world.mover.compact(P, 100)
    step = 0
    while world.until(move, 0):
        step += 1
        if step == 3:
            world.take("a")
    compact(world)

    assert ["hot"] == world.where("a")
    world.quiet()


def test_a_compaction_follows_the_rows_it_moved():
    """Rows that a rewrite gave new slots are found there: homes by readers, queued ones by the next compaction."""
    world = World()
    world.take("a", "b", "c", "d")
    world.finish(world.move(HOT, GLACIER, "a", "b", "c", "d"))
    world.take("a", "b")
    world.finish(world.mover.compact(P, 1))
    world.check()

    assert 1 == compact(world)
    world.quiet()


@pytest.mark.parametrize("error", [LogUnavailable("away"), TierUnavailable("away")])
def test_a_compaction_refused_anywhere_is_done_again(error):
    """A compaction that fails at any await loses nothing; the next one ends it."""
    for step in range(4):
        world = deleted_below(older_in=GLACIER)
        move = world.mover.compact(P, 100)
        assert world.until(move, step)
        if world.trace[-1].endswith("answered") and not world.trace[-1].startswith("publish"):
            move.close()
            world = world.crash()  # the commit may have landed: only a restart may go on
            world.replay()
        else:
            world.stop(move, error)
        compact(world)
        assert [] == world.where("a")
        world.quiet()


# -- the first list of traces of the model check ---------------------------------------------------------------------


def test_trace_1_a_tombstone_is_compacted_while_a_superseded_row_waits_in_warm():
    """v1 on its way to warm, deleted, the tombstone goes down: compaction must not make v1 the newest after a crash."""
    world = World()
    world.take("a")
    move = world.move(HOT, WARM, "a")
    while "warm.store.answered" not in world.trace:
        move.send(None)
    world.take("-a")
    world.finish(move)
    world.finish(world.move(HOT, COLD, "a"))
    world.finish(world.move(COLD, GLACIER, "a"))
    world.commit()
    compact(world)
    life = world.crash()
    life.replay()

    assert life.index.find("a").deleted
    life.check()


def test_trace_2_a_commit_of_the_life_before_lands_late():
    """Only the offset that this life has read or had answered lets a tombstone go, not what the broker has by now."""
    world = World()
    world.take("a", "-a")
    world.finish(world.move(HOT, COLD, "a"))
    late = world.marks[P].value  # sent, not landed
    life = world.crash()
    life.committed = late  # it lands; this life has read 0
    life.finish(life.move(COLD, GLACIER, "a"))
    compact(life)

    assert ["glacier"] == life.where("a")

    life.finish(life.ingest.apply(P, life.messages(0, 1)))  # v1 is replayed, and nothing more of the log
    after = life.crash()
    after.replay()

    assert after.index.find("a").deleted


def test_trace_3_the_same_version_lies_in_two_tiers_at_rebuild():
    """Killed between store and evict: the lower row is the home, the upper is queued and goes."""
    world = world_with(COLD, "a")
    move = world.move(COLD, GLACIER, "a")
    while "glacier.store.answered" not in world.trace:
        move.send(None)
    life = world.crash()

    assert ["cold", "glacier"] == life.where("a")
    assert (GLACIER, 1) == (life.index.find("a").home, len(life.index.queue))

    life.evict_all()

    assert ["glacier"] == life.where("a")
    life.quiet()


def test_trace_4_a_move_given_up_after_its_store_leaves_a_known_row():
    """When the change cannot be announced the stored row stays queued, and is evicted or becomes the home."""
    for superseded in (False, True):
        world = world_with(HOT, "a")
        move = world.move(HOT, WARM, "a")
        while "publish.sent" not in world.trace:
            move.send(None)
        world.stop(move, LogUnavailable("away"))
        assert [(WARM, "a", 0, NO_SLOT)] == [tuple(key) for key in world.index.queue.of("a")]
        assert 0 == world.marks[P].value
        if superseded:
            world.take("a")
        world.evict_all()
        world.finish(world.move(HOT, WARM, "a"))
        assert ["warm"] == world.where("a")
        world.quiet()


def test_trace_5_a_queued_eviction_meets_the_new_home():
    """A row queued by a move that was given up, made the home by its repetition, survives the queue's eviction."""
    world = world_with(HOT, "a")
    move = world.move(HOT, WARM, "a")
    while "publish.sent" not in world.trace:
        move.send(None)
    world.stop(move, LogUnavailable("away"))
    waiting = world.index.queue.list(P, WARM, 10)
    world.finish(world.move(HOT, WARM, "a"))
    world.commit()
    for where in waiting:  # an eviction that was planned before
        world.index.queue.add(WARM, where)
    world.evict_all()

    assert ["warm"] == world.where("a")
    world.quiet()


# -- a long run ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_a_random_life_keeps_the_rules(seed):
    """Updates, deletions, moves, evictions, compactions, commits and crashes in any order: the rules hold."""
    random = Random(seed)
    world = World()
    for _ in range(60):
        act = random.choice(["take", "take", "move", "move", "move", "evict", "compact", "commit", "crash"])
        ids = [name for name in "abc" if world.index.find(name) is not None]
        if act == "take":
            world.take(random.choice(["a", "b", "c", "-a", "-b"]))
        elif act == "move" and ids:
            name = random.choice(ids)
            source = TierName(world.index.find(name).home)
            if source is not GLACIER:
                target = random.choice([tier for tier in BELOW if tier > source])
                move = world.move(source, target, name)
                newer = random.choice(["", "", name, f"-{name}"])
                if world.until(move, random.randrange(8)):
                    if newer:
                        world.take(newer)
                    world.finish(move)
        elif act == "evict":
            world.evict_all()
        elif act == "compact":
            world.below[GLACIER].file_slots = random.choice([2, 1 << 30])
            world.finish(world.mover.compact(P, random.choice([1, 100])))
        elif act == "commit":
            world.commit()
        elif act == "crash":
            world = world.crash()
            world.replay()
            world.check()
    world.evict_all()
    world.below[GLACIER].file_slots = 1 << 30
    world.finish(world.mover.compact(P, 100))
    world.check()


# -- bounds ----------------------------------------------------------------------------------------------------------


@hops
def test_a_move_of_more_bytes_than_it_may_have_goes_in_parts(source, target, monkeypatch):
    """No more than `bytes_max` is stored together, and a row that alone has more goes alone."""
    world = world_with(source, "a", "b", "c", "d")
    world.mover._bytes_max = 250
    sizes = {"a": 100, "b": 150, "c": 900, "d": 1}
    monkeypatch.setattr(world.hot if source is HOT else world.below[source], "sizes", partial(sized, sizes))
    before = len(world.publisher.changes())

    assert 4 == world.finish(world.move(source, target, "a", "b", "c", "d"))
    assert [["a", "b"], ["c"], ["d"]] == [change.ids for change in world.publisher.changes()[before:]]
    world.quiet()


async def sized(sizes: dict[str, int], places: Places) -> Int64s:
    """Return the sizes of rows by id."""
    return np.array([sizes[name] for name in places.ids], np.int64)
