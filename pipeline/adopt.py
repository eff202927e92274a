"""Goes on with another log: the topic that is there now becomes the next epoch of versions.

What was durable below stays, with versions of the old epoch; whatever the new log says of an id is newer. By partition
reading goes on

- at the beginning, where the topic was made again, or Kafka has deleted what would have come next;
- at the end, where the log was truncated: what is left of it was applied, and applied again with new versions an old
  event would win over the newer one that was cut off;
- where it was to go on, in a partition that nothing happened to;

unless the operator says otherwise. Nothing but the manifest is written, in one rename: the next start commits these
offsets before it reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

from consumers import log_faults
from pipeline.log_identity import identity
from pipeline.manifest import DataDirectory, Manifest, held
from pipeline.settings import Settings
from pipeline.topics import ensure_topics
from producers.events import Topics
from producers.publisher import KafkaSettings
from tiers import record
from tiers.errors import InvalidRecord, SettingsError

EPOCH_MAX = (1 << record.EPOCH_BITS) - 1
BEGIN, END = "begin", "end"


class Bounds(NamedTuple):
    """A partition of the log: where it begins and ends, and where reading would go on (None: nothing was committed)."""

    begin: int
    end: int
    next: int | None


class Adopted(msgspec.Struct, frozen=True, kw_only=True):
    """What was done, or would be: `reasons` say what was found, `replay_from` where reading goes on, by partition."""

    topic: str
    topic_id: str
    epoch: int
    reasons: list[str]
    replay_from: dict[str, int]


async def adopt(settings: Settings, start: str = "", *, write: bool = True) -> Adopted:
    """Make the log that is there the next epoch of a stopped node's data directory.

    `start` is "", "begin", "end", or a time with its zone (the first message at or after it). SettingsError where
    there is nothing to adopt and no `start` says so all the same; ServiceMissing while the node runs.
    """
    with DataDirectory(Path(settings.data)) as directory:
        manifest = held(directory.path, settings)
        if manifest is None:
            raise SettingsError(f"{settings.data} holds no node: there is nothing that could go on with another log")
        topics = Topics.under(settings.kafka.prefix)
        await ensure_topics(settings.kafka, topics)
        found = await identity(settings.kafka, topics.memories, wait_s=10.0)
        bounds, at = await _bounds(settings.kafka, topics.memories, start)
        pending = {int(partition): offset for partition, offset in manifest.replay_from.items()}
        bounds = {p: each._replace(next=pending.get(p, each.next)) for p, each in bounds.items()}
        reasons = [fault] if (fault := log_faults.fault(found, manifest.topic, manifest.partitions)) else []
        remade = bool(reasons)
        reasons += [
            str(log_faults.outside(found.topic, p, each.next, each.begin, each.end))
            for p, each in bounds.items()
            if each.next is not None and not each.begin <= each.next <= each.end
        ]
        if not reasons and not start:
            raise SettingsError(
                f"{found.topic} is the log that {settings.data} was reading: there is nothing to adopt. If it was cut "
                "off and written on since, say where the new part begins, as in --from 2026-11-28T10:00:00Z"
            )
        if manifest.epoch == EPOCH_MAX:
            raise SettingsError(f"epoch {EPOCH_MAX} is the last that a version can say: export, and begin anew")
        replay_from = at or {p: _next(each, remade=remade) for p, each in bounds.items()}
        adopted = _adopted(manifest, found.topic, found.id, reasons, replay_from)
        if write:
            _write(directory, manifest, adopted)
        return adopted


def _next(bounds: Bounds, *, remade: bool) -> int:
    """Return where reading goes on in a partition, if nobody says otherwise. Pure."""
    if remade or bounds.next is None or bounds.next < bounds.begin:
        return bounds.begin
    return min(bounds.next, bounds.end)


def _adopted(
    manifest: Manifest, topic: str, topic_id: str, reasons: list[str], replay_from: Mapping[int, int]
) -> Adopted:
    return Adopted(
        topic=topic,
        topic_id=topic_id,
        epoch=manifest.epoch + 1,
        reasons=reasons,
        replay_from={str(partition): offset for partition, offset in sorted(replay_from.items())},
    )


def _write(directory: DataDirectory, manifest: Manifest, adopted: Adopted) -> None:
    """Write it down. What was cleared from hot lies below offsets of the old log: no replay meets it any more."""
    manifest.epoch, manifest.topic = adopted.epoch, adopted.topic_id
    manifest.replay_from, manifest.cleared_below = dict(adopted.replay_from), {}
    directory.save(manifest)


async def _bounds(settings: KafkaSettings, topic: str, start: str) -> tuple[dict[int, Bounds], dict[int, int]]:
    """Return the partitions, and where `start` says that reading goes on ({} where it says nothing)."""
    consumer = AIOKafkaConsumer(
        **settings.client(), group_id=f"{settings.prefix}.node", enable_auto_commit=False, auto_offset_reset="none"
    )
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, number) for number in range(settings.partitions)]
        consumer.assign(partitions)
        begins, ends = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
        bounds = {tp.partition: Bounds(begins[tp], ends[tp], await consumer.committed(tp)) for tp in partitions}
        if start == BEGIN:
            return bounds, {p: each.begin for p, each in bounds.items()}
        if start == END:
            return bounds, {p: each.end for p, each in bounds.items()}
        if not start:
            return bounds, {}
        found = await consumer.offsets_for_times(dict.fromkeys(partitions, _ms(start)))
        return bounds, {tp.partition: at.offset if at else ends[tp] for tp, at in found.items()}
    finally:
        await consumer.stop()


def _ms(start: str) -> int:
    """Return a time as ms; InvalidRecord for one without a zone, and for what is none. Pure."""
    try:
        at = datetime.fromisoformat(start)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise InvalidRecord(
            "from", f"--from {start}: write begin, end, or a time with its zone, as in 2026-11-28T10:00:00Z"
        )
    return int(at.timestamp() * 1000)
