"""The operator's routes on a live node: clearing for good under load, hints, and why a record is where it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest

from consumers.history import history
from pipeline import MemoryManager, Query
from pipeline.demo_node import NodeProcess
from pipeline.routes import Gateway
from pipeline.serve import HttpService
from pipeline.settings import Settings
from pipeline.stack import Stack
from producers import KafkaSettings, MemoryProducer
from tests.nodes import rows, until
from tiers import TierName

WORDS = ["hot", "warm", "cold", "glacier"]
DIM, PARTITIONS = 8, 4


class Live:
    """A node with its gateway: the manager, and a client."""

    def __init__(self, memory: MemoryManager, http: httpx.AsyncClient) -> None:
        self.memory, self.http = memory, http

    async def place(self, word: str, *numbers: int) -> None:
        """Store rows and move them, through their lanes, to a tier."""
        given = [row for row in rows(max(numbers) + 1) if int(row.id[3:]) in numbers]
        await self.memory.retrieve(Query(ids=[], at_least=await self.memory.store(given)))
        node, target = self.memory.node, TierName[word.upper()]
        for row in given if target is not TierName.HOT else ():
            entry = node.index.find(row.id)
            assert entry is not None
            key, partition = [(row.id, entry.version)], entry.partition
            await node.lanes[partition].perform(
                lambda p=partition, k=key: node.mover.move(p, TierName.HOT, target, "age", k)
            )

    async def tier(self, identifier: str) -> str | None:
        """Return where a read finds an id."""
        answer = await self.http.get(f"/v1/memories/{identifier}")
        return str(answer.json()["tier"]) if answer.status_code == 200 else None


async def live(settings: Settings) -> AsyncIterator[Live]:
    """Yield a ready node."""
    service = HttpService(settings)
    async with MemoryManager.open(settings, service) as memory:
        service.gateway = Gateway(memory)
        await memory.ready()
        async with httpx.AsyncClient(base_url=service.address, timeout=30) as client:
            yield Live(memory, client)


@pytest.fixture
async def node(settings: Settings) -> AsyncIterator[Live]:
    """A ready node whose records stay where they are put."""
    async for one in live(settings):
        yield one


# -- why -------------------------------------------------------------------------------------------------------------


async def test_why_tells_where_a_record_is_and_which_rule_put_it_there(node: Live) -> None:
    """The tier, the move that brought it there with its reason, what comes next, and the history of the topic."""
    await node.place("warm", 1)
    told = (await node.http.get("/v1/why/id-1")).json()

    assert ("warm", False, False, []) == tuple(told[k] for k in ("tier", "deleted", "copy_in_hot", "superseded"))
    assert ("hot", "warm", "age") == tuple(told["last_move"][k] for k in ("from", "to", "reason"))
    assert "policy.hot_age_s = 3600 s" in told["because"]
    assert ("idle", "cold") == (told["next"]["rule"], told["next"]["to"])
    assert 0 < told["next"]["in_s"] <= 3_600
    assert [("hot", "warm", "age", told["version"])] == [
        tuple(step[k] for k in ("from", "to", "reason", "version")) for step in told["history"]
    ]
    assert told["looked"]["complete"]
    assert told["policy"]["warm_idle_s"] == 3_600


async def test_why_tells_the_counters_that_the_move_was_decided_by(ageing: Settings) -> None:
    """Age, idle time and heat as the age event of this move had them, and how full the tiers were."""
    node_of = asynccontextmanager(live)
    async with node_of(ageing) as node:
        await node.memory.store(rows(2))
        asked: dict[str, Any] = {}

        async def there() -> bool:
            answer = await node.http.get("/v1/why/id-1")
            asked.update(answer.json())
            return asked.get("tier") == "glacier" and asked["decided"] is not None

        await until(there)
    told, rules = asked["decided"], ageing.policy

    assert ("idle", "idle") == (told["reason"], asked["last_move"]["reason"])
    assert told["idle_s"] >= rules.cold_idle_s
    assert told["age_s"] >= told["idle_s"]
    assert 0 < told["heat"] <= 1
    assert told["at"] <= asked["last_move"]["at"]
    assert set(WORDS) == told["usage"].keys() == asked["usage"].keys()
    assert ("cold", "glacier") == (asked["history"][-1]["from"], asked["history"][-1]["to"])


async def test_why_of_what_never_moved_is_told_from_the_rules(node: Live) -> None:
    """A record that is in hot since it arrived has no move, and a time at which it leaves."""
    await node.place("hot", 2)
    told = (await node.http.get("/v1/why/id-2")).json()

    assert (None, [], "age", "cold") == (told["last_move"], told["history"], told["next"]["rule"], told["next"]["to"])
    assert 3_500 < told["next"]["in_s"] <= 3_600
    assert "since it arrived" in told["because"]


async def test_why_after_a_restart_comes_from_the_topic(settings: Settings) -> None:
    """The index forgets the reason with the process; the ledger does not."""
    async for node in live(settings):
        await node.place("cold", 1)
    async for node in live(settings):
        told = (await node.http.get("/v1/why/id-1")).json()

        assert ("cold", "age") == (told["tier"], told["last_move"]["reason"])


async def test_why_of_a_deleted_and_of_an_unknown_record(node: Live) -> None:
    """A tombstone says that it is one, and what of the id still waits; an unknown id is a 404."""
    await node.place("cold", 1)
    await node.memory.retrieve(Query(ids=[], at_least=await node.memory.delete("id-1")))
    told = (await node.http.get("/v1/why/id-1")).json()
    unknown = await node.http.get("/v1/why/never")

    assert (True, "hot") == (told["deleted"], told["tier"])
    assert (404, "urn:isotherm:not-found") == (unknown.status_code, unknown.json()["type"])


async def test_a_look_at_the_topic_is_bounded_and_says_how_far_it_went(node: Live) -> None:
    """With a bound of one message only the newest is looked at, and the answer is not complete."""
    await node.place("warm", *range(40))
    entry = node.memory.node.index.find("id-0")
    assert entry is not None
    kafka = node.memory.node.settings.kafka
    bounded = await history(kafka, entry.partition, "id-0", deadline_s=10, messages_max=1)
    whole = await history(kafka, entry.partition, "id-0", deadline_s=10, messages_max=10_000)
    late = await history(kafka, entry.partition, "id-0", deadline_s=0.0, messages_max=10_000)

    assert [("warm", "age")] == [(step.target, step.reason) for step in whole.steps]
    assert whole.complete
    assert (1, False, []) == (bounded.end - bounded.looked_from, bounded.complete, bounded.steps)
    assert ([], False) == (late.steps, late.complete)


# -- hints -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "lands"), [("hot", "warm"), ("warm", "cold"), ("cold", "glacier")])
async def test_a_demote_hint_moves_a_record_down(node: Live, start: str, lands: str) -> None:
    """202, and the policy takes it one tier down for the reason "operator"."""
    await node.place(start, 1)
    answer = await node.http.post("/v1/memories/id-1:demote")

    assert (202, start, False) == (answer.status_code, answer.json()["tier"], answer.json()["certain"])

    await until(lambda: _is_in(node, "id-1", lands))

    assert "operator" == (await node.http.get("/v1/why/id-1")).json()["last_move"]["reason"]


async def _is_in(node: Live, identifier: str, word: str) -> bool:
    """Ask the index for the home: to read a record again and again heats it, until it has a copy in hot."""
    entry = node.memory.node.index.find(identifier)
    return entry is not None and TierName(entry.home).word == word


async def test_a_promote_hint_heats_a_record(node: Live) -> None:
    """202, and the heat that the policy sees is far above that of a record that was read once."""
    await node.place("cold", 1)
    answer = await node.http.post("/v1/memories/id-1:promote")

    assert (202, "cold") == (answer.status_code, answer.json()["tier"])

    async def heated() -> bool:
        return bool((await node.http.get("/v1/why/id-1")).json()["heat"] > 50)

    await until(heated)


async def test_hints_about_nothing_are_refused(node: Live) -> None:
    """404 for unknown and deleted ids, 409 where there is no tier below, 400 for what is no id."""
    await node.place("glacier", 1)
    await node.place("hot", 2)
    await node.memory.retrieve(Query(ids=[], at_least=await node.memory.delete("id-2")))
    asked = {"never:promote": 404, "never:demote": 404, "id-2:promote": 404, "id-1:demote": 409, "%01:demote": 400}

    assert asked == {path: (await node.http.post(f"/v1/memories/{path}")).status_code for path in asked}


async def test_any_id_can_be_asked_about(node: Live) -> None:
    """Slashes, colons and what looks like a verb are parts of an id."""
    for identifier in ("a/b", "x:promote", "é/:demote", "a%20b"):
        token = await node.memory.publish([(identifier, b'{"vector": [%s]}' % b",".join([b"1"] * 16))])
        await node.memory.retrieve(Query(ids=[], at_least=token))
        path = "/v1/why/" + "".join(f"%{byte:02x}" for byte in identifier.encode())

        assert identifier == (await node.http.get(path)).json()["id"]

    assert "x:promote" == (await node.http.post("/v1/memories/x:promote:demote")).json()["id"]


async def test_other_sites_may_not_operate(node: Live) -> None:
    """A page of another origin, or a name that was made to point here, gets a 403 from every changing route."""
    await node.place("hot", 1)
    strangers: list[dict[str, str]] = [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"host": "evil.example:8080"},
        {"host": "evil.example", "origin": "http://evil.example"},
        {"origin": "http://localhost:1"},
    ]
    for headers in strangers:
        for path in ("/v1/tiers/hot:clear", "/v1/memories/id-1:demote", "/v1/memories/id-1:promote"):
            assert 403 == (await node.http.post(path, headers=headers)).status_code, (path, headers)

    assert "hot" == await node.tier("id-1")


# -- clearing --------------------------------------------------------------------------------------------------------


async def test_clear_refuses_what_is_no_tier_and_a_log_not_replayed(node: Live) -> None:
    """400 for an unknown name; 503 while replaying, with nothing cleared."""
    await node.place("hot", 1)
    unknown = await node.http.post("/v1/tiers/lukewarm:clear")
    node.memory.node.ingest.replay_until[0] = 10**9
    early = await node.http.post("/v1/tiers/hot:clear")
    node.memory.node.ingest.replay_until[0] = 0

    assert (400, "tier") == (unknown.status_code, unknown.json()["field"])
    assert (503, "urn:isotherm:replaying") == (early.status_code, early.json()["type"])
    assert "hot" == await node.tier("id-1")


@pytest.mark.parametrize("word", WORDS)
async def test_clearing_under_load_takes_the_tier_and_nothing_else(settings: Settings, word: str) -> None:
    """While records, updates and deletes stream in, what lay in the tier goes for good and all else stays."""
    begun: set[str] = set()
    sent: set[str] = set()
    during: set[str] = set()
    async for node in live(settings):
        for at, tier in enumerate(WORDS):
            await node.place(tier, *range(at * 20, at * 20 + 20))
        mine = {f"id-{n}" for n in range(WORDS.index(word) * 20, WORDS.index(word) * 20 + 20)}
        others = {f"id-{n}" for n in range(80)} - mine
        stop = asyncio.Event()
        streaming = asyncio.create_task(_stream(node, begun, sent, stop))
        await until(lambda: len(sent) > 60)
        cleared = (await node.http.post(f"/v1/tiers/{word}:clear")).json()["cleared"]
        during |= begun  # sent before the answer: hot's clearing may have taken them, or not
        await until(lambda: len(sent - during) > 60)  # noqa: B023 - it is waited for here
        stop.set()
        token = await streaming
        await node.memory.retrieve(Query(ids=[], at_least=token))

        held = set(await _listed(node))
        fresh = sent - during

        assert cleared >= 20
        assert set() == held & mine
        assert others <= held
        assert fresh <= held, "what was acknowledged after the clearing is there"
        assert word == "hot" or sent <= held, "a clearing below leaves hot alone"
        assert {b'{"n":-1}'} == set((await _listed(node, "kept")).values())
        await node.memory.cleanup()
    async for node in live(settings):
        assert held == set(await _listed(node))
        assert {b'{"n":-1}'} == set((await _listed(node, "kept")).values())


async def _stream(node: Live, begun: set[str], sent: set[str], stop: asyncio.Event) -> str:
    """Publish new records, and update and delete others, until told; what is in `sent` was acknowledged."""
    number, token = 1_000, ""
    row = rows(1)[0]
    while not stop.is_set():
        batch = [type(row)(f"new-{number + at}", 0, row.event_time, None, row.vector, b'{"n":1}') for at in range(5)]
        batch.append(type(row)(f"gone-{number}", 0, row.event_time, None, row.vector, b'{"n":1}'))
        begun |= {one.id for one in batch}
        await node.memory.store(batch)
        await node.memory.delete(f"gone-{number}")
        token = await node.memory.store([type(row)("kept", 0, row.event_time, None, row.vector, b'{"n":-1}')])
        sent |= {one.id for one in batch if one.id.startswith("new")}
        number += 5
    return token


async def _listed(node: Live, prefix: str = "") -> dict[str, bytes]:
    """Return payload by id of the listing."""
    found: dict[str, bytes] = {}
    async for batch in node.memory.retrieve_all():
        found |= dict(zip(batch["id"].to_pylist(), batch["payload"].to_pylist(), strict=True))
    return {identifier: payload for identifier, payload in found.items() if identifier.startswith(prefix)}


@pytest.mark.timeout(240)
async def test_a_node_killed_while_it_clears_brings_nothing_back(stack: Stack, prefix: str, tmp_path: Path) -> None:
    """SIGKILL in the middle of each clearing: each id is whole or gone, and gone for good once it was answered."""
    given = {
        "kafka.prefix": prefix,
        "warm.prefix": prefix,
        "embedder": "",
        "dim": DIM,
        "attributes": "{}",
        "kafka.partitions": PARTITIONS,
        "policy.hot_age_s": 3_600,
        "policy.warm_idle_s": 3_600,
        "policy.cold_idle_s": 3_600,
        "age.glacier_flush_s": 0.2,
        "access.flush_ms": 3_600_000,  # reading must not put copies of the records into hot
    }
    process = NodeProcess(tmp_path, stack, given)
    settings = KafkaSettings(bootstrap=stack.kafka, prefix=prefix, partitions=PARTITIONS)
    try:
        address = await process.start()
        async with MemoryProducer(settings) as producer:
            for word in reversed(WORDS):
                await _fill(address, producer, word)
                await _demote(address, word)
            gone: set[str] = set()
            for word in ("glacier", "hot", "cold", "warm"):
                await _fill(address, producer, f"fresh-{word}")  # each clearing finds rows in hot, and may drain them
                for delay_ms in (3, 20, None):
                    before = await _homes(address)
                    answered = await _clear(address, word, process, delay_ms)
                    gone |= {identifier for identifier, home in before.items() if answered and home == word}
                    address = await process.start()
                    found = await _homes(address)
                    assert set() == gone & found.keys(), (word, delay_ms)
                    assert {i for i, home in before.items() if home != word} <= found.keys(), (word, delay_ms)
                assert word not in found.values()
    finally:
        await process.cleanup()


async def _clear(address: str, word: str, process: NodeProcess, delay_ms: int | None) -> bool:
    """Ask for a clearing and kill the node so much later (None: when it is answered); says whether it was answered."""
    async with httpx.AsyncClient(base_url=address, timeout=60) as http:
        asking = asyncio.create_task(http.post(f"/v1/tiers/{word}:clear"))
        await asyncio.wait({asking}, timeout=None if delay_ms is None else delay_ms / 1000)
        await process.kill()
        answer = (await asyncio.gather(asking, return_exceptions=True))[0]
    return isinstance(answer, httpx.Response) and answer.status_code == 200


async def _fill(address: str, producer: MemoryProducer, name: str) -> None:
    """Publish 12 records in two versions, and wait until they are searchable."""
    vector, token = np.ones(DIM, np.float32), ""
    for version in (1, 2):
        sent = [await producer.enqueue(f"{name}/{n}", vector, {"v": version}) for n in range(12)]
        token = producer.token(list(await asyncio.gather(*sent)))
    async with httpx.AsyncClient(base_url=address, timeout=60) as http:
        await http.get("/v1/memories/x", params={"at_least": token})


async def _demote(address: str, word: str) -> None:
    """Hint the records named after a tier down until all are there, once from each tier on their way."""
    hinted: set[tuple[str, str]] = set()

    async def there() -> bool:
        waiting = {
            (i, home) for i, home in (await _homes(address)).items() if i.startswith(f"{word}/") and home != word
        }
        async with httpx.AsyncClient(base_url=address, timeout=60) as http:
            for identifier, _ in waiting - hinted:
                assert 202 == (await http.post(f"/v1/memories/{identifier}:demote")).status_code
        hinted.update(waiting)
        return not waiting

    await until(there, 120)


async def _homes(address: str) -> dict[str, str]:
    """Return the tier of every record that is listed; a record that shows an older version fails."""
    found: dict[str, str] = {}
    async with httpx.AsyncClient(base_url=address, timeout=60) as http:
        for line in (await http.get("/v1/memories")).text.splitlines():
            identifier = str(msgspec.json.decode(line)["id"])
            told: dict[str, Any] = (await http.get(f"/v1/memories/{identifier}")).json()
            assert 2 == told["payload"]["v"], "an older version shows"
            found[identifier] = told["tier"]
    return found
