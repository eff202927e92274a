"""`isotherm demo`: real texts through all four tiers on local servers, asked for while they move, then checked.

A node runs as a process of its own; the demo is its producer, its client and, once it has stopped, its auditor.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from aiokafka import AIOKafkaConsumer, TopicPartition
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pipeline import demo_checks
from pipeline.client import tier_table
from pipeline.demo_checks import TIERS, Checks
from pipeline.demo_texts import Text, collect
from pipeline.embed import load_embedder
from pipeline.log import configure
from pipeline.settings import LogSettings
from pipeline.stack import Stack
from producers import MemoryProducer
from producers.events import Embed, Topics
from producers.publisher import KafkaSettings
from tiers.errors import IsothermError
from tiers.record import Floats

QUESTIONS = (
    "compress a file with gzip",
    "run tasks concurrently",
    "parse command line arguments",
    "read a CSV file row by row",
    "send an email with an attachment",
    "compute the median of a list of numbers",
    "open a TCP connection to a server",
    "pick a random element",
    "walk through a directory tree",
    "format a date as text",
    "encrypt a password",
    "what does the with statement do",
)
#: Fast ageing, so that everything happens within a minute; everything else is as it is by default.
SETTINGS = {
    "embedder": "wordllama",
    "attributes": '{"module": "string", "kind": "string", "length": "int"}',
    "hot.capacity_rows": 65_536,
    "hot.slab_rows": 1_024,
    "policy.hot_age_s": 4.0,
    "policy.warm_idle_s": 9.0,
    "policy.cold_idle_s": 15.0,
    "policy.heat_half_life_s": 6.0,
    "age.interval_ms": 500,
    "age.ask_again_s": 2.0,
    "age.glacier_flush_s": 4.0,
    "access.flush_ms": 250,
    "move.upkeep_ms": 250,
    "move.compact_s": 2.0,
    "gateway.port": 0,
    "log.format": "json",
}
PARTITIONS = 8
SPREAD_S = 20  # event times lie up to this far back
PUBLISH_S = 15  # how long the stream is published for
SETTLE_S = 90  # how long the tiers get to fill and the queues to empty
RESERVE = 400  # records kept back to go on trickling while older ones age
LAST = 50  # of these, published just before the node is stopped, so that hot is not empty then
K = 10


@dataclass(slots=True)
class World:
    """What the demo has published and measured."""

    texts: list[Text]
    vectors: Floats
    newest: dict[str, tuple[Floats, dict[str, Any]] | None] = field(default_factory=dict)
    published: int = 0
    updated: int = 0
    deleted: int = 0
    freshness_ms: list[float] = field(default_factory=list)
    search_ms: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    problems: list[str] = field(default_factory=list)
    answers: int = 0
    gone: list[str] = field(default_factory=list)

    def live(self) -> tuple[list[str], Floats]:
        """Return the ids that should be found, and their vectors."""
        pairs = [(identifier, known[0]) for identifier, known in self.newest.items() if known is not None]
        return [identifier for identifier, _ in pairs], np.stack([vector for _, vector in pairs])


class NodeProcess:
    """`isotherm run` as a child, its log in a file."""

    def __init__(self, directory: Path, stack: Stack, more: dict[str, Any] | None = None) -> None:
        self.log = directory / "node.log"
        self._settings = {
            **SETTINGS,
            "data": directory / "node",
            "kafka.bootstrap": stack.kafka,
            "kafka.partitions": PARTITIONS,
            "warm.url": stack.redis,
            **(more or {}),
        }
        self._child: asyncio.subprocess.Process | None = None

    async def start(self) -> str:
        """Start it and wait until it is ready; returns the gateway's address."""
        given = [part for key, value in self._settings.items() for part in ("-s", f"{key}={value}")]
        position = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as out:
            self._child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "pipeline.cli", "run", *given, stdout=out, stderr=out
            )
        while self._child.returncode is None:
            lines = self.log.read_bytes()[position:].splitlines()
            for line in lines:
                if b'"gateway.listening"' in line:
                    address = str(json.loads(line)["address"])
                    await self._ready(address)
                    return address
            await asyncio.sleep(0.05)
        raise IsothermError(f"the node did not start; its log ends: {self.log.read_text()[-1500:]}")

    @staticmethod
    async def _ready(address: str) -> None:
        async with httpx.AsyncClient(base_url=address) as http:
            while (await http.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.05)

    async def stop(self) -> dict[str, int]:
        """SIGTERM it; returns the records by tier that it reported at the end. IsothermError unless it exits 0."""
        assert self._child is not None, "it was started"
        self._child.send_signal(signal.SIGTERM)
        code = await self._child.wait()
        last = [line for line in self.log.read_bytes().splitlines() if b'"node.stopped"' in line]
        if code or not last:
            raise IsothermError(f"the node exited with {code}; its log ends: {self.log.read_text()[-1500:]}")
        return dict(json.loads(last[-1])["records"])

    async def kill(self) -> None:
        """SIGKILL it, as a crash would."""
        assert self._child is not None, "it was started"
        self._child.kill()
        await self._child.wait()

    async def cleanup(self) -> None:
        """Leave nothing running."""
        if self._child is not None and self._child.returncode is None:
            await self.kill()


async def run(records: int | None, keep: Path | None, as_json: bool) -> bool:
    """Run the whole demo; returns whether every check held."""
    configure(LogSettings(level="warning"))
    console = Console(stderr=as_json)
    began = time.monotonic()
    directory = keep if keep is not None else Path(tempfile.mkdtemp(prefix="isotherm-demo-"))
    directory.mkdir(parents=True, exist_ok=True)
    try:
        async with AsyncExitStack() as stack:
            summary = await _story(directory, records, console, stack)
    finally:
        if keep is None:
            shutil.rmtree(directory, ignore_errors=True)
    summary["seconds"] = round(time.monotonic() - began, 1)
    _show(console, summary)
    if as_json:
        print(json.dumps(summary))
    return bool(summary["ok"])


async def _story(directory: Path, records: int | None, console: Console, stack: AsyncExitStack) -> dict[str, Any]:
    """Start, publish and ask, check through the product, stop, audit, restart, check again."""
    console.print(f"[bold]Isotherm[/] demo, in {directory}\n")
    with console.status("starting Kafka and Valkey; reading and embedding the standard library's texts"):
        reading = asyncio.create_task(asyncio.to_thread(_read, records))
        servers = await stack.enter_async_context(Stack(directory / "stack"))
        world, embed = await reading
    names = ", ".join(f"{service.software} {service.version}" for service in servers.services)
    console.print(f"{names}; {len(world.texts):,} texts")
    node = NodeProcess(directory, servers)
    stack.push_async_callback(node.cleanup)
    settings = KafkaSettings(bootstrap=servers.kafka, partitions=PARTITIONS)
    checks = Checks()
    async with MemoryProducer(settings) as producer:
        async with httpx.AsyncClient(base_url=await node.start(), timeout=30) as http:
            await _stream(world, producer, http, embed, console)
            reserve = asyncio.create_task(_trickle(world, producer))
            await _settle(world, http, console)
            await _time_tiers(world, http, embed)
            with console.status("checking every record through the gateway"):
                await _check_ids(checks, world, http, "")
                reserve.cancel()
                await asyncio.gather(reserve, return_exceptions=True)
                await _publish_last(world, producer, http)
                await _check_searches(checks, world, http, embed, "")
        reported = await node.stop()
    with console.status("node stopped; reading Kafka, Valkey, DuckDB and Parquet without it"):
        found = await audit(checks, directory, servers, settings, reported)
    with console.status("restarting the node"):
        async with httpx.AsyncClient(base_url=await node.start(), timeout=30) as http:
            await _check_ids(checks, world, http, " after a restart")
            await _check_searches(checks, world, http, embed, " after a restart")
    await node.stop()
    checks.add("every answer given while records moved was right", world.problems, f"{world.answers} answers")
    return _summary(world, checks, servers, found)


def _read(records: int | None) -> tuple[World, Embed]:
    embed = load_embedder("wordllama", 256)
    assert embed is not None, "the demo's extra is installed"
    texts = collect(records)
    return World(texts, embed([text.text for text in texts])), embed


# -- the stream ------------------------------------------------------------------------------------------------------


async def _stream(
    world: World, producer: MemoryProducer, http: httpx.AsyncClient, embed: Embed, console: Console
) -> None:
    """Publish the stream, with updates and deletes in between, while questions are asked all the time."""
    stop = asyncio.Event()
    total = _streamed(world)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("publishing", total=total)
        async with asyncio.TaskGroup() as group:
            group.create_task(_ask(world, http, progress.console, stop), name="ask")
            rate = total / PUBLISH_S
            began = time.monotonic()
            for start in range(0, total, 50):
                await _publish(world, producer, http, range(start, min(start + 50, total)), embed)
                progress.update(bar, completed=min(start + 50, total))
                await asyncio.sleep(max(0.0, began + (start + 50) / rate - time.monotonic()))
            stop.set()


async def _publish(world: World, producer: MemoryProducer, http: httpx.AsyncClient, rows: range, embed: Embed) -> None:
    """Publish some texts, revise and delete some of those before, and time one until it is found."""
    sent = [await _send(world, producer, at) for at in rows]
    dice = random.Random(rows.start)  # noqa: S311 - the demo is the same each time
    for _ in range(len(rows) // 16):
        at = dice.randrange(rows.stop)
        if world.newest.get(world.texts[at].id) is not None:
            text = world.texts[at].text + " (revised)"
            sent.append(await _send(world, producer, at, text, embed([text])[0]))
            world.updated += 1
    deletes: dict[str, asyncio.Future[Any]] = {}
    for _ in range(len(rows) // 25):
        identifier = world.texts[dice.randrange(rows.stop - 1)].id  # never the one timed below
        if world.newest.get(identifier) is not None:
            deletes[identifier] = await producer.publish(identifier, None)
            world.newest[identifier] = None
            world.deleted += 1
    positions = await asyncio.gather(*sent, *deletes.values())
    began = time.perf_counter()
    fresh = world.texts[rows.stop - 1]
    vector = world.vectors[rows.stop - 1]
    position = await (await producer.enqueue(fresh.id, vector, *_content(fresh, fresh.text)))
    token = producer.token([*positions, position])
    world.newest[fresh.id] = (vector, _content(fresh, fresh.text)[0])
    body = {"vector": vector.tolist(), "k": 1, "at_least": token, "include": []}
    answer = (await http.post("/v1/search", json=body)).json()
    world.freshness_ms.append((time.perf_counter() - began) * 1000)
    world.gone += deletes  # the token covers them: no answer may show them from here on
    if not answer.get("hits") or answer["hits"][0]["score"] < 0.999:
        world.problems.append(f"{fresh.id} was not found right after it was sent: {answer}")
    world.published += len(positions) + 1


async def _send(
    world: World, producer: MemoryProducer, at: int, text: str | None = None, vector: Floats | None = None
) -> asyncio.Future[Any]:
    source = world.texts[at]
    vector = world.vectors[at] if vector is None else vector
    payload, attributes = _content(source, text or source.text)
    event_time = datetime.now(UTC) - timedelta(seconds=random.Random(at).uniform(0, SPREAD_S))  # noqa: S311
    world.newest[source.id] = (vector, payload)
    return await producer.enqueue(source.id, vector, payload, attributes, event_time)


def _content(source: Text, text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"text": text[:2_000]}, {"module": source.module, "kind": source.kind, "length": len(text)}


async def _trickle(world: World, producer: MemoryProducer) -> None:
    """Go on publishing the reserve, so that the newest are hot while everything is checked."""
    rows = range(_streamed(world), len(world.texts) - LAST)
    for at in rows:
        await asyncio.shield(await _send_now(world, producer, at))
        await asyncio.sleep(SETTLE_S / max(1, len(rows)))


async def _publish_last(world: World, producer: MemoryProducer, http: httpx.AsyncClient) -> None:
    """Publish the last records and see the very last in hot."""
    rows = range(len(world.texts) - LAST, len(world.texts))
    positions = await asyncio.gather(*[await _send_now(world, producer, at) for at in rows])
    params = {"at_least": producer.token(positions)}
    answer = await http.get(f"/v1/memories/{world.texts[-1].id}", params=params)
    if answer.status_code != 200 or answer.json()["tier"] != "hot":
        world.problems.append(f"the last record: {answer.text}")


def _streamed(world: World) -> int:
    """Return how many texts the stream takes; the rest is the reserve."""
    return len(world.texts) - min(RESERVE, len(world.texts) // 5)


async def _send_now(world: World, producer: MemoryProducer, at: int) -> asyncio.Future[Any]:
    source = world.texts[at]
    payload, attributes = _content(source, source.text)
    world.newest[source.id] = (world.vectors[at], payload)
    world.published += 1
    return await producer.enqueue(source.id, world.vectors[at], payload, attributes)


# -- asking ----------------------------------------------------------------------------------------------------------


async def _ask(world: World, http: httpx.AsyncClient, console: Console, stop: asyncio.Event) -> None:
    """Ask in words until stopped; an answer with a deleted id, or one that is not complete, is a problem."""
    at = 0
    while not stop.is_set():
        question = QUESTIONS[at % len(QUESTIONS)]
        gone = set(world.gone)
        response = await http.post("/v1/search", json={"text": question, "k": 3})
        answer = response.json()
        world.answers += 1
        if response.status_code != 200 or not answer["complete"]:
            world.problems.append(f"{question}: {answer}")
        else:
            world.search_ms["all"].append(answer["took_ms"])
            world.problems += [f"{hit['id']} was deleted" for hit in answer["hits"] if hit["id"] in gone]
            if at % 8 == 0 and answer["hits"]:
                hit = answer["hits"][0]
                console.print(
                    f"[dim]{answer['took_ms']:5.1f} ms[/]  {question!r}: [bold]{hit['id']}[/] "
                    f"from {hit['tier']} ({hit['score']:.2f})"
                )
        at += 1
        await asyncio.sleep(0.1)


async def _settle(world: World, http: httpx.AsyncClient, console: Console) -> None:
    """Wait until all four tiers hold records and nothing superseded waits for eviction, showing where records are."""
    deadline = time.monotonic() + SETTLE_S
    answer = (await http.get("/v1/tiers")).json()
    with Live(tier_table(answer), console=console, refresh_per_second=4) as table:
        while True:
            answer = (await http.get("/v1/tiers")).json()
            table.update(tier_table(answer))
            tiers = answer["tiers"]
            held = {name: tiers[name]["records"] for name in TIERS}
            queued = sum(tier["queued"] for tier in tiers.values())
            tombstones = sum(tier["tombstones"] for tier in tiers.values())
            if all(held.values()) and not queued and not tombstones:
                break
            if time.monotonic() > deadline:
                world.problems.append(f"after {SETTLE_S} s: {held}, {queued} queued, {tombstones} tombstones")
                break
            await http.post("/v1/search", json={"text": random.choice(QUESTIONS), "k": 3})  # noqa: S311
            await asyncio.sleep(0.2)


async def _time_tiers(world: World, http: httpx.AsyncClient, embed: Embed) -> None:
    """Ask each tier alone, for its latency."""
    for tier in TIERS:
        for question in QUESTIONS * 4:
            body = {"vector": embed([question])[0].tolist(), "k": K, "tiers": [tier]}
            world.search_ms[tier].append((await http.post("/v1/search", json=body)).json()["took_ms"])


# -- checking --------------------------------------------------------------------------------------------------------


async def _check_ids(checks: Checks, world: World, http: httpx.AsyncClient, when: str) -> None:
    """Check by id, through the gateway, against what was published and confirmed so far."""
    wrong: list[str] = []
    limit = asyncio.Semaphore(16)

    async def one(identifier: str) -> None:
        known = world.newest[identifier]
        async with limit:
            response = await http.get(f"/v1/memories/{identifier}")
        if known is None and response.status_code != 404:
            wrong.append(f"{identifier} is deleted, answered {response.status_code}")
        elif known is not None and (response.status_code != 200 or response.json()["payload"] != known[1]):
            wrong.append(f"{identifier}: {response.status_code}")

    ids = list(world.newest)[: -LAST if when == "" else None]  # the newest may not be applied yet while we publish
    await asyncio.gather(*(one(identifier) for identifier in ids))
    checks.add(f"every record is found by id, every deleted one is not{when}", wrong, f"{len(ids)} ids")


async def _check_searches(checks: Checks, world: World, http: httpx.AsyncClient, embed: Embed, when: str) -> None:
    """Check searches and the listing, through the gateway, against what was published."""
    ids, matrix = world.live()
    differ: list[str] = []
    for question in QUESTIONS:
        query = embed([question])[0]
        answer = (await http.post("/v1/search", json={"vector": query.tolist(), "k": K, "include": []})).json()
        wanted = demo_checks.nearest(matrix, ids, query, K)
        if not answer.get("complete") or not demo_checks.same_hits(answer["hits"], wanted):
            differ.append(f"{question}: {[hit['id'] for hit in answer.get('hits', [])]} not {[i for i, _ in wanted]}")
    checks.add(f"searches equal an exact computation over what was published{when}", differ, f"{len(QUESTIONS)} asked")
    listed = [json.loads(line)["id"] for line in (await http.get("/v1/memories")).text.splitlines()]
    odd = sorted(set(listed) ^ set(ids)) + [i for i in listed if listed.count(i) > 1][:1]
    checks.add(f"the listing has every live id once and nothing else{when}", odd, f"{len(listed)} ids")


async def audit(
    checks: Checks,
    directory: Path,
    servers: Stack,
    settings: KafkaSettings,
    reported: dict[str, int],
    warm_prefix: str = "isotherm",
) -> dict[str, Any]:
    """Read the stopped system without the product and check it against the log."""
    topics = Topics.under(settings.prefix)
    events = await demo_checks.read_topic(servers.kafka, topics.memories, PARTITIONS)
    changes = await demo_checks.read_topic(servers.kafka, topics.changes, PARTITIONS)
    letters = await demo_checks.read_topic(servers.kafka, topics.dead_letters, 1)
    newest = demo_checks.fold_memories(events)
    placement, hops = demo_checks.fold_changes(changes, newest)
    partition_of = {message.key.decode(): message.partition for message in events}
    offsets = await _committed(servers.kafka, settings, topics.memories)
    committed = {i: (event.version >> 16) < offsets[partition_of[i]] for i, event in newest.items()}
    tiers = {
        "warm": await demo_checks.read_warm(servers.redis, warm_prefix),
        "cold": await asyncio.to_thread(demo_checks.read_cold, directory / "node" / "cold"),
        "glacier": await asyncio.to_thread(demo_checks.read_glacier, directory / "node" / "glacier"),
    }
    checks.add("no event was rejected", [message.headers for message in letters])
    held = demo_checks.check_placement(checks, newest, placement, tiers, committed, reported)
    return {"tiers": held, "hops": dict(hops), "events": len(events)}


async def _committed(bootstrap: str, settings: KafkaSettings, topic: str) -> dict[int, int]:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, group_id=f"{settings.prefix}.node", enable_auto_commit=False
    )
    await consumer.start()
    try:
        return {p: await consumer.committed(TopicPartition(topic, p)) or 0 for p in range(PARTITIONS)}
    finally:
        await consumer.stop()


# -- telling ---------------------------------------------------------------------------------------------------------


def _summary(world: World, checks: Checks, servers: Stack, found: dict[str, Any]) -> dict[str, Any]:
    broker = next(service for service in servers.services if service.name == "kafka")
    parts = ("aiokafka", "redis", "duckdb", "pyarrow", "deltalake", "numpy", "starlette", "uvicorn", "wordllama")
    return {
        "ok": checks.ok,
        "records": len(world.texts),
        "events": found["events"],
        "live": sum(known is not None for known in world.newest.values()),
        "updated": world.updated,
        "deleted": world.deleted,
        "tiers": {tier: {"records": found["tiers"][tier]} for tier in TIERS},
        "moves": found["hops"],
        "freshness_ms": _percentiles(world.freshness_ms),
        "search_ms": {tier: _percentiles(times) for tier, times in world.search_ms.items()},
        "answers": world.answers,
        "broker": {"software": broker.software, "version": broker.version},
        "services": {service.software: service.version for service in servers.services},
        "versions": {"python": sys.version.split()[0], **{part: version(part) for part in parts}},
        "cpus": len(os.sched_getaffinity(0)),
        "checks": checks.results,
    }


def _percentiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    return {"p50": round(float(np.percentile(values, 50)), 2), "p99": round(float(np.percentile(values, 99)), 2)}


def _show(console: Console, summary: dict[str, Any]) -> None:
    for result in summary["checks"]:
        mark = "[green]ok[/]  " if result["ok"] else "[red]FAIL[/]"
        console.print(f"{mark} {result['check']} [dim]{result['detail']}[/]")
    console.print(
        f"\nfound {summary['freshness_ms'].get('p50')} ms after sending (p99 {summary['freshness_ms'].get('p99')}); "
        f"moves {summary['moves']}; {summary['seconds']} s"
    )
