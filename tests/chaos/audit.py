"""What is there once the node has stopped: Kafka by another client, Valkey, DuckDB and Parquet by their own.

The packed row is parsed once more by pipeline/demo_checks.py, from its description; nothing is asked of the product.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Consumer, TopicPartition

from pipeline import demo_checks
from pipeline.demo_checks import Physical
from tests.chaos.checker import Checker
from tests.chaos.producer import vector_of

READ_S = 120.0


def read_topic(broker: str, topic: str, partitions: int) -> list[Any]:
    """Return all messages of a topic."""
    consumer = Consumer({"bootstrap.servers": broker, "group.id": "audit", "enable.auto.commit": False})
    try:
        ends = {p: consumer.get_watermark_offsets(TopicPartition(topic, p), 30)[1] for p in range(partitions)}
        consumer.assign([TopicPartition(topic, p, 0) for p in range(partitions)])
        messages: list[Any] = []
        missing, deadline = sum(ends.values()), time.monotonic() + READ_S
        while len(messages) < missing and time.monotonic() < deadline:
            messages += [message for message in consumer.consume(10_000, 1.0) if message.error() is None]
        assert len(messages) == missing, f"{topic}: {len(messages)} messages of {missing} were read"
        return messages
    finally:
        consumer.close()


def committed(broker: str, prefix: str, partitions: int) -> dict[int, int]:
    """Return the committed offsets of a node's group."""
    consumer = Consumer({"bootstrap.servers": broker, "group.id": f"{prefix}.node", "enable.auto.commit": False})
    try:
        asked = [TopicPartition(f"{prefix}.memories", p) for p in range(partitions)]
        return {each.partition: max(0, each.offset) for each in consumer.committed(asked, 30)}
    finally:
        consumer.close()


async def audit(checker: Checker, broker: str, redis: str, prefix: str, data: Path, partitions: int) -> dict[str, int]:
    """Judge the newest version of every id by what lies in the log above the committed offset, and in the tiers.

    Returns how many live records each tier holds at their newest version.
    """
    log = read_topic(broker, f"{prefix}.memories", partitions)
    _log(checker, log)
    marks = committed(broker, prefix, partitions)
    lying = {
        "warm": await demo_checks.read_warm(redis, prefix),
        "cold": demo_checks.read_cold(data / "cold"),
        "glacier": demo_checks.read_glacier(data / "glacier"),
    }
    newest: dict[str, tuple[int, bytes | None]] = {}
    for message in sorted(log, key=lambda message: message.offset()):
        identifier = message.key().decode()
        if not identifier.startswith("bad/"):
            newest[identifier] = (message.offset() << 16, message.value())
    dirty = {
        message.key().decode()
        for message in log
        if message.offset() >= marks[message.partition()]
        and newest.get(message.key().decode(), (0,))[0] == message.offset() << 16
    }
    return tiers(checker, newest, dirty, lying)


def _log(checker: Checker, log: list[Any]) -> None:
    """Every acknowledged event is in the log where the broker said."""
    at = {(message.partition(), message.offset()): message for message in log}
    for identifier, events in checker.ledger.events.items():
        for event in events:
            if event.offset is None:
                continue
            message = at.get((event.partition, event.offset))
            same = message is not None and message.key() == identifier.encode()
            if not same or (message.value() is None) != event.deleted:
                checker.note("lost", identifier, f"Kafka does not hold event {event.n} where it was acknowledged")


def tiers(
    checker: Checker,
    newest: dict[str, tuple[int, bytes | None]],
    dirty: set[str],
    lying: dict[str, list[tuple[str, Physical]]],
) -> dict[str, int]:
    """Judge rows as they lie in the tiers; `newest` by id is (version, message), `dirty` is what a replay brings."""
    found: defaultdict[str, list[tuple[str, Physical]]] = defaultdict(list)
    for tier, rows in lying.items():
        for identifier, row in rows:
            found[identifier].append((tier, row))
    counts = dict.fromkeys(("hot", *lying), 0)
    for identifier, (version, value) in newest.items():
        rows = found.pop(identifier, [])
        here = [(tier, row) for tier, row in rows if row.version == version]
        alive = [(tier, row) for tier, row in rows if row.version != version and not row.deleted]
        if value is None:
            if alive and not here and identifier not in dirty:
                checker.note("resurrected", identifier, f"deleted at {version}, and older rows in {alive}")
            continue
        if not here and identifier not in dirty:
            checker.note("lost", identifier, f"version {version} is in no tier and below the committed offset: {rows}")
            continue
        counts[here[-1][0] if here else "hot"] += 1
        wanted = json.loads(value)["payload"]
        for tier, row in here:
            right = row.vector is not None and json.loads(row.payload) == wanted
            if not right or not np.array_equal(row.vector, vector_of(identifier, wanted["n"])):
                checker.note("lost", identifier, f"{tier} holds other content at version {version}")
    for identifier in found:
        checker.note("lost", identifier, "lies in a tier and was never sent")
    return counts
