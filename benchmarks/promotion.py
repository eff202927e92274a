"""What promotion is worth: the share of reads answered from hot, and their latency, before, after, and after a scan.

    python -m benchmarks.promotion --json

A node on real servers holds its records in cold. They are read by id, the n-th most popular 1/n^a as often. Beside the
measured shares stand those of LRU with as many places, simulated on the same reads: recency is what a scan flushes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import structlog

from pipeline import MemoryManager, Query
from pipeline.settings import load
from pipeline.stack import Stack
from tiers import Row, TierName

DIM = 64


class Lru:
    """The cache to compare with: it keeps what was read last."""

    def __init__(self, places: int) -> None:
        self._places, self._held = places, OrderedDict[int, None]()

    def read(self, picked: Sequence[int]) -> float:
        """Read these in order; returns the share that was held."""
        hits = 0
        for one in picked:
            hits += one in self._held
            self._held[one] = None
            self._held.move_to_end(one)
            if len(self._held) > self._places:
                self._held.popitem(last=False)
        return hits / max(1, len(picked))


class Bench:
    """A node whose `count` records lie in cold, and the ways to read them."""

    def __init__(self, memory: MemoryManager, count: int, exponent: float) -> None:
        self.memory, self.count = memory, count
        self._random = np.random.default_rng(0)
        weight = 1 / np.arange(1, count + 1) ** exponent
        self._weight = self._random.permutation(weight / weight.sum())
        self._lru = Lru(memory.node.copies.rows_max)

    async def fill(self) -> None:
        """Publish the records, and move them to cold through the lanes."""
        node, now = self.memory.node, time.time_ns() // 1_000_000
        for start in range(0, self.count, 2_000):
            numbers = range(start, min(start + 2_000, self.count))
            vectors = self._random.normal(size=(len(numbers), DIM)).astype(np.float32)
            given = [Row(str(at), 0, now, None, vectors[at - start], b'{"n":1}') for at in numbers]
            await self.memory.retrieve(Query(ids=[], at_least=await self.memory.store(given)))
            entries = [entry for at in numbers if (entry := node.index.find(str(at))) is not None]
            for partition, lane in node.lanes.items():
                keys = [(entry.id, entry.version) for entry in entries if entry.partition == partition]
                await lane.perform(partial(node.mover.move, partition, TierName.HOT, TierName.COLD, "bench", keys))

    async def reads(self, name: str, times: int) -> dict[str, float | str]:
        """Read by popularity, let promotion do its work after each tenth, and return what was seen."""
        picked: list[int] = self._random.choice(self.count, times, p=self._weight).tolist()
        return await self._measured(name, picked)

    async def scan(self) -> dict[str, float | str]:
        """Read every record once."""
        return await self._measured("scan", self._random.permutation(self.count).tolist())

    async def _measured(self, name: str, picked: list[int]) -> dict[str, float | str]:
        took: dict[bool, list[float]] = {True: [], False: []}
        for at, one in enumerate(picked):
            began = time.perf_counter()
            (hit,) = (await self.memory.retrieve(Query(ids=[str(one)]))).hits
            took[hit.tier is TierName.HOT].append((time.perf_counter() - began) * 1e6)
            if at % max(1, len(picked) // 10) == 0:
                await self._considered()
        await self._considered()
        return {
            "phase": name,
            "reads": len(picked),
            "from_hot": round(len(took[True]) / len(picked), 4),
            "lru_simulated": round(self._lru.read(picked), 4),
            "hot_p50_us": round(float(np.median(took[True])), 1) if took[True] else 0.0,
            "cold_p50_us": round(float(np.median(took[False])), 1) if took[False] else 0.0,
            "copies": len(self.memory.node.copies),
        }

    async def _considered(self) -> None:
        """Wait until the reads so far have become heat, and what that promotes has its copies."""
        node = self.memory.node
        counted = sum(node.access.reads.values())
        await node.access.flush()
        async with asyncio.timeout(30):
            while node.heat.accesses < counted:
                await asyncio.sleep(0.005)
        for lane in node.lanes.values():
            await lane.perform(partial(asyncio.sleep, 0))


async def measure(count: int, reads: int, exponent: float) -> list[dict[str, float | str]]:
    """Run all phases and return their numbers."""
    with tempfile.TemporaryDirectory() as directory:
        async with Stack(Path(directory) / "stack") as stack:
            given = {
                "data": f"{directory}/node",
                "dim": DIM,
                "kafka.bootstrap": stack.kafka,
                "kafka.partitions": 4,
                "warm.url": stack.redis,
                "hot.device": "cpu",
                "hot.capacity_rows": 16_384,
                "hot.slab_rows": 512,
                "hot.copy_fraction": 0.0625,
                "policy.hot_age_s": 3_600.0,
                "access.flush_ms": 3_600_000,
            }
            async with MemoryManager.open(load(None, {}, given)) as memory:
                await memory.ready()
                bench = Bench(memory, count, exponent)
                await bench.fill()
                return [
                    await bench.reads("first reads", reads),
                    await bench.reads("popular", reads),
                    await bench.reads("popular, longer", reads),
                    await bench.scan(),
                    await bench.reads("after the scan", reads // 4),
                ]


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--reads", type=int, default=20_000)
    parser.add_argument("--exponent", type=float, default=1.0)
    parser.add_argument("--json", action="store_true", help="one object as the last line")
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    phases = asyncio.run(measure(given.records, given.reads, given.exponent))
    if given.json:
        print(json.dumps({"records": given.records, "exponent": given.exponent, "phases": phases}))
        return
    for phase in phases:
        print("  ".join(f"{name} {value}" for name, value in phase.items()))


if __name__ == "__main__":
    main()
