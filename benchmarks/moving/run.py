"""One run: its sizes, its servers, and the node whose rows go down through all tiers, which scenarios share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.moving.cpu import Meter
from benchmarks.moving.rows import DIM
from pipeline import MemoryManager, threads
from pipeline.settings import load
from pipeline.stack import Stack

PARTITIONS = 4
NEVER_S = 1e9


@dataclass(frozen=True, slots=True)
class Size:
    """`rows` go down in chunks of `chunk`; the last part of each goes past warm. `minutes` of the sustained run."""

    rows: int = 1_000_000
    chunk: int = 50_000
    past_warm: float = 0.2
    sustained_s: float = 300.0
    settle_s: float = 90.0
    rate: int = 26_000
    files: int = 64  # that one partition has in glacier before its compaction, of so many rows
    file_rows: int = 10_000
    ids: int = 1_500_000  # of the sustained run: each comes again when it has long been in glacier

    @classmethod
    def quick(cls) -> Size:
        """Return what takes a minute and a half in all."""
        return cls(rows=120_000, chunk=20_000, files=20, sustained_s=30.0, settle_s=15.0, rate=8_000, ids=120_000)


class Run:
    """Scenarios ask for nodes here; `say` tells a person how far it is."""

    def __init__(self, size: Size, stack: Stack, folder: Path, say: Callable[[str], None]) -> None:
        self.size, self.stack, self.folder, self.say = size, stack, folder, say
        self.meter = Meter({service.name: service.pid for service in stack.services})

    @asynccontextmanager
    async def node(self, name: str, **given: Any) -> AsyncIterator[MemoryManager]:
        """Open a node of its own of which nothing moves by itself, unless `given` settings say so ("__" for dots).

        In a process as `isotherm serve` has it.
        """
        threads.own()
        folder = self.folder / name
        settings: dict[str, Any] = {
            "data": str(folder),
            "dim": DIM,
            "attributes": {"group": "int"},
            "kafka.bootstrap": self.stack.kafka,
            "kafka.prefix": f"{self.folder.name}.{name}",
            "kafka.partitions": PARTITIONS,
            "warm.url": self.stack.redis,
            "warm.prefix": f"{self.folder.name}.{name}",
            "hot.device": "cpu",
            "move.compact_s": NEVER_S,
            "node.lease_ttl_s": NEVER_S,  # baselines are asked on the loop, for seconds: nobody renews meanwhile
            "policy.promote_heat_min": NEVER_S,
            **{f"policy.{name}": NEVER_S for name in ("hot_age_s", "warm_idle_s", "cold_idle_s")},
            **{key.replace("__", "."): value for key, value in given.items()},
        }
        async with MemoryManager.open(load(None, {}, settings)) as memory:
            await memory.ready()
            threads.opened()
            yield memory
