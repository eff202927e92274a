"""Events as producers send them: the same records as Arrow messages, as JSON and as msgpack, one event a message."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from benchmarks.searching.corpus import PAYLOAD
from producers import columns
from producers.events import ARROW_TYPE, JSON_TYPE, MSGPACK_TYPE, Message, encode_event, event_headers
from tiers import record
from tiers.record import Floats

DIM = 256
ATTRIBUTES = {"group": "int", "topic": "string"}
SHAPE = record.schema(DIM, ATTRIBUTES)
GROUPS, TOPICS = 10_000, 50
KINDS = {"arrow": ARROW_TYPE, "json": JSON_TYPE, "msgpack": MSGPACK_TYPE}
_TEXT = {"text": PAYLOAD[10:-2].decode()}


class Sent(NamedTuple):
    """A message before it is sent, and how many rows it has."""

    partition: int
    key: bytes | None
    value: bytes
    headers: list[tuple[str, bytes]]
    rows: int


def vectors(rows: int, seed: int = 0) -> Floats:
    """Return random vectors; what they say makes no difference to what is measured here."""
    return np.random.default_rng(seed).standard_normal((rows, DIM), np.float32)


def messages(kind: str, given: Floats, partitions: int, first: int = 0, numbers: range | None = None) -> Iterator[Sent]:
    """Yield records "id-<number>" of these vectors, partition by partition; numbers from `first` on."""
    wanted = np.arange(first, first + len(given)) if numbers is None else np.array(numbers)
    names = np.array([f"id-{number}" for number in wanted.tolist()], object)
    home = record.partitions(pa.array(names, pa.string()), partitions)
    make = _MAKERS[kind]
    for partition in range(partitions):
        at = np.flatnonzero(home == partition)
        if len(at):
            yield from make(partition, names[at].tolist(), wanted[at], given[at])


def _arrow(partition: int, names: list[str], numbers: np.ndarray, given: Floats) -> Iterator[Sent]:
    rows = pa.RecordBatch.from_arrays(
        [
            pa.array(names, pa.string()),
            record.vector_array(given),
            pa.array([PAYLOAD] * len(names), pa.binary()),
            pa.StructArray.from_arrays(
                [pa.array(numbers % GROUPS), pa.array([f"topic-{number % TOPICS}" for number in numbers.tolist()])],
                list(ATTRIBUTES),
            ),
        ],
        names=["id", "vector", "payload", "attributes"],
    )
    done = 0
    for value in columns.messages(rows):
        with pa.ipc.open_stream(value) as reader:
            count = reader.read_next_batch().num_rows
        yield Sent(partition, None, value, event_headers("/benchmark", names[done], ARROW_TYPE), count)
        done += count


def _json(partition: int, names: list[str], numbers: np.ndarray, given: Floats) -> Iterator[Sent]:
    for name, number, vector in zip(names, numbers.tolist(), given, strict=True):
        value = encode_event(vector, _TEXT, {"group": number % GROUPS, "topic": f"topic-{number % TOPICS}"})
        yield Sent(partition, name.encode(), value, event_headers("/benchmark", name, JSON_TYPE), 1)


def _msgpack(partition: int, names: list[str], numbers: np.ndarray, given: Floats) -> Iterator[Sent]:
    for name, number, vector in zip(names, numbers.tolist(), given, strict=True):
        attributes = {"group": number % GROUPS, "topic": f"topic-{number % TOPICS}"}
        value = msgspec.msgpack.encode({"vector": vector.tobytes(), "payload": PAYLOAD, "attributes": attributes})
        yield Sent(partition, name.encode(), value, event_headers("/benchmark", name, MSGPACK_TYPE), 1)


_MAKERS: dict[str, Callable[..., Iterator[Sent]]] = {"arrow": _arrow, "json": _json, "msgpack": _msgpack}


def polled(sent: list[Sent]) -> list[Message]:
    """Return messages as a poll brings them, all of one partition, sent just now."""
    now_ms = time.time_ns() // 1_000_000
    return [Message(one.key, one.value, tuple(one.headers), now_ms, at) for at, one in enumerate(sent)]
