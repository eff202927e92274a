"""What the topics say of one record: a bounded look backwards, and how far it went.

A record's moves are all in its own partition. The topic has no index by id, so the newest messages are read first, in
windows, until the beginning, the bound or the deadline; what was looked at is part of the answer. The age event that
asked for the last move, with the record's counters as they were then, is looked for before the moment of the move.
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
from tiers.record import version_text
from tiers.tier import TierName

WINDOW = 200  # messages read together; one announces up to 1,000 records
POLL_MS = 100
FETCH_BYTES = 4 * 1024 * 1024
ASKED_FOR = frozenset({"age", "idle", "pressure", "operator"})  # reasons of moves that an age event asked for


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


@dataclass(frozen=True, slots=True)
class Decision:
    """The age event that asked for `move`: what was known of the record then, and how full the tiers were, 0 to 1."""

    move: Step
    at: int
    reason: str
    age_ms: int
    idle_ms: int
    heat: float
    usage: dict[str, float] | None


@dataclass(slots=True)
class History:
    """`steps` oldest first. Messages [looked_from, end) were looked at; the topic begins at `begin`.

    `decision` is that of the last step of the version that was asked about.
    """

    partition: int
    steps: list[Step] = field(default_factory=list)
    begin: int = 0
    looked_from: int = 0
    end: int = -1  # not even asked where it ends
    decision: Decision | None = None
    took_ms: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether all that the topic still holds was looked at."""
        return self.end >= 0 and self.looked_from <= self.begin


async def history(
    settings: KafkaSettings,
    partition: int,
    identifier: str,
    *,
    deadline_s: float,
    messages_max: int,
    version: str | None = None,
) -> History:
    """Return the changes that name a record, looked for backwards from the end of the topic; ServiceMissing.

    And why the last move of `version` was asked for, if that is given.

    Past the deadline, or `messages_max` messages, it returns what it has.
    """
    began = time.perf_counter()
    found = History(partition)
    topics = events.Topics.under(settings.prefix)
    at, advice = TopicPartition(topics.changes, partition), TopicPartition(topics.age, partition)
    try:
        async with asyncio.timeout(deadline_s), connected(settings, fetch_max_bytes=FETCH_BYTES) as consumer:
            await _look(consumer, at, identifier, found, messages_max)
            moves = [step for step in found.steps if (step.kind, step.version) == ("home", version)]
            if moves and moves[-1].reason in ASKED_FOR:
                found.decision = await _decided(consumer, advice, identifier, moves[-1], messages_max)
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


async def _decided(
    consumer: AIOKafkaConsumer, at: TopicPartition, identifier: str, move: Step, messages_max: int
) -> Decision | None:
    """Return what the newest age event before a move said of the record."""
    consumer.assign([at])
    begin = (await consumer.beginning_offsets([at]))[at]
    after = (await consumer.offsets_for_times({at: move.at + 1}))[at]
    end = after.offset if after is not None else (await consumer.end_offsets([at]))[at]
    last = max(begin, end - messages_max)
    while end > last:
        start = max(last, end - WINDOW)
        for record in reversed(await _window(consumer, at, start, end)):
            if (found := _decision(record, identifier, move)) is not None:
                return found
        end = start
    return None


def _decision(record: ConsumerRecord, identifier: str, move: Step) -> Decision | None:
    """Return what an age event says of a record that a move took; its bytes are looked through first."""
    if record.value is None or identifier.encode() not in record.value:
        return None
    try:
        batch = events.decode_arrow(record.value, events.AGE)
    except InvalidRecord:
        return None
    named = zip(batch["id"].to_pylist(), batch["version"].to_pylist(), batch["tier"].to_pylist(), strict=True)
    for row, (name, version, tier) in enumerate(named):
        if name == identifier and version_text(version) == move.version and _word(tier) == move.source:
            columns = {key: batch[key][row].as_py() for key in ("reason", "age_ms", "idle_ms", "heat")}
            return Decision(move=move, at=record.timestamp, usage=events.usage_of(batch), **columns)
    return None


def _word(tier: int) -> str | None:
    return TierName(tier).word if tier in {*TierName} else None


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
