"""What the doctor asks of Kafka: whether it lets us in, and whether each topic keeps what it must."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaConnectionError, for_code

from consumers import log_faults
from consumers.log_faults import UNKNOWN
from pipeline.doctor_finding import Finding
from pipeline.doctor_machine import anyone
from pipeline.log_identity import identity
from pipeline.manifest import held
from pipeline.settings import Settings
from pipeline.topics import count_fault
from producers.events import Topics
from producers.publisher import missing
from producers.security import FORBIDDEN, forbidden, unreachable
from tiers.errors import LogUnavailable, SettingsError

MESSAGE_BYTES = 1_048_576  # the largest that our producer sends
DAY_MS = 86_400_000
DIRTY_SPARE = 10  # times hot_age_s: a node that was away for so long still finds its rows in the log


async def kafka(settings: Settings) -> list[Finding]:
    """Ask the brokers: reachable, let us in, have the topics as they must be."""
    where = settings.kafka.bootstrap
    if not await _anyone(where):
        return [Finding.error("kafka", str(missing(where)), unreachable=True)]
    admin = AIOKafkaAdminClient(**settings.kafka.client())
    try:
        await admin.start()
        return await _inside(admin, settings)
    except KafkaConnectionError:
        return [Finding.error("kafka", str(await unreachable(where, settings.kafka.security)))]
    except FORBIDDEN as error:
        return [Finding.error("kafka", str(forbidden(error, where)))]
    finally:
        await admin.close()


async def _anyone(bootstrap: str) -> bool:
    """Say whether any broker takes a connection."""
    for address in bootstrap.split(","):
        host, _, port = address.strip().rpartition(":")
        if port.isdecimal() and await anyone(host.strip("[]"), int(port)):
            return True
    return False


async def _inside(admin: AIOKafkaAdminClient, settings: Settings) -> list[Finding]:
    topics = Topics.under(settings.kafka.prefix)
    cluster = await admin.describe_cluster()
    brokers = len(cluster["brokers"])
    found = [Finding.ok("kafka", f"{brokers} broker(s) at {settings.kafka.bootstrap}")]
    present = [name for name in topics if name in set(await admin.list_topics())]
    absent = len(topics) - len(present)
    if absent and brokers < settings.kafka.replication:
        text = f"kafka.replication = {settings.kafka.replication}, and there are {brokers} broker(s)"
        found.append(Finding.error("kafka", text, "lower kafka.replication, or add brokers"))
    if absent:
        found.append(Finding.ok("kafka", f"{absent} of {len(topics)} topics are not there yet: the node makes them"))
    if not present:
        return found
    for topic in await admin.describe_topics(present):
        fault = count_fault(settings.kafka, topic["topic"], len(topic["partitions"]))
        if topic["error_code"] == 0 and fault:
            found.append(Finding.error("kafka", fault))
        thin = [part["partition"] for part in topic["partitions"] if len(part["isr"]) < len(part["replicas"])]
        if thin:
            fix = "see which broker is down"
            found.append(Finding.warning("kafka", f"{topic['topic']}: partitions {thin} lack replicas in sync", fix))
    if topics.memories in present:
        found += await _same_log(settings, topics.memories)
    return found + await _configured(admin, settings, topics, present)


async def _same_log(settings: Settings, topic: str) -> list[Finding]:
    """Return what a start would refuse: the topic is another one than the data directory has read."""
    with suppress(SettingsError, LogUnavailable):  # other checks tell of these
        manifest = held(Path(settings.data), settings)
        known = manifest.topic if manifest else UNKNOWN
        found = await identity(settings.kafka, topic)
        if fault := log_faults.fault(found, known, found.partitions):  # their number was looked at before
            return [Finding.error("kafka", fault)]
    return []


async def _configured(
    admin: AIOKafkaAdminClient, settings: Settings, topics: Topics, present: list[str]
) -> list[Finding]:
    asked = [ConfigResource(ConfigResourceType.TOPIC, name) for name in present]
    found: list[Finding] = []
    for response in await admin.describe_configs(asked):
        for code, _, _, name, entries in response.resources:
            if code:
                text = f"the configuration of {name} cannot be seen ({for_code(code).__name__})"
                found.append(Finding.warning("kafka", text, "allow DescribeConfigs on the topics, or look yourself"))
                continue
            values = {entry[0]: entry[1] for entry in entries}
            faults = memories_faults(name, values, settings) if name == topics.memories else kept_faults(name, values)
            found += faults or [Finding.ok("kafka", f"{name} is configured as it must be")]
    return found


def kept_faults(name: str, values: Mapping[str, Any]) -> list[Finding]:
    """Return what is wrong with the configuration of any of our topics. Pure."""
    found: list[Finding] = []
    if "compact" in values.get("cleanup.policy", ""):
        fix = f"kafka-configs.sh --alter --topic {name} --add-config cleanup.policy=delete"
        text = f"{name} is compacted: events are lost, and versions with them"
        found.append(Finding.error("kafka", text, fix))
    if int(values.get("max.message.bytes", MESSAGE_BYTES)) < MESSAGE_BYTES:
        fix = f"kafka-configs.sh --alter --topic {name} --add-config max.message.bytes={MESSAGE_BYTES}"
        text = f"{name} takes messages of {values['max.message.bytes']} bytes; {MESSAGE_BYTES} are sent"
        found.append(Finding.error("kafka", text, fix))
    return found


def memories_faults(name: str, values: Mapping[str, Any], settings: Settings) -> list[Finding]:
    """Return what is wrong with the configuration of the log. Pure."""
    found = kept_faults(name, values)
    keep_ms, keep_bytes = int(values.get("retention.ms", -1)), int(values.get("retention.bytes", -1))
    dirty_ms = int(settings.policy.hot_age_s * 1000)
    fix = f"kafka-configs.sh --alter --topic {name} --add-config retention.ms=-1"
    if 0 <= keep_ms < DIRTY_SPARE * dirty_ms:
        text = (
            f"{name} forgets after {keep_ms / 1000:g} s, and a record is only in the log for policy.hot_age_s = "
            f"{settings.policy.hot_age_s:g} s and longer: acknowledged events can be lost"
        )
        found.append(Finding.error("kafka", text, fix))
    elif 0 <= keep_ms < DAY_MS:
        text = f"{name} forgets after {keep_ms / 3_600_000:g} h: a node that is down for longer loses events"
        found.append(Finding.warning("kafka", text, fix))
    if keep_bytes >= 0:
        text = f"{name} forgets beyond {keep_bytes} bytes a partition, however young: a fast producer can lose events"
        found.append(Finding.warning("kafka", text, fix.replace("retention.ms", "retention.bytes")))
    if values.get("compression.type") != "uncompressed":
        fix = f"kafka-configs.sh --alter --topic {name} --add-config compression.type=uncompressed"
        text = f"{name} keeps what producers compressed: a small message may unpack to a very large one in the node"
        found.append(Finding.warning("kafka", text, fix))
    return found
