"""Copies in hot (R3): put there beside everything else that happens to the id, taken away for nothing, never wrong."""

from __future__ import annotations

import asyncio
from random import Random

import numpy as np
import pytest

from tests.consumers.world import BELOW, P, World
from tests.tiers.rows import vector_of
from tiers import read
from tiers.errors import LogUnavailable, TierUnavailable
from tiers.tier import Query, TierName

pytestmark = pytest.mark.unit

HOT, WARM, COLD, GLACIER = TierName
below = pytest.mark.parametrize("home", BELOW, ids=[tier.word for tier in BELOW])


def world_with(home: TierName, *ids: str, hot_rows: int = 64) -> World:
    """Return a world where these ids lie in `home`, committed."""
    world = World(hot_rows=hot_rows)
    world.take(*ids)
    world.finish(world.move(HOT, home, *(name.removeprefix("-") for name in ids)))
    world.commit()
    world.trace.clear()
    return world


def promoted(home: TierName, *ids: str, hot_rows: int = 64) -> World:
    """Return such a world with a copy of each id in hot."""
    world = world_with(home, *ids, hot_rows=hot_rows)
    world.finish(world.promote(*ids))
    assert len(ids) == len(world.hot.copies)
    return world


def steps(home: TierName) -> int:
    """Return how many moments a promotion of two ids has."""
    world = world_with(home, "a", "b")
    world.finish(world.promote("a", "b"))
    return len(world.trace)


def at_every_step(home: TierName):
    """Yield (world, promotion) with the promotion of a and b suspended, for every moment of it."""
    for step in range(steps(home)):
        world = world_with(home, "a", "b")
        promotion = world.promote("a", "b")
        assert world.until(promotion, step)
        yield world, promotion


def tell(world: World) -> None:
    """Let the lane announce what has come and gone."""
    world.finish(world.promotion._announce(P))


def copies_told(world: World) -> list[tuple[str, str | None, str, list[str]]]:
    changes = [change for change in world.publisher.changes() if change.kind == "copy"]
    return [(change.source, change.target, change.reason, change.ids) for change in changes]


def ask(world: World, query: Query):
    tiers = {HOT: world.hot, **world.below}
    return [
        (hit.row.id, hit.row.version, hit.tier) for hit in _run(read.retrieve(world.index, tiers, query, None)).hits
    ]


def _run(work):
    """Run a read to its end; to a loop the bare suspensions of the fakes mean "go on"."""
    return asyncio.run(work)


# -- up --------------------------------------------------------------------------------------------------------------


@below
def test_a_promotion_puts_a_copy_into_hot_and_leaves_the_home(home):
    """What is read often lies in hot too; home, watermark and queue are as they were, and the change is a copy's."""
    world = promoted(home, "a")
    entry = world.index.find("a")

    assert (["hot", home.word], home) == (world.where("a"), TierName(entry.home))
    assert (1, 0, 0) == (world.marks[P].value, world.marks[P].dirty, len(world.index.queue))
    assert [(home.word, "hot", "heat", ["a"])] == copies_told(world)
    world.quiet()


def test_what_is_read_too_little_gets_no_copy():
    """A new record that was read twice is below what admission asks for, three times is enough."""
    world = world_with(WARM, "a", "b")
    world.read("a", 2)
    world.read("b", 3)

    assert 1 == world.finish(world.promotion.promote(P, ["a", "b", "unknown"]))
    assert (["warm"], ["hot", "warm"]) == (world.where("a"), world.where("b"))


@pytest.mark.parametrize("name", ["hot already", "a tombstone", "expired"])
def test_what_can_have_no_copy_gets_none(name):
    """A row at home in hot, a tombstone, and what has expired are not promoted, however much read."""
    world = World()
    world.take("a")
    if name == "a tombstone":
        world.take("-a")
    if name != "hot already":
        world.finish(world.move(HOT, COLD, "a"))
    if name == "expired":
        world.index.segments()[0].expires_at[0] = world.now_ms
    world.finish(world.promote("a", "a"))

    assert 0 == len(world.hot.copies)


def test_an_id_promoted_twice_has_one_copy():
    """Promoted again, or named twice by a stranger's advice, a record still has one copy."""
    world = promoted(WARM, "a")

    assert 0 == world.finish(world.promote("a", "a"))
    assert 1 == len(world.hot.copies)


@below
@pytest.mark.parametrize("newer", ["a", "-a"])
def test_superseded_between_any_two_steps_of_a_promotion(home, newer):
    """A version ingested at any moment of a promotion leaves no copy of the old one, before or after it was put in."""
    for world, promotion in at_every_step(home):
        world.take(newer)
        world.finish(promotion)
        tell(world)
        copies = {name for name, _, _ in world.in_hot() if world.hot.copies.has(name)}
        assert "a" not in copies
        assert copies <= {"b"}
        assert HOT == world.index.find("a").home
        world.evict_all()
        world.finish(world.mover.compact(P, 100))
        world.quiet()


@pytest.mark.parametrize(("home", "target"), [(WARM, COLD), (WARM, GLACIER), (COLD, GLACIER)])
def test_a_demotion_between_any_two_steps_of_a_promotion(home, target):
    """The lane forbids it, and still it would do no harm: the home goes down, the copy is of the same version."""
    for world, promotion in at_every_step(home):
        world.finish(world.move(home, target, "a"))
        world.finish(promotion)
        assert target.word in world.where("a")
        world.quiet()


@below
def test_a_demotion_of_the_home_leaves_the_copy(home):
    """The home moves on below, or is rewritten in glacier, and the copy stays and is read."""
    world = promoted(home, "a")
    if home is GLACIER:
        world.finish(world.mover.rewrite_glacier(P, []))
    else:
        world.finish(world.move(home, GLACIER, "a"))

    assert ["hot", "glacier"] == world.where("a")
    assert [("a", world.version(0), HOT)] == ask(world, Query(ids=["a"]))


@below
def test_crashed_at_every_step_of_a_promotion(home):
    """Killed anywhere, the next life has no copies and everything else."""
    for world, promotion in at_every_step(home):
        promotion.close()
        life = world.crash()
        life.replay()
        assert (0, [home.word]) == (len(life.hot.copies), life.where("a"))
        life.quiet()


@below
def test_cancelled_or_refused_at_every_step_of_a_promotion(home):
    """Given up anywhere, a promotion keeps no slot that holds nothing, and done again it ends well."""
    for error in (None, TierUnavailable("away"), LogUnavailable("away")):
        for world, promotion in at_every_step(home):
            if error is None:
                world.cancel(promotion)
            else:
                world.stop(promotion, error)
            assert world.hot.copies.rows_max == world.hot.copies.room() + len(world.hot.copies)
            world.finish(world.promote("a", "b"))
            assert ["hot", home.word] == world.where("a")
            assert [] == world.told()
            world.quiet()


# -- kept ------------------------------------------------------------------------------------------------------------


def test_a_row_that_is_read_stays_as_a_copy_when_it_leaves_hot():
    """Heat delays no move: the row goes down and settles, its slab is free, and a copy of it lies in a copies' slab."""
    world = World()
    world.take("a", "b", "c", "d")
    world.read("b")
    before = world.hot.room(P)
    world.finish(world.move(HOT, WARM, "a", "b", "c", "d"))

    assert (["warm"], ["hot", "warm"]) == (world.where("a"), world.where("b"))
    assert (4, 0) == (world.marks[P].value, world.marks[P].dirty)
    assert before + 4 == world.hot.room(P)
    assert [("warm", "hot", "kept", ["b"])] == copies_told(world)
    world.quiet()


def test_a_move_whose_kept_copy_cannot_be_announced_is_done_all_the_same():
    """When the log refuses the announcement of a copy, the row has moved; it is announced later."""
    world = World()
    world.take("a")
    world.read("a")
    move = world.move(HOT, WARM, "a")
    while not world.told():
        move.send(None)
    world.stop(move, LogUnavailable("away"))

    assert (["hot", "warm"], 0, 1) == (world.where("a"), world.marks[P].dirty, len(world.told()))

    tell(world)

    assert [("warm", "hot", "kept", ["a"])] == copies_told(world)


# -- down ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("newer", ["a", "-a"])
def test_a_copy_goes_with_its_version_and_settles_nothing(newer):
    """A newer version masks home and copy: the home is queued, the copy goes at once, the watermark heeds neither."""
    world = promoted(WARM, "a")
    world.take(newer)

    assert ["hot", "warm"] == world.where("a")  # the new version, and the queued old home
    assert (0, 1, 1) == (len(world.hot.copies), world.marks[P].dirty, world.marks[P].value)

    tell(world)

    assert ("hot", None, "superseded", ["a"]) == copies_told(world)[-1]
    world.evict_all()
    world.quiet()


def test_a_replay_appends_nothing_for_what_has_a_copy():
    """A replayed event whose row is at home below is not dirty, copy or no copy (R2)."""
    world = world_with(WARM, "a")
    world.committed = 0
    life = world.crash()
    life.finish(life.promote("a"))
    life.replay()

    assert (["hot", "warm"], 0, 1) == (life.where("a"), life.marks[P].dirty, len(life.hot.copies))


def test_copies_that_cool_down_go_and_others_stay():
    """A copy not read for two half-lives falls below the lower threshold; one that is read does not."""
    world = promoted(COLD, "a", "b")
    assert 0 == world.promotion.step()
    world.now_ms += int(3 * world.rules.heat_half_life_s * 1000)
    world.read("b")

    assert 1 == world.promotion.step()
    assert (["cold"], ["hot", "cold"]) == (world.where("a"), world.where("b"))

    world.finish(world.lane._jobs.get_nowait()())

    assert ("hot", None, "cooled", ["a"]) == copies_told(world)[-1]


def test_when_copies_have_no_room_the_hotter_take_the_coldest_ones_place():
    """A full area takes in what is hotter by the margin, for the coldest; what is not waits."""
    world = World(hot_rows=16)  # four slabs of four: one for copies
    names = [f"id-{at}" for at in range(6)]
    world.take(*names)
    world.finish(world.move(HOT, COLD, *names))
    for at, name in enumerate(names[:4]):
        world.read(name, 10 + at)
    world.finish(world.promotion.promote(P, names))
    assert (4, 4) == (len(world.hot.copies), world.hot.copies.rows_max)
    world.read("id-4", 12)
    world.read("id-5", 40)
    world.finish(world.promotion.promote(P, names))

    assert ["id-1", "id-2", "id-3", "id-5"] == sorted(world.hot.copies.of(P))
    assert [("hot", None, "replaced", ["id-0"]), ("cold", "hot", "heat", ["id-5"])] == copies_told(world)[-2:]


def test_dirty_rows_take_the_room_of_copies():
    """Copies never make ingest wait: the slab they hold is taken back, and what it held is evicted and said."""
    world = World(hot_rows=16)
    world.take("a", "b")
    world.finish(world.move(HOT, WARM, "a", "b"))
    world.finish(world.promote("a", "b"))
    assert 16 == world.hot.room(P)
    world.take(*(f"id-{at}" for at in range(16)))

    assert (0, ["warm"], 16) == (len(world.hot.copies), world.where("a"), world.marks[P].dirty)

    tell(world)

    assert ("hot", None, "pressure", ["a", "b"]) == copies_told(world)[-1]
    world.check()


def test_copies_take_no_slab_that_dirty_rows_are_about_to_need():
    """With few slabs free nothing is promoted."""
    world = World(hot_rows=16)
    world.take("a")
    world.finish(world.move(HOT, WARM, "a"))
    world.take(*(f"id-{at}" for at in range(9)))  # three slabs of four

    assert 0 == world.finish(world.promote("a"))


def test_what_has_come_and_gone_is_told_in_order_and_once():
    """Announcements that the log refuses are kept, in order, until it takes them."""
    world = promoted(WARM, "a", "b")
    world.hot.copies.evict(["a"], "cooled")
    world.hot.copies.evict(["b"], "cooled")
    world.hot.copies.evict(["a"], "cooled")
    announcing = world.promotion._announce(P)
    world.until(announcing, 0)
    world.stop(announcing, LogUnavailable("away"))
    assert 2 == len(world.told())
    tell(world)

    assert [("warm", "hot", "heat", ["a", "b"]), ("hot", None, "cooled", ["a", "b"])] == copies_told(world)
    assert [] == world.told()


def test_a_full_lane_drops_a_promotion_and_counts_it():
    """What a lane does not take is counted, and comes again with the next read."""
    world = world_with(WARM, "a")
    world.read("a")
    while world.lane.offer(lambda: None):
        pass

    assert (0, 1) == (world.promotion.consider(P, ["a"]), world.promotion.dropped)


def test_ids_of_another_partition_are_not_promoted_in_this_lane():
    """Advice on the wrong partition is left out."""
    world = world_with(WARM, "a")
    world.read("a")

    assert 0 == world.promotion.consider(P + 1, ["a"])


# -- reading ---------------------------------------------------------------------------------------------------------


@below
def test_a_copy_is_read_and_found_in_hot_once(home):
    """By id and by search the record comes once, from hot; asked of its home only, from there."""
    world = promoted(home, "a")
    query = vector_of("a", world.version(0))
    version = world.version(0)

    assert [("a", version, HOT)] == ask(world, Query(ids=["a"]))
    assert [("a", version, HOT)] == ask(world, Query(vector=query, k=5))
    only = frozenset({home})
    assert [("a", version, home)] == ask(world, Query(ids=["a"], tiers=only))
    assert [("a", version, home)] == ask(world, Query(vector=query, k=5, tiers=only))
    assert [("a", version, HOT)] == ask(world, Query(vector=query, k=5, tiers=frozenset({HOT})))


def test_a_row_with_a_copy_is_scanned_once():
    """The rows that an answer says were scanned are the records there are, copies counted for their homes."""
    world = promoted(COLD, "a")
    world.take("b", "c")
    world.finish(world.move(HOT, COLD, "b"))
    tiers = {HOT: world.hot, **world.below}
    result = _run(read.retrieve(world.index, tiers, Query(vector=np.ones(4, np.float32), k=5), None))

    assert (3, 3) == (result.scanned, result.of)
    rows = {name: int(found["rows"]) for name, found in result.searched.items()}
    assert {"hot": 2, "warm": 0, "cold": 1, "glacier": 0} == rows


def test_a_copy_evicted_while_it_is_read_is_read_at_home():
    """Between scan and fetch the copy goes: the hit is there all the same, from its home (R6)."""
    world = promoted(COLD, "a")
    tiers = {HOT: world.hot, **world.below}

    class Evicting:
        """Hot, whose copies go as soon as they are asked for."""

        name = HOT

        async def get(self, locations):
            world.hot.copies.evict(["a"], "cooled")
            return await world.hot.get(locations)

        async def vectors(self, places, *, spent):
            world.hot.copies.evict(["a"], "cooled")
            return await world.hot.vectors(places, spent=spent)

        def vectors_at_once(self, places):
            world.hot.copies.evict(["a"], "cooled")
            return world.hot.vectors_at_once(places)

        def __getattr__(self, name):
            return getattr(world.hot, name)

    tiers[HOT] = Evicting()
    for query in (Query(ids=["a"]), Query(vector=vector_of("a", world.version(0)))):
        world.finish(world.promote("a"))
        hits = _run(read.retrieve(world.index, tiers, query, None)).hits
        assert [("a", COLD)] == [(hit.row.id, hit.tier) for hit in hits]


# -- a long run ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_a_random_life_with_copies_keeps_the_rules(seed):
    """Reads, promotions begun and ended between anything else, evictions and crashes: the rules hold at each step."""
    random = Random(seed)
    world = World(hot_rows=24)
    names = [f"id-{at}" for at in range(8)]
    under_way = None
    for _ in range(120):
        known = [name for name in names if world.index.find(name) is not None]
        act = random.choice(["take", "read", "promote", "go on", "move", "evict", "cool", "commit", "crash", "burst"])
        if act == "take":
            world.take(random.choice(["", "-"]) + random.choice(names))
        elif act == "read" and known:
            world.read(random.choice(known), random.randrange(9))
        elif act == "promote" and known and under_way is None:
            under_way = world.promote(*random.sample(known, min(3, len(known))))
            under_way = under_way if world.until(under_way, random.randrange(4)) else None
        elif act == "go on" and under_way is not None:
            world.finish(under_way)
            under_way = None
        elif act == "move" and known:
            name = random.choice(known)
            source = TierName(world.index.find(name).home)
            if source is not GLACIER:
                world.finish(world.move(source, random.choice([tier for tier in BELOW if tier > source]), name))
        elif act == "evict":
            world.hot.copies.evict(random.sample(names, 3), "test")
            world.evict_all()
            world.finish(world.mover.compact(P, 100))
        elif act == "cool":
            world.now_ms += random.randrange(900_000)
            world.promotion.step()
        elif act == "commit":
            world.commit()
        elif act == "burst":
            dirty = [name for name in known if world.index.find(name).home == HOT]
            world.finish(world.move(HOT, COLD, *dirty))
            world.take(*names)
        elif act == "crash":
            now, under_way = world.now_ms, under_way.close() if under_way is not None else None
            world = world.crash()
            world.now_ms = now
            world.replay()
        world.check()
