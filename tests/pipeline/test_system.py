"""The whole on real servers: Kafka, Valkey, DuckDB, Delta; what users of MemoryManager are promised."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from aiokafka import AIOKafkaProducer

from consumers import subscribe_changes
from pipeline import MemoryManager, Query
from pipeline.settings import Settings
from pipeline.stack import Stack
from producers import MemoryProducer, events
from producers.publisher import Publisher
from tests.nodes import DIM, rows, small, until
from tiers import TierName
from tiers.errors import ServiceMissing, SettingsError

pytestmark = pytest.mark.both_loops


async def held(memory: MemoryManager) -> dict[str, int]:
    """Return live records by tier."""
    return {name: tier["records"] for name, tier in (await memory.tiers())["tiers"].items()}


async def everything(memory: MemoryManager) -> dict[str, bytes]:
    """Return payload by id of the listing; an id twice fails."""
    found: dict[str, bytes] = {}
    async for batch in memory.retrieve_all():
        for identifier, payload in zip(batch["id"].to_pylist(), batch["payload"].to_pylist(), strict=True):
            assert identifier not in found
            found[identifier] = payload
    return found


async def test_a_stored_record_is_found_at_once_with_its_token(settings: Settings) -> None:
    """store() answers with a token; a read at_least that token sees the record, from hot."""
    async with MemoryManager.open(settings) as memory:
        await memory.ready()
        row = rows(1)[0]
        token = await memory.store([row])

        result = await memory.retrieve(Query(ids=["id-0", "id-none"], at_least=token))

        assert [hit.row.id for hit in result.hits] == ["id-0"]
        assert TierName.HOT is result.hits[0].tier
        assert (row.payload, row.attributes) == (result.hits[0].row.payload, result.hits[0].row.attributes)
        assert np.array_equal(row.vector, result.hits[0].row.vector)
        assert result.complete


@pytest.mark.parametrize("query", [Query(ids=["id-1"]), Query(vector=np.ones(DIM, np.float32))], ids=["id", "search"])
async def test_who_asks_again_and_again_does_not_keep_the_row_from_coming(settings: Settings, query: Query) -> None:
    """Most answers wait for nothing, so that a caller who polls would never let the reader have its turn."""
    async with MemoryManager.open(settings) as memory:
        await memory.ready()
        await memory.store(rows(1))
        waiting = asyncio.create_task(memory.store(rows(2)[1:]))
        await asyncio.sleep(0)
        until_s, found = time.monotonic() + 20, False
        while not found and time.monotonic() < until_s:  # no timeout of asyncio's: that needs its turn as well
            found = "id-1" in {hit.row.id for hit in (await memory.retrieve(query)).hits}

        assert found
        await waiting


async def test_records_travel_down_and_answers_stay_the_same(ageing: Settings) -> None:
    """Through hot, warm or cold, and glacier, by id and by vector, every answer is the same."""
    given = rows(300)
    query = np.random.default_rng(9).normal(size=DIM).astype(np.float32)
    matrix = np.stack([row.vector for row in given if row.vector is not None])
    values = matrix @ query / np.linalg.norm(matrix, axis=1) / np.linalg.norm(query)
    wanted = [given[at].id for at in np.argsort(-values)[:10]]
    seen: set[TierName] = set()
    async with MemoryManager.open(ageing) as memory:
        await memory.ready()
        token = await memory.store(given)
        await memory.retrieve(Query(ids=[], at_least=token))
        async with asyncio.timeout(60):
            while (await held(memory))["glacier"] < 300:
                hits = (await memory.retrieve(Query(vector=query, k=10))).hits
                assert wanted == [hit.row.id for hit in hits]
                found = (await memory.retrieve(Query(ids=[row.id for row in given]))).hits
                assert len(found) == 300
                seen |= {hit.tier for hit in found}
                await asyncio.sleep(0.02)
        assert {row.id: row.payload for row in given} == await everything(memory)
        assert TierName.GLACIER in {hit.tier for hit in (await memory.retrieve(Query(ids=[given[0].id]))).hits}
        assert not any(mark.dirty for mark in memory.node.ingest.watermarks.values())
    assert seen & {TierName.WARM, TierName.COLD}


async def test_updates_and_deletes_win_wherever_the_old_version_lies(ageing: Settings) -> None:
    """After an update or a delete nothing older is ever found, and at rest nothing older is left anywhere."""
    given = rows(90)
    async with MemoryManager.open(ageing) as memory:
        await memory.ready()
        await memory.store(given[:30])
        await until(lambda: _all_in(memory, "glacier", 30))
        await memory.store(given[30:60])
        await until(lambda: _some_in(memory, "cold"))
        await memory.store(given[60:])
        fresh = rows(90, seed=5)
        token = await memory.store([row for at, row in enumerate(fresh) if at % 3 == 0])
        for at, row in enumerate(given):
            if at % 3 == 1:
                token = await memory.delete(row.id)
        await memory.retrieve(Query(ids=[], at_least=token))
        expected = {r.id: (fresh[at] if at % 3 == 0 else r) for at, r in enumerate(given) if at % 3 != 1}
        await until(lambda: _same_listing(memory, {identifier: row.payload for identifier, row in expected.items()}))

        await until(lambda: _at_rest(memory, 60))

        vectors = {hit.row.id: hit.row.vector for hit in (await memory.retrieve(Query(ids=list(expected)))).hits}
        assert all(np.array_equal(row.vector, vectors[identifier]) for identifier, row in expected.items())
    physical: dict[str, int] = {}
    async with MemoryManager.open(ageing) as memory:
        await memory.ready()
        for tier in memory.node.tiers.values():
            async for batch in tier.retrieve_all():
                for identifier in batch["id"].to_pylist():
                    physical[identifier] = physical.get(identifier, 0) + 1
        assert dict.fromkeys(expected, 1) == physical


async def _all_in(memory: MemoryManager, tier: str, count: int) -> bool:
    return (await held(memory))[tier] == count


async def _some_in(memory: MemoryManager, tier: str) -> bool:
    return (await held(memory))[tier] > 0


async def _same_listing(memory: MemoryManager, expected: dict[str, bytes]) -> bool:
    return await everything(memory) == expected


async def _at_rest(memory: MemoryManager, live: int) -> bool:
    tiers = (await memory.tiers())["tiers"]
    waiting = sum(tier["queued"] + tier["tombstones"] for tier in tiers.values())
    return tiers["glacier"]["records"] == live and not waiting


async def test_placement_is_the_fold_of_memories_and_changes(ageing: Settings) -> None:
    """Whoever folds the change feed knows where every record is (design §4)."""
    placement: dict[str, str | None] = {}
    async with MemoryManager.open(ageing) as memory:
        await memory.ready()
        await memory.store(rows(100))
        await until(lambda: _all_in(memory, "glacier", 100))
    async for announced in subscribe_changes(ageing.kafka, start="beginning", idle_ms=1_000):
        if announced.change.kind == "home":
            placement |= dict.fromkeys(announced.change.ids, announced.change.target)
    assert dict.fromkeys([f"id-{n}" for n in range(100)], "glacier") == placement


async def test_a_bad_event_becomes_a_dead_letter_and_the_partition_goes_on(settings: Settings) -> None:
    """Undecodable input is counted and kept with its reason; the next good offset is searchable."""
    async with MemoryManager.open(settings) as memory, MemoryProducer(settings.kafka) as producer:
        await memory.ready()
        await (await producer.publish("bad", b"{nonsense"))
        await (await producer.publish("bad", b'{"vector": [1, 2]}'))
        token = await producer.send("bad", np.ones(DIM, np.float32), payload={"good": True})

        result = await memory.retrieve(Query(ids=["bad"], at_least=token))

        assert [hit.row.payload for hit in result.hits] == [b'{"good":true}']
        assert dict(memory.node.ingest.letters) == {"json": 1, "vector_dim": 1}


async def test_a_log_that_ends_in_a_transaction_marker_is_replayed_to_its_end(settings: Settings) -> None:
    """A marker takes an offset and carries no record: readiness does not wait for it for ever (R7)."""
    async with MemoryManager.open(settings):
        pass
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka.bootstrap, transactional_id=settings.kafka.prefix)
    await producer.start()
    try:
        async with producer.transaction():
            await producer.send_and_wait(f"{settings.kafka.prefix}.memories", key=b"id-0", value=None)
    finally:
        await producer.stop()
    async with MemoryManager.open(settings) as memory:
        await memory.ready(20)
        assert [] == (await memory.retrieve(Query(ids=["id-0"]))).hits


@pytest.mark.parametrize("tier", ["hot", "warm", "cold", "glacier"])
async def test_a_cleared_tier_stays_cleared(settings: Settings, tier: str) -> None:
    """clear() takes every record of one tier, the others stay, and no restart brings them back."""
    async with MemoryManager.open(settings) as memory:
        await memory.ready()
        await _place(memory, {"hot": range(10), "warm": range(10, 20), "cold": range(20, 30), "glacier": range(30, 40)})

        assert await memory.clear(tier) == 10

        assert (await held(memory))[tier] == 0
        before = sorted(await everything(memory))
    async with MemoryManager.open(settings) as memory:
        await memory.ready()
        assert before == sorted(await everything(memory))
    assert len(before) == 30


async def _place(memory: MemoryManager, wanted: dict[str, range]) -> None:
    """Store rows and move them, through the lanes, to where they are wanted."""
    node = memory.node
    for word, numbers in wanted.items():
        given = [row for row in rows(100) if int(row.id[3:]) in numbers]
        token = await memory.store(given)
        await memory.retrieve(Query(ids=[], at_least=token))
        target = TierName[word.upper()]
        if target is TierName.HOT:
            continue
        for row in given:
            entry = node.index.find(row.id)
            assert entry is not None
            key = [(row.id, entry.version)]
            lane = node.lanes[entry.partition]
            await lane.perform(
                lambda p=entry.partition, t=target, k=key: node.mover.move(p, TierName.HOT, t, "test", k)
            )


async def test_a_full_hot_pauses_the_log_and_loses_nothing(
    stack: Stack, prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Far more than hot holds arrives at once: partitions pause, pressure evacuates, everything is there (R8)."""
    tight = small(
        stack, prefix, tmp_path / "node", policy__hot_age_s=3_600.0, hot__capacity_rows=256, hot__slab_rows=32
    )
    given = rows(800)
    async with MemoryManager.open(tight) as memory:
        await memory.ready()
        positions, _ = events.decode_token(await memory.store(given))
        await memory.node.ingest.wait(positions, 60)
        assert {row.id: row.payload for row in given} == await everything(memory)
        assert 256 >= (await memory.node.tiers[TierName.HOT].usage()).rows
    assert "partition.paused" in capsys.readouterr().out


async def test_a_second_node_on_the_same_data_is_refused(settings: Settings) -> None:
    """The data directory is locked, and the error says so."""
    async with MemoryManager.open(settings):
        with pytest.raises(ServiceMissing, match="in use by another node"):
            async with MemoryManager.open(settings):
                pass


async def test_a_second_owner_of_the_partitions_is_refused(settings: Settings, tmp_path) -> None:
    """Another data directory does not help: the lease names the owner."""
    other = msgspec.structs.replace(settings, data=str(tmp_path / "other"))
    async with MemoryManager.open(settings):
        with pytest.raises(Exception, match=r"(?i)lease|owner|own") as caught:
            async with MemoryManager.open(other):
                pass
    assert "Error" not in type(caught.value).__name__ or caught.value


async def test_frozen_settings_are_refused_when_changed(settings: Settings) -> None:
    """A data directory made for 16 dimensions does not open with 8."""
    async with MemoryManager.open(settings):
        pass
    with pytest.raises(SettingsError, match="dim = 8"):
        async with MemoryManager.open(msgspec.structs.replace(settings, dim=8)):
            pass


async def test_a_missing_broker_is_named_with_its_address(settings: Settings) -> None:
    """ServiceMissing says which service, where, and what to do."""
    kafka = msgspec.structs.replace(settings.kafka, bootstrap="127.0.0.1:1")
    with pytest.raises(ServiceMissing, match=r"Kafka does not answer at 127\.0\.0\.1:1"):
        async with Publisher(kafka):
            pass
