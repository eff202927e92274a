"""From messages to visible rows: what is bad, what is old, what does not fit, and what is masked (R2, R3, R7, R9)."""

from __future__ import annotations

import asyncio

import pyarrow as pa
import pytest

from consumers.ingest import Ingest
from consumers.reader import Reader
from producers import columns, events
from producers.decoder import EventDecoder
from producers.events import Message
from tests.consumers.world import TOPICS, P, World
from tests.tiers.rows import ATTRIBUTES, DIM, NOW_MS, SHAPE, vector_of
from tiers import record
from tiers.errors import InvalidRecord, LogRefused, NotYet, TierFull
from tiers.tier import Location, TierName

pytestmark = pytest.mark.unit

HOT, WARM, COLD, GLACIER = TierName


def good(name: str, offset: int) -> Message:
    return Message(name.encode(), events.encode_event(vector_of(name, offset)), (), NOW_MS, offset)


def bad(offset: int, key: bytes | None = b"bad", value: bytes | None = b"{") -> Message:
    return Message(key, value, (("h", b"1"),), NOW_MS, offset)


def letters(world: World) -> list[tuple[str, str]]:
    """Return (offset, reason) of each dead letter."""
    headers = [dict(sent[2]) for sent in world.publisher.sent.get(TOPICS.dead_letters, ())]
    return [(h["isotherm-offset"].decode(), h["isotherm-reason"].decode()) for h in headers]


def apply(world: World, *messages: Message) -> None:
    world.finish(world.ingest.apply(P, messages), check=False)


# -- visible ---------------------------------------------------------------------------------------------------------


def test_an_event_is_visible_when_apply_returns():
    """A record is in hot and in the index, at the version of its offset, dirty until it has moved."""
    world = World()
    world.take("a", "b")

    assert ["hot"] == world.where("a")
    assert (world.version(1), HOT) == world.index.find("b")[1:4:2]
    assert (0, 2, 2) == (world.marks[P].value, world.marks[P].end, world.marks[P].dirty)
    assert 2 == world.ingest.applied(P)


def test_of_one_poll_only_the_newest_of_a_key_is_appended():
    """An id that a poll names several times takes one row, and the others owe nothing to the log."""
    world = World()
    world.take("a", "a", "-a", "a", "b")

    assert {("a", world.version(3)), ("b", world.version(4))} == {key[:2] for key in world.in_hot()}
    assert 2 == world.marks[P].dirty


def test_a_tombstone_is_a_row():
    """A deletion enters hot like any row, and masks the record at once."""
    world = World()
    world.take("a")
    world.take("-a")

    assert {("a", world.version(1))} == {key[:2] for key in world.in_hot()}
    assert world.index.find("a").deleted


def test_superseding_in_hot_settles_the_watermark():
    """A row that a newer one in hot replaces is not dirty any more: the watermark goes on to the newer one's run."""
    world = World()
    world.take("a")
    world.take("b")
    world.take("a")

    assert 1 == world.marks[P].value
    assert 2 == world.marks[P].dirty

    world.take("b")

    assert 2 == world.marks[P].value


@pytest.mark.parametrize("tier", [WARM, COLD, GLACIER])
def test_superseding_below_queues_the_older_row(tier):
    """The older row is masked at once and waits for its eviction where it lies (R3)."""
    world = World()
    world.take("a")
    world.finish(world.move(HOT, tier, "a"))
    world.take("a")

    assert [(tier, "a", 0)] == [tuple(key)[:3] for key in world.index.queue.of("a")]
    assert HOT == world.index.find("a").home


# -- bad -------------------------------------------------------------------------------------------------------------


def test_a_bad_message_becomes_a_letter_and_the_partition_goes_on():
    """What cannot be applied is written to the dead letters with its place and reason; its neighbours are applied."""
    world = World()
    apply(world, good("a", 0), bad(1), good("b", 2), bad(3, key=None))

    assert [("1", "json"), ("3", "id_missing")] == letters(world)
    assert {"a", "b"} == {key[0] for key in world.in_hot()}
    assert (4, 2) == (world.ingest.applied(P), world.marks[P].dirty)
    assert {"json": 1, "id_missing": 1} == dict(world.ingest.letters)


def test_a_letter_holds_the_message_whole():
    """Key, value and headers of a dead letter are those of the message."""
    world = World()
    apply(world, bad(0))
    key, value, headers = world.publisher.sent[TOPICS.dead_letters][0]

    assert (b"bad", b"{") == (key, value)
    assert b"1" == dict(headers)["original-h"]
    assert b"t.memories" == dict(headers)["isotherm-topic"]


def test_a_poll_of_nothing_but_letters_is_done():
    """Acknowledged letters depend on the log no more (R2)."""
    world = World()
    apply(world, bad(0), bad(1))

    assert (2, 0) == (world.marks[P].value, world.marks[P].dirty)


def test_the_watermark_waits_for_the_letter():
    """While a dead letter is not acknowledged its offset is not passed; one refused for good ends the reader."""
    world = World()
    apply_ = world.ingest.apply(P, [bad(0)])
    while "publish.answered" not in world.trace:
        apply_.send(None)

    assert (0, 1) == (world.marks[P].value, world.marks[P].dirty)

    assert {TOPICS.dead_letters} == world.publisher.insisted

    with pytest.raises(LogRefused):
        apply_.throw(LogRefused("too large"))

    assert 0 == world.marks[P].value


def several(partitions: int, partition: int) -> tuple[World, Ingest]:
    """Return an ingest of one of several partitions."""
    world = World()
    ingest = Ingest(
        EventDecoder(DIM, ATTRIBUTES),
        SHAPE,
        world.hot,
        world.index,
        world.publisher,
        TOPICS,
        world.changes,
        epoch=0,
        partitions=partitions,
        watermarks={partition: world.marks[P]},
        now_ms=lambda: NOW_MS,
    )
    return world, ingest


def test_a_key_in_the_wrong_partition_is_quarantined():
    """A message that its producer put into another partition than murmur2 says is a letter, not a second home."""
    ours = next(f"id-{at}" for at in range(99) if record.partition(f"id-{at}", 4) == 3)
    theirs = [f"id-{at}" for at in range(99) if record.partition(f"id-{at}", 4) != 3][:2]
    world, ingest = several(4, 3)
    messages = [good(theirs[0], 0), good(ours, 1), Message(theirs[1].encode(), None, (), NOW_MS, 2)]
    world.finish(ingest.apply(3, messages), check=False)

    assert {("0", "wrong_partition"), ("2", "wrong_partition")} == set(letters(world))
    assert [None, None] == [world.index.find(name) for name in theirs]
    assert 3 == world.index.find(ours).partition
    assert 1 == world.marks[P].dirty


# -- many rows in one message ----------------------------------------------------------------------------------------


def many(offset: int, *names: str) -> Message:
    """Return an Arrow message; "-a" deletes a, "!" is a row without an id."""
    ids = [None if name == "!" else name.removeprefix("-") for name in names]
    deleted = [name.startswith("-") for name in names]
    vectors = [None if name.startswith("-") else vector_of(name, offset) for name in names]
    rows = {
        "id": pa.array(ids, pa.string()),
        "vector": pa.array(vectors, SHAPE.field("vector").type),
        "deleted": pa.array(deleted),
    }
    return Message(
        None, columns.encode(pa.record_batch(rows)), [("content-type", events.ARROW_TYPE.encode())], NOW_MS, offset
    )


def test_rows_of_one_message_are_settled_one_by_one():
    """The watermark passes a message when every row of it is durable below, superseded, or an acknowledged letter."""
    world = World()
    apply(world, many(0, "a", "b", "a", "!", "c"), good("d", 1))

    assert [("0", "id_missing")] == letters(world)
    assert (0, 4) == (world.marks[P].value, world.marks[P].dirty)
    assert record.pack_version(0, 0, 2) == world.index.find("a").version

    world.finish(world.move(HOT, WARM, "a", "b"), check=False)
    assert (0, 2) == (world.marks[P].value, world.marks[P].dirty)

    apply(world, many(2, "-c", "d", "d"))
    assert (2, 2) == (world.marks[P].value, world.marks[P].dirty)

    world.finish(world.move(HOT, COLD, "c", "d"), check=False)
    assert (3, 0) == (world.marks[P].value, world.marks[P].dirty)


def test_many_letters_are_all_written():
    """A message of nothing but bad rows leaves a letter for each, and is done."""
    world = World(hot_rows=8 * 700)
    apply(world, many(0, *["!"] * 600))

    assert [("0", "id_missing")] * 600 == letters(world)
    assert [str(row).encode() for row in range(600)] == [
        dict(sent[2])["isotherm-row"] for sent in world.publisher.sent[TOPICS.dead_letters]
    ]
    assert ({"id_missing": 600}, 1) == (dict(world.ingest.letters), world.marks[P].value)


def test_a_message_that_hot_could_not_always_take_is_a_letter():
    """A message may have an eighth of hot's rows: it is refused, rather than waited for for ever."""
    world = World(hot_rows=64)
    apply(world, many(0, *"abcdefgh"), many(1, *"abcdefghi"))

    assert [("1", "arrow_size")] == letters(world)
    assert 8 == len(world.in_hot())


def test_a_message_that_does_not_fit_now_changes_nothing():
    """Room is checked in rows: TierFull leaves everything as it was, and the same message is taken later."""
    world = World(hot_rows=64)
    for at in range(8):
        apply(world, many(at, *(f"{at}-{n}" for n in range(8))))
    before = repr(world.index), repr(world.marks[P]), world.in_hot()
    with pytest.raises(TierFull):
        apply(world, many(8, "a", "b", "!"))

    assert before == (repr(world.index), repr(world.marks[P]), world.in_hot())
    assert [] == letters(world)

    world.finish(world.move(HOT, COLD, *(f"0-{n}" for n in range(8))), check=False)
    apply(world, many(8, "a", "b", "!"))

    assert [("8", "id_missing")] == letters(world)


def test_steps_are_measured_in_rows():
    """The reader hands over as many messages as have a step's rows, one that has more alone, none out of order."""
    world = World(hot_rows=8 * 64)
    reader = Reader.__new__(Reader)
    reader._memories, reader._log, reader._step_rows = "m", world.ingest, 8
    messages = [good("a", 0), many(1, *"abcdefg"), good("b", 2), many(3, *"abcdefghijkl"), good("c", 4), good("d", 5)]
    steps = [([message.offset for message in step], rows) for step, rows in reader._steps("m", messages)]

    assert [([0, 1], 8), ([2], 1), ([3], 12), ([4, 5], 2)] == steps


def test_replay_finds_the_rows_of_a_message_again():
    """After a crash rows that lie below are not appended again, rows of the same message that do not are."""
    world = World()
    apply(world, many(0, "a", "b", "c"))
    world.finish(world.move(HOT, WARM, "b"), check=False)
    world.commit()
    life = world.crash()
    life.finish(life.ingest.apply(P, [many(0, "a", "b", "c")]), check=False)

    assert (0, {"a", "c"}, 2) == (life.committed, {row[0] for row in life.in_hot()}, life.marks[P].dirty)


# -- replay ----------------------------------------------------------------------------------------------------------


def test_replay_appends_only_what_is_newer():
    """After a crash, rows that lie below at this version or a newer one are not appended, and are not dirty (R2)."""
    world = World()
    world.take("a", "b", "a")
    world.finish(world.move(HOT, WARM, "a"))
    life = world.crash()
    life.replay()

    assert {("b", life.version(1))} == {key[:2] for key in life.in_hot()}
    assert (["warm"], 1) == (life.where("a"), life.marks[P].dirty)
    life.check()


def test_replay_announces_again_what_lies_below():
    """A replayed row that is at home below may never have been announced: it is, with its reason."""
    world = World()
    world.take("a", "b", "a")
    world.finish(world.move(HOT, WARM, "a"))
    life = world.crash()
    life.replay()
    (change,) = life.publisher.changes()

    assert ("hot", "warm", "recovered", ["a"]) == (change.source, change.target, change.reason, change.ids)
    assert [record.version_text(life.version(2))] == change.versions


def test_the_watermark_waits_for_what_is_announced_again():
    """Else a commit could pass a replayed row before its place is told, and no later life would meet it again."""
    world = World()
    world.take("a")
    world.finish(world.move(HOT, WARM, "a"))
    life = world.crash()
    apply_ = life.ingest.apply(P, [good("a", 0)])
    while "publish.answered" not in life.trace:
        apply_.send(None)

    assert (0, 1) == (life.marks[P].value, life.marks[P].end)

    life.finish(apply_)

    assert (1, 1, 0) == (life.marks[P].value, life.marks[P].end, life.marks[P].dirty)


def test_replay_of_everything_ends_where_it_was():
    """A life that has committed nothing finds every record again from the log alone."""
    world = World()
    world.take("a", "b")
    world.take("-a", "c")
    life = world.crash()

    assert [] == life.where("c")

    life.replay()

    assert {("a", 2), ("b", 1), ("c", 3)} == {(name, record.unpack_version(v)[1]) for name, v, _ in life.in_hot()}
    life.check()


def test_a_partition_is_ready_when_the_replay_has_reached_the_end():
    """Before the end of the log as it was at start, the partition does not answer (R7)."""
    world = World()
    world.ingest.replay_until[P] = 3
    world.take("a", "b")

    assert not world.ingest.ready(P)

    world.take("c")

    assert world.ingest.ready(P)


def test_cleared_rows_are_left_out_of_a_replay():
    """Rows below the offset at which an operator cleared hot do not come back, and are not waited for."""
    world = World()
    world.ingest.cleared_below[P] = 2
    world.produce("a", "b", "a")
    world.finish(world.ingest.apply(P, world.messages(0, 3)), check=False)

    assert {("a", world.version(2))} == {key[:2] for key in world.in_hot()}
    assert (1, 3) == (world.marks[P].dirty, world.marks[P].end)


# -- full ------------------------------------------------------------------------------------------------------------


def test_a_full_hot_changes_nothing():
    """TierFull leaves index, watermark, letters and rows as they were; with room the same messages are taken."""
    world = World(hot_rows=8)
    world.take("a", "b", "c", "d", "e")
    world.produce("-a", "f", "g", "h")
    messages = [*world.messages(5, 9), bad(9)]
    before = repr(world.index), repr(world.marks[P]), world.in_hot()
    with pytest.raises(TierFull):
        apply(world, *messages)

    assert before == (repr(world.index), repr(world.marks[P]), world.in_hot())
    assert [] == letters(world)

    world.finish(world.move(HOT, COLD, "a", "b", "c", "d"))
    apply(world, *messages)

    assert world.index.find("a").deleted
    assert 10 == world.ingest.applied(P)
    assert [("9", "json")] == letters(world)


# -- waiting ---------------------------------------------------------------------------------------------------------


async def test_wait_ends_when_the_position_is_applied():
    """Read-your-writes: a reader that names an offset goes on once it is applied, and not before."""
    world = World()
    waiting = asyncio.ensure_future(world.ingest.wait({P: 1}, 60))
    world.produce("a", "b")
    await world.ingest.apply(P, world.messages(0, 1))
    await asyncio.sleep(0)

    assert not waiting.done()

    await world.ingest.apply(P, world.messages(1, 2))
    await waiting
    await world.ingest.wait({P: 1}, 0)


async def test_wait_gives_up_in_time():
    """Past its deadline the reader is told that the position is not there yet."""
    with pytest.raises(NotYet):
        await World().ingest.wait({P: 0}, 0)


async def test_wait_refuses_a_partition_of_another_node():
    """A token that names a partition that this node does not own is an error, not an endless wait."""
    with pytest.raises(InvalidRecord) as refused:
        await World().ingest.wait({P + 1: 0}, 60)

    assert "token" == refused.value.reason


async def test_waiters_that_gave_up_are_forgotten():
    """A reader that is cancelled leaves nothing behind."""
    world = World()
    waiting = asyncio.ensure_future(world.ingest.wait({P: 0}, 60))
    await asyncio.sleep(0)
    waiting.cancel()
    world.produce("a")
    await world.ingest.apply(P, world.messages(0, 1))

    assert [] == world.ingest._waiting[P]


def test_an_event_time_is_the_messages_unless_given():
    """Without event_time a record is as old as its message."""
    world = World()
    apply(world, good("a", 0)._replace(timestamp_ms=NOW_MS - 7))
    (row,) = world.finish(world.hot.get([_place(world, "a")]))

    assert NOW_MS - 7 == row.event_time


def _place(world: World, name: str):
    entry = world.index.find(name)
    return Location(name, entry.version, P, entry.slot)
