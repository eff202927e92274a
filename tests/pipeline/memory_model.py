"""The two sides of the stateful model test: a node with a loop of its own, and what it should hold, as a dictionary."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import MemoryManager, Query
from producers import events
from tests.nodes import DIM, until
from tiers import Result, Row, TierName

HOUR_MS = 3_600_000
TTL_S = 0.05
USERS = ("u0", "u1", "u2")


@dataclass(frozen=True)
class Known:
    """One record as it was last published."""

    vector: npt.NDArray[np.float32]
    payload: bytes
    user: str
    event_time: int


class Model:
    """`known` by id; `make` gives the next record, different from all before."""

    def __init__(self) -> None:
        self.known: dict[str, Known] = {}
        self._numbers = count(1)

    def make(self, identifier: str) -> Known:
        """Return a new record of an id, and remember it as the newest."""
        number = next(self._numbers)
        vector = np.random.default_rng(number).normal(size=DIM).astype(np.float32)
        event_time = (time.time_ns() // 1_000_000) - (number % 5) * HOUR_MS
        made = self.known[identifier] = Known(vector, b"%d" % number, USERS[number % 3], event_time)
        return made

    def row(self, identifier: str) -> Row:
        """Return a new record of an id as a row."""
        made = self.make(identifier)
        attributes = {"user": made.user, "score": 1.0}
        return Row(identifier, 0, made.event_time, None, made.vector, made.payload, attributes)

    def nearest(self, query: npt.NDArray[np.float32], k: int) -> list[str]:
        """Return the ids nearest to a query."""
        scores = {i: -float(one.vector @ query / np.linalg.norm(one.vector)) for i, one in self.known.items()}
        return sorted(scores, key=scores.__getitem__)[:k]


class Life:
    """A manager on an event loop of its own, opened and closed from synchronous rules."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine to its end."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    async def open(self, node_settings: Any) -> MemoryManager:
        """Open a manager whose closing another call triggers."""
        opened: asyncio.Future[MemoryManager] = self.loop.create_future()
        self.closing = asyncio.Event()

        async def live() -> None:
            try:
                async with MemoryManager.open(node_settings) as manager:
                    await manager.ready()
                    opened.set_result(manager)
                    await self.closing.wait()
            except BaseException as error:
                if not opened.done():
                    opened.set_exception(error)
                raise

        self.task = asyncio.create_task(live())
        return await opened

    async def close(self) -> None:
        """Close the manager in order."""
        self.closing.set()
        await self.task

    async def crash(self) -> None:
        """End the manager without a goodbye: no lane finishes its job, and no last watermark is committed."""
        self.task.cancel()
        await asyncio.wait({self.task})

    async def _bury(self) -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def end(self) -> None:
        """End the loop, and what a crash has left on it."""
        self.do(self._bury())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


# -- what a rule does to a node ----------------------------------------------------------------------------------------


async def send(memory: MemoryManager, identifier: str, made: Known, ttl_s: float | None) -> str:
    """Publish one record as a producer does; returns its token."""
    when = datetime.fromtimestamp(made.event_time / 1000, UTC)
    attributes = {"user": made.user, "score": 1.0}
    payload = int(made.payload)
    return await memory.node.producer.send(identifier, made.vector, payload, attributes, when, ttl_s)


async def delete_if(memory: MemoryManager, identifier: str, version: int) -> str:
    """Publish a delete that counts while a version is the newest; returns its token."""
    node = memory.node
    headers = events.condition_headers("test", identifier, version)
    sent = await node.publisher.enqueue(node.topics.memories, None, identifier.encode(), headers=headers)
    return node.producer.token([await sent])


async def demote(memory: MemoryManager, identifiers: Sequence[str], target: TierName) -> None:
    """Move records down to a tier, each in its lane."""
    node = memory.node
    for identifier in identifiers:
        entry = node.index.find(identifier)
        if entry is not None and entry.home < target:
            key = [(identifier, entry.version)]
            job = partial(node.mover.move, entry.partition, TierName(entry.home), target, "test", key)
            await node.lanes[entry.partition].perform(job)


async def promote(memory: MemoryManager, identifiers: list[str]) -> None:
    """Put copies of records into hot."""
    node = memory.node
    now_ms = node.ingest._now_ms()
    node.index.touch(identifiers, [9] * len(identifiers), [now_ms] * len(identifiers), 300_000)
    for partition, lane in node.lanes.items():
        await lane.perform(partial(node.heat._promotion.promote, partition, identifiers))
    entries = [entry for name in identifiers if (entry := node.index.find(name)) is not None]
    assert all(node.copies.has(e.id) for e in entries if e.home != TierName.HOT and not e.deleted)


async def cool(memory: MemoryManager, identifiers: Sequence[str]) -> None:
    """Take copies away."""
    memory.node.copies.evict(identifiers, "test")


async def compact(memory: MemoryManager) -> None:
    """Let glacier drop what it may, and let the index rewrite its segments."""
    node = memory.node
    for partition, lane in node.lanes.items():
        await lane.perform(partial(node.mover.compact, partition, 4_096))
    while node.index.compact():
        pass


async def reindex(memory: MemoryManager) -> None:
    """Train a new codebook and code everything by it, if there is a first one."""
    coder = memory.node.coder
    if coder.reindex.request():
        await until(lambda: coder.reindex.progress() is None)


# -- what every read must say ------------------------------------------------------------------------------------------


async def _whole(memory: MemoryManager, query: Query) -> Result:
    """Return a complete answer: one that a tier missed, on a busy machine, says so and is asked for again (R7)."""
    for _ in range(20):
        result = await memory.retrieve(query)
        if result.complete:
            return result
    raise AssertionError(f"never complete: {result.missed}")


async def agrees(memory: MemoryManager, model: Model, names: list[str]) -> None:
    """Assert that reads by ids, filter, time and vector, and the listing, say what the dictionary says."""
    known = model.known
    by_id = (await _whole(memory, Query(ids=names))).hits
    found = {hit.row.id: hit.row for hit in by_id}
    assert (len(found), known.keys()) == (len(by_id), found.keys())
    for identifier, one in known.items():
        row = found[identifier]
        told = (row.payload, row.attributes["user"], row.event_time)
        assert (one.payload, one.user, one.event_time) == told
        assert np.array_equal(one.vector, row.vector)
    single = names[len(known) % len(names)]
    assert [single] * (single in known) == [hit.row.id for hit in (await _whole(memory, Query(ids=[single]))).hits]
    filtered = await _whole(memory, Query(filter="user = 'u1'", limit=1_000))
    assert sorted(i for i, one in known.items() if one.user == "u1") == [hit.row.id for hit in filtered.hits]
    since = (time.time_ns() // 1_000_000) - 2 * HOUR_MS - HOUR_MS // 2
    recent = await _whole(memory, Query(time_from_ms=since, limit=1_000))
    assert sorted(i for i, one in known.items() if one.event_time >= since) == [hit.row.id for hit in recent.hits]
    listed = [i async for batch in memory.retrieve_all() for i in batch["id"].to_pylist()]
    assert sorted(known) == listed
    query = np.ones(DIM, np.float32)
    hits = (await _whole(memory, Query(vector=query, k=3))).hits
    assert model.nearest(query, 3) == [hit.row.id for hit in hits]
