"""Makes the topics that are missing and refuses those that do not fit."""

from __future__ import annotations

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaConnectionError, TopicAlreadyExistsError, for_code

from consumers import log_faults
from producers.events import Topics
from producers.publisher import KafkaSettings
from producers.security import FORBIDDEN, forbidden, unreachable
from tiers.errors import ServiceMissing, SettingsError


async def ensure_topics(settings: KafkaSettings, topics: Topics) -> None:
    """Create what is missing; SettingsError when a topic has another partition count than `kafka.partitions`.

    The log keeps everything by default (retention.ms = -1): it is the truth of what is not yet durable below (R1).
    Advice is short-lived: an hour. Memories lie uncompressed, so that the broker unpacks what a producer compressed and
    holds it against its size limit: a batch of 5 KB that unpacks to 5 GB is refused to its producer. The client library
    unpacks a batch whole, without a limit; vectors hardly compress anyway.
    """
    admin = AIOKafkaAdminClient(**settings.client())
    try:
        await admin.start()
    except KafkaConnectionError as error:
        await admin.close()
        raise await unreachable(settings.bootstrap, settings.security) from error
    try:
        present = set(await admin.list_topics())
        wanted = [
            NewTopic(
                name=name,
                num_partitions=1 if name == topics.dead_letters else settings.partitions,
                replication_factor=settings.replication,
                topic_configs={
                    "retention.ms": "3600000" if name in (topics.access, topics.age) else "-1",
                    **({"compression.type": "uncompressed"} if name == topics.memories else {}),
                },
            )
            for name in topics
            if name not in present
        ]
        if wanted:
            response = await admin.create_topics(wanted)
            for name, code, *text in response.topic_errors:
                if for_code(code) in FORBIDDEN:
                    raise forbidden(for_code(code)(f"create {name}"), settings.bootstrap)
                if code and for_code(code) is not TopicAlreadyExistsError:
                    raise ServiceMissing(f"Kafka at {settings.bootstrap} did not create topic {name}: {text}")
        for topic in await admin.describe_topics(list(topics)):
            if topic["error_code"] == 0 and (fault := count_fault(settings, topic["topic"], len(topic["partitions"]))):
                raise SettingsError(fault)
    finally:
        await admin.close()


def count_fault(settings: KafkaSettings, topic: str, count: int) -> str | None:
    """Return what is wrong with a topic's number of partitions, None where nothing is. Pure."""
    if count == settings.partitions or topic == Topics.under(settings.prefix).dead_letters:
        return None
    if topic == Topics.under(settings.prefix).memories:
        return log_faults.count_fault(topic, settings.partitions, count)
    return (
        f"kafka.partitions = {settings.partitions}, but topic {topic} has {count}: set the old number, or delete this "
        "topic: it holds no records, and the node makes it again"
    )
