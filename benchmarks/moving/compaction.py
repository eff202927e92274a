"""Scenario `compaction`: files as moves leave them, merged in the partition's lane until there are few small ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks.moving.cpu import per_row_us
from benchmarks.moving.rows import EVENT_MS, Rows
from benchmarks.moving.run import NEVER_S, Run
from benchmarks.report import promise
from pipeline import MemoryManager
from tiers import TierName
from tiers.parquet import DataFile

PARTITION = 0
FILE_MB = (64, 512)  # what compaction is to write


async def compaction(run: Run) -> dict[str, Any]:
    """Store a file at a time, then merge as the node's upkeep does; return which files there are."""
    size, rows = run.size, Rows()
    given: dict[str, Any] = {"kafka__partitions": 1, "move__upkeep_ms": int(NEVER_S)}
    async with run.node("compaction", **given) as memory:
        glacier = memory.node.glacier
        for number in range(size.files):
            await archived(memory, rows, number * size.file_rows, (number + 1) * size.file_rows)
        _, stored = await glacier.state()
        run.say(f"compaction of {len(stored)} files, {megabytes(stored)[-1]:g} MB the largest")
        began = run.meter.read()
        while glacier.crowded(PARTITION):
            await memory.node.lanes[PARTITION].perform(partial(memory.node.mover.compact, PARTITION, size.file_rows))
        spent = run.meter.since(began)
        _, live = await glacier.state()
    known = {file.key for file in stored}
    written, left = [[f for f in live if (f.key in known) is old] for old in (False, True)]
    merged = sum(file.rows for file in written)
    return {
        "rows": size.files * size.file_rows,
        "merged_rows": merged,
        "stored_mb": megabytes(stored),
        "written_mb": megabytes(written),
        "left_mb": megabytes(left),
        "rows_s": round(merged / spent["wall"]),
        "cpu_us_a_row": per_row_us(spent, max(1, merged)),
        "promises": promises(megabytes(written)),
    }


async def archived(memory: MemoryManager, rows: Rows, start: int, stop: int) -> None:
    """Bring rows into glacier, as one file, and into the index."""
    batch = rows.batch(start, stop)
    receipt = await memory.node.glacier.store(batch)
    partitions = np.full(batch.num_rows, PARTITION, np.int32)
    memory.node.index.put(batch, partitions, TierName.GLACIER, receipt.slots, EVENT_MS)


def megabytes(files: Sequence[DataFile]) -> list[float]:
    """Return the sizes of files, the smallest first."""
    return sorted(round(file.bytes / 1e6, 1) for file in files)


def promises(written: Sequence[float]) -> list[dict[str, Any]]:
    """Return the lines of the table, about every file that compaction wrote."""
    least, most = FILE_MB
    return [
        promise("smallest file that compaction wrote", min(written, default=None), ">=", least, "MB"),
        promise("largest file that compaction wrote", max(written, default=None), "<=", most, "MB"),
    ]
