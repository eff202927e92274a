"""Which tombstones the expiry monitor writes, and how often."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from producers import events
from producers.events import Message
from producers.expiry import Expiry, ExpirySettings
from tests.tiers.rows import DIM, NOW_MS, batch, row
from tiers.errors import InvalidRecord, LogUnavailable
from tiers.index import Index
from tiers.record import pack_version
from tiers.tier import TierName

pytestmark = pytest.mark.unit

COLD = TierName.COLD


class Log:
    """A publisher that keeps what is sent, or refuses it."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes, object, int, list[tuple[str, bytes]]]] = []
        self.refuses = False

    async def enqueue(self, topic, value, key, partition, headers):
        if self.refuses:
            raise LogUnavailable("no broker")
        self.sent.append((topic, key, value, partition, headers))
        confirmed = asyncio.get_running_loop().create_future()
        confirmed.set_result(None)
        return confirmed


class Node:
    """An index with rows that expire, and the monitor over it."""

    def __init__(self, rows_max: int = 100) -> None:
        self.index, self.log, self.now_ms = Index(DIM), Log(), NOW_MS
        self.not_ready: set[int] = set()
        settings = ExpirySettings(rows_max=rows_max, ask_again_s=10)
        self.expiry = Expiry(
            settings, self.index, self.log, "t.memories", lambda p: p not in self.not_ready, lambda: self.now_ms
        )

    def put(self, name: str, offset: int, expires_in_ms: int | None, partition: int = 0) -> None:
        """Make a record the newest of its id, at home in cold; None never expires."""
        at = None if expires_in_ms is None else NOW_MS + expires_in_ms
        one = replace(row(name, pack_version(0, offset)), expires_at=at)
        self.index.put(batch(one), np.array([partition], np.int32), COLD, np.array([offset]), NOW_MS)

    async def written(self) -> list[str]:
        """Return the ids of the tombstones that one look writes."""
        before = len(self.log.sent)
        await self.expiry.expire()
        return [key.decode() for _, key, *_ in self.log.sent[before:]]


async def test_what_is_due_gets_a_tombstone_that_names_its_version():
    """A null value, keyed by the id, in its partition, under the condition of the version that is due."""
    node = Node()
    node.put("a", 7, -1, partition=3)
    node.put("b", 8, 1)
    node.put("c", 9, None)
    node.put("d", 10, 0)

    assert ["a", "d"] == await node.written()
    topic, key, value, partition, headers = node.log.sent[0]
    assert ("t.memories", b"a", None, 3) == (topic, key, value, partition)
    assert pack_version(0, 7) == events.condition(Message(key, value, headers, 0, 0))


async def test_it_is_written_once_while_it_is_on_its_way():
    """The next looks leave it out; after `ask_again_s` without effect it is written again."""
    node = Node()
    node.put("a", 1, -1)

    assert ["a"] == await node.written()
    node.now_ms += 9_999
    assert [] == await node.written()
    node.now_ms += 1
    assert ["a"] == await node.written()


async def test_what_was_updated_or_deleted_is_not_written():
    """Only the newest version of an id expires."""
    node = Node()
    node.put("a", 1, -1)
    node.put("b", 2, -1)
    node.put("a", 3, 5_000)
    gone = row("b", pack_version(0, 4), deleted=True)
    node.index.put(batch(gone), np.zeros(1, np.int32), COLD, np.array([4]), NOW_MS)

    assert [] == await node.written()
    node.now_ms += 5_000
    assert ["a"] == await node.written()


async def test_so_many_are_on_their_way_at_once():
    """At most `rows_max` tombstones wait for their effect; each that has come makes room for another."""
    node = Node(rows_max=2)
    for at, name in enumerate("abc"):
        node.put(name, at, -1)
    first = await node.written()
    assert (["a", "b"], []) == (first, await node.written())

    node.put("a", 9, None)

    assert ["c"] == await node.written()


async def test_a_partition_that_is_not_up_to_date_waits():
    """While a partition replays its log, or is another node's, nothing of it is written."""
    node = Node()
    node.put("a", 1, -1, partition=1)
    node.not_ready = {1}
    assert [] == await node.written()
    node.not_ready = set()
    assert ["a"] == await node.written()


async def test_a_log_that_refuses_costs_the_tombstone_its_turn():
    """LogUnavailable reaches the service, which goes on; the record is written of again."""
    node = Node()
    node.put("a", 1, -1)
    node.log.refuses = True
    with pytest.raises(LogUnavailable):
        await node.expiry.expire()
    node.log.refuses = False
    node.now_ms += 10_000

    assert ["a"] == await node.written()


async def test_a_segment_is_looked_through_when_its_next_row_is_due():
    """When all that was due is gone, the segment knows when the next is."""
    node = Node()
    node.put("a", 1, -1)
    node.put("b", 2, 5_000)
    segment = node.index.segments()[0]
    node.put("a", 3, None)
    assert [] == await node.written()

    assert NOW_MS + 5_000 == segment.soonest

    node.now_ms += 5_000

    assert ["b"] == await node.written()


# -- the condition on the wire ---------------------------------------------------------------------------------------


def test_a_condition_says_a_version():
    """What `condition_headers` writes is read back; a delete without the header has no condition."""
    headers = events.condition_headers("t", "a", pack_version(3, 17, 2))

    assert dict(headers)[events.IF_VERSION] == b"3.17.2"
    assert pack_version(3, 17, 2) == events.condition(Message(b"a", None, headers, 0, 0))
    assert events.condition(Message(b"a", None, (), 0, 0)) is None


STRANGE = [b"", b"1.2", b"1.2.3.4", b"a.b.c", b"01.2.3", b" 1.2.3", b"1.2.-3", b"99.1.1", b"1.2.70000", b"\xff", None]


@pytest.mark.parametrize("value", STRANGE)
def test_a_condition_that_is_no_version_is_refused(value):
    """Anything but epoch.offset.row, exactly as it is shown, is a bad input and not an unconditional delete."""
    with pytest.raises(InvalidRecord) as refused:
        events.condition(Message(b"a", None, ((events.IF_VERSION, value),), 0, 0))

    assert "if_version" == refused.value.reason


@pytest.mark.parametrize("message", ["an upsert", "given twice"])
def test_a_condition_belongs_once_on_a_delete(message):
    """A conditional upsert is not promised, and two conditions are none: refused rather than half heeded."""
    header = (events.IF_VERSION, b"0.1.0")
    value, headers = (b"{}", (header,)) if message == "an upsert" else (None, (header, header))
    with pytest.raises(InvalidRecord):
        events.condition(Message(b"a", value, headers, 0, 0))
