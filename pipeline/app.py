"""Wires a node: opens everything in order, then supervises its services; closes in reverse.

    lock -> manifest -> topics -> open tiers -> lease -> raise the epoch in warm and glacier -> rebuild the index
    -> read the committed offsets -> replay -> ready

A service that fails, or ends before it was told to, ends the process (R9); the next start heals by replay (R1, R2).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
import pyarrow as pa
import structlog

from consumers import log_faults
from consumers.clearing import Clearing
from consumers.coding import Coder
from consumers.commit import Commit
from consumers.demote import Demote
from consumers.heat import Heat
from consumers.ingest import Ingest
from consumers.lane import Lane
from consumers.lease import Lease
from consumers.log_faults import Identity
from consumers.mover import Mover
from consumers.promote import Promotion
from consumers.reader import Handler, Reader
from consumers.recall import Recall
from consumers.upkeep import Upkeep
from consumers.watermark import Watermark
from pipeline.embed import load_embedder
from pipeline.log_identity import identity
from pipeline.log_watch import LogWatch
from pipeline.loop_probe import LoopProbe
from pipeline.manifest import Clearances, DataDirectory, Manifest
from pipeline.settings import Settings
from pipeline.sql import Sql
from pipeline.sql_snapshot import Maker
from pipeline.topics import ensure_topics
from producers.access import Access
from producers.age import AgeMonitor
from producers.changes import Changes
from producers.columns import BATCH_ROWS
from producers.decoder import Embed, EventDecoder
from producers.events import Topics
from producers.expiry import Expiry
from producers.memories import MemoryProducer
from producers.publisher import Publisher
from producers.tracing import OFF, Tracing
from tiers import failpoint, record
from tiers.cold import ColdMemory
from tiers.copies import Copies
from tiers.errors import LogChanged
from tiers.glacier import GlacierMemory
from tiers.hot import HotMemory
from tiers.index import Index
from tiers.rebuild import load
from tiers.scan import Scanner
from tiers.tier import Location, Tier, TierName
from tiers.usages import Usages
from tiers.warm import WarmMemory
from tiers.worker import SerialExecutor

log = structlog.get_logger()

TOPIC_S = 30.0  # until every broker knows a topic that was just made


class Service(Protocol):
    """Something that runs until told to stop."""

    name: str

    async def run(self, stop: asyncio.Event) -> None:
        """Run; returning before `stop` is an error."""


def now_ms() -> int:
    """Return the wall clock in ms since 1970, the one clock of the wiring (parts take it as an argument)."""
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class Node:
    """The parts of a running node, open and rebuilt; `services` are what `supervise` runs."""

    settings: Settings
    manifest: Manifest
    index: Index
    hot: HotMemory
    tiers: dict[TierName, Tier]
    glacier: GlacierMemory
    publisher: Publisher
    producer: MemoryProducer
    topics: Topics
    reader: Reader
    ingest: Ingest
    mover: Mover
    commit: Commit
    access: Access
    heat: Heat
    demote: Demote
    age: AgeMonitor
    copies: Copies
    expiry: Expiry
    clearing: Clearing
    lanes: dict[int, Lane]
    lease: Lease
    loop_probe: LoopProbe
    log_watch: LogWatch
    tracing: Tracing
    scanner: Scanner
    sql: Sql
    coder: Coder
    recall: Recall
    embed: Embed | None
    usages: Usages
    services: list[Service] = field(default_factory=list)

    def replaying(self) -> list[int]:
        """Return the partitions that do not answer yet (R7)."""
        return [partition for partition in self.lanes if not self.ingest.ready(partition)]


async def supervise(services: Sequence[Service], stop: asyncio.Event, drain_s: float) -> None:
    """Run services until `stop`, then give them `drain_s` to end; TimeoutError past it, ExceptionGroup on a crash.

    A crash cancels the others, and sets `stop` as well: a cancellation can get lost inside a client library (one that
    came while a lease was being renewed did), and who missed it would run on without the rest.
    """

    async def guarded(service: Service) -> None:
        try:
            await service.run(stop)
        except Exception as error:
            log.critical("service.failed", service=service.name, error=repr(error))  # now: the end may take long
            stop.set()
            raise
        if not stop.is_set():
            stop.set()
            raise RuntimeError(f"service {service.name} ended before it was told to")

    async with asyncio.timeout(None) as deadline, asyncio.TaskGroup() as group:
        for service in services:
            group.create_task(guarded(service), name=service.name)
        await stop.wait()
        deadline.reschedule(asyncio.get_running_loop().time() + drain_s)


@asynccontextmanager
async def open_node(settings: Settings, tracing: Tracing = OFF) -> AsyncIterator[Node]:
    """Open a node up to the point where its services can start; everything is closed in reverse at the end."""
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(DataDirectory(Path(settings.data)))
        manifest = directory.manifest(settings)
        publisher = await stack.enter_async_context(Publisher(settings.kafka))
        topics = await recognise(settings, directory, manifest)
        shape = record.schema(settings.dim, settings.attributes)
        index = Index.of(shape, settings.metric, bytes_limit=settings.index.bytes_limit)
        hot, warm, cold, glacier = await _open_tiers(stack, settings, shape, index)
        tiers: dict[TierName, Tier] = {tier.name: tier for tier in (hot, warm, cold, glacier)}
        owned = settings.owned()
        in_warm = await warm.epochs()
        floors = {partition: max(glacier.epoch(partition), in_warm.get(partition, 0)) for partition in owned}
        lease = await Lease.acquire(
            warm.client, settings.warm.prefix, owned, manifest.node, floors, settings.node.lease_ttl_s
        )
        stack.push_async_callback(lease.release)
        await _raise_epochs(lease.epochs, warm, glacier)
        coder = await _open_coder(stack, settings, index, directory.path, tiers)
        changes = Changes(publisher, topics.changes, now_ms)
        await announce(changes, await rebuild(index, [warm, cold, glacier], settings.kafka.partitions, coder))
        embed = load_embedder(settings.embedder, settings.dim)
        watermarks: dict[int, Watermark] = {}
        ingest = Ingest(
            EventDecoder(settings.dim, settings.attributes, embed),
            shape,
            hot,
            index,
            publisher,
            topics,
            changes,
            epoch=manifest.epoch,
            partitions=settings.kafka.partitions,
            watermarks=watermarks,
            now_ms=now_ms,
            tracing=tracing,
        )
        ingest.cleared_below = {int(partition): offset for partition, offset in manifest.cleared_below.items()}
        lanes = {partition: Lane(partition, settings.move.lane_jobs_max) for partition in owned}
        promotion = Promotion(settings.move, settings.policy, index, hot, tiers, changes, lanes, now_ms)
        mover = Mover(
            index,
            tiers,
            changes,
            shape,
            watermarks,
            lambda p: record.pack_version(manifest.epoch, commit.acknowledged(p)),
            promotion.keep,
            tracing,
            settings.move.bytes_max,
        )

        usages = await Usages.open(tiers)
        stack.push_async_callback(usages.close)
        heat = Heat(index, settings.policy.heat_half_life_s, promotion, now_ms)
        demote = Demote(settings.move, settings.policy, index, mover, lanes, usages, hot.copies.evict)
        handlers: dict[str, Handler] = {topics.memories: ingest, topics.access: heat, topics.age: demote}
        reader = Reader(settings.kafka, owned, topics.memories, handlers, ingest, settings.hot.slab_rows)
        await stack.enter_async_context(reader)
        starts, ingest.replay_until = await seek(reader, directory, manifest)
        watermarks |= {partition: Watermark(start) for partition, start in starts.items()}

        commit = Commit(settings.commit, reader, lease, watermarks)
        log.info("node.opened", partitions=len(owned), index=len(index), start=starts, end=ingest.replay_until)

        clearing = Clearing(index, hot, mover, changes, ingest, commit, lanes, Clearances(directory, manifest))
        await clearing.resume()
        access = Access(settings.access, publisher, topics.access, settings.kafka.partitions, now_ms)
        scanner = Scanner(settings.index.search_threads)
        stack.callback(scanner.close)
        monitor = AgeMonitor(
            settings.age,
            settings.policy,
            index,
            usages,
            publisher,
            topics.age,
            now_ms,
            behind=lambda: [partition for partition, lane in lanes.items() if lane.behind],
        )
        expiry = Expiry(
            settings.expiry, index, publisher, topics.memories, lambda p: p in lanes and ingest.ready(p), now_ms
        )
        upkeep = Upkeep(settings.move, index, mover, lanes, glacier.vacuum, now_ms, glacier.crowded)
        watchers = (LoopProbe(), LogWatch(settings.kafka, reader, identified(manifest, topics)))
        node = Node(
            settings=settings,
            manifest=manifest,
            index=index,
            hot=hot,
            tiers=tiers,
            glacier=glacier,
            publisher=publisher,
            producer=MemoryProducer(
                settings.kafka,
                publisher,
                epoch=manifest.epoch,
                rows_max=min(BATCH_ROWS, ingest.rows_max),
                tracing=tracing,
            ),
            topics=topics,
            reader=reader,
            ingest=ingest,
            mover=mover,
            commit=commit,
            access=access,
            heat=heat,
            demote=demote,
            age=monitor,
            copies=hot.copies,
            expiry=expiry,
            clearing=clearing,
            lanes=lanes,
            lease=lease,
            loop_probe=watchers[0],
            log_watch=watchers[1],
            tracing=tracing,
            scanner=scanner,
            sql=(sql := _open_sql(stack, settings, shape, index, tiers)),
            coder=coder,
            recall=(recall := _recall(settings, index, tiers, coder)),
            embed=embed,
            usages=usages,
            services=[
                publisher,
                reader,
                *lanes.values(),
                monitor,
                access,
                commit,
                upkeep,
                promotion,
                expiry,
                coder,
                recall,
                sql,
                lease,
                hot.watch,
                *watchers,
            ],
        )
        yield node
        await commit.step()  # reached only after an orderly stop: lanes are quiet, the last watermark is true


async def _open_tiers(
    stack: AsyncExitStack, settings: Settings, shape: pa.Schema, index: Index
) -> tuple[HotMemory, WarmMemory, ColdMemory, GlacierMemory]:
    """Open the four tiers on the shared index; cold and glacier lie under `data` unless told otherwise."""
    data, count = Path(settings.data), settings.kafka.partitions
    cold_settings = msgspec.structs.replace(settings.cold, path=settings.cold.path or str(data / "cold"))
    glacier_settings = msgspec.structs.replace(settings.glacier, path=settings.glacier.path or str(data / "glacier"))
    hot = await HotMemory.open(settings.hot, shape, partitions=count, index=index)
    stack.push_async_callback(hot.cleanup)
    warm = await WarmMemory.open(settings.warm, shape, partitions=count, index=index)
    stack.push_async_callback(warm.cleanup)
    cold = await ColdMemory.open(cold_settings, shape, partitions=count, index=index)
    stack.push_async_callback(cold.cleanup)
    glacier = await GlacierMemory.open(glacier_settings, shape, partitions=count, index=index)
    stack.push_async_callback(glacier.cleanup)
    return hot, warm, cold, glacier


async def _raise_epochs(epochs: Mapping[int, int], warm: WarmMemory, glacier: GlacierMemory) -> None:
    """Let nothing of the life before land any more: before anything is read of what it has left (R4a)."""
    for partition, epoch in epochs.items():
        await warm.raise_epoch(partition, epoch)
        await glacier.raise_epoch(partition, epoch)
    failpoint.reach("start.raised")


async def _open_coder(
    stack: AsyncExitStack, settings: Settings, index: Index, data: Path, tiers: Mapping[TierName, Tier]
) -> Coder:
    """Return what makes codes, with the codebook of the life before."""
    pool = SerialExecutor("codes")
    stack.callback(pool.close)
    coder = Coder(index, data / "codebook", settings.index.train_rows, pool, tiers)
    await coder.load()
    return coder


async def recognise(settings: Settings, directory: DataDirectory, manifest: Manifest) -> Topics:
    """Return the topics, made where they are missing; LogChanged for a log that is not the one this directory read."""
    topics = Topics.under(settings.kafka.prefix)
    await ensure_topics(settings.kafka, topics)
    found = await identity(settings.kafka, topics.memories, wait_s=TOPIC_S)
    if fault := log_faults.fault(found, manifest.topic, manifest.partitions):
        raise LogChanged(fault)
    if found.id and not manifest.topic:
        manifest.topic = found.id
        directory.save(manifest)
    return topics


def identified(manifest: Manifest, topics: Topics) -> Identity:
    """Return which log this directory reads."""
    return Identity(topics.memories, manifest.topic, manifest.partitions)


async def seek(reader: Reader, directory: DataDirectory, manifest: Manifest) -> tuple[dict[int, int], dict[int, int]]:
    """Go to where reading starts; returns (start, end) offsets by partition.

    A directory just restored, or that has adopted a log, goes on at the noted offsets: committed first, and then the
    note is struck.
    """
    if manifest.replay_from:
        await reader.commit({int(partition): offset for partition, offset in manifest.replay_from.items()})
        log.warning("log.resumed", replay_from=manifest.replay_from)
        manifest.replay_from = {}
        directory.save(manifest)
    found = await reader.seek()
    await reader.recognise()
    failpoint.reach("start.sought")
    return found


def _open_sql(
    stack: AsyncExitStack, settings: Settings, shape: pa.Schema, index: Index, tiers: Mapping[TierName, Tier]
) -> Sql:
    """Return what answers SQL; its snapshots lie under `data`, and go with the node."""
    thread = SerialExecutor("sql")
    stack.callback(thread.close)
    maker = Maker(index, tiers, shape, settings.sql.snapshot_bytes_max, thread, now_ms)
    sql = Sql(settings.sql, maker, Path(settings.data).absolute() / "sql", thread, now_ms)
    stack.callback(sql.close)
    return sql


def _recall(settings: Settings, index: Index, tiers: Mapping[TierName, Tier], coder: Coder) -> Recall:
    every_s, recall_min = settings.index.recall_s, settings.index.recall_min
    return Recall(index, tiers, coder.pool, every_s=every_s, recall_min=recall_min)


async def rebuild(
    index: Index, below: Sequence[Tier], partitions: int, coder: Coder
) -> list[tuple[TierName, TierName, Location]]:
    """Fill the index from the tiers below hot, top down; returns (above, tier, row) for rows found in two."""
    twice: list[tuple[TierName, TierName, Location]] = []
    for tier in below:
        found = await load(index, tier, partitions, now_ms(), coder.drain, coder.saved, coder.pool)
        twice += [(above, tier.name, where) for above, where in found]
        failpoint.reach("start.loaded", tier.name.word)
        log.info("tier.loaded", tier=tier.name.word, rows=index.rows(tier.name), twice=len(found))
    await coder.settle()
    failpoint.reach("start.rebuilt")
    return twice


async def announce(changes: Changes, twice: Sequence[tuple[TierName, TierName, Location]]) -> None:
    """Announce moves that the life before stored, and perhaps did not live to announce."""
    for above, tier, where in twice:
        versions = np.array([where.version], np.int64)
        await changes.publish(where.partition, above, tier, "recovered", [where.id], versions)
    failpoint.reach("start.announced")
