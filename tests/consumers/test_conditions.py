"""Conditional deletes: applied to the version that they name or not at all, the same in every life (R1, R2)."""

from __future__ import annotations

from random import Random

import pytest

from producers import events
from producers.events import Message
from tests.consumers.world import BELOW, TOPICS, P, World
from tests.tiers.rows import NOW_MS
from tiers import record
from tiers.tier import TierName

pytestmark = pytest.mark.unit

HOT, WARM, COLD, GLACIER = TierName


def shown(world: World) -> dict[str, tuple[int, bool]]:
    """Return (offset, deleted) of what the index shows of each id."""
    entries = (world.index.find(name) for name in "abc")
    return {e.id: (record.unpack_version(e.version)[1], e.deleted) for e in entries if e is not None}


def one_by_one(*ids: str) -> World:
    """Return a world that ingested these events in polls of one."""
    world = World()
    for name in ids:
        world.take(name)
    return world


def at_once(*ids: str) -> World:
    """Return a world that ingested these events in one poll."""
    world = World()
    world.take(*ids)
    return world


def test_a_replayed_delete_that_lies_below_is_announced_again_and_not_counted():
    """Its own version is the newest known: it was met in the life before, and is a replayed row like any other."""
    world = at_once("b", "a", "-a?1")
    world.finish(world.move(HOT, COLD, "a"))
    life = world.crash()
    life.replay()

    assert ({"a": (2, True), "b": (0, False)}, 0) == (shown(life), life.ingest.unmet)
    assert [("cold", "recovered", ["a"])] == [(c.target, c.reason, c.ids) for c in life.publisher.changes()]


def sent(work, steps: int) -> bool:
    """Drive a coroutine so many steps; False when it ended before."""
    try:
        for _ in range(steps):
            work.send(None)
    except StopIteration:
        return False
    return True


polls = pytest.mark.parametrize("ingested", [one_by_one, at_once])


@polls
def test_a_delete_whose_version_is_the_newest_is_a_delete(ingested):
    """The tombstone masks the record, and a replay begins at the record: without it the condition would not be met."""
    world = ingested("a", "-a?0")

    assert ({"a": (1, True)}, 0, 0) == (shown(world), world.ingest.unmet, world.marks[P].value)


@polls
def test_a_delete_that_comes_after_an_update_is_nothing(ingested):
    """The new version lives; the delete is counted, owes the log nothing, and is no dead letter."""
    world = ingested("a", "a", "-a?0")

    assert ({"a": (1, False)}, 1) == (shown(world), world.ingest.unmet)
    assert (1, 3) == (world.marks[P].dirty, world.ingest.applied(P))
    assert [] == world.publisher.sent.get(TOPICS.dead_letters, [])


@polls
def test_an_update_that_comes_after_the_delete_lives(ingested):
    """Deleted, then written anew: the last event wins."""
    assert {"a": (2, False)} == shown(ingested("a", "-a?0", "a"))


@polls
def test_written_twice_the_second_is_nothing(ingested):
    """The second finds the tombstone of the first."""
    world = ingested("a", "-a?0", "-a?0")

    assert ({"a": (1, True)}, 1) == (shown(world), world.ingest.unmet)


@polls
@pytest.mark.parametrize("condition", ["-a?0", "-a?7"])
def test_of_an_unknown_id_or_version_it_is_nothing(ingested, condition):
    """No such id, or a version that is not there (yet): nothing is deleted."""
    world = ingested("b", condition, "a")

    assert ({"a": (2, False), "b": (0, False)}, 1) == (shown(world), world.ingest.unmet)


@polls
def test_it_concerns_its_own_id_only(ingested):
    """Other ids of the poll, deleted without a condition or not, are as they would be."""
    world = ingested("a", "b", "c", "-b", "-a?0", "-c?1")

    assert {"a": (4, True), "b": (3, True), "c": (2, False)} == shown(world)


def test_a_condition_that_cannot_be_read_is_a_dead_letter():
    """Better a letter than a deletion that nobody asked for."""
    world = World()
    world.take("a")
    message = Message(b"a", None, ((events.IF_VERSION, b"soon"),), NOW_MS, 1)
    world.finish(world.ingest.apply(P, [message]), check=False)

    assert ({"a": (0, False)}, {"if_version": 1}) == (shown(world), dict(world.ingest.letters))


def test_a_refused_poll_counts_nothing():
    """TierFull changes nothing: the same messages, taken later, are counted once."""
    world = World(hot_rows=4)
    world.take("a", "a")
    world.produce("-a?0", "b", "c", "b", "c", "c", "-c?0", "-b?1", *(f"id-{at}" for at in range(3)))
    with pytest.raises(Exception, match="no room"):
        world.finish(world.ingest.apply(P, world.messages(2, len(world.log))), check=False)

    assert 0 == world.ingest.unmet


@pytest.mark.parametrize("tier", BELOW)
def test_where_the_record_lies_makes_no_difference(tier):
    """In any tier, with a copy in hot or without, the named version is deleted."""
    world = one_by_one("a")
    world.finish(world.move(HOT, tier, "a"))
    world.finish(world.promote("a"))
    world.take("-a?0")
    world.evict_all()

    assert ({"a": (1, True)}, 0) == (shown(world), len(world.hot.copies))
    world.check()


def test_what_a_delete_was_decided_by_is_replayed_with_it():
    """Superseded in hot, while an older version lies below: the watermark stays, and the next life decides alike."""
    world = one_by_one("a")
    world.finish(world.move(HOT, COLD, "a"))
    world.take("a")
    world.take("-a?1")
    world.commit()
    life = world.crash()
    life.replay()

    assert {"a": (2, True)} == shown(life)
    life.finish(life.move(HOT, COLD, "a"))
    assert (3, 0) == (life.marks[P].value, life.marks[P].dirty)


@pytest.mark.parametrize("tier", [WARM, GLACIER])
def test_what_a_delete_was_decided_by_waits_for_it_below(tier):
    """At home below, it is not evicted before the delete is durable: an older version could outlive it."""
    world = one_by_one("a")
    world.finish(world.move(HOT, COLD, "a"))
    world.take("a")
    world.finish(world.move(HOT, tier, "a"))
    world.take("-a?1")
    world.commit()
    world.finish(world.mover.evict_queued(P, WARM, 100))
    world.finish(world.mover.compact(P, 100))
    life = world.crash()
    life.replay()

    assert {"a": (2, True)} == shown(life)
    life.finish(life.move(HOT, WARM, "a"))
    life.evict_all()
    life.finish(life.mover.compact(P, 100))
    assert ["warm"] == life.where("a")


def moved(world: World, random: Random) -> World:
    """Move each id further down, or crash on the way; returns the life that goes on."""
    for name in "ab":
        entry = world.index.find(name)
        if entry is None or entry.home == GLACIER:
            continue
        source = TierName(entry.home)
        move = world.move(source, random.choice([tier for tier in BELOW if tier > source]), name)
        if sent(move, random.choice([99, 99, 99, 0, 1, 2, 3, 4, 5])):
            move.close()
            world = world.crash()
    return world


@pytest.mark.parametrize("seed", range(40))
def test_every_life_decides_alike(seed):
    """Whatever was moved, committed and crashed, in whatever polls, the index shows what the fold over the log says."""
    random = Random(seed)
    world, seen = World(hot_rows=128), 0  # until what was seen is replayed, the rules that `check` holds do not (R7)
    for _ in range(40):
        seen = max(seen, world.ingest.applied(P))
        act = random.choice(["produce", "produce", "produce", "ingest", "move", "commit", "compact", "crash"])
        if act == "produce":
            name = random.choice("ab")
            offsets = [at for at, event in enumerate(world.log) if event.name == name]
            if offsets and random.random() < 0.5:
                world.produce(f"-{name}?{random.choice(offsets[-2:])}")
            else:
                world.produce(random.choice(["", "", "-"]) + name)
        elif act == "ingest" and world.ingest.applied(P) < len(world.log):
            end = random.randint(world.ingest.applied(P) + 1, len(world.log))
            world.finish(world.ingest.apply(P, world.messages(world.ingest.applied(P), end)), check=end >= seen)
        elif act == "move":
            world = moved(world, random)
        elif act == "commit":
            world.commit()
        elif act == "compact":
            for tier in (WARM, COLD):
                world.finish(world.mover.evict_queued(P, tier, 100), check=False)
            world.finish(world.mover.compact(P, 100), check=False)
        elif act == "crash":
            world = world.crash()
    world.replay()
    expected = {name: (record.unpack_version(v)[1], dead) for name, (v, dead) in world.newest(len(world.log)).items()}
    found = shown(world)
    living = {name: at for name, at in expected.items() if not at[1]}
    assert living == {name: at for name, at in found.items() if not at[1]}
    assert all(expected[name] == at for name, at in found.items())
    world.check()
