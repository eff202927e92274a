"""What an operator, or an accident, does to topics: by Kafka's own administration."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.records_to_delete import RecordsToDelete

from tests.nodes import until


@asynccontextmanager
async def administration(bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    """Yield a client."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def _has(admin: AIOKafkaAdminClient, topic: str, count: int) -> bool:
    return len((await admin.describe_topics([topic]))[0]["partitions"]) == count


async def _gone(admin: AIOKafkaAdminClient, topic: str) -> bool:
    return topic not in await admin.list_topics()


async def add_partitions(bootstrap: str, topic: str, count: int) -> None:
    """Give a topic `count` partitions in all."""
    async with administration(bootstrap) as admin:
        await admin.create_partitions({topic: NewPartitions(count)})
        await until(partial(_has, admin, topic, count))


async def remake(bootstrap: str, topic: str, partitions: int) -> None:
    """Delete a topic and make another of its name."""
    async with administration(bootstrap) as admin:
        await admin.delete_topics([topic])
        await until(partial(_gone, admin, topic))
        answer = await admin.create_topics([NewTopic(topic, partitions, 1)])
        assert [0] == [code for _, code, *_ in answer.topic_errors]
        await until(partial(_has, admin, topic, partitions))


async def delete_before(bootstrap: str, topic: str, offsets: Mapping[int, int]) -> None:
    """Let the log begin at these offsets."""
    async with administration(bootstrap) as admin:
        asked = {TopicPartition(topic, p): RecordsToDelete(before_offset=offset) for p, offset in offsets.items()}
        await admin.delete_records(asked)


async def commit(bootstrap: str, group: str, topic: str, offsets: Mapping[int, int]) -> None:
    """Commit offsets for a group that is not there, as it would."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False)
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, p) for p in offsets])
        await consumer.commit({TopicPartition(topic, p): offset for p, offset in offsets.items()})
    finally:
        await consumer.stop()


async def committed(bootstrap: str, group: str, topic: str, partitions: int) -> dict[int, int | None]:
    """Return what a group has committed."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False)
    await consumer.start()
    try:
        every = [TopicPartition(topic, p) for p in range(partitions)]
        consumer.assign(every)
        return {tp.partition: await consumer.committed(tp) for tp in every}
    finally:
        await consumer.stop()
