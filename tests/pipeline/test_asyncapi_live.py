"""The AsyncAPI document against a running node: a foreign client reads every topic, and every message holds."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import msgspec
import numpy as np
import pyarrow as pa
import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from pipeline.stack import Stack
from producers import events
from producers.events import ARROW_TYPE, MSGPACK_TYPE
from tests.live import Live, live
from tests.nodes import DIM, rows, small
from tiers import record


@pytest.fixture
def node(stack: Stack, prefix: str, tmp_path: Path) -> Any:
    """A node that ages fast."""
    with live(small(stack, prefix, tmp_path / "node", policy__hot_age_s=0.1, expiry__interval_ms=50)) as node:
        yield node


def test_every_message_on_every_topic_is_as_the_document_says(node: Live) -> None:
    """Upserts in all three forms, deletes, an expiry, reads, ageing, moves, a letter: all of it is described."""
    with httpx.Client(base_url=node.address, timeout=20) as http:
        document = http.get("/asyncapi.json").json()
        _live(http, node)
        found = _all_messages(node, document)

    named: set[str] = set()
    for channel, message in found:
        name = _name(channel, message)
        assert name in document["channels"][channel]["messages"], (name, message.headers())
        _hold(document, document["components"]["messages"][name], message)
        named.add(name)
    assert set(document["components"]["messages"]) - {"deadLetters_replayed"} == named


def _live(http: httpx.Client, node: Live) -> None:
    """Make the node send every kind of message."""
    one, two = rows(2)
    assert one.vector is not None
    assert two.vector is not None
    http.post("/v1/memories", json={"id": "json", "vector": one.vector.tolist(), "payload": {"a": [1]}, "ttl_s": 0.5})
    packed = msgspec.msgpack.encode({"id": "packed", "vector": two.vector.tobytes(), "payload": b"\x00"})
    http.post("/v1/memories", content=packed, headers={"content-type": MSGPACK_TYPE}).raise_for_status()
    token = node.do(node.memory.store(rows(20)))
    assert 202 == http.delete("/v1/memories/id-3").status_code
    foreign = Producer({"bootstrap.servers": node.memory.node.settings.kafka.bootstrap})
    foreign.produce(node.memory.node.topics.memories, b"{", b"bad")
    foreign.flush(10)
    for _ in range(3):
        assert 200 == http.get("/v1/memories/id-5", params={"at_least": token}).status_code
    deadline = time.monotonic() + 20
    while http.get("/v1/memories/json").status_code == 200 or http.get("/v1/tiers").json()["dead_letters"] == {}:
        assert time.monotonic() < deadline


def _all_messages(node: Live, document: dict[str, Any]) -> list[tuple[str, Message]]:
    """Return every message of every channel, once each kind that takes its time has come."""
    bootstrap = node.memory.node.settings.kafka.bootstrap
    wanted = {f"{name}" for name in document["components"]["messages"]} - {"deadLetters_replayed"}
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "foreign", "enable.auto.commit": False})
    addresses = {each["address"]: name for name, each in document["channels"].items()}
    found: list[tuple[str, Message]] = []
    try:
        topics = consumer.list_topics(timeout=10).topics
        places = [TopicPartition(each, p, 0) for each in addresses for p in topics[each].partitions]
        expected = {name: each["bindings"]["kafka"].get("partitions") for name, each in document["channels"].items()}
        counts = {addresses[each]: len(topics[each].partitions) for each in addresses}
        assert counts == {name: each or counts[name] for name, each in expected.items()}
        consumer.assign(places)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and wanted - {_name(*each) for each in found}:
            found += [(addresses[m.topic()], m) for m in consumer.consume(500, 0.2) if m.error() is None]
    finally:
        consumer.close()
    return found


def _name(channel: str, message: Message) -> str:
    """Return which of the document's messages this one claims to be."""
    headers = dict(message.headers() or ())
    if channel == "memories":
        if message.value() is None:
            return "memories_deleteIf" if events.IF_VERSION in headers else "memories_delete"
        kinds = {ARROW_TYPE: "arrow", MSGPACK_TYPE: "msgpack"}
        return f"memories_{kinds.get(headers.get('content-type', b'').decode(), 'json')}"
    if channel == "deadLetters":
        return "deadLetters_replayed" if "isotherm-replayed" in headers else "deadLetters_letter"
    return {"access": "access_fold", "age": "age_named", "changes": "changes_moved"}[channel]


def _hold(document: dict[str, Any], says: dict[str, Any], message: Message) -> None:
    """Hold key, headers and value against what the document says of them."""

    def check(schema: Any, value: Any) -> None:
        jsonschema.Draft7Validator({**schema, "components": document["components"]}).validate(value)

    headers = {name: value.decode() for name, value in message.headers() or ()}
    if "headers" in says:
        check(says["headers"], headers)
    else:
        assert {} == headers
    key, value = message.key(), message.value()
    check(says["bindings"]["kafka"]["key"], None if key is None else key.decode())
    kind = says.get("contentType")
    if "x-arrow-columns" in says["payload"]:
        _hold_arrow(says["payload"]["x-arrow-columns"], value)
    elif says["payload"].get("contentEncoding") != "binary" and headers.get("content-type", kind) == kind:
        bad = message.key() == b"bad"
        decoded = (
            msgspec.msgpack.decode(value)
            if kind == MSGPACK_TYPE
            else None
            if value is None or bad
            else json.loads(value)
        )
        if not bad:
            check(says["payload"], _plain(decoded))
    elif value is None:
        check(says["payload"], None)


def _hold_arrow(columns: list[dict[str, Any]], value: bytes) -> None:
    """Every column of the stream is one that the document has, with that type."""
    said = {each["name"]: each["type"] for each in columns}
    for each in pa.ipc.open_stream(value).schema:
        assert said[each.name] == str(each.type), each


def _plain(value: Any) -> Any:
    """Return msgpack as JSON Schema can judge it: bytes as text."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return value.decode("latin-1") if isinstance(value, bytes) else value


def test_the_partitions_are_where_the_document_says(node: Live) -> None:
    """murmur2 of the key: what a foreign producer computes is where a node looks for it."""
    producer = Producer(
        {"bootstrap.servers": node.memory.node.settings.kafka.bootstrap, "partitioner": "murmur2_random"}
    )
    landed: dict[str, int] = {}
    vector = np.ones(DIM).tolist()
    for name in ("a", "b/ü", "id-17"):
        value = json.dumps({"vector": vector})
        producer.produce(
            node.memory.node.topics.memories,
            value,
            name,
            on_delivery=lambda _, m: landed.update({m.key().decode(): m.partition()}),
        )
    producer.flush(10)
    assert {name: record.partition(name, 4) for name in landed} == landed
    assert 3 == len(landed)
