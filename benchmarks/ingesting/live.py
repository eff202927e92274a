"""Scenarios on a node that runs while another process sends: how soon a search finds, how fast it is meanwhile."""

from __future__ import annotations

import asyncio
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ingesting.events import messages, vectors
from benchmarks.ingesting.run import PARTITIONS, Run, fill
from benchmarks.report import promise, spread
from pipeline import MemoryManager, Query
from tiers import Row
from tiers.record import Floats

ROOT = Path(__file__).parent.parent.parent
EVERY_S = 0.05  # a marked event is sent
LAG_S = 0.01
FOUND_S = 10.0
BARE: dict[str, Any] = {"include": frozenset()}
SPARE_ROWS = 8 * 8_192
AFTER_S = 0.5  # the rate is reached


@asynccontextmanager
async def sending(run: Run, topic: str, kind: str, rows_s: int, seconds: float, first: int) -> AsyncIterator[Process]:
    """Let another process send at this rate; yields once it does."""
    command = (run.stack.kafka, topic, kind, str(rows_s), str(seconds), str(PARTITIONS), str(first))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.ingesting.sender", *command, cwd=ROOT, stdin=PIPE, stdout=PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"ready\n", "the sender came up"
        process.stdin.write(b"go\n")
        await process.stdin.drain()
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


class Lag:
    """How late the node's loop is, in ms, asked every 10 ms."""

    def __init__(self) -> None:
        self.late_ms: list[float] = []

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            due = time.perf_counter() + LAG_S
            await asyncio.sleep(LAG_S)
            self.late_ms.append((time.perf_counter() - due) * 1_000)


async def found_after(memory: MemoryManager, number: int, vector: Floats) -> float:
    """Return the ms from sending a record until a search for its vector finds it."""
    name, began = f"marked-{number}", time.perf_counter()
    await memory.store([Row(name, 0, time.time_ns() // 1_000_000, None, vector, b"{}")])
    while time.perf_counter() - began < FOUND_S:
        found = await memory.retrieve(Query(vector=vector, k=1, **BARE))
        if found.hits and found.hits[0].row.id == name:
            return (time.perf_counter() - began) * 1_000
    raise TimeoutError(f"{name} was not found within {FOUND_S} s")


async def freshness(run: Run) -> dict[str, Any]:
    """Send 5,000 JSON events a second, and now and then one more that is looked for until a search finds it."""
    rows, seconds = run.size.events_s, run.size.fresh_s
    settings = run.settings("fresh", hot__capacity_rows=int(rows * (seconds + 2)) + SPARE_ROWS)
    marked = vectors(int(seconds / EVERY_S) + 1, 3)
    took_ms: list[float] = []
    lag = Lag()
    async with MemoryManager.open(settings) as memory:
        await memory.ready()
        topic = memory.node.topics.memories
        async with sending(run, topic, "json", rows, seconds + AFTER_S, 0), asyncio.TaskGroup() as group:
            await asyncio.sleep(AFTER_S)
            watch = group.create_task(lag.run(), name="lag")
            began, before = time.perf_counter(), memory.node.ingest.rows
            for number, vector in enumerate(marked):
                if (left := began + number * EVERY_S - time.perf_counter()) > 0:
                    await asyncio.sleep(left)
                if time.perf_counter() - began >= seconds:
                    break
                took_ms.append(await found_after(memory, number, vector))
            ingested_s = (memory.node.ingest.rows - before) / (time.perf_counter() - began)
            watch.cancel()
    p50, p99 = (float(np.percentile(took_ms, at)) for at in (50, 99))
    return {
        "events_s": round(ingested_s),
        "rows": round(ingested_s * seconds),
        "found": spread(took_ms),
        "loop_lag": spread(lag.late_ms),
        "promises": [
            promise("sent until found by a search, p50", p50, "<=", 10, "ms"),
            promise("the same, p99", p99, "<=", 75, "ms"),
            promise("events a second meanwhile", ingested_s, ">=", 0.95 * rows, "events/s"),
        ],
    }


async def _asked(memory: MemoryManager, questions: Floats, until: float, least: int) -> list[float]:
    """Ask one question after the other until then, and at least so many; returns ms."""
    took_ms: list[float] = []
    while time.perf_counter() < until or len(took_ms) < least:
        began = time.perf_counter()
        found = await memory.retrieve(Query(vector=questions[len(took_ms) % len(questions)], k=10, **BARE))
        took_ms.append((time.perf_counter() - began) * 1_000)
        assert found.complete, "every tier answered"
    return took_ms


async def searching(run: Run) -> dict[str, Any]:
    """Search at rest, then while rows come in at half the rate that is to be sustained, then at rest again."""
    base, rows_s, seconds = run.size.resting, run.size.rows_s, run.size.ingesting_s
    more = int(rows_s * (seconds + AFTER_S))
    given = {"hot__capacity_rows": base + more + SPARE_ROWS, "index__train_rows": 4_096}
    settings = run.settings("busy", **given)
    await fill(settings, list(messages("arrow", vectors(base), PARTITIONS)))
    questions, lag = vectors(200, 5), Lag()
    async with MemoryManager.open(settings) as memory:
        await memory.ready()
        await _asked(memory, questions, 0, 20)
        rest = await _asked(memory, questions, time.perf_counter() + seconds / 4, 50)
        topic = memory.node.topics.memories
        async with sending(run, topic, "arrow", rows_s, seconds + AFTER_S, base), asyncio.TaskGroup() as group:
            await asyncio.sleep(AFTER_S)
            watch = group.create_task(lag.run(), name="lag")
            began, before = time.perf_counter(), memory.node.ingest.rows
            busy = await _asked(memory, questions, began + seconds * 0.8, 50)
            ingested_s = (memory.node.ingest.rows - before) / (time.perf_counter() - began)
            watch.cancel()
        rest += await _asked(memory, questions, time.perf_counter() + seconds / 4, 50)
        held = len(memory.node.index)
    return {
        "rows": held,
        "rows_s": round(ingested_s),
        "at_rest": spread(rest),
        "while_ingesting": spread(busy),
        "loop_lag": spread(lag.late_ms),
        "promises": [
            promise("search p50 while ingesting / at rest", _p50(busy) / _p50(rest), "<=", 2),
            promise("rows a second meanwhile", ingested_s, ">=", 0.95 * rows_s, "rows/s"),
        ],
    }


def _p50(samples: list[float]) -> float:
    return float(np.percentile(samples, 50))
