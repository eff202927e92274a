"""One process: the product's own parts, wired as pipeline.app wires them, over what the simulation gives them.

`start` is the order of pipeline.app.open_node (tests/pipeline/test_start_order.py holds the two together):

    raise the epoch in warm and glacier -> rebuild the index -> read the committed offset -> finish a clearing -> run
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from consumers import reader as reader_module
from consumers.clearing import Clearing
from consumers.commit import Commit, CommitSettings
from consumers.demote import Demote, MoveSettings
from consumers.heat import Heat
from consumers.ingest import Ingest
from consumers.lane import Lane
from consumers.mover import Mover
from consumers.promote import Promotion
from consumers.reader import Reader
from consumers.upkeep import Upkeep
from consumers.watermark import Watermark
from pipeline.app import announce
from pipeline.manifest import Clearances
from producers.changes import Changes
from producers.decoder import EventDecoder
from producers.expiry import Expiry, ExpirySettings
from producers.publisher import KafkaSettings
from tests.simulation.disk import Directory
from tests.simulation.log import TOPICS, Consumer, Log, Publisher
from tests.simulation.loop import Loop
from tests.simulation.network import Network
from tests.tiers.fake import FakeTier, Store
from tests.tiers.rows import DIM
from tiers import record
from tiers.device import HostDevice, Shape
from tiers.errors import TierUnavailable
from tiers.host import HostArena
from tiers.hot import HotMemory, HotSettings
from tiers.index import Index
from tiers.policy import PolicySettings
from tiers.rebuild import load
from tiers.scan import Scanner
from tiers.tier import TierName, Usage

BELOW = (TierName.WARM, TierName.COLD, TierName.GLACIER)
RULES = PolicySettings(
    hot_age_s=0.0, warm_idle_s=1e9, cold_idle_s=1e9, promote_heat_min=2.0, promote_margin=1.5, copy_heat_min=1.0
)
MOVES = MoveSettings(rows_max=8, lane_jobs_max=8, compact_rows=2, compact_s=0.05)
SHAPE = record.schema(DIM, {})  # attributes are what costs most in a small batch, and decide nothing here
DECODER = EventDecoder(DIM, {})
KAFKA = KafkaSettings(prefix="t")


class SlowArena(HostArena):
    """Rows reach it by a thread, as they reach a GPU: there is an await between reserving a slot and showing it."""

    chunk_rows = 2


class SlowDevice(HostDevice):
    """What has one."""

    name = "simulated"

    def arena(self, shape: Shape) -> SlowArena:
        """See Device."""
        return SlowArena(shape)


class Lease:
    """What knows whether a partition is still ours: one process owns all here."""

    def check(self, partition: int) -> None:
        """It is."""


class Life:
    """`epoch` is above every epoch given out before; `broken` names rules of the start to leave out."""

    def __init__(
        self,
        loop: Loop,
        network: Network,
        log: Log,
        stores: Mapping[TierName, Store],
        directory: Directory,
        *,
        epoch: int,
        hot_rows: int,
        slow_device: bool = False,
        broken: frozenset[str] = frozenset(),
    ) -> None:
        self.loop, self.log, self.epoch, self.broken = loop, log, epoch, broken
        self.partitions = log.partitions
        self.index = Index.of(SHAPE)
        settings = HotSettings(device="cpu", capacity_rows=hot_rows, slab_rows=4)
        device = SlowDevice() if slow_device else HostDevice()
        self.hot = HotMemory(settings, SHAPE, partitions=self.partitions, index=self.index, device=device)
        self.below = {
            tier: FakeTier(
                tier,
                SHAPE,
                partitions=self.partitions,
                index=self.index,
                store=stores[tier],
                carry=network.carry,
                call_rows=1 if tier is TierName.WARM else 1 << 30,
            )
            for tier in BELOW
        }
        self.tiers = {TierName.HOT: self.hot, **self.below}
        self._network = network
        self._stop = asyncio.Event()
        self._wire(directory)
        self.rebuilt = self.serving = False

    def _wire(self, directory: Directory) -> None:
        manifest = directory.manifest()
        now_ms, publisher = self.log.now_ms, Publisher(self.log, self.loop, self._network)
        self.changes = Changes(publisher, TOPICS.changes, now_ms)
        self.marks: dict[int, Watermark] = {}
        self.ingest = Ingest(
            DECODER,
            SHAPE,
            self.hot,
            self.index,
            publisher,
            TOPICS,
            self.changes,
            epoch=0,
            partitions=self.partitions,
            watermarks=self.marks,
            now_ms=now_ms,
        )
        self.ingest.cleared_below = {int(p): offset for p, offset in manifest.cleared_below.items()}
        self.lanes = {p: Lane(p, MOVES.lane_jobs_max) for p in range(self.partitions)}
        self.promotion = Promotion(MOVES, RULES, self.index, self.hot, self.tiers, self.changes, self.lanes, now_ms)
        self.mover = Mover(
            self.index,
            self.tiers,
            self.changes,
            SHAPE,
            self.marks,
            lambda p: record.pack_version(manifest.epoch, self.commit.acknowledged(p)),
            self.promotion.keep,
        )
        self.heat = Heat(self.index, RULES.heat_half_life_s, self.promotion, now_ms)
        self.demote = Demote(MOVES, RULES, self.index, self.mover, self.lanes, self.usages, self.hot.copies.evict)
        self.upkeep = Upkeep(MOVES, self.index, self.mover, self.lanes, _nothing, now_ms)
        expiry = ExpirySettings(ask_again_s=0.2)
        self.expiry = Expiry(
            expiry, self.index, publisher, TOPICS.memories, lambda p: p in self.marks and self.ingest.ready(p), now_ms
        )
        handlers = {TOPICS.memories: self.ingest, TOPICS.access: self.heat, TOPICS.age: self.demote}
        consumer = Consumer(self.log, self.loop, self._network)
        former, reader_module.AIOKafkaConsumer = reader_module.AIOKafkaConsumer, lambda **_: consumer
        try:
            self.reader = Reader(KAFKA, range(self.partitions), TOPICS.memories, handlers, self.ingest, 4)
        finally:
            reader_module.AIOKafkaConsumer = former
        self.scanner = Scanner(1)
        self._notes = Clearances(directory, manifest)

    async def usages(self) -> dict[TierName, Usage]:
        """Return what the tiers hold."""
        return {name: await tier.usage() for name, tier in self.tiers.items()}

    # -- from start to end -------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Bring the process up to where its services run; raises what ends a start."""
        if not self.broken & {"no epoch", "epoch after the rebuild"}:
            await self._raise_epochs()
        twice = []
        for tier in self.below.values():
            try:
                found = await load(self.index, tier, self.partitions, self.log.now_ms())
                twice += [(above, tier.name, where) for above, where in found]
            except TierUnavailable:
                if "rebuild without a tier" not in self.broken:
                    raise
        await announce(self.changes, twice)
        if "epoch after the rebuild" in self.broken:
            await self._raise_epochs()
        await self.reader.__aenter__()
        starts, self.ingest.replay_until = await self.reader.seek()
        self.marks |= {partition: Watermark(start) for partition, start in starts.items()}
        self.commit = Commit(CommitSettings(), self.reader, Lease(), self.marks)
        self.rebuilt = True
        self.clearing = Clearing(
            self.index,
            self.hot,
            self.mover,
            self.changes,
            self.ingest,
            self.commit,
            self.lanes,
            self._notes,
        )
        await self.clearing.resume()

    async def _raise_epochs(self) -> None:
        for partition in range(self.partitions):
            if "no epoch in warm" not in self.broken:
                await self.below[TierName.WARM].raise_epoch(partition, self.epoch)
            if "no epoch in glacier" not in self.broken:
                await self.below[TierName.GLACIER].raise_epoch(partition, self.epoch)

    async def run(self) -> None:
        """Start, then run the services until told to stop, and commit the last watermark."""
        await self.start()
        self.serving = True
        async with asyncio.TaskGroup() as group:
            for service in (self.reader, *self.lanes.values()):
                group.create_task(service.run(self._stop))
        self.serving = False
        await self.commit.step()

    def stop(self) -> None:
        """Ask for an orderly end."""
        self._stop.set()

    @property
    def stopping(self) -> bool:
        """Whether an end was asked for."""
        return self._stop.is_set()

    def ready(self) -> bool:
        """Say whether the gateway answers (R7)."""
        if "answers while it replays" in self.broken:
            return self.serving
        return self.serving and all(self.ingest.ready(partition) for partition in self.lanes)


async def _nothing() -> None:
    pass
