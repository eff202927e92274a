"""A node on the run's real servers, small and ageing fast."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pipeline import MemoryManager
from pipeline.settings import Settings, load
from pipeline.stack import Stack
from tiers.record import Row
from tiers.tier import TierName

DIM = 16


def small(stack: Stack, prefix: str, data: Path, **more: Any) -> Settings:
    """Settings of a node of 4 partitions and 16 dimensions; `more` are dotted keys with "__" for the dot."""
    given: dict[str, Any] = {
        "data": str(data),
        "dim": DIM,
        "attributes": {"user": "string", "score": "float"},
        "kafka.bootstrap": stack.kafka,
        "kafka.prefix": prefix,
        "kafka.partitions": 4,
        "warm.url": stack.redis,
        "warm.prefix": prefix,
        "hot.device": "cpu",
        "hot.capacity_rows": 4_096,
        "hot.slab_rows": 64,
        "age.interval_ms": 50,
        "age.ask_again_s": 0.5,
        "age.glacier_flush_s": 0.2,
        "move.upkeep_ms": 50,
        "move.compact_s": 0.2,
        "commit.interval_ms": 50,
        "access.flush_ms": 50,
        "gateway.port": 0,
    }
    given |= {key.replace("__", "."): value for key, value in more.items()}
    return load(None, {}, given)


def rows(count: int, start: int = 0, seed: int = 0) -> list[Row]:
    """Return `count` rows "id-<n>" with random vectors; version and time are the log's business."""
    rng = np.random.default_rng(seed + start)
    now = time.time_ns() // 1_000_000
    return [
        Row(
            f"id-{n}",
            0,
            now,
            None,
            rng.normal(size=DIM).astype(np.float32),
            msgspec.json.encode({"n": n}),
            {"user": f"u{n % 3}", "score": n / 10},
        )
        for n in range(start, start + count)
    ]


async def bring(memory: MemoryManager, identifier: str, *tiers: TierName) -> None:
    """Move a record down from tier to tier, in its lane, as the policy would (a busy machine ages it past tiers)."""
    node = memory.node
    for source, target in pairwise(tiers):
        entry = node.index.find(identifier)
        assert entry is not None
        key = [(identifier, entry.version)]
        await node.lanes[entry.partition].perform(
            partial(node.mover.move, entry.partition, source, target, "age" if source is TierName.HOT else "idle", key)
        )


async def until(condition: Callable[[], bool | Awaitable[bool]], timeout_s: float = 30.0) -> None:
    """Wait until a condition on a live system holds; the test's timeout is the failure."""
    async with asyncio.timeout(timeout_s):
        while True:
            held = condition()
            if held is True or (not isinstance(held, bool) and await held):
                return
            await asyncio.sleep(0.02)
