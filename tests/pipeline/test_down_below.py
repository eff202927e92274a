"""A store below hot that is gone, full or hangs, under a node at work: moves stall, partitions pause, reads say so.

And once it is well again everything goes on by itself, and everything acknowledged is there: no restart, no command.
"""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from pipeline import MemoryManager, Query
from pipeline.dead_letters import newest
from pipeline.demo_node import NodeProcess
from pipeline.settings import Settings
from pipeline.stack import Stack
from producers import KafkaSettings, MemoryProducer
from producers.events import Message
from tests.conftest import StackThread
from tests.nodes import rows, small, until
from tests.preload import Preload
from tests.valkey_server import ValkeyServer
from tiers.errors import LogUnavailable
from tiers.tier import TierName

HOT, WARM, COLD, GLACIER = TierName
HOT_ROWS = 512
FLOOD = 900  # records: more than hot holds


def options(stack: Stack, prefix: str, data: Path, url: str, **more: Any) -> Settings:
    """A node with little room in hot, which leaves for warm at once, and waits for a hanging Valkey for a second."""
    given = {
        "warm__url": url,
        "warm__timeout_ms": 1_000,
        "hot__capacity_rows": HOT_ROWS,
        "policy__hot_age_s": 0.2,
        "policy__warm_idle_s": 3_600.0,
        "policy__cold_idle_s": 3_600.0,
    }
    return small(stack, prefix, data, **(given | more))


async def publish(memory: MemoryManager, count: int, start: int = 0) -> str:
    """Publish records; returns the token of the last."""
    for first in range(start, start + count, 100):
        token = await memory.store(rows(min(100, start + count - first), first))
    return token


async def everything_is_there(memory: MemoryManager, count: int) -> None:
    """Hold that every record published is found, and that no partition is paused any more."""
    await until(lambda: not memory.node.reader.paused and not memory.node.reader.behind(0), 60)

    async def whole() -> bool:
        found = await memory.retrieve(Query(ids=[f"id-{n}" for n in range(count)], limit=count))
        return found.complete and {hit.row.id for hit in found.hits} == {f"id-{n}" for n in range(count)}

    await until(whole, 60)


@pytest.fixture
def valkey(tmp_path: Path) -> Any:
    """A Valkey of the test's own."""
    (tmp_path / "valkey").mkdir()
    with ValkeyServer(tmp_path / "valkey") as server:
        yield server


@asynccontextmanager
async def stalled(settings: Settings, break_it: Callable[[], Awaitable[None]]) -> AsyncIterator[MemoryManager]:
    """Yield a node with forty records in warm, whose Valkey was broken, and that paused under more than it can hold."""
    async with MemoryManager.open(settings) as memory:
        await memory.ready()
        await memory.retrieve(Query(ids=["id-0"], at_least=await publish(memory, 40)))
        await until(lambda: memory.node.index.rows(WARM) == 40)
        await break_it()
        await publish(memory, FLOOD, 40)
        await until(lambda: bool(memory.node.reader.paused), 60)
        yield memory


async def test_a_valkey_that_is_gone_stalls_moves_and_comes_back_by_itself(
    stack: Stack, prefix: str, tmp_path: Path, valkey: ValkeyServer
) -> None:
    """Killed under a flood: partitions pause, hot keeps its bound, reads name warm; started again, all goes on."""

    async def kill() -> None:
        valkey.kill()

    settings = options(stack, prefix, tmp_path / "node", valkey.url)
    async with stalled(settings, kill) as memory:
        assert (await memory.node.hot.usage()).rows <= HOT_ROWS
        found = await memory.retrieve(Query(ids=["id-0"]))
        assert (False, ["warm"]) == (found.complete, list(found.missed))
        await until(lambda: any(lane.stalled["TierUnavailable"] for lane in memory.node.lanes.values()))
        await asyncio.to_thread(valkey.start)
        await everything_is_there(memory, 40 + FLOOD)


async def test_a_valkey_that_hangs_for_seconds_ends_nothing(
    stack: Stack, prefix: str, tmp_path: Path, valkey: ValkeyServer
) -> None:
    """Frozen past every timeout of a read, with writes on their way: ingest and reads go on, and so does it after."""
    settings = options(stack, prefix, tmp_path / "node", valkey.url)
    async with MemoryManager.open(settings) as memory:
        await memory.ready()
        await memory.retrieve(Query(ids=["id-0"], at_least=await publish(memory, 40)))
        await until(lambda: memory.node.index.rows(WARM) == 40)
        valkey.freeze()
        try:
            for at in range(12):  # six seconds of a stream, each record found while Valkey hangs
                token = await publish(memory, 5, 40 + 5 * at)
                found = await memory.retrieve(Query(ids=[f"id-{40 + 5 * at}"], at_least=token, deadline_ms=3_000))
                assert [f"id-{40 + 5 * at}"] == [hit.row.id for hit in found.hits] or found.missed
                await asyncio.sleep(0.5)
            found = await memory.retrieve(Query(ids=["id-0"], deadline_ms=500))
            assert (False, ["warm"]) == (found.complete, list(found.missed))
        finally:
            valkey.thaw()
        await everything_is_there(memory, 100)


async def test_what_a_full_valkey_does_not_take_goes_one_tier_further(
    stack: Stack, prefix: str, tmp_path: Path, valkey: ValkeyServer
) -> None:
    """At maxmemory nothing is stored there, and what is there is read; with room again it is used again."""
    async with MemoryManager.open(options(stack, prefix, tmp_path / "node", valkey.url)) as memory:
        await memory.ready()
        await memory.retrieve(Query(ids=["id-0"], at_least=await publish(memory, 40)))
        await until(lambda: memory.node.index.rows(WARM) == 40)
        with redis.Redis(port=valkey.port) as client:
            client.config_set("maxmemory", int(client.info("memory")["used_memory"]) + 20_000)
            await publish(memory, 400, 40)
            await until(lambda: memory.node.index.rows(COLD) >= 350, 60)
            await everything_is_there(memory, 440)
            there = memory.node.index.rows(WARM)
            client.config_set("maxmemory", 0)
        await publish(memory, 100, 440)
        await until(lambda: memory.node.index.rows(WARM) > there + 50, 60)
        await everything_is_there(memory, 540)


@pytest.mark.timeout(180)
async def test_a_dead_letter_waits_for_a_kafka_that_is_away(
    stack: Stack, stack_thread: StackThread, prefix: str, tmp_path: Path
) -> None:
    """Away for longer than a message is waited for: the node lives, and with Kafka back the letter is there, once."""
    settings = small(stack, prefix, tmp_path / "node", kafka__send_timeout_s=1.0, kafka__partitions=1)
    async with MemoryManager.open(settings) as memory:
        await memory.ready()
        node, gate = memory.node, asyncio.Event()
        apply = node.ingest.apply

        async def gated(partition: int, messages: Sequence[Message]) -> None:
            await gate.wait()
            await apply(partition, messages)

        node.ingest.apply = gated  # type: ignore[method-assign] - so that Kafka is away when the letter is written
        await node.publisher.send(node.topics.memories, b"{", b"bad")
        await until(lambda: node.reader.paused == {0})
        await asyncio.to_thread(stack_thread.do, stack.kill("kafka"))
        try:
            gate.set()
            for _ in range(3):  # each waits as long as a message is waited for
                with pytest.raises(LogUnavailable):
                    await node.publisher.send(node.topics.age, b"advice", partition=0)
            assert (0, {0}) == (node.ingest.watermarks[0].value, node.reader.paused)
        finally:
            await asyncio.to_thread(stack_thread.do, stack.restart("kafka"))
        await until(lambda: node.ingest.watermarks[0].value == 1 and not node.reader.paused, 60)
        await memory.retrieve(Query(ids=["id-0"], at_least=await publish(memory, 5), deadline_ms=10_000))
        assert ["0"] == [str(letter.letter.offset) for letter in await newest(settings, 10, 100)]


# -- a full disk, under a node of its own process, by the shim ---------------------------------------------------------

PLACES = {
    "cold": ("/node/cold/cold.duckdb",),
    "side": ("/node/cold/cold.side/",),
    "glacier": ("/node/glacier/",),
    "everything": ("/node/",),
}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("place", list(PLACES))
async def test_a_full_disk_stalls_moves_until_there_is_room(
    stack: Stack, prefix: str, tmp_path: Path, place: str
) -> None:
    """ENOSPC under DuckDB, side file or archive: the node lives, answers, loses nothing, and goes on with room."""
    preload, node = watched(stack, prefix, tmp_path)
    settings = KafkaSettings(bootstrap=stack.kafka, prefix=prefix, partitions=4)
    try:
        address = await node.start()
        async with MemoryProducer(settings) as producer, httpx.AsyncClient(base_url=address, timeout=30) as http:
            await send(producer, 0, 200)
            await until(lambda: at_home(http, "glacier", 1), 60)
            preload.fill(*PLACES[place])
            await send(producer, 200, 800)
            refused = Path(preload.log)
            await until(lambda: b"\t28\n" in refused.read_bytes(), 60)
            for n in (0, 100, 199):
                answer = await http.get(f"/v1/memories/id-{n}")
                assert answer.status_code == 200, (n, answer.text)
                assert n == answer.json()["payload"]["n"]
            preload.mend()
            await until(lambda: at_home(http, "glacier", 800), 90)
            found = [json.loads(line)["payload"]["n"] for line in (await http.get("/v1/memories")).text.splitlines()]
            assert list(range(800)) == sorted(found)
        await node.stop()
        assert preload.report()
    finally:
        await node.cleanup()


def watched(stack: Stack, prefix: str, folder: Path) -> tuple[Preload, NodeProcess]:
    """Return a node of its own process that ages fast, and the shim over its disk."""
    preload = Preload(folder, folder / "disk")
    settings = (
        {"kafka.prefix": prefix, "warm.prefix": prefix, "embedder": "", "dim": 16}
        | {"hot.capacity_rows": 1_024, "hot.slab_rows": 64, "kafka.partitions": 4, "move.compact_s": 0.5}
        | {"policy.hot_age_s": 0.3, "policy.warm_idle_s": 0.6, "policy.cold_idle_s": 0.9, "age.glacier_flush_s": 0.5}
        | {"policy.heat_half_life_s": 0.3, "age.interval_ms": 100, "age.ask_again_s": 0.5, "cold.reserve_bytes": 0}
    )
    return preload, NodeProcess(preload.root, stack, settings, environment=preload.environment)


SYNCS = {
    "wal": ("fdatasync", "/cold/cold.duckdb.wal"),
    "database": ("fdatasync", "/cold/cold.duckdb"),
    "file": ("fsync", ".parquet"),
    "entry": ("fsync", "/glacier/_delta_log/"),
}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("place", list(SYNCS))
async def test_an_fsync_that_fails_is_never_taken_for_done(
    stack: Stack, prefix: str, tmp_path: Path, place: str
) -> None:
    """EIO at a sync: the move is refused, or the node ends and says why; a start after it has everything."""
    preload, node = watched(stack, prefix, tmp_path)
    settings = KafkaSettings(bootstrap=stack.kafka, prefix=prefix, partitions=4)
    try:
        address = await node.start()
        async with MemoryProducer(settings) as producer:
            async with httpx.AsyncClient(base_url=address, timeout=30) as http:
                await send(producer, 0, 100)
                await until(lambda: at_home(http, "glacier", 1), 60)
            preload.fail((*SYNCS[place], errno.EIO))
            await send(producer, 100, 300)
            await until(lambda: f"\t{errno.EIO}\n" in preload.log.read_text(), 60)
            preload.mend()

        async def whole() -> bool:
            nonlocal address
            if node.code is not None:
                assert node.code, "it ends with a status that a supervisor sees"
                assert "isotherm:" in node.log.read_text()
                address = await node.start()
            try:
                async with httpx.AsyncClient(base_url=address, timeout=30) as http:
                    return await at_home(http, "glacier", 300)
            except httpx.TransportError:  # it is about to end
                return False

        await until(whole, 120)
        async with httpx.AsyncClient(base_url=address, timeout=30) as http:
            found = [json.loads(line)["payload"]["n"] for line in (await http.get("/v1/memories")).text.splitlines()]
            assert list(range(300)) == sorted(found)
    finally:
        await node.cleanup()


def test_a_valkey_whose_fsync_fails_answers_nothing_more(tmp_path: Path) -> None:
    """Under `always` it ends rather than answer: the node has an unknown outcome, and what was answered is there."""
    preload = Preload(tmp_path, tmp_path / "valkey" / "appendonlydir")
    with (
        ValkeyServer(preload.root.parent, environment=preload.environment) as server,
        redis.Redis(port=server.port, retry=None) as client,
    ):
        client.set("before", "1")
        preload.fail(("fdatasync", "incr.aof", errno.EIO), ("fsync", "incr.aof", errno.EIO))
        with pytest.raises(redis.RedisError):
            client.set("after", "1")
    with ValkeyServer(preload.root.parent) as server, redis.Redis(port=server.port) as client:
        assert b"1" == client.get("before")
    assert preload.report()


async def send(producer: MemoryProducer, start: int, end: int) -> None:
    """Publish records, and wait until the broker has them."""
    sent = [
        await producer.enqueue(row.id, row.vector, {"n": start + at}) for at, row in enumerate(rows(end - start, start))
    ]
    await asyncio.gather(*sent)


async def at_home(http: httpx.AsyncClient, tier: str, count: int) -> bool:
    """Say whether so many records are at home in a tier."""
    answer = await http.get("/v1/tiers")
    return bool(answer.status_code == 200 and answer.json()["tiers"][tier]["records"] >= count)
