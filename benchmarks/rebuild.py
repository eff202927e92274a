"""How fast the index is rebuilt at start, with codes kept from the life before and without.

    python -m benchmarks.rebuild [--rows 1000000] [--dim 256] [--directory DIR]

Half of the rows lie in cold, half in glacier (on this disk), three attributes each, random vectors. The tiers are
closed and opened in between, so that nothing but the operating system's page cache is warm. Prints one JSON object;
`loop_cpu_s` is the thread that all waits for, `cpu_s` all threads: on a busy machine they say more than the time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy

import numpy as np
import pyarrow as pa

from consumers.coding import Coder
from tiers import record
from tiers.cold import ColdMemory
from tiers.cold_settings import ColdSettings
from tiers.glacier import GlacierMemory
from tiers.glacier_settings import GlacierSettings
from tiers.index import Index
from tiers.rebuild import load
from tiers.tier import Tier, TierName
from tiers.worker import SerialExecutor

ATTRIBUTES = {"user": "string", "score": "float", "rank": "int"}
PARTITIONS = 8
BATCH_ROWS = {TierName.COLD: 8_192, TierName.GLACIER: 131_072}  # a glacier file is a partition's part of a store
TRAIN_ROWS = 20_000


def batch(start: int, rows: int, shape: pa.Schema) -> pa.RecordBatch:
    """Return rows "agent/<n>", with random vectors."""
    dim = shape.field("vector").type.list_size
    numbers = np.arange(start, start + rows)
    ids = pa.array([f"agent-{n % 100}/memory-{n:09d}" for n in numbers.tolist()])
    attributes = pa.StructArray.from_arrays(
        [
            pa.array([f"user-{n % 1000}" for n in numbers.tolist()]),
            pa.array(numbers / 7),
            pa.array(numbers),
        ],
        fields=list(shape.field("attributes").type),
    )
    vectors = np.random.default_rng(start).normal(size=(rows, dim)).astype(np.float32)
    times = pa.array(1_700_000_000_000 + numbers, pa.timestamp("ms", "UTC"))
    columns = [
        ids,
        pa.array(numbers << record.ROW_BITS),
        times,
        pa.nulls(rows, times.type),
        record.vector_array(vectors),
        pa.array([b"x" * 200] * rows),
        attributes,
        pa.array(np.zeros(rows, bool)),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=shape)


async def fill(directory: Path, shape: pa.Schema, rows: int) -> None:
    """Store the rows, half and half."""
    index = Index.of(shape)
    for tier, start in zip(await opened(directory, shape, index), (0, rows // 2), strict=True):
        step = BATCH_ROWS[tier.name]
        for at in range(start, start + rows // 2, step):
            await tier.store(batch(at, min(step, start + rows // 2 - at), shape))
        await tier.cleanup()


async def opened(directory: Path, shape: pa.Schema, index: Index) -> list[Tier]:
    """Return cold and glacier."""
    cold = await ColdMemory.open(ColdSettings(path=str(directory / "cold")), shape, partitions=PARTITIONS, index=index)
    glacier = await GlacierMemory.open(
        GlacierSettings(path=str(directory / "glacier")), shape, partitions=PARTITIONS, index=index
    )
    for partition in range(PARTITIONS):
        await glacier.raise_epoch(partition, glacier.epoch(partition) + 1)
    return [cold, glacier]


async def rebuilt(directory: Path, shape: pa.Schema) -> Mapping[str, float]:
    """Rebuild the index once, and return the seconds of each part."""
    index = Index.of(shape)
    pool = SerialExecutor("codes")
    tiers = await opened(directory, shape, index)
    took: dict[str, float] = {}
    began, cpu, loop = time.perf_counter(), time.process_time(), time.thread_time()
    coder = Coder(index, directory / "codebook", TRAIN_ROWS, pool)
    await coder.load()
    took["codes_read_s"] = time.perf_counter() - began
    for tier in tiers:
        start = time.perf_counter()
        await load(index, tier, PARTITIONS, 0, coder.drain, coder.saved, pool)
        took[f"{tier.name.word}_s"] = time.perf_counter() - start
    took["whole_s"] = time.perf_counter() - began
    took["cpu_s"], took["loop_cpu_s"] = time.process_time() - cpu, time.thread_time() - loop
    took["entries_per_s"] = len(index) / took["whole_s"]
    took["coded"] = sum(segment.packed.rows for segment in index.segments() if segment.packed is not None)
    await coder.drain()
    await coder.settle()
    pool.close()
    for tier in tiers:
        await tier.cleanup()
    return {name: round(value, 3) for name, value in took.items()}


async def main() -> None:
    """Fill, rebuild without codes, rebuild with them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--directory", type=Path)
    given = parser.parse_args()
    shape = record.schema(given.dim, ATTRIBUTES)
    with tempfile.TemporaryDirectory() as fresh:
        directory = given.directory or Path(fresh)
        if not (directory / "cold").exists():
            await fill(directory, shape, given.rows)
        without = await rebuilt(directory, shape)
        saved = [await rebuilt(directory, shape) for _ in range(3)]
    print(json.dumps({"rows": given.rows, "dim": given.dim, "without": without, "with": saved}))


if __name__ == "__main__":
    asyncio.run(main())
