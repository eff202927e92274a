"""Scenarios from Kafka: a topic that was filled before, read by a node until a search finds all of it.

The baseline is an aiokafka consumer with the same fetches that counts messages and does nothing else, by turns with
ours. Wall-clock seconds count: broker, Valkey and node share the machine, and what each spends stands beside.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from benchmarks.ingesting.events import messages, vectors
from benchmarks.ingesting.run import PARTITIONS, Cpu, Filled, Run, fill, median
from benchmarks.report import promise
from consumers.reader import FETCH_BYTES, POLL_MS, RECORDS_MAX
from pipeline import MemoryManager
from pipeline.settings import Settings

SPARE_ROWS = 8 * 8_192  # slabs that are not full at the end, and what copies may take


async def filled(run: Run, kind: str) -> tuple[Filled, dict[str, Any]]:
    """Return the topic with messages of this kind, filled when first asked for, and settings that fit it."""
    rows = run.size.arrow if kind == "arrow" else run.size.singles
    given = {"hot__capacity_rows": rows + SPARE_ROWS}
    if kind not in run.filled:
        run.say(f"filling a topic with {rows:,} rows, {kind}")
        sent = list(messages(kind, vectors(rows), PARTITIONS))
        run.filled[kind] = await fill(run.settings(kind, **given), sent)
    return run.filled[kind], given


async def count(settings: Settings, topic: Filled) -> float:
    """Return the seconds in which a consumer counts all messages."""
    consumer = AIOKafkaConsumer(
        **settings.kafka.client(),
        enable_auto_commit=False,
        max_poll_records=RECORDS_MAX,
        fetch_max_bytes=FETCH_BYTES,
        isolation_level="read_committed",
    )
    await consumer.start()
    try:
        partitions = [TopicPartition(topic.topic, number) for number in range(PARTITIONS)]
        consumer.assign(partitions)
        for partition in partitions:
            consumer.seek(partition, 0)
        began, seen = time.perf_counter(), 0
        while seen < topic.messages:
            found = await consumer.getmany(timeout_ms=POLL_MS)
            seen += sum(len(records) for records in found.values())
        return time.perf_counter() - began
    finally:
        await consumer.stop()


async def replayed(run: Run, settings: Settings, rows: int) -> tuple[float, dict[str, float]]:
    """Return the seconds from a node's start until a search finds all rows of its log, and CPU a row."""
    async with MemoryManager.open(settings) as memory:
        cpu, began = Cpu(run.stack), time.perf_counter()
        await memory.ready()
        took_s = time.perf_counter() - began
        spent = cpu.since(rows)
        assert len(memory.node.index) == rows, "all rows are in the index"
    return took_s, spent


def searchable(kind: str, must: float, floor_rows_s: int = 0) -> Callable[[Run], Any]:
    """Return the scenario that takes a topic of one kind into hot."""

    async def scenario(run: Run) -> dict[str, Any]:
        topic, given = await filled(run, kind)
        await count(run.settings(kind), topic)  # what the broker reads first comes from the disk
        counted: list[float] = []
        ours: list[float] = []
        spent: list[dict[str, float]] = []
        for life in range(run.size.rounds):
            counted.append(await count(run.settings(kind), topic))
            took_s, cpu = await replayed(run, run.settings(kind, life, **given), topic.rows)
            ours.append(took_s)
            spent.append(cpu)
        rate = run.rates[kind] = topic.rows / median(ours)
        promises = [promise("rows/s / a consumer that only counts", median(counted) / median(ours), ">=", must)]
        if floor_rows_s:
            promises.append(promise("rows a second", rate, ">=", floor_rows_s, "rows/s"))
        return {
            "rows": topic.rows,
            "messages": topic.messages,
            "bytes_a_row": round(topic.bytes / topic.rows),
            "rows_s": round(rate),
            "counted_rows_s": round(topic.rows / median(counted)),
            "took_s": [round(one, 4) for one in ours],
            "counted_s": [round(one, 4) for one in counted],
            "cpu_us_a_row": spent,
            "promises": promises,
        }

    return scenario


async def restart(run: Run) -> dict[str, Any]:
    """Stop a node whose rows are all dirty, and start it again in the same data directory: it replays them."""
    topic, given = await filled(run, "arrow")
    settings = run.settings("arrow", 100, **given)
    first_s, _ = await replayed(run, settings, topic.rows)
    again: list[float] = []
    spent: list[dict[str, float]] = []
    for _ in range(run.size.rounds):
        took_s, cpu = await replayed(run, settings, topic.rows)
        again.append(took_s)
        spent.append(cpu)
    rate = topic.rows / median(again)
    first = run.rates.get("arrow", topic.rows / first_s)
    return {
        "rows": topic.rows,
        "rows_s": round(rate),
        "first_rows_s": round(first),
        "took_s": [round(one, 4) for one in again],
        "cpu_us_a_row": spent,
        "promises": [promise("replay of the dirty suffix / Kafka to searchable", rate / first, ">=", 0.8)],
    }
