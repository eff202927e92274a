"""At the start: whether the log still holds, at the offsets that were applied last, the messages that were applied."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.structs import ConsumerRecord

from consumers import log_faults
from consumers.connected import held
from consumers.witness import Witness
from producers.events import Message
from producers.publisher import KafkaSettings
from producers.security import FORBIDDEN, forbidden
from tiers.errors import LogUnavailable

POLL_MS = 100
READ_S = 30.0  # one message of each partition

Witnessed = Mapping[TopicPartition, Witness]


async def committed(settings: KafkaSettings, group: str, partitions: Sequence[TopicPartition]) -> list[Witnessed]:
    """Return what the group's commits say of messages applied: those below the watermarks, and the newest ones."""
    admin = AIOKafkaAdminClient(**settings.client())
    try:
        async with held(admin.start, admin.close):
            marks = await admin.list_consumer_group_offsets(group, partitions=list(partitions))
    except FORBIDDEN as error:
        raise forbidden(error, settings.bootstrap) from error
    except KafkaError as error:
        raise LogUnavailable(f"what {group} has committed cannot be read: {error!r}") from error
    found: list[dict[TopicPartition, Witness]] = [{}, {}]
    for tp, mark in marks.items():
        for at, text in enumerate((mark.metadata or "").split(" ")[: len(found)]):
            if (witness := Witness.parse(text)) is not None:
                found[at][tp] = witness
    return list(found)


async def compare(consumer: AIOKafkaConsumer, witnessed: Witnessed) -> None:
    """Raise LogChanged where the log has another message than was applied, or ends before it. Positions stay.

    What lies before its beginning by now says nothing, nor does an offset without a message. LogUnavailable.
    """
    begins, ends = await consumer.beginning_offsets(list(witnessed)), await consumer.end_offsets(list(witnessed))
    for tp, applied in witnessed.items():
        if applied.offset >= ends[tp]:
            raise log_faults.rewritten(tp.topic, tp.partition, applied, None)
    left = {tp for tp, applied in witnessed.items() if applied.offset >= begins[tp]}
    positions = {tp: await consumer.position(tp) for tp in left}
    for tp in left:
        consumer.seek(tp, witnessed[tp].offset)
    try:
        async with asyncio.timeout(READ_S):
            while left:
                for tp, records in (await consumer.getmany(*left, timeout_ms=POLL_MS)).items():
                    applied, found = witnessed[tp], Witness.of(_message(records[0]))
                    if found.offset == applied.offset and found != applied:
                        raise log_faults.rewritten(tp.topic, tp.partition, applied, found)
                left = {tp for tp in left if await consumer.position(tp) == witnessed[tp].offset}
    except (KafkaError, TimeoutError) as error:
        raise LogUnavailable(f"what was applied last cannot be read: {error!r}") from error
    for tp, position in positions.items():
        consumer.seek(tp, position)


def _message(record: ConsumerRecord) -> Message:
    return Message(record.key, record.value, record.headers, record.timestamp, record.offset)
