"""Scenario `pairs`: each way down, a chunk at a time, in turns with the bare store; then the bytes of a row."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.moving.bare import Files, Inserts, Sets
from benchmarks.moving.cpu import per_row_us
from benchmarks.moving.rows import DIM, SHAPE, Rows, ids_of, raw_bytes
from benchmarks.moving.run import Run
from benchmarks.report import promise
from pipeline import MemoryManager, Query
from tiers import TierName

HOT, WARM, COLD, GLACIER = TierName
PUBLISHED_ROWS = 10_000
CURVE_FROM = 10_000
GROWTH_MAX = 2.2
NOT_ADDED = ("rows", "wall", "loop")
HOT_COLUMNS = 21  # bytes of hot's columns a row, beside the vector and the batch that the row came in

Way = tuple[TierName, TierName]
#: Each way down with what it is compared with, and the promised part of its rate.
WAYS: dict[Way, tuple[str, float]] = {
    (HOT, WARM): ("SETs without append-only file", 0.25),
    (HOT, COLD): ("bare DuckDB insert", 0.4),
    (WARM, COLD): ("bare DuckDB insert", 0.4),
    (COLD, GLACIER): ("bare Parquet write", 0.4),
}
Samples = dict[str, list[dict[str, float]]]


def named(way: Way) -> str:
    """Return a way as it is shown."""
    return f"{way[0].word} → {way[1].word}"


async def pairs(run: Run) -> dict[str, Any]:
    """Bring all rows down, a chunk at a time; return rates, costs, curves and sizes."""
    size, rows = run.size, Rows()
    ours: Samples = defaultdict(list)
    theirs: Samples = defaultdict(list)
    bytes_of: dict[str, float] = {}
    async with run.node("pairs") as memory, Sets(run.folder) as sets:
        inserts = Inserts(run.folder / "bare.duckdb", SHAPE, memory.node.settings.move.rows_max)
        bare = {WARM: sets, COLD: inserts, GLACIER: Files(run.folder / "bare")}
        empty = await memory.node.tiers[WARM].usage()
        for start in range(0, size.rows, size.chunk):
            stop = min(start + size.chunk, size.rows)
            past = stop - round((stop - start) * size.past_warm)
            run.say(f"rows {start:,} to {stop:,}")
            batch = rows.batch(start, stop)
            await published(memory, batch)
            for way, first, last in plan(start, past, stop):
                ours[named(way)].append(await moved(run, memory, way, first, last))
                took_s = await asyncio.to_thread(bare[way[1]].write, batch.slice(first - start, last - first))
                theirs[named(way)].append({"rows": last - first, "wall": round(took_s, 4)})
                if way == (HOT, WARM):
                    used = (await memory.node.tiers[WARM].usage()).bytes - empty.bytes
                    bytes_of["warm"] = round(used / (last - first), 1)
                elif way == (WARM, COLD) and "cold" not in bytes_of:  # later there is room of rows that have left
                    held = await memory.node.tiers[COLD].usage()
                    bytes_of["cold"] = round(held.bytes / held.rows, 1)
        inserts.close()
        files = await compacted(run, memory)
    bytes_of["glacier"] = round(files["bytes"] / size.rows, 1)
    raw = round(raw_bytes(batch), 1)
    bytes_of["hot"] = round(4 * DIM + HOT_COLUMNS + raw)
    return summary(ours, theirs) | {
        "raw_bytes": raw,
        "bytes_a_record": bytes_of,
        "archive": files,
        "promises": promises(ours, theirs, bytes_of["glacier"] / raw),
    }


def plan(start: int, past: int, stop: int) -> list[tuple[Way, int, int]]:
    """Return how the rows of a chunk go down: those from `past` on without a stay in warm."""
    ways = [((HOT, WARM), start, past), ((HOT, COLD), past, stop), ((WARM, COLD), start, past)]
    return [*ways, ((COLD, GLACIER), start, stop)]


async def published(memory: MemoryManager, batch: pa.RecordBatch) -> None:
    """Bring rows into hot through the log."""
    for start in range(0, batch.num_rows, PUBLISHED_ROWS):
        token = await memory.store(batch.slice(start, PUBLISHED_ROWS))
    await memory.retrieve(Query(ids=[], at_least=token))


async def moved(run: Run, memory: MemoryManager, way: Way, first: int, last: int) -> dict[str, float]:
    """Move rows through their partitions' lanes, as the demotion worker does; returns rows and seconds."""
    node, (source, target) = memory.node, way
    placed = node.index.placed(ids_of(first, last))
    assert placed.known.all(), "all were published"
    rows_max = node.settings.move.rows_max if target is not GLACIER else last - first
    order = np.argsort(placed.version, kind="stable")
    before, began = node.mover.moved.get((source.word, target.word), 0), run.meter.read()

    async def through(partition: int) -> None:
        at = order[placed.partition[order] == partition]
        keys = list(zip([placed.ids[one] for one in at.tolist()], placed.version[at].tolist(), strict=True))
        for start in range(0, len(keys), rows_max):
            part = keys[start : start + rows_max]
            await node.lanes[partition].perform(partial(node.mover.move, partition, source, target, "age", part))

    async with asyncio.TaskGroup() as group:
        for partition in node.lanes:
            group.create_task(through(partition), name=f"move-{partition}")
    spent = run.meter.since(began)
    assert node.mover.moved[source.word, target.word] - before == last - first, "all were moved"
    return {"rows": last - first} | {name: round(seconds, 4) for name, seconds in spent.items()}


async def compacted(run: Run, memory: MemoryManager) -> dict[str, Any]:
    """Wait until no partition has small files to merge; returns the files and what that took."""
    began, glacier = run.meter.read(), memory.node.glacier
    run.say("compaction")
    while any(glacier.crowded(partition) for partition in memory.node.lanes):
        await asyncio.sleep(0.2)
    for partition, lane in memory.node.lanes.items():  # a rewrite may be under way
        await lane.perform(partial(asyncio.sleep, 0, partition))
    _, live = await glacier.state()
    sizes = sorted(file.bytes for file in live)
    merged = [size for size in sizes if 2 * size >= memory.node.settings.glacier.file_bytes_max]
    done = glacier.census().done
    return {
        "bytes": sum(sizes),
        "files_mb": [round(size / 1e6, 1) for size in sizes],
        "merged": len(merged),
        "rewrites": done.rewrites,
        "rewritten_files": done.rewritten_files,
        "waited": {name: round(seconds, 2) for name, seconds in run.meter.since(began).items()},
    }


def summary(ours: Samples, theirs: Samples) -> dict[str, Any]:
    """Return for each way its rate, what it costs a row, its baseline, how it grows, and the samples."""
    out: dict[str, Any] = {}
    for way, samples in ours.items():
        rows = int(sum(one["rows"] for one in samples))
        spent = {name: sum(one[name] for one in samples) for name in samples[0] if name != "rows"}
        out[way] = {
            "rows": rows,
            "rows_s": round(median_rate(samples)),
            "bare_rows_s": round(median_rate(theirs[way])),
            "cpu_us_a_row": per_row_us(spent, rows),
            "curve": curve(samples),
            "samples": samples,
            "bare_samples": theirs[way],
        }
    return {"ways": out}


def median_rate(samples: Sequence[dict[str, float]]) -> float:
    """Return rows a second, the median of the chunks."""
    return float(np.median([one["rows"] / one["wall"] for one in samples]))


def curve(samples: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Return processor seconds of all processes for the first rows, twice as many each time."""
    rows = np.cumsum([one["rows"] for one in samples])
    cpu = np.cumsum([sum(value for name, value in one.items() if name not in NOT_ADDED) for one in samples])
    points, count = [], min(max(CURVE_FROM, int(rows[0])), int(rows[-1]))
    while count <= rows[-1]:
        points.append({"rows": count, "cpu_s": round(float(np.interp(count, rows, cpu)), 3)})
        count *= 2
    return points


def growth(points: Sequence[dict[str, float]]) -> float | None:
    """Return the largest growth of the cost with twice the rows."""
    steps = [after["cpu_s"] / before["cpu_s"] for before, after in pairwise(points)]
    return max(steps) if steps else None


def promises(ours: Samples, theirs: Samples, share: float) -> list[dict[str, Any]]:
    """Return the lines of the table."""
    lines = []
    for way, (baseline, must) in WAYS.items():
        reached = median_rate(ours[named(way)]) / median_rate(theirs[named(way)])
        lines.append(promise(f"{named(way)}, durable / {baseline}", reached, ">=", must))
    lines += [
        promise(f"{named(way)}, cost of twice the rows, the highest", growth(curve(ours[named(way)])), "<=", GROWTH_MAX)
        for way in WAYS
    ]
    lines.append(promise("glacier, bytes a record / raw record", share, "<=", 0.78))
    return lines
