"""The AsyncAPI 3 document of the five topics, made from their contracts in `events`, `columns` and `letters`. Pure.

It says what a node reads and writes: `receive` and `send` are the node's. A test holds it against what a foreign client
finds on the topics of a running node.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from inspect import cleandoc
from typing import Any

import msgspec
import pyarrow as pa

from producers import columns, events
from producers.events import ARROW_TYPE, EVENT_TYPE, IF_VERSION, JSON_TYPE, MSGPACK_TYPE, Topics
from producers.letters import NULL, ORIGINAL, REPLAYED
from producers.publisher import KafkaSettings
from tiers import record

Json = dict[str, Any]
REFERENCE = "#/components/schemas/{name}"
BINDING = "0.5.0"

_VERSION: Json = {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"}
_NUMBER: Json = {"type": "string", "pattern": r"^\d+$"}
_KEY_ID: Json = {"type": "string", "description": "The record's id, UTF-8", "minLength": 1, "maxLength": 512}
_CLOUD: Json = {
    "ce_id": {"type": "string", "description": "With ce_source it names no other event"},
    "ce_specversion": {"const": "1.0"},
    "ce_type": {"const": EVENT_TYPE},
    "ce_source": {"type": "string"},
}


def document(kafka: KafkaSettings, dim: int, attributes: Mapping[str, str]) -> Json:
    """Return the document of a node with these settings, as plain values."""
    (_, _, _), components = msgspec.json.schema_components(
        [events.Event, events.PackedEvent, events.Change], ref_template=REFERENCE
    )
    for component in components.values():
        component["description"] = cleandoc(component["description"])
    messages = _messages(dim, attributes)
    channels = _channels(kafka, {name.partition("_")[0] for name in messages}, messages)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Isotherm topics",
            "version": version("isotherm"),
            "description": "Memory for streams of vectors: what its nodes read and write on Kafka. Headers are UTF-8.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": JSON_TYPE,
        "channels": channels,
        "operations": _operations(),
        "components": {"schemas": components, "messages": messages},
    }


# -- channels ----------------------------------------------------------------------------------------------------------

_ADVICE = "Advice: late, repeated or lost messages do no harm. Partition: murmur2 of the ids, as on the memories topic."
_ABOUT = {
    "memories": (
        "Every state change, in one order. Partition: Kafka's default murmur2 of the key modulo the count "
        "(librdkafka: partitioner=murmur2_random). What cannot be applied becomes a dead letter."
    ),
    "access": f"What was read, folded. {_ADVICE}",
    "age": f"What may move. {_ADVICE}",
    "changes": (
        "Every move, announced before it counts; at least once, in order within a partition. "
        "Placement is the fold of memories and of the changes of kind home: of an id's newest version the deepest "
        "place told (hot, where every version begins, warm, cold, glacier, null), not the last one told, because a "
        "message of a node that died may land behind what its successor has told. Partition: that of the ids."
    ),
    "deadLetters": "Every input refused, whole, with its place and reason.",
}


def _channels(kafka: KafkaSettings, known: set[str], messages: Mapping[str, Json]) -> Json:
    topics = Topics.under(kafka.prefix)
    named = dict(zip(_ABOUT, topics, strict=True))
    assert known == named.keys(), "messages are named for their channel"
    made: Json = {}
    for name, topic in named.items():
        binding: Json = {"topic": topic, "bindingVersion": BINDING}
        if name != "deadLetters":
            binding["partitions"] = kafka.partitions
        own = [each for each in messages if each.partition("_")[0] == name]
        made[name] = {
            "address": topic,
            "description": _ABOUT[name],
            "messages": {each: {"$ref": f"#/components/messages/{each}"} for each in own},
            "bindings": {"kafka": binding},
        }
    return made


def _operations() -> Json:
    does = {
        "ingest": ("receive", "memories", "Apply an upsert or a delete"),
        "publish": ("send", "memories", "What the gateway was sent, and deletes of what has expired"),
        "noteReads": ("send", "access", "Tell what was read"),
        "heat": ("receive", "access", "Count what was read"),
        "nameOld": ("send", "age", "Name what may move"),
        "demote": ("receive", "age", "Decide what moves"),
        "announce": ("send", "changes", "Announce a move"),
        "refuse": ("send", "deadLetters", "Keep what cannot be applied"),
    }
    return {
        name: {"action": action, "channel": {"$ref": f"#/channels/{channel}"}, "summary": text}
        for name, (action, channel, text) in does.items()
    }


# -- messages ----------------------------------------------------------------------------------------------------------


def _messages(dim: int, attributes: Mapping[str, str]) -> dict[str, Json]:
    rows = record.schema(dim, attributes)
    rows = pa.schema([rows.field(name) for name in columns.NAMES])
    event = {"$ref": REFERENCE.format(name="Event")}
    packed = {"$ref": REFERENCE.format(name="PackedEvent")}
    change = {"$ref": REFERENCE.format(name="Change")}
    return {
        "memories_json": _memory("An upsert", JSON_TYPE, event, _KEY_ID)
        | {"examples": [{"name": "small", "headers": _headers(JSON_TYPE), "payload": _event(dim)}]},
        "memories_msgpack": _memory("An upsert: the payload is the map as msgpack", MSGPACK_TYPE, packed, _KEY_ID),
        "memories_arrow": _memory("Many rows of one partition, upserts and deletes", ARROW_TYPE, _arrow(rows), None),
        "memories_delete": _delete("A delete: the value is null", []),
        "memories_deleteIf": _delete("A delete that counts only while that version is the newest", [IF_VERSION]),
        "access_fold": _advice("Reads since the last fold", events.ACCESS),
        "age_named": _advice("Records that may move, with what the policy sees of them", events.AGE),
        "changes_moved": {
            "title": "Rows that moved together",
            "contentType": JSON_TYPE,
            "payload": change,
            "bindings": _binding(None),
            "examples": [{"name": "demotion", "payload": _change()}],
        },
        "deadLetters_letter": _letter(),
        "deadLetters_replayed": {
            "title": "A note that a letter was sent again; no value",
            "headers": _object({REPLAYED: {"type": "string", "pattern": r"^\d+:\d+$"}}, [REPLAYED], closed=True),
            "payload": _bytes("Empty"),
            "bindings": _binding(None),
        },
    }


def _memory(title: str, kind: str, payload: Json, key: Json | None) -> Json:
    headers = {"content-type": {"const": kind}, **_CLOUD}
    needed = [] if kind == JSON_TYPE else ["content-type"]  # without one a value is read as JSON
    return {
        "title": title,
        "contentType": kind,
        "headers": _object(headers, needed),
        "payload": payload,
        "bindings": _binding(key),
    }


def _delete(title: str, needed: list[str]) -> Json:
    headers = {"content-type": {"type": "string"}, **_CLOUD}
    headers[IF_VERSION] = _VERSION if needed else False
    return {
        "title": title,
        "headers": _object(headers, needed),
        "payload": {"type": "null"},
        "bindings": _binding(_KEY_ID),
    }


def _advice(title: str, shape: pa.Schema) -> Json:
    return {"title": title, "contentType": ARROW_TYPE, "payload": _arrow(shape), "bindings": _binding(None)}


def _letter() -> Json:
    headers = {
        "isotherm-topic": {"type": "string"},
        "isotherm-partition": _NUMBER,
        "isotherm-offset": _NUMBER,
        "isotherm-row": {"type": "string", "pattern": r"^(-|\d+)$", "description": "- is the whole Arrow message"},
        "isotherm-reason": {"type": "string", "description": "Stable, see docs/bad-input.md"},
        "isotherm-message": {"type": "string", "maxLength": 500},
        "isotherm-sha256": {"type": "string", "description": "Too large to be kept: of its value"},
        NULL: {"const": "1", "description": "Its key and its value were null"},
    }
    needed = [name for name in headers if name not in ("isotherm-sha256", NULL)]
    made = _object(headers, needed, closed=True) | {"patternProperties": {f"^{ORIGINAL}": {}}}
    return {
        "title": "An input that cannot be applied",
        "headers": made,
        "payload": _bytes("As it came; of an Arrow message the one bad row, as a stream"),
        "bindings": _binding({"description": "As it came"}),
    }


def _object(properties: Json, required: list[str], *, closed: bool = False) -> Json:
    made: Json = {"type": "object", "properties": properties, "required": required}
    return made | {"additionalProperties": False} if closed else made


def _binding(key: Json | None) -> Json:
    return {"kafka": {"key": key or {"type": "null"}, "bindingVersion": BINDING}}


def _bytes(text: str) -> Json:
    return {"type": "string", "contentEncoding": "binary", "description": text}


def _arrow(shape: pa.Schema) -> Json:
    fields = [{"name": each.name, "type": str(each.type), "nullable": each.nullable} for each in shape]
    return {**_bytes("An Arrow IPC stream of these columns"), "x-arrow-columns": fields}


# -- examples ----------------------------------------------------------------------------------------------------------


def _event(dim: int) -> Json:
    vector = [1.0] + [0.0] * (dim - 1)
    return {"vector": vector, "payload": {"text": "Compress data"}, "event_time": "2026-11-23T05:00:00Z", "ttl_s": 3600}


def _headers(kind: str) -> Json:
    made = {name: each["const"] for name, each in _CLOUD.items() if "const" in each}
    return {"content-type": kind, "ce_id": "9d2f-17", "ce_source": "my-service", **made}


def _change() -> Json:
    change = events.Change(
        kind="home",
        source="hot",
        target="warm",
        reason="age",
        policy="age-heat-2",
        at=1_795_410_000_000,
        ids=["id-1"],
        versions=["0.12.0"],
    )
    made: Json = msgspec.to_builtins(change)
    return made
