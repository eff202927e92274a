"""Every way to ask, over real HTTP and all four tiers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pyarrow as pa
import pytest

from pipeline import MemoryManager
from pipeline.answers import ARROW
from pipeline.demo_node import NodeProcess
from pipeline.routes import Gateway
from pipeline.serve import HttpService
from pipeline.settings import Settings
from pipeline.stack import Stack
from producers import KafkaSettings, MemoryProducer
from tests.nodes import DIM, rows, until
from tiers.tier import TierName

COUNT = 40
TIERS = ["hot", "warm", "cold", "glacier"]


class Service:
    """A node with its gateway in this process, and a client of it."""

    def __init__(self, memory: MemoryManager, http: httpx.AsyncClient) -> None:
        self.memory, self.http = memory, http

    async def place(self) -> None:
        """Put ten records into each tier: id-0 … id-9 hot, then warm, cold, glacier."""
        await self.memory.store(rows(COUNT))
        await until(lambda: len(self.memory.node.index) == COUNT)
        node = self.memory.node
        for name in (TierName.WARM, TierName.COLD, TierName.GLACIER):
            ids = [f"id-{at}" for at in range(10 * name, 10 * name + 10)]
            for partition, lane in node.lanes.items():
                found = [entry for identifier in ids if (entry := node.index.find(identifier))]
                keys = [(entry.id, entry.version) for entry in found if entry.partition == partition]

                async def move(partition: int = partition, keys: Any = keys, name: TierName = name) -> None:
                    await node.mover.move(partition, TierName.HOT, name, "test", keys)

                await lane.perform(move)

    async def post(self, path: str, **body: Any) -> dict[str, Any]:
        """Ask and return the answer's JSON."""
        response = await self.http.post(path, json=body)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer


@pytest.fixture
async def service(settings: Settings) -> AsyncIterator[Service]:
    """A ready node with ten records in each tier."""
    http = HttpService(settings)
    async with MemoryManager.open(settings, http) as memory:
        http.gateway = Gateway(memory)
        await memory.ready()
        async with httpx.AsyncClient(base_url=http.address, timeout=20) as client:
            service = Service(memory, client)
            await service.place()
            yield service


def vector_of(at: int) -> list[float]:
    """Return the vector of record id-<at>."""
    vector = rows(COUNT)[at].vector
    assert vector is not None
    return [float(value) for value in vector]


async def test_a_filtered_search_answers_from_all_tiers(service: Service) -> None:
    """What passes is found wherever it lies; each hit says where."""
    answer = await service.post("/v1/search", vector=vector_of(0), k=COUNT, filter="user = 'u1' AND score > 1.0")
    expected = {f"id-{at}": TIERS[at // 10] for at in range(COUNT) if at % 3 == 1 and at > 10}

    assert expected == {hit["id"]: hit["tier"] for hit in answer["hits"]}
    assert (COUNT, COUNT, True, []) == tuple(answer[key] for key in ("scanned", "of", "complete", "missed"))
    assert dict.fromkeys(TIERS, 10) == {name: each["rows"] for name, each in answer["searched"].items()}


async def test_several_questions_at_once_are_answered_in_order(service: Service) -> None:
    """Each question has its own criteria, include and answer; what is wrong with one names it."""
    asked = [{"vector": vector_of(at), "k": 1, "include": [], "tiers": [TIERS[at // 10]]} for at in (5, 15, 25, 35)]
    answer = await service.post("/v1/search", queries=asked)
    assert ["id-5", "id-15", "id-25", "id-35"] == [result["hits"][0]["id"] for result in answer["results"]]
    assert {"id", "tier", "version", "event_time", "score"} == answer["results"][0]["hits"][0].keys()

    wrong = await service.http.post("/v1/search", json={"queries": [asked[0], {**asked[1], "k": 0}]})
    assert (400, "queries[1].k") == (wrong.status_code, wrong.json()["field"])
    mixed = await service.http.post("/v1/search", json={"queries": asked, "k": 3})
    assert (400, "queries") == (mixed.status_code, mixed.json()["field"])


async def test_a_page_follows_the_last_until_all_are_seen(service: Service) -> None:
    """By filter and time, in pages: each record once, in the order of ids, with where it lies."""
    seen: list[str] = []
    body: dict[str, Any] = {"filter": "user <> 'u0'", "limit": 7, "from": "2020-01-01T00:00:00Z"}
    while True:
        answer = await service.post("/v1/retrieve", **body)
        seen += [hit["id"] for hit in answer["hits"]]
        assert all(hit["tier"] == TIERS[int(hit["id"][3:]) // 10] for hit in answer["hits"])
        if answer["cursor"] is None:
            break
        body["cursor"] = answer["cursor"]

    assert sorted(f"id-{at}" for at in range(COUNT) if at % 3) == seen


async def test_memories_are_retrieved_by_ids_in_the_order_asked(service: Service) -> None:
    """Absent ones are left out; criteria hold here too."""
    ids = ["id-31", "none", "id-2", "id-12"]
    answer = await service.post("/v1/retrieve", ids=ids)
    narrowed = await service.post("/v1/retrieve", ids=ids, filter="score < 2.0")

    assert ["id-31", "id-2", "id-12"] == [hit["id"] for hit in answer["hits"]]
    assert (4, 4, None) == (answer["scanned"], answer["of"], answer["cursor"])
    assert ["id-2", "id-12"] == [hit["id"] for hit in narrowed["hits"]]


def table_of(response: httpx.Response) -> pa.Table:
    """Return an Arrow answer."""
    assert response.headers["content-type"] == ARROW
    with pa.ipc.open_stream(response.content) as reader:
        return reader.read_all()


async def test_answers_are_arrow_where_the_client_accepts_it(service: Service) -> None:
    """The same hits as columns; what JSON puts around them is in the schema's metadata."""
    accept = {"accept": f"{ARROW}, application/json;q=0.5"}
    body = {"vector": vector_of(3), "k": 3, "include": ["vector", "attributes"]}
    plain = (await service.http.post("/v1/search", json=body)).json()
    table = table_of(await service.http.post("/v1/search", json=body, headers=accept))
    assert [hit["id"] for hit in plain["hits"]] == table["id"].to_pylist()
    assert [hit["tier"] for hit in plain["hits"]] == table["tier"].to_pylist()
    assert pytest.approx([hit["score"] for hit in plain["hits"]]) == table["score"].to_pylist()
    assert [hit["vector"] for hit in plain["hits"]] == table["vector"].to_pylist()
    assert "payload" not in table.column_names
    assert json.loads(table.schema.metadata[b"isotherm"])["complete"] is True

    two = {"queries": [{"id": "id-1", "k": 2}, {"id": "id-30", "k": 1}]}
    table = table_of(await service.http.post("/v1/search", json=two, headers=accept))
    assert [0, 0, 1] == table["query"].to_pylist()

    page = table_of(await service.http.post("/v1/retrieve", json={"limit": 3}, headers=accept))
    assert (3, True) == (page.num_rows, json.loads(page.schema.metadata[b"isotherm"])["cursor"] is not None)
    one = table_of(await service.http.get("/v1/memories/id-35", headers=accept))
    assert [{"n": 35}] == [json.loads(payload) for payload in one["payload"].to_pylist()]


async def test_everything_is_listed_as_lines_and_as_arrow(service: Service) -> None:
    """The listing takes a filter and what to include, and has every record once."""
    lines = (await service.http.get("/v1/memories", params={"filter": "user = 'u2'", "include": "payload"})).text
    found = [json.loads(line) for line in lines.splitlines()]
    assert sorted(f"id-{at}" for at in range(COUNT) if at % 3 == 2) == [each["id"] for each in found]
    assert {"id", "tier", "version", "event_time", "payload"} == found[0].keys()

    table = table_of(await service.http.get("/v1/memories", headers={"accept": ARROW}))
    assert sorted(f"id-{at}" for at in range(COUNT)) == table["id"].to_pylist()
    empty = await service.http.get("/v1/memories", params={"filter": "user = 'nobody'"})
    assert (200, "") == (empty.status_code, empty.text)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/search", {"filter": "user ="}, "filter"),
        ("/v1/search", {"filter": "nothing = 1"}, "filter"),
        ("/v1/search", {"filter": "length(user) = 1"}, "filter"),
        ("/v1/search", {"filter": "user = '" + "x" * 5_000 + "'"}, "filter"),
        ("/v1/search", {"filter": 5}, "filter"),
        ("/v1/search", {"k": 0}, "k"),
        ("/v1/search", {"k": 1_001}, "k"),
        ("/v1/search", {"k": "ten"}, "k"),
        ("/v1/search", {"deadline_ms": 0}, "deadline_ms"),
        ("/v1/search", {"deadline_ms": -1}, "deadline_ms"),
        ("/v1/search", {"deadline_ms": 1e9}, "deadline_ms"),
        ("/v1/search", {"tiers": ["lukewarm"]}, "tiers"),
        ("/v1/search", {"tiers": []}, "tiers"),
        ("/v1/search", {"include": ["everything"]}, "include"),
        ("/v1/search", {"from": "yesterday"}, "from"),
        ("/v1/search", {"from": "2026-01-01T00:00:00"}, "from"),
        ("/v1/search", {"from": "2026-01-02T00:00:00Z", "to": "2026-01-01T00:00:00Z"}, "to"),
        ("/v1/search", {"vector": [1.0]}, "vector_dim"),
        ("/v1/search", {"vector": [0.0] * DIM}, "vector_zero"),
        ("/v1/search", {"vector": None}, "vector"),
        ("/v1/search", {"at_least": "x"}, "token"),
        ("/v1/search", {"nonsense": 1}, "nonsense"),
        ("/v1/search", {"queries": []}, "queries"),
        ("/v1/retrieve", {"limit": 0}, "limit"),
        ("/v1/retrieve", {"limit": 5_000}, "limit"),
        ("/v1/retrieve", {"cursor": "x"}, "cursor"),
        ("/v1/retrieve", {"ids": ["a"], "cursor": "x"}, "cursor"),
        ("/v1/retrieve", {"ids": ["a"] * 1_001}, "ids"),
        ("/v1/retrieve", {"ids": "a"}, "ids"),
    ],
)
async def test_bad_questions_are_problems_that_name_the_field(
    service: Service, path: str, body: dict[str, Any], field: str
) -> None:
    """Never a 500: a client sees which field is wrong and why."""
    whole = {"vector": vector_of(0), **body} if path == "/v1/search" else body
    if "queries" in body:
        whole = body
    response = await service.http.post(path, json=whole)

    assert (400, field) == (response.status_code, response.json()["field"]), response.text
    assert response.headers["content-type"] == "application/problem+json"


async def test_bad_parameters_are_problems_too(service: Service) -> None:
    """A query string is as strict as a body."""
    wrong = {"nonsense": "1", "include": "x", "deadline_ms": "soon"}
    answers = [await service.http.get("/v1/memories/id-1", params={key: value}) for key, value in wrong.items()]

    assert [(400, key) for key in wrong] == [(answer.status_code, answer.json()["field"]) for answer in answers]


async def test_a_warm_tier_that_stops_in_the_middle_of_searches_is_named_by_the_deadline(
    service: Service, stack: Stack
) -> None:
    """Valkey frozen by SIGSTOP under a stream of searches: each answers in time, and says what it missed (R7)."""
    valkey = next(each.pid for each in stack.services if each.name == "valkey")
    loop = asyncio.get_running_loop()

    async def search() -> tuple[float, dict[str, Any]]:
        began = loop.time()
        answer = await service.post("/v1/search", vector=vector_of(12), k=COUNT, deadline_ms=1_500)
        return loop.time() - began, answer

    try:
        before = [asyncio.ensure_future(search()) for _ in range(20)]
        await asyncio.wait(before, return_when=asyncio.FIRST_COMPLETED)
        os.kill(valkey, signal.SIGSTOP)
        answers = [*await asyncio.gather(*before), await search()]
    finally:
        os.kill(valkey, signal.SIGCONT)

    slowest = max(answers, key=lambda each: each[0])
    assert slowest[0] < 4.0, slowest  # without the deadline: warm.timeout_ms, 5 s
    _, last = answers[-1]
    assert (["warm"], False) == (last["missed"], last["complete"])
    assert {f"id-{at}" for at in range(COUNT) if not 10 <= at < 20} == {hit["id"] for hit in last["hits"]}

    async def healed() -> bool:
        return bool((await search())[1]["complete"])

    await until(healed)


def resident(pid: int) -> int:
    """Return the bytes of memory that a process has in use."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_everything_is_streamed_with_flat_memory(stack: Stack, prefix: str, tmp_path: Path) -> None:
    """A listing several times larger than what a node may hold of it leaves its resident size as it was."""
    count, size = 1_500, 100_000
    node = NodeProcess(
        tmp_path,
        stack,
        {
            "dim": DIM,
            "attributes": "{}",
            "embedder": "",
            "kafka.prefix": prefix,
            "kafka.partitions": 2,
            "warm.prefix": prefix,
            "hot.capacity_rows": 4_096,
            "hot.slab_rows": 128,
            "policy.hot_age_s": 0.1,
            "policy.warm_heat_min": 1e9,  # straight to cold
            "policy.cold_idle_s": 0.1,
            "age.glacier_flush_s": 0.5,
        },
    )
    address = await node.start()
    try:
        kafka = KafkaSettings(bootstrap=stack.kafka, prefix=prefix, partitions=2)
        rng = np.random.default_rng(0)
        async with MemoryProducer.from_settings(kafka) as producer:
            for at in range(count):
                payload = rng.bytes(size * 3 // 8).hex()
                await producer.enqueue(f"id-{at}", rng.normal(size=DIM).astype(np.float32), payload)
        async with httpx.AsyncClient(base_url=address, timeout=60) as http:

            async def settled() -> bool:
                tiers = (await http.get("/v1/tiers")).json()["tiers"]
                return bool(tiers["glacier"]["records"] == count)

            await until(settled, 90)
            async with http.stream("GET", "/v1/memories") as response:  # what any listing needs is there afterwards
                first = [msgspec.json.decode(line)["tier"] async for line in response.aiter_lines()]
            before, peak, seen, received = resident(node.pid), 0, 0, 0
            async with http.stream("GET", "/v1/memories") as response:
                async for line in response.aiter_lines():
                    seen, received = seen + 1, received + len(line)
                    peak = max(peak, resident(node.pid)) if seen % 50 == 0 else peak
    finally:
        await node.stop()

    assert ["glacier"] * count == first
    assert (count, True) == (seen, received > 100_000_000)
    assert peak - before < 64_000_000, f"{before:,} -> {peak:,}"
