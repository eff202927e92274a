"""What a move costs in operations: a guard that needs no clock.

Each way down is gone with n rows and with 2 n, over real stores. What doubles is the cost of a row, what does not that
of a move; both have limits a little above what they are, so that work for each row in Python, a copy, a request, a
commit or an fsync that comes back is seen at once.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import consumers
import producers
import tiers
from consumers.mover import Mover
from consumers.watermark import Watermark
from producers.changes import Changes
from tests.consumers.world import TOPICS, FakePublisher
from tests.valkey_server import ValkeyServer
from tiers import disk, record
from tiers.cold import ColdMemory
from tiers.cold_settings import ColdSettings
from tiers.device import HostDevice
from tiers.glacier import GlacierMemory
from tiers.glacier_settings import GlacierSettings
from tiers.hot import HotMemory, HotSettings
from tiers.index import Index
from tiers.tier import Tier, TierName
from tiers.warm import WarmMemory
from tiers.warm_settings import WarmSettings

HOT, WARM, COLD, GLACIER = TierName
DIM, ROWS, NOW_MS = 64, 1_000, 1_700_000_000_000
SHAPE = record.schema(DIM, {"user": "string", "rank": "int"})


OURS = tuple(str(Path(part.__file__).parent) for part in (consumers, producers, tiers))


class Cursor:
    """DuckDB's connection, counting statements and commits."""

    def __init__(self, connection: Any, counts: Counter[str]) -> None:
        self._connection, self._counts = connection, counts

    def execute(self, statement: str, *given: Any) -> Any:
        self._counts["duckdb statements"] += 1
        self._counts["duckdb commits"] += statement == "COMMIT"
        return self._connection.execute(statement, *given)

    def __getattr__(self, name: str) -> Any:
        self._counts["duckdb statements"] += name == "sql"
        return getattr(self._connection, name)


class Counting:
    """Counts while `on`: calls of functions in all threads, and what the stores are asked for."""

    def __init__(self) -> None:
        self.on, self.counts = False, Counter[str]()

    def profile(self, frame: FrameType, event: str, _: Any) -> None:
        if self.on and frame.f_code.co_filename.startswith(OURS):  # how often a loop wakes up is not ours
            self.counts[event] += 1

    def fsync(self, path: Path) -> None:
        self.counts["fsyncs"] += self.on
        disk.fsync(path)


@pytest.fixture
def counting() -> Iterator[Counting]:
    """Profile this thread and those that begin from now on."""
    counting = Counting()
    threading.setprofile(counting.profile)
    sys.setprofile(counting.profile)
    yield counting
    sys.setprofile(None)
    threading.setprofile(None)  # type: ignore[arg-type]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ValkeyServer]:
    with ValkeyServer(tmp_path) as running:
        yield running


class Node:
    """Four tiers, index and mover, one partition; the log is a list."""

    def __init__(self, index: Index, four: dict[TierName, Tier], counting: Counting) -> None:
        self.index, self.tiers, self.counting = index, four, counting
        self.publisher, self.marks, self.end = FakePublisher([]), {0: Watermark(0)}, 0
        changes = Changes(self.publisher, TOPICS.changes, lambda: NOW_MS)  # type: ignore[arg-type]
        self.mover = Mover(index, four, changes, SHAPE, self.marks, lambda _: 0, self._keep)

    async def _keep(self, partition: int, batch: pa.RecordBatch) -> None:
        """No row is read often enough to stay."""

    async def ingest(self, rows: int) -> list[tuple[str, int]]:
        """Put new rows into hot, as ingest does; returns their keys."""
        start, hot = self.end, self.tiers[HOT]
        assert isinstance(hot, HotMemory)
        self.end += rows
        batch = batch_of(start, rows)
        slots = await hot.reserve(batch, 0)
        self.index.put(batch, np.zeros(rows, np.int32), HOT, slots, NOW_MS)
        hot.publish(slots)
        self.marks[0].open(start, self.end, rows)
        return list(zip(batch["id"].to_pylist(), batch["version"].to_pylist(), strict=True))

    async def cost(self, source: TierName, target: TierName, keys: list[tuple[str, int]]) -> Counter[str]:
        """Move, and return the operations."""
        commands, messages, pool = await self._commands(), self._messages(), pa.default_memory_pool()
        self.counting.counts.clear()
        allocated, self.counting.on = pool.total_bytes_allocated(), True
        moved = await self.mover.move(0, source, target, "age", keys)
        self.counting.on = False
        assert len(keys) == moved
        found = self.counting.counts + Counter({"arrow bytes": pool.total_bytes_allocated() - allocated})
        found["python calls"], found["c calls"] = found.pop("call"), found.pop("c_call")
        found["valkey commands"] = await self._commands() - commands - 1  # one is the question itself
        found["messages"] = self._messages() - messages
        return found

    async def _commands(self) -> int:
        warm = self.tiers[WARM]
        assert isinstance(warm, WarmMemory)
        stats = await warm.client.info("commandstats")
        return sum(int(one["calls"]) for one in stats.values())

    def _messages(self) -> int:
        return len(self.publisher.sent.get(TOPICS.changes, ()))


def batch_of(start: int, rows: int) -> pa.RecordBatch:
    """Return records of growing offsets."""
    numbers = np.arange(start, start + rows)
    times = pa.array(np.full(rows, NOW_MS)).cast(pa.timestamp("ms", "UTC"))
    attributes = [pa.array([f"u{n % 9}" for n in numbers.tolist()]), pa.array(numbers)]
    columns = [
        pa.array([f"agent/memory-{n:06d}" for n in numbers.tolist()]),
        pa.array(numbers << record.ROW_BITS),
        times,
        pa.nulls(rows, times.type),
        record.vector_array(np.random.default_rng(start).normal(size=(rows, DIM)).astype(np.float32)),
        pa.array([b"x" * 200] * rows, pa.binary()),
        pa.StructArray.from_arrays(attributes, ["user", "rank"]),
        pa.array(np.zeros(rows, bool)),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SHAPE)


@asynccontextmanager
async def opened(server: ValkeyServer, folder: Path, counting: Counting) -> AsyncIterator[Node]:
    """Open four tiers on one index."""
    index = Index.of(SHAPE)
    async with AsyncExitStack() as stack:
        settings = HotSettings(device="cpu", capacity_rows=16_384, slab_rows=1_024)
        hot = HotMemory(settings, SHAPE, partitions=1, index=index, device=HostDevice())
        warm = await WarmMemory.open(WarmSettings(url=server.url), SHAPE, partitions=1, index=index)
        cold = await ColdMemory.open(ColdSettings(path=str(folder / "cold")), SHAPE, partitions=1, index=index)
        glacier_settings = GlacierSettings(path=str(folder / "glacier"))
        glacier = await GlacierMemory.open(glacier_settings, SHAPE, partitions=1, index=index, fsync=counting.fsync)
        four: dict[TierName, Tier] = {HOT: hot, WARM: warm, COLD: cold, GLACIER: glacier}
        for tier in four.values():
            stack.push_async_callback(tier.cleanup)
        await warm.raise_epoch(0, 1)
        await glacier.raise_epoch(0, 1)
        table = cold._rows._table
        table._connection = Cursor(table._connection, counting.counts)
        yield Node(index, four, counting)


#: Of a move of ROWS rows at most so many operations, and of each further row so many. "python calls" are our own
#: functions that were entered or resumed, in any thread; "c calls" what they call, most a look at the index's map;
#: "arrow bytes" are allocated by Arrow, for rows of 530 bytes: copies. A script's own commands count as Valkey's.
LIMITS: dict[tuple[TierName, TierName], dict[str, tuple[float, float]]] = {
    (HOT, WARM): {
        "python calls": (600, 0.3), "c calls": (2_200, 2.0), "arrow bytes": (3.8e6, 3_700),
        "valkey commands": (20, 0.03), "duckdb statements": (0, 0), "fsyncs": (0, 0), "messages": (1, 0.001),
    },
    (WARM, COLD): {
        "python calls": (600, 0.2), "c calls": (4_600, 4.0), "arrow bytes": (4.6e6, 4_700),
        "valkey commands": (1_020, 1.01), "duckdb statements": (4, 0), "duckdb commits": (2, 0), "messages": (1, 0.001),
    },
    (COLD, GLACIER): {
        "python calls": (600, 0.2), "c calls": (600, 0.3), "arrow bytes": (6.8e6, 6_000),
        "duckdb statements": (4, 0), "duckdb commits": (1, 0), "fsyncs": (5, 0), "messages": (1, 0.001),
    },
    (HOT, COLD): {
        "python calls": (600, 0.2), "c calls": (600, 0.3), "arrow bytes": (2.6e6, 2_600),
        "duckdb statements": (4, 0), "duckdb commits": (1, 0), "fsyncs": (0, 0), "messages": (1, 0.001),
    },
}  # fmt: skip


async def test_a_move_costs_so_many_operations(server, tmp_path, counting):
    """Each way down stays within its limits, with n rows and for each further row."""
    costs: dict[tuple[TierName, TierName], list[Counter[str]]] = {}
    async with opened(server, tmp_path, counting) as node:
        for rows in (ROWS, ROWS, 2 * ROWS):  # the first time imports and prepares
            for path in ((HOT, WARM, COLD, GLACIER), (HOT, COLD)):
                keys = await node.ingest(rows)
                for way in pairwise(path):
                    costs.setdefault(way, []).append(await node.cost(*way, keys))
    beyond = []
    for way, (_, once, twice) in costs.items():
        for name, (most, most_a_row) in LIMITS[way].items():
            a_row = (twice[name] - once[name]) / ROWS
            if once[name] > most or a_row > most_a_row:
                beyond.append(f"{way[0].word} to {way[1].word}: {once[name]} {name}, and {a_row} a row")

    assert [] == beyond
