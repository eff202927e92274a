"""What one client of the change feed gets, whatever the order in which the past and the present come to it."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.selection import Selection
from consumers.subscribe import decode_cursor, encode_cursor
from pipeline.audience import SLOW, Client
from pipeline.settings import GatewaySettings
from producers.events import Change, decode_change

pytestmark = pytest.mark.unit
LIMITS = GatewaySettings(stream_events_max=50)


def change(number: int) -> Change:
    """Return a change whose id is its number."""
    versions = [f"0.{number}.0"]
    return Change(
        kind="home", source=None, target="hot", reason="age", policy="p", at=1, ids=[str(number)], versions=versions
    )


class Topic:
    """One partition that all read up to where they have come: the others to `live`, this client to `own`."""

    def __init__(self, client: Client, live: int, own: int) -> None:
        self.client, self.live, self.own = client, live, own

    def advance(self, count: int) -> None:
        """Let the shared consumer hand out the next changes."""
        for offset in range(self.live, self.live + count):
            self.live = offset + 1
            self.client.offer(0, offset, change(offset), {0: self.live}, encode_cursor({0: self.live}))

    async def push(self, goal: int) -> None:
        """Let the client's own consumer read up to `goal`."""
        for offset in range(self.own, goal):
            self.own = offset + 1
            await self.client.push(change(offset), encode_cursor({0: self.own}))


@given(st.integers(0, 8), st.integers(0, 8), st.integers(0, 8), st.lists(st.integers(0, 4), min_size=4, max_size=4))
def test_a_client_that_catches_up_gets_each_change_once_in_order(start, live, more, steps) -> None:
    """Wherever the others are when it begins, joins and has caught up; the cursor of each resumes right after it."""

    async def work() -> list[tuple[str, bytes]]:
        client = Client(Selection(), LIMITS, encode_cursor({0: start}))
        topic = Topic(client, live, start)
        topic.advance(steps[0])
        await topic.push(max(topic.live, start) + more)  # the log may be further on than the others
        topic.advance(steps[1])
        goal = topic.live
        client.hold({0: goal}, {0: topic.own})
        topic.advance(steps[2])
        await topic.push(goal)
        client.release(encode_cursor({0: max(goal, topic.own)}))
        topic.advance(steps[3] + more + 8)
        return [(item.cursor, item.data) for _ in range(client.waiting) if (item := await client.take(1)) is not None]

    got = asyncio.run(work())
    seen = [int(decode_change(data).ids[0]) for _, data in got]
    assert list(range(start, start + len(seen))) == seen
    assert len(seen) >= live + sum(steps) + more + 8 - start
    assert [number + 1 for number in seen] == [decode_cursor(cursor)[0] for cursor, _ in got]


async def test_at_the_bound_a_live_client_is_dropped_and_the_past_waits() -> None:
    """Live changes cannot be held up; what is read from the log for one client can."""
    live = Client(Selection(), msgspec.structs.replace(LIMITS, stream_events_max=2), "0:0")
    live.join()
    for offset in range(3):
        live.offer(0, offset, change(offset), {0: offset + 1}, f"0:{offset + 1}")
    assert (SLOW, 0, "0:0") == (live.ended, live.waiting, live.cursor)
    assert await live.take(1) is None

    past = Client(Selection(), msgspec.structs.replace(LIMITS, stream_events_max=2), "0:0")
    topic = Topic(past, 9, 0)
    async with asyncio.TaskGroup() as group:
        group.create_task(topic.push(9))
        taken = [await past.take(1) for _ in range(9)]
    assert [f"0:{offset + 1}" for offset in range(9)] == [item.cursor for item in taken if item is not None]
    assert past.ended is None


async def test_the_cursor_moves_on_over_what_is_not_shown() -> None:
    """A client that waits stands where the topic is, or it would read all of it again when it resumes."""
    client = Client(Selection(kinds=frozenset({"copy"})), LIMITS, "0:0")
    client.join()
    client.offer(0, 4, change(4), {0: 5}, "0:5")
    assert (None, "0:5") == (await client.take(0.01), client.cursor)


async def test_a_client_that_is_ahead_of_the_others_is_not_sent_back() -> None:
    """Its cursor keeps what it has read of each partition, until the others have come there."""
    client = Client(Selection(), LIMITS, "0:0,1:10")
    client.hold({0: 0, 1: 5}, {0: 0, 1: 10})
    client.release("0:0,1:10")
    client.offer(1, 5, change(5), {0: 0, 1: 6}, "0:0,1:6")
    client.offer(0, 0, change(0), {0: 1, 1: 6}, "0:1,1:6")
    item = await client.take(1)
    assert item is not None
    assert ("0:1,1:10", 0) == (item.cursor, client.waiting)
