"""MemoryManager: the face of a node in one's own process. Its parts have their own modules; see `app.open_node`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from pipeline.app import Node, Service, now_ms, open_node, supervise
from pipeline.settings import Settings, load
from producers import events
from producers.decoder import check_vector
from tiers import read, record
from tiers.errors import InvalidRecord, Replaying
from tiers.record import Floats, Row
from tiers.tier import Query, Result, TierName

CLEANUP_ROWS = 10_000  # rows evicted in one job
LIST_ROWS = 1_000  # rows fetched and yielded together when everything is listed


class MemoryManager:
    """Store, retrieve, list and clear memories over all four tiers. Open it with `MemoryManager.open(settings)`."""

    def __init__(self, node: Node) -> None:
        self.node = node

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings | None = None, *extra: Service) -> AsyncIterator[MemoryManager]:
        """Start a node in this process and stop it in order at the end.

        A part that fails cancels the body and raises an ExceptionGroup. Reads raise Replaying until the log has been
        replayed; `await ready()` waits for that. `extra` services run and stop with the node's own.
        """
        settings = settings if settings is not None else load()
        async with open_node(settings) as node:
            manager, stop = cls(node), asyncio.Event()
            async with asyncio.TaskGroup() as group:
                services = [*node.services, *extra]
                group.create_task(supervise(services, stop, settings.node.drain_s), name="supervisor")
                try:
                    yield manager
                finally:
                    stop.set()

    async def ready(self, timeout_s: float = 300.0) -> None:
        """Wait until every partition has replayed its log."""
        until = self.node.ingest.replay_until
        await self.node.ingest.wait({p: end - 1 for p, end in until.items() if end}, timeout_s)

    # -- the five verbs ----------------------------------------------------------------------------------------------

    async def store(self, records: pa.RecordBatch | Iterable[Row]) -> str:
        """Publish records to the log, like everyone else; returns the token for `at_least`."""
        if not isinstance(records, pa.RecordBatch):
            shape = record.schema(self.node.settings.dim, self.node.settings.attributes)
            records = record.to_batch(list(records), shape)
        return await self.node.producer.send_batch(records)

    async def publish(self, batch: Sequence[tuple[str, bytes | None]]) -> str:
        """Publish encoded events (None deletes) in order; returns the token."""
        producer = self.node.producer
        futures = [await producer.publish(identifier, value) for identifier, value in batch]
        return producer.token(await asyncio.gather(*futures))

    async def delete(self, identifier: str) -> str:
        """Publish a delete; returns the token."""
        return await self.node.producer.delete(identifier)

    async def retrieve(self, query: Query) -> Result:
        """Answer a query over the tiers it names; every answer says how complete it is (R7).

        Replaying, NotYet (at_least was not reached in time), InvalidRecord.
        """
        node = self.node
        self._check(query)
        if query.at_least is not None:
            positions, epoch = events.decode_token(query.at_least)
            if epoch != node.manifest.epoch:
                raise InvalidRecord("token", "at_least was given for another log")
            timeout_ms = query.deadline_ms or node.settings.gateway.at_least_timeout_ms
            await node.ingest.wait(positions, timeout_ms / 1000)
        if node.replaying():
            raise Replaying(f"partitions {node.replaying()} are replaying the log; ask again soon")
        result = await read.retrieve(node.index, node.tiers, query, node.search_pool)
        result.freshness = self.freshness()
        node.access.note(result.hits)
        return result

    def _check(self, query: Query) -> None:
        if query.vector is not None:
            check_vector(np.asarray(query.vector, np.float32), self.node.settings.dim)
            if not 1 <= query.k <= self.node.settings.gateway.k_max:
                raise InvalidRecord("k", f"k is 1 to {self.node.settings.gateway.k_max}")

    async def retrieve_all(self) -> AsyncIterator[pa.RecordBatch]:
        """Yield every live record, each at its newest version at some moment of the listing, an id once."""
        node = self.node
        if node.replaying():
            raise Replaying(f"partitions {node.replaying()} are replaying the log; ask again soon")
        shape = record.schema(node.settings.dim, node.settings.attributes)
        ids = [
            segment.ids[row]
            for segment in node.index.segments()
            for row in np.flatnonzero(segment.alive[: segment.count] & ~segment.deleted[: segment.count]).tolist()
        ]
        for start in range(0, len(ids), LIST_ROWS):
            missed: set[str] = set()
            found = await read.resolve(node.index, node.tiers, ids[start : start + LIST_ROWS], missed)
            if missed:
                raise Replaying(f"tiers {sorted(missed)} did not answer; the listing cannot be complete")
            yield record.to_batch([row for row, _ in found.values()], shape)

    async def clear(self, tier: str | TierName) -> int:
        """Delete every record whose home is this tier, for good; returns how many."""
        name = tier if isinstance(tier, TierName) else TierName[tier.upper()]
        return await self.node.clearing.clear(name)

    async def cleanup(self) -> None:
        """Evict what is superseded and flush what is folded, now rather than in time; data stays."""
        node = self.node
        await node.access.flush()
        for partition, lane in node.lanes.items():
            for tier in (TierName.WARM, TierName.COLD):
                while node.index.queue.list(partition, tier, 1):
                    await lane.perform(partial(node.mover.evict_queued, partition, tier, CLEANUP_ROWS))
            await lane.perform(partial(node.mover.compact, partition, CLEANUP_ROWS))
        await node.commit.step()

    # -- looking -----------------------------------------------------------------------------------------------------

    def embed(self, text: str) -> Floats:
        """Return the vector of a text; InvalidRecord when the node has no embedder."""
        if self.node.embed is None:
            raise InvalidRecord("text_without_embedder", "this node has no embedder; send a vector, or set embedder")
        vector: Floats = self.node.embed([text])[0]
        return vector

    def freshness(self) -> dict[str, Any]:
        """Return the applied offsets and how far behind the log the slowest partition is, in ms."""
        ingest, now = self.node.ingest, now_ms()
        behind = [now - ingest.applied_at.get(p, now) for p in self.node.lanes if self.node.reader.behind(p)]
        return {
            "applied": {str(partition): ingest.applied(partition) for partition in self.node.lanes},
            "lag_ms": max(behind, default=0),
        }

    async def tiers(self) -> dict[str, Any]:
        """Return what each tier holds against its limits, and what moves between them."""
        node = self.node
        census = node.index.census()
        usages = await node.usages()
        return {
            "tiers": {
                name.word: {
                    "records": int(census[name, 0]),
                    "tombstones": int(census[name, 1]),
                    "queued": sum(node.index.queue.count(partition, name) for partition in node.lanes),
                    **msgspec.to_builtins(usages[name]),
                }
                for name in TierName
            },
            "archive": msgspec.to_builtins(node.glacier.census()),
            "moved": [{"from": s, "to": t, "records": n} for (s, t), n in sorted(node.mover.moved.items())],
            "ingested": node.ingest.rows,
            "dead_letters": dict(node.ingest.letters),
            "dirty": {str(p): mark.dirty for p, mark in node.ingest.watermarks.items()},
            "watermark": {str(p): mark.value for p, mark in node.ingest.watermarks.items()},
            "paused": sorted(node.reader.paused),
            "replaying": node.replaying(),
            "freshness": self.freshness(),
            "at": time.time(),
        }
