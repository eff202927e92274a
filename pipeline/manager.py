"""MemoryManager: the face of a node in one's own process. Its parts have their own modules; see `app.open_node`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from pipeline.app import Node, Service, now_ms, open_node, supervise
from pipeline.codes import codes
from pipeline.read_counts import ReadCounts
from pipeline.settings import Settings, load
from pipeline.tracing import record_read, tracing_of
from producers import events
from producers.decoder import check_vector
from producers.tracing import Tracing
from tiers import listing, read, record
from tiers.deadline import Deadline
from tiers.errors import InvalidRecord, Replaying
from tiers.reading import Reading
from tiers.record import Floats, Row
from tiers.tier import Hit, Query, Result, TierName

TURN_S = 0.005


class MemoryManager:
    """Store, retrieve, list and clear memories over all four tiers. Open it with `MemoryManager.open(settings)`."""

    def __init__(self, node: Node) -> None:
        self.node, self.reads = node, ReadCounts()
        self._replayed = False
        self._fresh: tuple[int, dict[str, Any]] = (0, {})
        self._turned_s = 0.0  # when a read last let other tasks have their turn

    @classmethod
    @asynccontextmanager
    async def open(
        cls, settings: Settings | None = None, *extra: Service, tracing: Tracing | None = None
    ) -> AsyncIterator[MemoryManager]:
        """Start a node in this process and stop it in order at the end.

        A part that fails cancels the body and raises an ExceptionGroup. Reads raise Replaying until the log has been
        replayed; `await ready()` waits for that. `extra` services run and stop with the node's own.
        `tracing` is of a program with a tracer provider of its own (`Tracing.over`), instead of `settings.trace`.
        """
        settings = settings if settings is not None else load()
        async with tracing_of(settings.trace, tracing) as tracer, open_node(settings, tracer) as node:
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

    async def publish(self, batch: Sequence[tuple[str, bytes | None]], kind: str = events.JSON_TYPE) -> str:
        """Publish events encoded as `kind` (None deletes) in order; returns the token."""
        producer = self.node.producer
        futures = [await producer.publish(identifier, value, kind) for identifier, value in batch]
        return producer.token(await asyncio.gather(*futures))

    async def delete(self, identifier: str) -> str:
        """Publish a delete; returns the token."""
        return await self.node.producer.delete(identifier)

    async def retrieve(self, query: Query) -> Result:
        """Answer a query over the tiers it names; every answer says how complete it is (R7).

        Replaying, NotYet (at_least was not reached in time), InvalidRecord.
        """
        node, asked, began = self.node, Deadline(query.deadline_ms), time.perf_counter()
        self._check(query)
        if query.at_least is not None:
            positions, epoch = events.decode_token(query.at_least)
            if epoch != node.manifest.epoch:
                raise InvalidRecord("token", _other_log(epoch, node.manifest.epoch))
            limit_s = node.settings.gateway.at_least_timeout_ms / 1000
            await node.ingest.wait(positions, limit_s if asked.left_s is None else min(limit_s, asked.left_s))
        if query.ids is not None and read.plain(query):
            row = self.peek(query.ids[0], query.namespaces, vector="vector" in query.include)
            if row is not None:
                took_ms = (time.perf_counter() - began) * 1000
                return Result([Hit(row, TierName.HOT)], scanned=1, of=1, freshness=self.freshness(), took_ms=took_ms)
        self.check_ready()
        left_ms = asked.left_s * 1000 if asked.left_s is not None else node.settings.gateway.deadline_ms
        query = msgspec.structs.replace(query, deadline_ms=left_ms)
        result = await read.retrieve(node.index, node.tiers, query, node.scanner, now_ms())
        result.freshness = self.freshness()
        node.access.note(result.hits, node.copies.has)
        self.reads.noted(result.trace, result)
        if node.tracing.on:
            record_read(node.tracing, result, began)
        if began - self._turned_s > TURN_S:  # most answers wait for nothing, and who polls would starve what it awaits
            self._turned_s = began
            await asyncio.sleep(0)
        return result

    def peek(self, identifier: str, namespaces: Collection[str] | None = None, *, vector: bool = False) -> Row | None:
        """Return a record that lies in hot, in this loop step; None: `retrieve` says whether there is one. Replaying.

        A node that traces has none: its spans are made of what `retrieve` notes.
        """
        self.check_ready()
        node = self.node
        if node.tracing.on:
            return None
        now = now_ms()
        row = read.at_once(node.index, node.hot, identifier, now, namespaces, vector=vector)
        if row is not None:
            node.access.note_one(identifier, TierName.HOT, now, copied=node.copies.has(identifier))
            self.reads.noted(None)
        return row

    def check_ready(self) -> None:
        """Raise Replaying before the log has been replayed: until then absence means nothing (R7)."""
        if not self._replayed:
            if replaying := self.node.replaying():
                raise Replaying(f"partitions {replaying} are replaying the log; ask again soon")
            self._replayed = True

    def _check(self, query: Query) -> None:
        limits = self.node.settings.gateway
        if query.vector is not None:
            check_vector(np.asarray(query.vector, np.float32), self.node.settings.dim)
        for name, value, most in (("k", query.k, limits.k_max), ("limit", query.limit, limits.records_max)):
            if not 1 <= value <= most:
                raise InvalidRecord(name, f"{name} is 1 to {most}")
        if query.ids is not None and len(query.ids) > limits.records_max:
            raise InvalidRecord("ids", f"at most {limits.records_max} ids at once")
        if query.deadline_ms is not None and not 1 <= query.deadline_ms <= limits.deadline_ms:
            raise InvalidRecord("deadline_ms", f"deadline_ms is 1 to {limits.deadline_ms:g} ms")
        if not query.tiers:
            raise InvalidRecord("tiers", "name at least one tier")

    async def retrieve_all(self, query: Query | None = None) -> AsyncIterator[pa.RecordBatch]:
        """Yield every live record that meets the criteria of `query`, as `pages` does, in batches of records."""
        shape = record.schema(self.node.settings.dim, self.node.settings.attributes)
        async for hits in self.pages(query if query is not None else Query()):
            yield record.to_batch([hit.row for hit in hits], shape)

    async def pages(self, query: Query) -> AsyncIterator[Sequence[Hit]]:
        """Yield every live record that meets the criteria of `query`, in the order of ids, an id once.

        Each at its newest version at some moment of the listing. TierUnavailable when a tier does not answer.
        """
        self._check(query)
        self.check_ready()
        node = self.node
        reading = Reading(node.index, node.tiers, query, now_ms())
        try:
            async for hits in listing.everything(reading, node.scanner):
                yield hits
        finally:
            self.reads.noted(reading.trace)

    async def clear(self, tier: str | TierName) -> int:
        """Delete every record whose home is this tier, for good; returns how many.

        Replaying, InvalidRecord for a name that is no tier, TierFull, TierUnavailable, LogUnavailable (ask again).
        """
        try:
            name = tier if isinstance(tier, TierName) else TierName[tier.upper()]
        except KeyError as error:
            known = ", ".join(each.word for each in TierName)
            raise InvalidRecord("tier", f"{tier!r} is no tier; they are {known}") from error
        return await self.node.clearing.clear(name)

    async def cleanup(self) -> int:
        """Evict what is superseded and flush what is folded, now rather than in time; returns the rows evicted."""
        await self.node.access.flush()
        return await self.node.clearing.cleanup()

    # -- looking -----------------------------------------------------------------------------------------------------

    def embed(self, text: str) -> Floats:
        """Return the vector of a text; InvalidRecord when the node has no embedder."""
        if self.node.embed is None:
            raise InvalidRecord("text_without_embedder", "this node has no embedder; send a vector, or set embedder")
        vector: Floats = self.node.embed([text])[0]
        return vector

    def freshness(self) -> dict[str, Any]:
        """Return the applied offsets and how far behind the log the slowest partition is, in ms.

        Looked up at most once a millisecond: thousands of reads by id may be answered meanwhile.
        """
        now = now_ms()
        if self._fresh[0] != now:
            self._fresh = now, self._freshness(now)
        return self._fresh[1]

    def _freshness(self, now: int) -> dict[str, Any]:
        ingest = self.node.ingest
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
            "codes": msgspec.to_builtins(codes(node)),
            "archive": msgspec.to_builtins(node.glacier.census()),
            "moved": [{"from": s, "to": t, "records": n} for (s, t), n in sorted(node.mover.moved.items())],
            "copies": {
                "records": len(node.copies),
                "records_max": node.copies.rows_max,
                "promoted": node.copies.promoted,
                "evicted": dict(node.copies.evicted),
            },
            "reads": {tier.word: node.access.reads[tier] for tier in TierName} | {"copies": node.access.copy_reads},
            "ingested": node.ingest.rows,
            "dead_letters": dict(node.ingest.letters),
            "dirty": {str(p): mark.dirty for p, mark in node.ingest.watermarks.items()},
            "watermark": {str(p): mark.value for p, mark in node.ingest.watermarks.items()},
            "paused": sorted(node.reader.paused),
            "replaying": node.replaying(),
            "freshness": self.freshness(),
            "at": time.time(),
        }


def _other_log(given: int, present: int) -> str:
    """Return why a token of another epoch of the log is refused. Pure."""
    return (
        f"at_least was given for epoch {given} of the log, and this is epoch {present} (`isotherm log adopt`): what it "
        "stands for is here already, or was lost with the other log; read without it. A MemoryProducer of your own "
        f"is told with epoch={present}"
    )
