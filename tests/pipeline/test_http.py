"""The gateway over real HTTP: what clients see, and what bad input gets them."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator

import httpx
import numpy as np
import pytest

from pipeline import MemoryManager
from pipeline.routes import Gateway
from pipeline.serve import HttpService
from pipeline.settings import Settings
from tests.nodes import DIM, rows


@pytest.fixture
async def http(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a ready node."""
    service = HttpService(settings)
    async with MemoryManager.open(settings, service) as memory:
        service.gateway = Gateway(memory)
        await memory.ready()
        async with httpx.AsyncClient(base_url=service.address, timeout=10) as client:
            yield client


def memory_of(at: int) -> dict[str, object]:
    """Return a memory as the API takes it."""
    row = rows(at + 1)[at]
    assert row.vector is not None
    return {"id": row.id, "vector": row.vector.tolist(), "payload": {"n": at}, "attributes": {"user": "u"}}


async def test_published_memories_are_read_searched_listed_and_deleted(http: httpx.AsyncClient) -> None:
    """The whole life of a memory over HTTP, each step at least at the token of the one before."""
    posted = await http.post("/v1/memories", json=[memory_of(at) for at in range(5)])
    assert posted.status_code == 202
    token = posted.json()["token"]

    one = (await http.get("/v1/memories/id-3", params={"at_least": token})).json()
    assert tuple(one[k] for k in ("id", "tier", "payload", "attributes")) == ("id-3", "hot", {"n": 3}, {"user": "u"})
    assert len(one["version"].split(".")) == 3

    asked = {"vector": memory_of(3)["vector"], "k": 2, "include": ["vector"]}
    answer = (await http.post("/v1/search", json=asked)).json()
    assert answer["hits"][0]["id"] == "id-3"
    assert pytest.approx(1.0, abs=1e-6) == answer["hits"][0]["score"]
    assert len(answer["hits"][0]["vector"]) == DIM
    assert (answer["complete"], answer["missed"], answer["scanned"], answer["of"]) == (True, [], 5, 5)
    assert answer["freshness"]["applied"].keys() == {"0", "1", "2", "3"}

    packed = base64.b64encode(np.array(memory_of(3)["vector"], "<f4").tobytes()).decode()
    same = (await http.post("/v1/search", json={"vector_b64": packed, "k": 2, "include": ["vector"]})).json()
    assert answer["hits"] == same["hits"]
    assert (await http.post("/v1/search", json={"id": "id-3", "k": 1})).json()["hits"][0]["id"] == "id-3"

    listed = [json.loads(line)["id"] for line in (await http.get("/v1/memories")).text.splitlines()]
    assert [f"id-{at}" for at in range(5)] == sorted(listed)

    deleted = await http.delete("/v1/memories/id-3")
    gone = await http.get("/v1/memories/id-3", params={"at_least": deleted.json()["token"]})
    assert gone.status_code == 404
    assert gone.json()["type"] == "urn:isotherm:not-found"


BAD: list[tuple[str, object]] = [
    ("/v1/search", {}),
    ("/v1/search", {"vector": [1.0]}),
    ("/v1/search", {"vector": [0.0] * DIM}),
    ("/v1/search", {"vector": [1.0] * DIM, "k": 0}),
    ("/v1/search", {"vector": [1.0] * DIM, "k": 10**9}),
    ("/v1/search", {"vector": [1.0] * DIM, "tiers": ["lukewarm"]}),
    ("/v1/search", {"vector": [1.0] * DIM, "at_least": "nonsense"}),
    ("/v1/search", {"vector": [1.0] * DIM, "colour": "blue"}),
    ("/v1/search", {"text": "no embedder here"}),
    ("/v1/search", {"id": "absent"}),
    ("/v1/memories", []),
    ("/v1/memories", {"id": "a"}),
    ("/v1/memories", {"id": "", "vector": [1.0] * DIM}),
    ("/v1/memories", {"id": "a\n", "vector": [1.0] * DIM}),
    ("/v1/memories", {"id": "a", "vector": [1e39] * DIM}),
    ("/v1/memories", {"id": "a", "vector": [1.0] * DIM, "attributes": {"unknown": 1}}),
    ("/v1/memories", {"id": "a", "vector": [1.0] * DIM, "attributes": {"user": 1}}),
    ("/v1/memories", {"id": "a", "vector": [1.0] * DIM, "event_time": "2026-01-01T00:00:00"}),
    ("/v1/memories", {"id": "a", "vector": [1.0] * DIM, "payload": "x" * 300_000}),
]


async def test_bad_input_is_a_problem_object_that_names_the_field(http: httpx.AsyncClient) -> None:
    """A 400 with a stable type, a field and a sentence; never a 500."""
    for path, body in BAD:
        response = await http.post(path, json=body)
        problem = response.json()

        assert (response.status_code, response.headers["content-type"]) == (400, "application/problem+json"), body
        assert {"type", "title", "status", "detail", "field"} <= problem.keys(), body


async def test_bodies_that_are_no_json_are_refused(http: httpx.AsyncClient) -> None:
    """Undecodable bytes are a 400 too."""
    for raw in (b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"vector": [NaN]}'):
        assert (await http.post("/v1/search", content=raw)).status_code == 400, raw[:20]


async def test_a_content_encoding_is_refused(http: httpx.AsyncClient) -> None:
    """A small body must not become a large one."""
    headers = {"content-encoding": "gzip"}
    assert (await http.post("/v1/search", content=b"x", headers=headers)).status_code == 415


async def test_changes_stream_resumes_where_it_was_left(http: httpx.AsyncClient) -> None:
    """The id of each event is the cursor to go on after it."""
    async with http.stream("GET", "/v1/changes") as response:
        assert response.headers["content-type"].partition(";")[0] == "text/event-stream"
    bad = await http.get("/v1/changes", headers={"last-event-id": "nonsense"})
    assert bad.status_code == 400


async def test_the_process_tells_how_it_is(http: httpx.AsyncClient) -> None:
    """healthz, readyz, tiers and metrics agree."""
    token = (await http.post("/v1/memories", json=memory_of(0))).json()["token"]
    await http.get("/v1/memories/id-0", params={"at_least": token})
    assert ((await http.get("/healthz")).status_code, (await http.get("/readyz")).status_code) == (200, 200)
    tiers = (await http.get("/v1/tiers")).json()
    assert tiers["tiers"]["hot"]["records"] == 1
    assert 'isotherm_records{tier="hot"} 1.0' in (await http.get("/metrics")).text


async def test_a_replaying_node_answers_503(settings: Settings) -> None:
    """Before the log is replayed a read is refused, not answered with absence (R7)."""
    service = HttpService(settings)
    async with MemoryManager.open(settings, service) as memory:
        service.gateway = Gateway(memory)
        await memory.ready()
        memory.node.ingest.replay_until[0] = 10**9
        async with httpx.AsyncClient(base_url=service.address) as client:
            for response in (
                await client.get("/v1/memories/x"),
                await client.post("/v1/search", json={"vector": [1.0] * DIM}),
                await client.get("/readyz"),
            ):
                assert (response.status_code, response.json()["type"]) == (503, "urn:isotherm:replaying")


async def test_a_position_not_reached_in_time_is_a_504(http: httpx.AsyncClient) -> None:
    """at_least beyond the log waits for the deadline and says so."""
    from producers.events import encode_token

    token = encode_token({0: 10**6}, 0)
    asked = {"vector": [1.0] * DIM, "at_least": token, "deadline_ms": 50}
    async with asyncio.timeout(5):
        response = await http.post("/v1/search", json=asked)
    assert (response.status_code, response.json()["type"]) == (504, "urn:isotherm:not-yet")
