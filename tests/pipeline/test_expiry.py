"""A live node on which records expire: out of sight at once, gone by a tombstone on the log, and never back."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from functools import partial

import numpy as np
from aiokafka import AIOKafkaConsumer, TopicPartition

from pipeline import MemoryManager, Query
from pipeline.settings import Settings
from producers import events
from producers.events import Message
from tests.nodes import DIM, rows, until
from tiers import TierName

ONES = np.ones(DIM, np.float32)


async def on_log(settings: Settings) -> list[Message]:
    """Return every message of the memories topic."""
    topic = f"{settings.kafka.prefix}.memories"
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka.bootstrap, enable_auto_commit=False)
    await consumer.start()
    try:
        assigned = [TopicPartition(topic, number) for number in range(settings.kafka.partitions)]
        consumer.assign(assigned)
        await consumer.seek_to_beginning()
        ends = await consumer.end_offsets(assigned)
        found: list[Message] = []
        async with asyncio.timeout(20):
            while len(found) < sum(ends.values()):
                for part in (await consumer.getmany(timeout_ms=200)).values():
                    found += [Message(m.key, m.value, m.headers, m.timestamp, m.offset) for m in part]
        return found
    finally:
        await consumer.stop()


async def ids(memory: MemoryManager, *names: str) -> set[str]:
    return {hit.row.id for hit in (await memory.retrieve(Query(ids=names))).hits}


async def test_a_record_with_a_ttl_vanishes_for_good(settings: Settings) -> None:
    """By id, search and listing it is gone; the log has a delete that names its version; no restart brings it back."""
    async with MemoryManager.open(settings) as memory:
        await memory.ready()
        producer = memory.node.producer
        token = await producer.send("short", ONES, ttl_s=1.0)
        await memory.retrieve(Query(ids=[], at_least=await producer.send("long", ONES, ttl_s=3_600)))
        await memory.retrieve(Query(ids=[], at_least=token))
        version = memory.node.index.find("short").version
        await until(lambda: memory.node.index.find("short").deleted)

        assert {"long"} == await ids(memory, "short", "long")
        assert {"long"} == {hit.row.id for hit in (await memory.retrieve(Query(vector=ONES, k=5))).hits}
        assert ["long"] == [name async for batch in memory.retrieve_all() for name in batch["id"].to_pylist()]
        assert 1 == memory.node.expiry.written
    (tombstone,) = [message for message in await on_log(settings) if message.value is None]
    assert (b"short", version) == (tombstone.key, events.condition(tombstone))
    async with MemoryManager.open(settings) as memory:
        await memory.ready()
        assert {"long"} == await ids(memory, "short", "long")


async def test_it_is_out_of_sight_before_its_tombstone_comes(settings: Settings) -> None:
    """From `expires_at` on no read shows it, in whichever tier it lies, with a copy or without."""
    async with MemoryManager.open(settings) as memory:
        await memory.ready()
        node = memory.node
        node.expiry._settings = events.msgspec.structs.replace(node.expiry._settings, rows_max=0)  # no tombstones
        names = [tier.word for tier in TierName] + ["copied"]
        expires_at = time.time_ns() // 1_000_000 + 2_500
        for name in names:
            token = await node.producer.send(name, ONES, ttl_s=max(0.1, expires_at / 1000 - time.time()))
            await memory.retrieve(Query(ids=[], at_least=token))
        for name in names[1:]:
            entry = node.index.find(name)
            target = TierName.COLD if name == "copied" else TierName[name.upper()]
            move = partial(node.mover.move, entry.partition, TierName.HOT, target, "test", [(name, entry.version)])
            await node.lanes[entry.partition].perform(move)
        await node.access.hint("copied", 9)
        await until(lambda: node.copies.has("copied"))
        assert set(names) == await ids(memory, *names)

        async def gone() -> bool:
            return not await ids(memory, *names)

        await until(gone)

        result = await memory.retrieve(Query(vector=ONES, k=5))
        assert ([], True, 0, 0) == (result.hits, result.complete, result.scanned, result.of)
        assert [] == [batch async for batch in memory.retrieve_all() if batch.num_rows]
        assert not any(node.index.find(name).deleted for name in names)


async def test_an_update_that_races_keeps_the_new_version_alive(settings: Settings) -> None:
    """The tombstone of a version that was updated meanwhile is counted and does nothing, now and after a restart."""
    topic = f"{settings.kafka.prefix}.memories"
    async with MemoryManager.open(settings) as memory:
        await memory.ready()
        node = memory.node
        await memory.retrieve(Query(ids=[], at_least=await node.producer.send("a", ONES, ttl_s=3_600)))
        seen = node.index.find("a").version
        await node.producer.send("a", ONES, payload="new")
        late = await node.publisher.send(topic, None, b"a", headers=events.condition_headers("t", "a", seen))
        token = events.encode_token({late.partition: late.offset}, node.manifest.epoch)
        (hit,) = (await memory.retrieve(Query(ids=["a"], at_least=token))).hits

        assert (b'"new"', 1) == (hit.row.payload, node.ingest.unmet)
        assert not node.ingest.letters
    async with MemoryManager.open(settings) as memory:
        await memory.ready()
        assert {"a"} == await ids(memory, "a")


async def test_many_expire_wherever_they_lie(ageing: Settings) -> None:
    """Records on their way down expire too, and at rest nothing of them is left in any tier."""
    async with MemoryManager.open(ageing) as memory:
        await memory.ready()
        now = time.time_ns() // 1_000_000
        given = [replace(row, expires_at=now + 3_000 if at % 2 else None) for at, row in enumerate(rows(80))]
        await memory.retrieve(Query(ids=[], at_least=await memory.store(given)))
        kept = {row.id for row in given if row.expires_at is None}

        async def at_rest() -> bool:
            tiers = (await memory.tiers())["tiers"]
            return tiers["glacier"]["records"] == 40 and not sum(t["queued"] + t["tombstones"] for t in tiers.values())

        await until(at_rest, 60)

        assert kept == await ids(memory, *(row.id for row in given))
    physical: list[str] = []
    async with MemoryManager.open(ageing) as memory:
        await memory.ready()
        for tier in memory.node.tiers.values():
            async for batch in tier.retrieve_all():
                physical += batch["id"].to_pylist()
    assert sorted(kept) == sorted(physical)
