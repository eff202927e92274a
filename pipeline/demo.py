"""`isotherm demo`: real texts through all four tiers on local servers, asked for while they move, then checked.

A node runs as a process of its own; the demo is its producer, its client and, once it has stopped, its auditor.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack
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
from pipeline.demo_checks import TIERS, Checks
from pipeline.demo_node import PARTITIONS, NodeProcess
from pipeline.demo_stream import LAST, PUBLISH_S, SETTLE_S, World, publish, publish_last, streamed, trickle
from pipeline.demo_texts import collect
from pipeline.embed import load_embedder
from pipeline.log import configure
from pipeline.looks import tier_table
from pipeline.settings import LogSettings
from pipeline.stack import Stack
from producers import MemoryProducer
from producers.decoder import Embed
from producers.events import Topics
from producers.publisher import KafkaSettings

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
K = 10


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
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(asyncio.to_thread(_read, records), name="read")
            servers = await stack.enter_async_context(Stack(directory / "stack"))
        world, embed = reading.result()
    names = ", ".join(f"{service.software} {service.version}" for service in servers.services)
    console.print(f"{names}; {len(world.texts):,} texts")
    node = NodeProcess(directory, servers)
    stack.push_async_callback(node.cleanup)
    settings = KafkaSettings(bootstrap=servers.kafka, partitions=PARTITIONS)
    checks = Checks()
    async with MemoryProducer(settings) as producer:
        async with httpx.AsyncClient(base_url=await node.start(), timeout=30) as http:
            await _stream(world, producer, http, embed, console)
            enough = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                group.create_task(trickle(world, producer, enough), name="trickle")
                await _settle(world, http, console)
                await _time_tiers(world, http, embed)
                with console.status("checking every record through the gateway"):
                    await _check_ids(checks, world, http, "")
                enough.set()
            with console.status("checking searches and the listing"):
                await publish_last(world, producer, http)
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
    total = streamed(world)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("publishing", total=total)
        async with asyncio.TaskGroup() as group:
            group.create_task(_ask(world, http, progress.console, stop), name="ask")
            rate = total / PUBLISH_S
            began = time.monotonic()
            for start in range(0, total, 50):
                await publish(world, producer, http, range(start, min(start + 50, total)), embed)
                progress.update(bar, completed=min(start + 50, total))
                await asyncio.sleep(max(0.0, began + (start + 50) / rate - time.monotonic()))
            stop.set()


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
    odd = sorted(set(listed) ^ set(ids)) + [i for i, times in Counter(listed).items() if times > 1][:1]
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
