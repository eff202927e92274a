"""Scenarios that read by id, move and restart: each against the bare store, or against itself at rest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from redis.asyncio import Redis

from benchmarks.report import promise, spread
from benchmarks.searching.corpus import batch, recall, truth
from benchmarks.searching.node import BARE, PARTITIONS, ask, ask_all
from benchmarks.searching.run import SHARES, Run
from benchmarks.searching.scans import K
from pipeline import MemoryManager, Query, app
from tiers import TierName, record
from tiers.warm_keys import Keys

BLOCKS = 5
LEGS = ((TierName.HOT, TierName.WARM), (TierName.WARM, TierName.COLD))
STORE_ROWS = 10_000

Named = dict[int, list[tuple[str, int]]]  # partition to (id, version) of records


async def rebuild(run: Run) -> dict[str, Any]:
    """Restart the node: how fast the index is made anew; then search with nothing of glacier in its cache."""
    await run.million()
    began, rebuilt = time.perf_counter(), app.rebuild
    took: list[float] = []

    async def timed(*given: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return await rebuilt(*given, **named)
        finally:
            took.append(time.perf_counter() - started)

    app.rebuild = timed
    try:
        memory = await run.reopened()
    finally:
        app.rebuild = rebuilt
    start_s, entries = time.perf_counter() - began, len(memory.node.index)
    questions = run.corpus.questions[: run.size.filtered]
    hot = run.size.million * SHARES[TierName.HOT] // 100
    below = np.arange(run.size.million) >= hot
    uncached, found = await ask_all(memory, questions, k=K, **BARE)
    return {
        "entries": entries,
        "rebuild_s": [round(one, 3) for one in took],
        "stop_and_start_s": round(start_s, 2),
        "uncached": spread(uncached) | {"recall": round(recall(found, truth(run.units(), questions, K, below)), 4)},
        "promises": [promise("index rebuilt at start", entries / took[0], ">=", 1e6, "entries/s")],
    }


async def by_id(run: Run) -> dict[str, Any]:
    """Read one record at a time through the manager, in turns with the bare store."""
    memory = await run.million()
    numbers = np.cumsum([0, *(run.size.million * share // 100 for share in SHARES.values())])
    random = np.random.default_rng(1)

    def some(tier: TierName, count: int) -> list[str]:
        rows = random.choice(np.arange(numbers[tier], numbers[tier + 1]), count, replace=False)
        return [f"id-{row}" for row in rows]

    warm, cold = some(TierName.WARM, run.size.reads), some(TierName.COLD, run.size.reads)
    glacier = some(TierName.GLACIER, run.size.glacier_reads)
    warm_ms, get_ms = await _redis(run, memory, warm)
    cold_ms, duck_ms = await _duckdb(run, memory, cold, range(numbers[TierName.COLD], numbers[TierName.GLACIER]))
    first = [(await _read(memory, one, TierName.GLACIER)) for one in glacier]
    again = [(await _read(memory, one, TierName.GLACIER)) for one in glacier]
    files = memory.node.glacier.census().files
    of_get, of_duck = np.median(warm_ms) / np.median(get_ms), np.median(cold_ms) / np.median(duck_ms)
    return {
        "warm": spread(warm_ms),
        "redis_get": spread(get_ms),
        "cold": spread(cold_ms),
        "duckdb_primary_key": spread(duck_ms),
        "glacier": spread(first) | {"files": files},
        "glacier_cached": spread(again),
        "promises": [
            promise("warm, p50 / a bare Redis GET", float(of_get), "<=", 2.5),
            promise("cold, p50 / an indexed DuckDB lookup", float(of_duck), "<=", 0.5),
            promise(f"glacier, p50 from {files} local files", float(np.median(first)), "<=", 5, "ms"),
        ],
    }


async def _read(memory: MemoryManager, identifier: str, tier: TierName) -> float:
    """Return the ms that a read by id took; the record must come from this tier."""
    began = time.perf_counter()
    (hit,) = (await memory.retrieve(Query(ids=[identifier]))).hits
    took_ms = (time.perf_counter() - began) * 1_000
    assert hit.tier is tier, f"{identifier} was read from {hit.tier.word}"
    return took_ms


async def _in_turns(
    ids: Sequence[str], ours: Callable[[str], Awaitable[float]], theirs: Callable[[str], Awaitable[float]]
) -> tuple[list[float], list[float]]:
    """Read blocks of ids by one and then by the other; returns ms of both."""
    out: tuple[list[float], list[float]] = ([], [])
    for part in np.array_split(np.array(ids, object), BLOCKS):
        for into, way in zip(out, (ours, theirs), strict=True):
            into += [await way(one) for one in part.tolist()]
    return out


async def _redis(run: Run, memory: MemoryManager, ids: Sequence[str]) -> tuple[list[float], list[float]]:
    settings = memory.node.settings.warm
    keys = Keys(settings.prefix, PARTITIONS, settings.buckets)
    async with Redis.from_url(run.stack.redis) as client:

        async def bare(identifier: str) -> float:
            key = keys.row(record.partition(identifier, PARTITIONS), identifier)
            began = time.perf_counter()
            value = await client.get(key)
            took_ms = (time.perf_counter() - began) * 1_000
            assert value, f"no row under {key!r}"
            return took_ms

        return await _in_turns(ids, lambda one: _read(memory, one, TierName.WARM), bare)


async def _duckdb(run: Run, memory: MemoryManager, ids: Sequence[str], rows: range) -> tuple[list[float], list[float]]:
    """Compare with a table of the same rows and a primary key, prepared statement, in a file of its own."""
    run.say("filling a DuckDB table with a primary key")
    with duckdb.connect(str(run.folder / "indexed.duckdb"), config={"threads": 1}) as connection:
        connection.execute(
            "CREATE TABLE rows (id VARCHAR PRIMARY KEY, version BIGINT, vector FLOAT[256], payload BLOB)"
        )
        for start in range(rows.start, rows.stop, STORE_ROWS):
            part = batch(run.corpus.vectors, start, min(start + STORE_ROWS, rows.stop))
            given = pa.table({name: part[name] for name in ("id", "version", "vector", "payload")})
            connection.register("given", given)
            connection.execute("INSERT INTO rows SELECT * FROM given")
            connection.unregister("given")
        connection.execute("CHECKPOINT")

        async def indexed(identifier: str) -> float:
            began = time.perf_counter()
            found = connection.execute("SELECT * FROM rows WHERE id = ?", [identifier]).fetchall()
            took_ms = (time.perf_counter() - began) * 1_000
            assert len(found) == 1, f"{identifier} is not in the table"
            return took_ms

        return await _in_turns(ids, lambda one: _read(memory, one, TierName.COLD), indexed)


async def moving(run: Run) -> dict[str, Any]:
    """Search at rest, demote without searches, then both: records come through the log, go to warm and on to cold."""
    memory, count = await run.million(), run.size.moved
    questions = run.corpus.questions
    run.say(f"publishing {2 * count:,} records")
    first = run.size.million
    for start in range(0, 2 * count, STORE_ROWS):
        stop = min(start + STORE_ROWS, 2 * count)
        token = await memory.store(batch(-run.corpus.vectors[:stop], start, stop, first))  # nobody's neighbours
    await memory.retrieve(Query(ids=[], at_least=token))
    rest, _ = await ask_all(memory, questions[: run.size.scans], k=K, **BARE)
    alone_s = await _demote(memory, _keys(memory, range(first, first + count)))
    keys = _keys(memory, range(first + count, first + 2 * count))  # a tenth of a second of the loop, and not the node's
    done = asyncio.Event()
    busy: list[float] = []

    async def search() -> None:
        while not done.is_set():
            busy.append((await ask(memory, Query(vector=questions[len(busy) % len(questions)], k=K, **BARE)))[0])

    async with asyncio.TaskGroup() as group:
        group.create_task(search(), name="search")
        loaded_s = await _demote(memory, keys)
        done.set()
    moved = count * len(LEGS)
    slower = float(np.percentile(busy, 99) / np.percentile(rest, 99))
    return {
        "rows": len(memory.node.index),
        "moves": moved,
        "unloaded_rows_s": round(moved / alone_s),
        "loaded_rows_s": round(moved / loaded_s),
        "at_rest": spread(rest),
        "while_moving": spread(busy),
        "promises": [
            promise("search p99 while demotion runs / at rest", slower, "<=", 3),
            promise("rate of demotion under searches / without", alone_s / loaded_s, ">=", 0.5),
        ],
    }


def _keys(memory: MemoryManager, rows: range) -> Named:
    """Return (id, version) of these records by partition."""
    entries = [entry for entry in memory.node.index.entries([f"id-{row}" for row in rows]) if entry is not None]
    assert len(entries) == len(rows), "all were published"
    return {number: [(e.id, e.version) for e in entries if e.partition == number] for number in memory.node.lanes}


async def _demote(memory: MemoryManager, keys: Named) -> float:
    """Move these records down through their partitions' lanes, as the demotion worker does; returns the seconds."""
    node, began = memory.node, time.perf_counter()
    most, before = node.settings.move.rows_max, sum(node.mover.moved.values())

    async def through(partition: int) -> None:
        mine = keys[partition]
        for source, target in LEGS:
            for at in range(0, len(mine), most):
                move = partial(node.mover.move, partition, source, target, "bench", mine[at : at + most])
                await node.lanes[partition].perform(move)

    async with asyncio.TaskGroup() as group:
        for partition in node.lanes:
            group.create_task(through(partition), name=f"demote-{partition}")
    moved = sum(node.mover.moved.values()) - before
    assert moved == len(LEGS) * sum(map(len, keys.values())), "all were moved"
    return time.perf_counter() - began
