"""The examples of the OpenAPI document. A test sends every body to a live node, and checks every answer."""

from __future__ import annotations

import base64
from typing import Any, NamedTuple

import numpy as np

from pipeline.operation import SSE_TYPE
from pipeline.settings import Settings
from producers.events import JSON_TYPE

_ATTRIBUTES = {"string": "a", "int": 1, "float": 0.5, "bool": True, "timestamp": "2026-11-23T05:00:00Z"}
_APPLIED = {"applied": {"0": 123, "1": 98}, "lag_ms": 7}
_AROUND = {
    "complete": True,
    "searched": {"hot": {"rows": 700, "took_ms": 0.4}, "warm": {"rows": 9300, "took_ms": 1.1}},
    "missed": [],
    "scanned": 10_000,
    "of": 10_000,
    "freshness": _APPLIED,
    "took_ms": 3.1,
}
_CHANGE = (
    'id: 0:13,1:7\nevent: change\ndata: {"kind":"home","from":"hot","to":"warm","reason":"age","policy":"age-heat-2",'
    '"at":1795410000000,"ids":["id-1"],"versions":["0.12.0"]}\n\n'
)
TOKEN = "eyJlIjowLCJwIjp7IjAiOjEyfX0"  # noqa: S105 - a place in the log, no secret


class Examples(NamedTuple):
    """By (operation, media type): named bodies to send, and one answer each."""

    bodies: dict[tuple[str, str], dict[str, Any]]
    answers: dict[tuple[str, str], Any]


def of(settings: Settings) -> Examples:
    """Return the examples for a node of these settings."""
    attributes = {name: _ATTRIBUTES[kind] for name, kind in settings.attributes.items()}
    vector = vector_b64(settings.dim)
    given: dict[str, Any] = {"payload": {"text": "Compress data with gzip"}, "event_time": "2026-11-23T05:00:00Z"}
    given |= {"attributes": attributes} if attributes else {}
    memory = {"id": "id-1", "vector_b64": vector, **given}
    other = {"id": "id-2", "vector_b64": vector, "ttl_s": 3600}
    hit: dict[str, Any] = {"id": "id-1", "tier": "hot", "version": "0.12.0", "event_time": "2026-11-23T05:00:00.000Z"}
    hit |= {"payload": given["payload"], "attributes": attributes}
    hits = [{**hit, "score": 0.93}]
    return Examples(
        {
            ("publish", JSON_TYPE): {"one": memory, "several": [memory, other]},
            ("search", JSON_TYPE): _searches(settings, vector),
            ("retrieve", JSON_TYPE): {
                "by ids": {"ids": ["id-1", "id-2"]},
                "a page": {"filter": "id LIKE 'id-%'", "from": "2026-01-01T00:00:00Z", "limit": 10},
            },
        },
        {
            ("publish", JSON_TYPE): {"token": TOKEN, "published": 1},
            ("deleteMemory", JSON_TYPE): {"token": TOKEN},
            ("getMemory", JSON_TYPE): hit,
            ("search", JSON_TYPE): {"hits": hits, **_AROUND},
            ("retrieve", JSON_TYPE): {"hits": [hit], **_AROUND, "cursor": None},
            ("changes", SSE_TYPE): _CHANGE,
            ("clear", JSON_TYPE): {"tier": "glacier", "cleared": 10_000},
            ("promote", JSON_TYPE): {"id": "id-1", "tier": "cold", "hint": "counted as 100 reads", "certain": False},
            ("demote", JSON_TYPE): {"id": "id-1", "tier": "hot", "hint": "named on isotherm.age", "certain": False},
            ("healthz", "text/plain"): "ok\n",
            ("readyz", "text/plain"): "ready\n",
        },
    )


def vector_b64(dim: int) -> str:
    """Return a vector of ones as a body has it: base64 of little-endian float32."""
    return base64.b64encode(np.ones(dim, "<f4").tobytes()).decode()


def _searches(settings: Settings, vector: str) -> dict[str, Any]:
    made: dict[str, Any] = {
        "by vector": {"vector_b64": vector, "k": 3},
        "by a memory that is there": {"id": "id-1", "k": 3, "include": ["payload"]},
        "filtered": {"id": "id-1", "k": 5, "filter": "id <> 'id-2'", "tiers": ["hot", "warm"], "deadline_ms": 500},
        "several": {"queries": [{"id": "id-1", "k": 1}, {"id": "id-2", "k": 2, "exact": True}]},
    }
    if settings.embedder:
        made["by words"] = {"text": "make a file smaller", "k": 3}
    return made
