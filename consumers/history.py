"""What the changes topic says of one record: a bounded look backwards, and how far it went.

A record's moves are all in its own partition. The topic has no index by id, so the newest messages are read first, in
windows, until the beginning, the bound or the deadline; what was looked at is part of the answer.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.structs import ConsumerRecord

from consumers.connected import connected
from producers import events
from producers.publisher import KafkaSettings
from tiers.errors import InvalidRecord

WINDOW = 200  # messages read together; one announces up to 1,000 records
POLL_MS = 100
FETCH_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Step:
    """One change of one record: `at` in ms, `version` as text, `source` and `target` None for nowhere."""

    offset: int
    at: int
    kind: str
    source: str | None
    target: str | None
    reason: str
    version: str


@dataclass(slots=True)
class History:
    """`steps` oldest first. Messages [looked_from, end) were looked at; the topic begins at `begin`."""

    partition: int
    steps: list[Step] = field(default_factory=list)
    begin: int = 0
    looked_from: int = 0
    end: int = -1  # not even asked where it ends
    took_ms: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether all that the topic still holds was looked at."""
        return self.end >= 0 and self.looked_from <= self.begin


async def history(
    settings: KafkaSettings, partition: int, identifier: str, *, deadline_s: float, messages_max: int
) -> History:
    """Return the changes that name a record, looked for backwards from the end of the topic; ServiceMissing.

    Past the deadline, or `messages_max` messages, it returns what it has.
    """
    began = time.perf_counter()
    found = History(partition)
    at = TopicPartition(events.Topics.under(settings.prefix).changes, partition)
    try:
        async with asyncio.timeout(deadline_s), connected(settings, fetch_max_bytes=FETCH_BYTES) as consumer:
            await _look(consumer, at, identifier, found, messages_max)
    except TimeoutError:
        pass  # the answer says how far it looked
    found.took_ms = (time.perf_counter() - began) * 1000
    return found


async def _look(
    consumer: AIOKafkaConsumer, at: TopicPartition, identifier: str, found: History, messages_max: int
) -> None:
    """Look backwards, window by window; whenever this is given up, `found` says how far it came."""
    consumer.assign([at])
    found.begin, end = (await consumer.beginning_offsets([at]))[at], (await consumer.end_offsets([at]))[at]
    found.looked_from = found.end = end
    last = max(found.begin, end - messages_max)
    while found.looked_from > last:
        start = max(last, found.looked_from - WINDOW)
        records = await _window(consumer, at, start, found.looked_from)
        found.steps = [step for record in records for step in _steps(record, identifier)] + found.steps
        found.looked_from = start


async def _window(consumer: AIOKafkaConsumer, at: TopicPartition, start: int, end: int) -> list[ConsumerRecord]:
    """Return the messages of [start, end)."""
    consumer.seek(at, start)
    records: list[ConsumerRecord] = []
    while await consumer.position(at) < end:
        read = await consumer.getmany(at, timeout_ms=POLL_MS, max_records=WINDOW)
        records += [record for record in read.get(at, ()) if record.offset < end]
    return records


def _steps(record: ConsumerRecord, identifier: str) -> list[Step]:
    """Return what a message says of a record; decoded only where the id's bytes stand in it."""
    if record.value is None or msgspec.json.encode(identifier) not in record.value:
        return []
    try:
        change = events.decode_change(record.value)
    except InvalidRecord:
        return []  # a stranger's message: the feed leaves it out too
    return [
        Step(record.offset, change.at, change.kind, change.source, change.target, change.reason, version)
        for name, version in zip(change.ids, change.versions, strict=False)
        if name == identifier
    ]
