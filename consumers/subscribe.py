"""The change feed for downstream users: an async iterator over the changes topic, resumable, repeats dropped.

What is yielded moves a record on (`placement`), so the last change yielded of an id says where it is.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import NamedTuple

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition

from consumers.connected import connected
from consumers.placement import Placement
from consumers.selection import Visible
from producers import events
from producers.events import Change
from producers.publisher import KafkaSettings
from tiers.errors import InvalidRecord

log = structlog.get_logger()

REMEMBERED = 100_000  # ids whose home is kept, to recognise a repeat and what comes too late


class Announced(NamedTuple):
    """One change and where it stands; `cursor` resumes after it."""

    change: Change
    partition: int
    offset: int
    cursor: str


def encode_cursor(positions: Mapping[int, int]) -> str:
    """Return next offsets by partition as text ("0:12,1:7")."""
    return ",".join(f"{partition}:{offset}" for partition, offset in sorted(positions.items()))


def decode_cursor(text: str) -> dict[int, int]:
    """Return what `encode_cursor` wrote; InvalidRecord("cursor") otherwise."""
    try:
        pairs = [part.split(":") for part in text.split(",")]
        return {int(partition): int(offset) for partition, offset in pairs}
    except ValueError as error:
        raise InvalidRecord("cursor", "the cursor is not one that this feed gave") from error


async def subscribe_changes(
    settings: KafkaSettings | None = None,
    *,
    start: str = "end",
    idle_ms: int | None = None,
    visible: Visible | None = None,
) -> AsyncGenerator[Announced, None]:
    """Yield changes as they are announced, in order within a partition.

    `start` is "beginning", "end" or a cursor. With `idle_ms` the iterator ends when nothing came for so long. `visible`
    says what of each change is wanted, such as a `Selection`.
    A home move announced twice (delivery is at least once) is yielded once, and one that a dead node's late message
    tells after its successor has told more not at all. ServiceMissing, InvalidRecord.
    """
    settings = settings if settings is not None else KafkaSettings.from_environment()
    async with connected(settings) as consumer:
        topic = events.Topics.under(settings.prefix).changes
        positions = await seek(consumer, topic, settings.partitions, start)
        placement = Placement(REMEMBERED)
        while True:
            found = await consumer.getmany(timeout_ms=idle_ms if idle_ms is not None else 1_000)
            if not found and idle_ms is not None:
                return
            for tp, records in found.items():
                for message in records:
                    positions[tp.partition] = message.offset + 1
                    try:
                        change = placement.advance(events.decode_change(message.value))
                    except InvalidRecord as error:  # anyone can write to a topic; the feed outlives it
                        log.warning("change.rejected", partition=tp.partition, offset=message.offset, error=str(error))
                        continue
                    if change is not None and visible is not None:
                        change = visible(change)
                    if change is not None:
                        yield Announced(change, tp.partition, message.offset, encode_cursor(positions))


async def seek(consumer: AIOKafkaConsumer, topic: str, partitions: int, start: str) -> dict[int, int]:
    """Assign all partitions and go to `start`; returns the next offset of each."""
    assigned = [TopicPartition(topic, number) for number in range(partitions)]
    consumer.assign(assigned)
    begins = await consumer.beginning_offsets(assigned)
    ends = await consumer.end_offsets(assigned)
    if start in ("beginning", "end"):
        chosen = {tp.partition: offset for tp, offset in (begins if start == "beginning" else ends).items()}
    else:
        chosen = decode_cursor(start)
        if any(not begins[tp] <= chosen.get(tp.partition, -1) <= ends[tp] for tp in assigned):
            raise InvalidRecord("cursor", "the cursor points outside the feed: start at the beginning or the end")
    for tp in assigned:
        consumer.seek(tp, chosen[tp.partition])
    return chosen
