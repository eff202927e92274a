"""A whole node whose glacier lies in a bucket."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from pipeline import MemoryManager, Query
from pipeline.feed import ChangeFeed
from pipeline.metrics import Metrics
from pipeline.seaweed import BUCKET
from pipeline.settings import Settings, shown
from pipeline.stack import Stack
from tests.faulty import Proxy
from tests.nodes import rows, small, until
from tiers import TierName

COUNT = 120


@pytest.fixture
def in_s3(stack: Stack, s3: Stack, prefix: str, tmp_path: Path) -> Settings:
    """A node whose records go all the way down within a second or two, into a bucket."""
    return small(
        stack,
        prefix,
        tmp_path / "node",
        policy__hot_age_s=0.2,
        policy__warm_idle_s=0.4,
        policy__cold_idle_s=0.6,
        access__flush_ms=3_600_000,
        glacier__path=f"s3://{BUCKET}/{prefix}",
        glacier__endpoint=s3.s3,
        glacier__allow_http=True,
        glacier__credentials_file=str(s3.credentials),
        glacier__cache_bytes=0,
        glacier__vacuum_after_s=0.0,
    )


async def test_records_age_into_a_bucket_and_are_found_there(in_s3: Settings) -> None:
    """What is stored ages into S3 and is found there by id and vector, also after a restart; a deletion gets there."""
    given = rows(COUNT)
    async with MemoryManager.open(in_s3) as memory:
        await memory.ready()
        await memory.store(given)
        await until(lambda: _in_glacier(memory, COUNT))
        await _finds(memory, given)
        exposition = (await Metrics(memory, ChangeFeed(memory.node.settings)).render()).decode()
    async with MemoryManager.open(in_s3) as memory:
        await memory.ready()
        await _finds(memory, given)
        await memory.retrieve(Query(ids=[], at_least=await memory.delete(given[0].id)))
        assert [] == (await memory.retrieve(Query(ids=[given[0].id]))).hits
        await until(lambda: _dropped(memory, 2))  # the record and then the tombstone went from the bucket
        await until(lambda: _vacuumed(memory))
        assert await _physical(memory, COUNT - 1)
        archive = (await memory.tiers())["archive"]

    assert not (Path(in_s3.data) / "glacier").exists()
    assert archive["requests"]["put"]["bytes"] > 0
    for name in (
        "isotherm_archive_files",
        "isotherm_archive_rewrites_total",
        'isotherm_s3_bytes_total{operation="put"}',
    ):
        assert float(exposition.split(f"\n{name} ")[1].split("\n")[0]) >= 0


async def test_a_bucket_that_refuses_for_a_while_delays_and_loses_nothing(in_s3: Settings, s3: Stack) -> None:
    """While requests are refused, cut off, or their answers lost, all records arrive, and lie there once."""
    given = rows(COUNT)
    with Proxy(s3.s3) as proxy:
        faulty = msgspec.structs.replace(
            in_s3, glacier=msgspec.structs.replace(in_s3.glacier, endpoint=proxy.address, timeout_s=2.0)
        )
        async with MemoryManager.open(faulty) as memory:
            await memory.ready()
            memory.node.glacier._files.archive.storage._asking._pause = lambda _: None
            for start in range(0, COUNT, 20):
                for kind, method in (("503", "PUT"), ("cut", "GET"), ("lost", "PUT"), ("503", "GET"), ("502", "PUT")):
                    proxy.inject(kind, method, "partition" if start % 40 else "_delta_log")
                await memory.store(given[start : start + 20])
            await until(lambda: _in_glacier(memory, COUNT), 60)
            await _finds(memory, given)
            failures = sum(each["failures"] for each in (await memory.tiers())["archive"]["requests"].values())
    async with MemoryManager.open(in_s3) as memory:
        await memory.ready()
        await _finds(memory, given)
        await until(lambda: _physical(memory, COUNT))
    assert failures > 5


async def test_a_bucket_that_is_away_stalls_moves_and_comes_back_by_itself(in_s3: Settings, s3: Stack) -> None:
    """Each request is refused: moves into it wait, reads name glacier, what is above is found; then all goes on."""
    given = rows(COUNT)
    with Proxy(s3.s3) as proxy:
        glacier = msgspec.structs.replace(in_s3.glacier, endpoint=proxy.address, timeout_s=2.0)
        async with MemoryManager.open(msgspec.structs.replace(in_s3, glacier=glacier)) as memory:
            await memory.ready()
            await memory.store(given[: COUNT // 2])
            await until(lambda: _in_glacier(memory, COUNT // 2), 60)
            for method in ("GET", "PUT", "HEAD", "POST", "DELETE"):
                proxy.inject("503", method, "", times=1_000_000)
            await memory.store(given[COUNT // 2 :])
            await until(lambda: any(lane.stalled["TierUnavailable"] for lane in memory.node.lanes.values()), 60)
            found = await memory.retrieve(Query(ids=[given[0].id, given[-1].id]))
            assert ([given[-1].id], False, ["glacier"]) == (
                [hit.row.id for hit in found.hits], found.complete, list(found.missed)
            )  # fmt: skip
            proxy.faults.clear()
            await until(lambda: _in_glacier(memory, COUNT), 60)
            await _finds(memory, given)


def test_no_credential_is_a_setting(in_s3: Settings, s3: Stack) -> None:
    """What `config show` prints has no key, and settings have no place for one."""
    secret = s3.credentials.read_text().split("aws_secret_access_key = ")[1].strip()

    assert secret not in str(shown(in_s3))
    assert secret not in repr(in_s3)


async def _in_glacier(memory: MemoryManager, count: int) -> bool:
    return (await memory.tiers())["tiers"]["glacier"]["records"] == count


async def _physical(memory: MemoryManager, count: int) -> bool:
    return (await memory.tiers())["tiers"]["glacier"]["rows"] == count


async def _dropped(memory: MemoryManager, count: int) -> bool:
    return (await memory.tiers())["archive"]["done"]["dropped_rows"] == count


async def _vacuumed(memory: MemoryManager) -> bool:
    return (await memory.tiers())["archive"]["waiting_files"] == 0


async def _finds(memory: MemoryManager, given: list) -> None:
    found = (await memory.retrieve(Query(ids=[row.id for row in given]))).hits
    assert {(row.id, row.payload) for row in given} == {(hit.row.id, hit.row.payload) for hit in found}
    assert {TierName.GLACIER} == {hit.tier for hit in found}
    nearest = (await memory.retrieve(Query(vector=given[7].vector, k=3))).hits
    assert given[7].id == nearest[0].row.id


async def test_sql_reads_an_archive_in_a_bucket(in_s3: Settings) -> None:
    """Its files are brought here once, and the next snapshot has them from the one before."""
    in_s3 = msgspec.structs.replace(in_s3, sql=msgspec.structs.replace(in_s3.sql, snapshot_s=0.0))
    async with MemoryManager.open(in_s3) as memory:
        await memory.ready()
        await memory.store(rows(COUNT))
        await until(lambda: _in_glacier(memory, COUNT))
        query = "SELECT count(*), count(payload), count(DISTINCT id) FROM glacier"
        first = await memory.node.sql.query(query)
        before = memory.node.glacier.census().requests["get"].bytes
        second = await memory.node.sql.query(query)

        assert [b"[%d,%d,%d]" % (COUNT, COUNT, COUNT)] == first.parts == second.parts
        assert before == memory.node.glacier.census().requests["get"].bytes
