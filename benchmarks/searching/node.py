"""A node on real servers, loaded without the log: what is measured is where records lie, not how they came there.

Everything is the product's own wiring (`MemoryManager.open`): Kafka and Valkey are started in a scratch directory,
cold is a DuckDB file, glacier a Delta table on the disk. Rows go into a tier by its own `store` and into the index by
`put`, in batches; ages are set so that nothing moves by itself, and nothing gets a copy in hot.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.searching.corpus import DIM, EVENT_MS, batch
from pipeline import MemoryManager, Query, threads
from pipeline.app import Service
from pipeline.settings import Settings, load
from pipeline.stack import Stack
from tiers import TierName, record
from tiers.record import Floats

PARTITIONS = 4
NEVER_S = 1e9
BATCH_ROWS = 8_192
SETTLED_S = 0.7  # the coder looks every 200 ms: unchanged for so long, all codes are made
#: `include` came with the search that fetches vectors only; before it, every search fetched payloads too.
BARE: dict[str, Any] = {"include": frozenset()} if hasattr(Query, "include") else {}


@asynccontextmanager
async def opened(
    stack: Stack, folder: Path, extra: Sequence[Service] = (), **given: Any
) -> AsyncIterator[MemoryManager]:
    """Open a node of which nothing moves by itself; `given` are settings, dots as double underscores.

    In a process as `isotherm serve` has it.
    """
    threads.own()
    async with MemoryManager.open(settled(stack, folder, **given), *extra) as memory:
        await memory.ready()
        threads.opened()
        yield memory


def settled(stack: Stack, folder: Path, **given: Any) -> Settings:
    """Return the settings of `opened`."""
    name = f"{folder.parent.name}.{folder.name}"  # nobody else's on these servers
    settings: dict[str, Any] = {
        "data": str(folder),
        "dim": DIM,
        "attributes": {"group": "int"},
        "kafka.bootstrap": stack.kafka,
        "kafka.prefix": name,
        "kafka.partitions": PARTITIONS,
        "warm.url": stack.redis,
        "warm.prefix": name,
        "hot.device": "cpu",
        "gateway.deadline_ms": 600_000.0,
        "move.compact_s": NEVER_S,
        "node.lease_ttl_s": NEVER_S,  # baselines are asked on the loop, for minutes: nobody renews meanwhile
        "policy.promote_heat_min": NEVER_S,
        **{f"policy.{name}": NEVER_S for name in ("hot_age_s", "warm_idle_s", "cold_idle_s")},
        **{name.replace("__", "."): value for name, value in given.items()},
    }
    return load(None, {}, settings)


async def fill(memory: MemoryManager, vectors: Floats, start: int, stop: int, tier: TierName, rows: int = 0) -> float:
    """Put rows start to stop into a tier, `rows` at a time; returns the seconds. Their codes are made meanwhile."""
    node, began = memory.node, time.perf_counter()
    step = rows or BATCH_ROWS
    for at in range(start, stop, step):
        given = batch(vectors, at, min(at + step, stop))
        partition = record.partitions(given["id"], PARTITIONS)
        receipt = await node.tiers[tier].store(given)
        assert list(receipt.ids[:1]) == given["id"].to_pylist()[:1], "a receipt goes by the batch"
        node.index.put(given, partition, tier, receipt.slots, EVENT_MS)
        await asyncio.sleep(0)
    return time.perf_counter() - began


async def coded(memory: MemoryManager) -> None:
    """Wait until all codes are made."""
    index, since, before = memory.node.index, time.perf_counter(), -1
    while time.perf_counter() - since < SETTLED_S:
        await asyncio.sleep(0.1)
        if index.code_bytes != before:
            before, since = index.code_bytes, time.perf_counter()


async def ask(memory: MemoryManager, query: Query) -> tuple[float, list[str]]:
    """Return the ms that a question took, and the ids found; an incomplete answer is an error."""
    began = time.perf_counter()
    result = await memory.retrieve(query)
    took_ms = (time.perf_counter() - began) * 1_000
    assert result.complete, f"not searched: {result.missed}"
    return took_ms, [hit.row.id for hit in result.hits]


async def ask_all(memory: MemoryManager, questions: Floats, **asked: Any) -> tuple[list[float], list[list[str]]]:
    """Ask one after the other; returns ms and ids of each."""
    answers = [await ask(memory, Query(vector=one, **asked)) for one in questions]
    return [ms for ms, _ in answers], [ids for _, ids in answers]


def tiers_of(memory: MemoryManager, rows: Sequence[set[int]]) -> dict[str, int]:
    """Return in which tiers these rows are at home: the tiers of the true neighbours."""
    names = [f"id-{row}" for one in rows for row in one]
    homes = np.array([entry.home for entry in memory.node.index.entries(names) if entry is not None], np.int64)
    return {tier.word: int(np.count_nonzero(homes == tier)) for tier in TierName}
