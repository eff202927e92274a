"""A live node that lifts its popular records, and a scan that does not flush them; measured, and printed with -s."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import httpx
import pytest

from consumers import subscribe_changes
from pipeline import MemoryManager, Query
from pipeline.routes import Gateway
from pipeline.serve import HttpService
from pipeline.settings import Settings
from pipeline.stack import Stack
from tests.nodes import rows, small, until
from tests.pipeline.zipf import Popular
from tiers import TierName

RECORDS = 300


@pytest.fixture
def lifting(stack: Stack, prefix: str, tmp_path: Path) -> Settings:
    """A node of 64 copies at most, whose records stay where a test puts them."""
    return small(
        stack,
        prefix,
        tmp_path / "node",
        policy__hot_age_s=3_600.0,
        hot__capacity_rows=1_024,
        hot__slab_rows=16,
        hot__copy_fraction=0.0625,
        access__flush_ms=3_600_000,  # what was read is considered when a test flushes, and not between two reads
    )


async def below(memory: MemoryManager, tier: TierName, count: int = RECORDS) -> None:
    """Store records and move them, through the lanes, to a tier."""
    node = memory.node
    await memory.retrieve(Query(ids=[], at_least=await memory.store(rows(count))))
    for partition, lane in node.lanes.items():
        entries = [node.index.find(f"id-{at}") for at in range(count)]
        keys = [(e.id, e.version) for e in entries if e is not None and e.partition == partition]
        await lane.perform(partial(node.mover.move, partition, TierName.HOT, tier, "test", keys))


async def settled(memory: MemoryManager) -> None:
    """Wait until the reads so far have been folded, published and considered, and the lanes are idle."""
    node = memory.node
    counted = sum(node.access.reads.values())

    async def caught_up() -> bool:
        await node.access.flush()
        return node.heat.accesses >= counted and not any(lane.waiting for lane in node.lanes.values())

    await until(caught_up)
    for lane in node.lanes.values():
        await lane.perform(_nothing)


async def _nothing() -> None:
    """Be the last job of a lane."""


@pytest.mark.parametrize("tier", [TierName.WARM, TierName.COLD, TierName.GLACIER], ids=lambda tier: tier.word)
async def test_a_zipf_workload_lifts_its_popular_records(lifting: Settings, tier: TierName) -> None:
    """Reads by id and searches, a few records asked for most: none answered from hot before, most of them after."""
    async with MemoryManager.open(lifting) as memory:
        await memory.ready()
        await below(memory, tier)
        popular = Popular(RECORDS, seed=1)
        before = await popular.read(memory, 300)
        await settled(memory)
        await popular.read(memory, 300)
        await settled(memory)
        after = await popular.read(memory, 300)
        searched = await popular.search(memory, 100)
        print(f"zipf, home {tier.word}: from hot {before:.2f} before, {after:.2f} after; searches' best {searched:.2f}")

        assert before == 0.0
        assert after > 0.5
        assert searched > 0.5
        assert len(memory.node.copies) <= memory.node.copies.rows_max == 64
        homes = (await memory.tiers())["tiers"]
        assert homes[tier.word]["records"] == RECORDS


async def test_a_scan_does_not_flush_the_popular_ones(lifting: Settings) -> None:
    """Every id read once, and everything listed: the copies stay, and the hit rate with them."""
    async with MemoryManager.open(lifting) as memory:
        await memory.ready()
        await below(memory, TierName.COLD)
        popular = Popular(RECORDS, seed=2)
        for _ in range(4):
            await popular.read(memory, 400)
            await settled(memory)
        before = await popular.read(memory, 200)
        await settled(memory)
        held = {name for name in popular.ids if memory.node.copies.has(name)}
        for start in range(0, RECORDS, 50):
            await memory.retrieve(Query(ids=popular.ids[start : start + 50]))
        assert RECORDS == sum([batch.num_rows async for batch in memory.retrieve_all()])
        await settled(memory)
        still = {name for name in popular.ids if memory.node.copies.has(name)}
        after = await popular.read(memory, 200)
        print(f"scan: from hot {before:.2f} before, {after:.2f} after; {len(held - still)} of {len(held)} copies gone")

        assert len(held) > 20
        # A partition's reads count before the next one's: a record at the very border may take another's place.
        assert len(held - still) <= len(held) // 20
        assert after > before - 0.1


async def test_the_hit_rate_is_in_the_tiers_and_the_metrics(lifting: Settings) -> None:
    """Reads by tier, reads from copies, copies and promotions are counted where an operator looks."""
    service = HttpService(lifting)
    async with MemoryManager.open(lifting, service) as memory:
        service.gateway = Gateway(memory)
        await memory.ready()
        await below(memory, TierName.WARM, 4)
        for _ in range(5):
            await memory.retrieve(Query(ids=["id-0"]))
        await settled(memory)
        for _ in range(3):
            await memory.retrieve(Query(ids=["id-0", "id-1"]))
        async with httpx.AsyncClient(base_url=service.address) as client:
            shown = (await client.get("/v1/tiers")).json()
            text = (await client.get("/metrics")).text
            one = (await client.get("/v1/memories/id-0")).json()

        assert {"hot": 3, "warm": 8, "cold": 0, "glacier": 0, "copies": 3} == shown["reads"]
        assert {"records": 1, "records_max": 64, "promoted": 1, "evicted": {}} == shown["copies"]
        assert 'isotherm_reads_total{tier="hot"} 3.0' in text
        assert "isotherm_copy_reads_total 3.0" in text
        assert "isotherm_copies 1.0" in text
        assert one["tier"] == "hot"


async def test_operators_promote_and_demote_by_hints(lifting: Settings) -> None:
    """A hint on the access topic lifts a record; one on the age topic takes the copy, the next moves the home down."""
    async with MemoryManager.open(lifting) as memory:
        await memory.ready()
        await below(memory, TierName.WARM, 2)
        node = memory.node

        async def where(tier: TierName) -> bool:
            hits = (await memory.retrieve(Query(ids=["id-0"]))).hits
            return hits[0].tier is tier

        await node.access.hint("id-0", 4)
        await until(lambda: node.copies.has("id-0"))
        assert await where(TierName.HOT)
        assert await node.age.hint("id-0")
        await until(lambda: not node.copies.has("id-0"))
        assert await where(TierName.WARM)
        assert await node.age.hint("id-0")
        await until(lambda: where(TierName.COLD))
        assert not await node.age.hint("unknown")


async def test_copies_are_announced_and_end_with_the_node(lifting: Settings) -> None:
    """The feed tells of each copy that comes and goes; after a restart there is none, and every record is at home."""
    async with MemoryManager.open(lifting) as memory:
        await memory.ready()
        await below(memory, TierName.COLD, 3)
        for name in ("id-0", "id-1"):
            await memory.node.access.hint(name, 9)
        await until(lambda: len(memory.node.copies) == 2)
        await memory.retrieve(Query(ids=[], at_least=await memory.delete("id-0")))
        assert not memory.node.copies.has("id-0")
        await until(lambda: not any(memory.node.copies.told.values()))
    async with MemoryManager.open(lifting) as memory:
        await memory.ready()
        assert 0 == len(memory.node.copies)
        found = (await memory.retrieve(Query(ids=["id-0", "id-1", "id-2"]))).hits
        assert [("id-1", TierName.COLD), ("id-2", TierName.COLD)] == [(hit.row.id, hit.tier) for hit in found]
    feed = subscribe_changes(lifting.kafka, start="beginning", idle_ms=1_000)
    copies = [announced.change async for announced in feed if announced.change.kind == "copy"]
    assert {("cold", "hot", "id-0"), ("cold", "hot", "id-1"), ("hot", None, "id-0")} == {
        (change.source, change.target, name) for change in copies for name in change.ids
    }


@pytest.mark.parametrize("tier", ["hot", "cold"])
async def test_clearing_takes_copies_along(lifting: Settings, tier: str) -> None:
    """Clearing hot evicts copies and deletes none of their records; clearing their home takes both."""
    async with MemoryManager.open(lifting) as memory:
        await memory.ready()
        await below(memory, TierName.COLD, 3)
        await memory.node.access.hint("id-1", 9)
        await until(lambda: memory.node.copies.has("id-1"))

        assert await memory.clear(tier) == {"hot": 0, "cold": 3}[tier]

        assert 0 == len(memory.node.copies)
        left = {"id-0", "id-1", "id-2"} if tier == "hot" else set()
        assert left == {hit.row.id for hit in (await memory.retrieve(Query(ids=["id-0", "id-1", "id-2"]))).hits}
        assert not any(mark.dirty for mark in memory.node.ingest.watermarks.values())
