"""Looks at the dead-letter topic and sends letters again. Reads Kafka directly: it works while no node runs.

Sending again puts the original value, key and headers on the original topic, in the partition that the ids belong to:
the record then has a new place in the log, and so becomes the newest of its id. Each letter sent again is noted on the
dead-letter topic and is not sent twice, unless asked for by `again`; a crash between the two sends it twice, which is
the same record once more. What would be refused again under the present settings is not sent.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaConnectionError, KafkaError

from consumers.connected import connected
from pipeline.settings import Settings
from producers import columns, judge, letters, wire
from producers.decoder import Embed, EventDecoder, kind_of
from producers.events import ARROW_TYPE, Message, Topics
from producers.letters import Found
from producers.publisher import Publisher
from producers.security import unreachable
from tiers import record
from tiers.errors import InvalidRecord, ServiceMissing

FETCH_BYTES = 8 * 1024 * 1024
READ_MS = 5_000  # without a message for so long, what is in reach has been read


@dataclass(frozen=True, slots=True)
class Listed:
    """A letter at `position` ("partition:offset" of the dead-letter topic), written at `at` (ms)."""

    position: str
    at: int
    letter: Found
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Replay:
    """What became of one letter: `sent`, or why not."""

    listed: Listed
    sent: bool
    why: str = ""


def parse_position(text: str) -> tuple[int, int]:
    """Return (partition, offset) of a letter; InvalidRecord otherwise."""
    partition, colon, offset = text.partition(":")
    if not (colon and partition.isdecimal() and offset.isdecimal() and len(text) < 40):
        raise InvalidRecord("position", f"{text!r} is no position; write it as partition:offset, as `list` shows it")
    return int(partition), int(offset)


async def _partitions(settings: Settings) -> list[TopicPartition]:
    """Return the partitions of the dead-letter topic; ServiceMissing when it, or the broker, is not there."""
    topic = Topics.under(settings.kafka.prefix).dead_letters
    admin = AIOKafkaAdminClient(**settings.kafka.client())
    try:
        await admin.start()
        if topic not in await admin.list_topics():
            raise ServiceMissing(
                f"Kafka at {settings.kafka.bootstrap} has no topic {topic}: a node creates it; is kafka.prefix right?"
            )
        (found,) = await admin.describe_topics([topic])
    except KafkaConnectionError as error:
        raise await unreachable(settings.kafka.bootstrap, settings.kafka.security) from error
    finally:
        await admin.close()
    return [TopicPartition(topic, number) for number in sorted(at["partition"] for at in found["partitions"])]


async def _read(consumer: AIOKafkaConsumer, assigned: list[TopicPartition], scan: int) -> tuple[list[Listed], set[str]]:
    """Return the letters among the newest `scan` messages of each partition, and the positions noted as sent again."""
    consumer.assign(assigned)
    begins, ends = await consumer.beginning_offsets(assigned), await consumer.end_offsets(assigned)
    for tp in assigned:
        consumer.seek(tp, max(begins[tp], ends[tp] - scan))
    found: list[Listed] = []
    replayed: set[str] = set()
    left = {tp for tp in assigned if await consumer.position(tp) < ends[tp]}
    while left:
        polled = await consumer.getmany(timeout_ms=READ_MS)
        for tp, messages in polled.items():
            for message in messages:
                if message.offset < ends[tp]:
                    _sort(f"{tp.partition}:{message.offset}", message, found, replayed)
        left = {tp for tp in left if await consumer.position(tp) < ends[tp]} if polled else set()
    return found, replayed


def _sort(position: str, message: object, found: list[Listed], replayed: set[str]) -> None:
    headers = message.headers  # type: ignore[attr-defined]
    noted = letters.noted(headers)
    if noted is not None:
        replayed.add(noted)
        return
    try:
        letter = letters.decode(message.key, message.value, headers)  # type: ignore[attr-defined]
    except InvalidRecord:  # a stranger's message: not ours to send anywhere
        return
    found.append(Listed(position, message.timestamp, letter))  # type: ignore[attr-defined]


def shown(listed: Listed) -> dict[str, Any]:
    """Return a letter as it is shown: everything but its value."""
    letter = listed.letter
    key = _text(letter.key) if letter.key is not None else None
    return {
        "position": listed.position,
        "at": listed.at,
        "reason": letter.reason,
        "error": letter.error,
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "row": letter.row,
        "key": key,
        "namespace": record.namespace(key) if key is not None else None,
        "headers": {name: _text(item or b"") for name, item in letter.headers},
        "bytes": len(letter.value or b""),
        "sha256": letter.sha256,
        "replayed": listed.replayed,
    }


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")


async def newest(settings: Settings, limit: int, scan: int, reason: str | None = None) -> list[Listed]:
    """Return the newest `limit` letters (of that reason) among the newest `scan` messages, oldest first."""
    try:
        assigned = await _partitions(settings)
        async with connected(settings.kafka, fetch_max_bytes=FETCH_BYTES) as consumer:
            found, replayed = await _read(consumer, assigned, scan)
    except KafkaError as error:
        raise ServiceMissing(f"the dead-letter topic cannot be read: {error!r}") from error
    chosen = [listed for listed in found if reason in (None, listed.letter.reason)]
    chosen.sort(key=lambda listed: (listed.at, *parse_position(listed.position)))
    return [replace(listed, replayed=listed.position in replayed) for listed in chosen[-limit:]]


async def one(settings: Settings, position: str) -> Listed | None:
    """Return the letter at a position, None where there is none."""
    partition, offset = parse_position(position)
    tp = next((tp for tp in await _partitions(settings) if tp.partition == partition), None)
    if tp is None:
        return None
    async with connected(settings.kafka, fetch_max_bytes=FETCH_BYTES) as consumer:
        consumer.assign([tp])
        begin, end = (await consumer.beginning_offsets([tp]))[tp], (await consumer.end_offsets([tp]))[tp]
        if not begin <= offset < end:
            return None
        consumer.seek(tp, offset)
        found: list[Listed] = []
        for messages in (await consumer.getmany(timeout_ms=READ_MS, max_records=1)).values():
            _sort(position, messages[0], found, set())
        return found[0] if found else None


async def replay(settings: Settings, chosen: Sequence[Listed], *, again: bool, dry_run: bool) -> list[Replay]:
    """Send letters again, oldest first, each noted once the broker has it; says of each what became of it."""
    topics = Topics.under(settings.kafka.prefix)
    decoder = EventDecoder(settings.dim, settings.attributes, _stand_in(settings))
    done: list[Replay] = []
    async with Publisher(settings.kafka) as publisher:
        count = await publisher.partitions(topics.memories)
        for listed in chosen:
            try:
                _check(listed, topics.memories, again=again)
                parts = prepare(listed.letter, count, decoder, time.time_ns() // 1_000_000)
            except InvalidRecord as error:
                done.append(Replay(listed, sent=False, why=f"{error.reason}: {error}"))
                continue
            if not dry_run:
                for partition, value in parts:
                    await publisher.send(topics.memories, value, listed.letter.key, partition, listed.letter.headers)
                key, nothing, headers = letters.note(listed.position)
                await publisher.send(topics.dead_letters, nothing, key, headers=headers)
            done.append(Replay(listed, sent=True))
    return done


def _stand_in(settings: Settings) -> Embed | None:
    """Return what stands for the embedder: to know here that a text can be embedded is enough."""
    return (lambda texts: np.ones((len(texts), settings.dim), np.float32)) if settings.embedder else None


def _check(listed: Listed, topic: str, *, again: bool) -> None:
    """Raise InvalidRecord, with why, for a letter that is not to be sent."""
    if listed.replayed and not again:
        raise InvalidRecord("replayed", "it was sent again before; --again sends it once more")
    if listed.letter.sha256 is not None:
        raise InvalidRecord("not_kept", "it was too large to be kept whole: its producer has to send it again")
    if listed.letter.topic != topic:
        raise InvalidRecord("topic", f"it was sent to {listed.letter.topic}, not to {topic}")


def prepare(letter: Found, count: int, decoder: EventDecoder, now_ms: int) -> list[tuple[int, bytes | None]]:
    """Return (partition, value) of each message that a letter is sent again as; InvalidRecord when it is still bad.

    Rows of an Arrow message go to the partitions of their ids, in messages of a size that every node takes.
    """
    if letter.value is None or kind_of(letter.headers) != ARROW_TYPE:
        identifier = (letter.key or b"").decode("utf-8", "replace")
        parts: list[tuple[int, bytes | None]] = [(record.partition(identifier, count), letter.value)]
    else:
        rows = columns.read(letter.value, columns.rows_max(decoder.dim))
        home = record.partitions(judge.ids(rows["id"], judge.Faults(rows.num_rows)), count)
        parts = [
            (number, value)
            for number in np.unique(home).tolist()
            for value in columns.messages(rows.take(pa.array(np.flatnonzero(home == number))))
        ]
    shape = record.schema(decoder.dim, decoder.attributes)
    for partition, value in parts:
        message = Message(letter.key, value, letter.headers, now_ms, 0)
        decoded = wire.decode(decoder, shape, wire.Place(0, partition, count), [message], record.ROW_MAX + 1)
        if decoded.letters:
            raise decoded.letters[0].error
    return parts
