"""Scenario `sustained`: records flow through the log and all four tiers by themselves, minutes long."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.moving.cpu import Meter, per_row_us, resident_mb
from benchmarks.moving.run import PARTITIONS, Run
from benchmarks.report import promise
from pipeline import MemoryManager
from tiers import TierName

AGES: dict[str, Any] = {
    "policy__hot_age_s": 4.0,
    "policy__warm_idle_s": 10.0,
    "policy__cold_idle_s": 18.0,
    "age__glacier_flush_s": 8.0,
    "move__compact_s": 20.0,
    "glacier__vacuum_after_s": 30.0,
    "glacier__cache_bytes": 64 << 20,
}
SAMPLE_S = 1.0
RATE = 25_000
GROWTH = 1.1  # of the last third to the one before it: flat


@dataclass(slots=True)
class Feed:
    """The producer's process, and the rows it has sent."""

    pid: int
    sent: int = 0


async def sustained(run: Run) -> dict[str, Any]:
    """Feed, look once a second, and return what there was after the tiers had filled."""
    size = run.size
    async with run.node("sustained", **AGES) as memory, feeding(run, memory) as feed:
        run.say(f"{size.rate:,} rows/s for {size.sustained_s:g} s, over {size.ids:,} ids")
        meter = Meter({"producer": feed.pid, **{service.name: service.pid for service in run.stack.services}})
        samples: list[dict[str, float]] = []
        began = time.perf_counter()
        while (at_s := time.perf_counter() - began) < size.sustained_s:
            samples.append(look(memory, feed, meter) | {"at_s": round(at_s, 2)})
            await asyncio.sleep(SAMPLE_S)
        archive = memory.node.glacier.census()
    return summary(run, samples) | {
        "samples": samples,
        "archive": {"files": archive.files, "bytes": archive.bytes, "rewrites": archive.done.rewrites},
    }


@asynccontextmanager
async def feeding(run: Run, memory: MemoryManager) -> AsyncIterator[Feed]:
    """Run the producer, and end it."""
    kafka, size = memory.node.settings.kafka, run.size
    given = (kafka.bootstrap, kafka.prefix, PARTITIONS, size.rate, size.ids)
    began = asyncio.Event()
    command = [sys.executable, "-m", "benchmarks.moving.feeder", *map(str, given)]
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    feed = Feed(process.pid)

    async def listen(lines: asyncio.StreamReader) -> None:
        async for line in lines:
            feed.sent = int(line)
            began.set()

    async with asyncio.TaskGroup() as group:
        group.create_task(listen(process.stdout), name="feeder")
        try:
            await began.wait()
            yield feed
        finally:
            process.stdin.close()
    assert await process.wait() == 0, "the producer failed"


def look(memory: MemoryManager, feed: Feed, meter: Meter) -> dict[str, float]:
    """Return what there is at this moment: rows, those on their way, lag, memory, processor seconds."""
    node, moved = memory.node, memory.node.mover.moved
    into = {name.word: sum(n for (_, to), n in moved.items() if to == name.word) for name in TierName if name}
    homes = {f"in_{name.word}": node.index.rows(name) for name in TierName}
    return {
        "sent": feed.sent,
        "ingested": node.ingest.rows,
        **{f"into_{name}": rows for name, rows in into.items()},
        **homes,
        "dirty": sum(mark.dirty for mark in node.ingest.watermarks.values()),
        "lag_ms": memory.freshness()["lag_ms"],
        "queued": len(node.index.queue),
        "dropped": node.demote.dropped,
        "node_mb": round(resident_mb(os.getpid()), 1),
        **{f"{name}_s": round(seconds, 2) for name, seconds in meter.read().items()},
    }


def summary(run: Run, samples: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Return rates, costs and growth of the time after the tiers had filled."""
    kept = [one for one in samples if one["at_s"] >= run.size.settle_s]
    first, last = kept[0], kept[-1]
    took_s = last["wall_s"] - first["wall_s"]
    rates = {
        name: round((last[key] - first[key]) / took_s)
        for name, key in (
            ("hot", "ingested"),
            ("warm", "into_warm"),
            ("cold", "into_cold"),
            ("glacier", "into_glacier"),
        )
    }
    rows = int(last["ingested"] - first["ingested"])
    used = {name: last[f"{name}_s"] - first[f"{name}_s"] for name in ("node", "producer", "kafka", "valkey")}
    on_way = [one["sent"] - one["ingested"] + one["in_hot"] + one["in_warm"] + one["in_cold"] for one in kept]
    lags, memory = [one["lag_ms"] for one in kept], [one["node_mb"] for one in kept]
    return {
        "rows_s": rates,
        "seconds": round(took_s, 1),
        "cpu_us_a_row": per_row_us(used, rows),
        "lag_ms": {f"p{at}": round(float(np.percentile(lags, at)), 1) for at in (50, 99)},
        "node_mb": {"first": memory[0], "last": memory[-1], "most": max(memory)},
        "promises": [
            promise("through all four tiers, the slowest", min(rates.values()), ">=", RATE, "rows/s"),
            promise("rows on their way, last third / the one before", _grown(on_way), "<=", GROWTH),
            promise(
                "age of the newest row applied, median of the last third / the one before", _grown(lags), "<=", 1.5
            ),
            promise("memory of the node, last third / the one before", _grown(memory), "<=", GROWTH),
        ],
    }


def _grown(values: Sequence[float]) -> float:
    """Return the median of the last third by that of the third before it."""
    third = max(1, len(values) // 3)
    return float(np.median(values[-third:]) / max(1.0, float(np.median(values[-2 * third : -third]))))
