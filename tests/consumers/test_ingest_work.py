"""What ingest does for a row, counted and not timed: a limit that is passed says that something works row by row again.

Counted are calls of Python and of C out of Python (`sys.setprofile`), and the memory that a poll takes, as the
difference between a poll and one twice as large: what is done once a poll does not count. From the records that the
client library hands over to rows that a search finds; nothing is published on the way, since there is no publisher.
"""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from types import FrameType
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from aiokafka import TopicPartition
from aiokafka.structs import ConsumerRecord

from consumers.ingest import Ingest
from consumers.reader import Reader
from consumers.watermark import Watermark
from consumers.witness import Witnesses
from producers import columns, events
from producers.decoder import EventDecoder
from producers.events import ARROW_TYPE, JSON_TYPE, MSGPACK_TYPE, Topics
from tests.tiers.rows import NOW_MS
from tiers import record
from tiers.hot import HotMemory, HotSettings
from tiers.index import Index

pytestmark = pytest.mark.unit

DIM, ROWS = 256, 400
ATTRIBUTES = {"user": "string", "rank": "int"}
SHAPE = record.schema(DIM, ATTRIBUTES)
TOPICS = Topics.under("t")
PAYLOAD = b'{"text": "' + b"x" * 178 + b'"}'
VECTOR_BYTES = 4 * DIM


class Work(NamedTuple):
    """What one poll took."""

    python: int
    c: int
    peak: int  # bytes, of Python and NumPy
    arrow: int  # bytes that Arrow has allocated and keeps


def reader_of(ingest: Ingest) -> Reader:
    """Return a reader that has no broker: only what it does with records is asked."""
    reader = Reader.__new__(Reader)
    reader._memories, reader._log, reader._handlers = TOPICS.memories, ingest, {TOPICS.memories: ingest}
    reader._step_rows, reader._next, reader._witnesses = 2_000, {}, Witnesses()
    return reader


def ingest_of() -> Ingest:
    hot = HotMemory(
        HotSettings(device="cpu", capacity_rows=16_384), SHAPE, partitions=1, index=(index := Index.of(SHAPE))
    )
    return Ingest(
        EventDecoder(DIM, ATTRIBUTES), SHAPE, hot, index, None, TOPICS, None,
        epoch=0, partitions=1, watermarks={0: Watermark(0)}, now_ms=lambda: NOW_MS,
    )  # fmt: skip


def arrow(first: int, rows: int) -> list[tuple[bytes | None, bytes]]:
    attributes = pa.array([{"user": f"user-{n % 9}", "rank": n} for n in range(rows)])
    ids = [f"id-{first + n}" for n in range(rows)]
    batch = pa.record_batch({
        "id": pa.array(ids), "vector": record.vector_array(np.ones((rows, DIM), np.float32)),
        "payload": pa.array([PAYLOAD] * rows, pa.binary()), "attributes": attributes,
    })  # fmt: skip
    return [(None, columns.encode(batch))]


def json(first: int, rows: int) -> list[tuple[bytes | None, bytes]]:
    return [
        (f"id-{first + n}".encode(), events.encode_event(np.ones(DIM), {"n": n}, {"user": f"user-{n % 9}", "rank": n}))
        for n in range(rows)
    ]


def msgpack(first: int, rows: int) -> list[tuple[bytes | None, bytes]]:
    vector = np.ones(DIM, np.float32).tobytes()
    return [
        (f"id-{first + n}".encode(), msgspec.msgpack.encode(
            {"vector": vector, "payload": PAYLOAD, "attributes": {"user": f"user-{n % 9}", "rank": n}}
        ))
        for n in range(rows)
    ]  # fmt: skip


KINDS: dict[str, Callable[[int, int], list[tuple[bytes | None, bytes]]]] = {
    ARROW_TYPE: arrow,
    JSON_TYPE: json,
    MSGPACK_TYPE: msgpack,
}


def records(kind: str, first: int, rows: int) -> list[ConsumerRecord]:
    """Return what the client library hands over."""
    return [
        ConsumerRecord(
            TOPICS.memories, 0, first + at, NOW_MS, 0, key, value, None, 0, len(value),
            tuple(events.event_headers("/test", "id", kind)),
        )
        for at, (key, value) in enumerate(KINDS[kind](first, rows))
    ]  # fmt: skip


def turns(took: Coroutine[Any, Any, None]) -> int:
    """Run it by hand; returns how often others came to their turn."""
    for number in range(99):
        try:
            took.send(None)
        except StopIteration:
            return number
    raise AssertionError("it does not end")


def counted(reader: Reader, given: list[ConsumerRecord]) -> Work:
    """Hand the records over and count."""
    seen: Counter[str] = Counter()

    def count(_frame: FrameType, event: str, _argument: Any) -> None:
        seen[event] += 1

    took = reader._hand_over(TopicPartition(TOPICS.memories, 0), given)
    before = pa.total_allocated_bytes()
    sys.setprofile(count)
    try:
        turns(took)
    finally:
        sys.setprofile(None)
    return Work(seen["call"], seen["c_call"], 0, pa.total_allocated_bytes() - before)


def peak(reader: Reader, given: list[ConsumerRecord]) -> int:
    """Return the bytes that the same takes of Python and NumPy at its peak."""
    took = reader._hand_over(TopicPartition(TOPICS.memories, 0), given)
    tracemalloc.start()
    try:
        turns(took)
    finally:
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return most


@pytest.fixture(autouse=True)
def no_collection() -> Iterator[None]:
    """What others have left is not freed while we count."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def a_row(kind: str) -> Work:
    """Return what a further row of a poll takes, in thousandths of a call and in bytes."""
    ingest = ingest_of()
    reader = reader_of(ingest)
    first = 0
    found = []
    for rows in (ROWS, ROWS, 2 * ROWS):  # the first pays for what is made once
        work = counted(reader, records(kind, first, rows))
        first += rows
        most = peak(reader, records(kind, first, rows))
        first += rows
        found.append(work._replace(peak=most))
    assert ingest.rows == first, "every row was applied"
    _, once, twice = found
    python, c = ((1_000 * (b - a)) // ROWS for a, b in ((once.python, twice.python), (once.c, twice.c)))
    return Work(python, c, (twice.peak - once.peak) // ROWS, (twice.arrow - once.arrow) // ROWS)


#: Of a further row: thousandths of calls, bytes. One copy more of a vector is 1,024 bytes, a call for each row 1,000.
LIMITS = {
    ARROW_TYPE: Work(5, 5, 450, 60),
    JSON_TYPE: Work(5, 13_000, 2_900, 60),
    MSGPACK_TYPE: Work(5, 11_000, 3_200, 60),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_costs_no_call_of_python(kind):
    """Decoding, checking, hot, index, counters and ages are columns: a further row costs no call, and few copies."""
    found = a_row(kind)

    assert [] == [name for name, value in found._asdict().items() if value > getattr(LIMITS[kind], name)]


def test_others_come_to_their_turn_after_each_step():
    """The client library returns what it has without suspending, and so does ingest: searches would wait for all."""
    reader = reader_of(ingest_of())
    given = [one for first in (0, 300, 600) for one in records(ARROW_TYPE, first, 300)]

    assert 3 == turns(reader._hand_over(TopicPartition(TOPICS.memories, 0), given))
