"""`verify` finds each kind of planted damage, repairs what is derived, and is silent about a healthy node at work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest.mock import MagicMock

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from pipeline import MemoryManager
from pipeline.cli import app
from pipeline.settings import Settings
from pipeline.verify import TOGETHER, Verify
from pipeline.verify_survey import Found, Survey
from pipeline.verify_survey import homes as homes_of
from tests.nodes import rows, until
from tests.pipeline.test_questions import COUNT, Service, service
from tiers import codec, packed
from tiers.cold import ColdMemory
from tiers.glacier import GlacierMemory
from tiers.tier import Places, TierName
from tiers.warm import WarmMemory

__all__ = ["service"]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Nothing is rewritten by itself: a damaged file must wait for the look."""
    return msgspec.structs.replace(settings, move=msgspec.structs.replace(settings.move, compact_s=3_600.0))


async def verify(service: Service, *, repair: bool = False) -> dict[str, Any]:
    """Return the report."""
    return await service.post("/v1/verify", repair=repair)


def kinds(report: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """Return what was found: kind, tier, id, repaired."""
    return sorted((each["kind"], each["tier"], each["id"], each["repaired"]) for each in report["problems"])


async def healthy(service: Service) -> None:
    """Fail unless a second look finds nothing."""
    report = await verify(service)
    assert (True, []) == (report["ok"], report["problems"])


async def test_a_healthy_node_has_no_problem(service: Service) -> None:
    """Every row and home of four tiers, the files and the partitions are looked at."""
    await service.memory.delete("id-39")
    report = await verify(service)
    assert (True, 0) == (report["ok"], report["problems_total"])
    for tier in ("warm", "cold", "glacier"):
        assert (10, 10) == (report["checked"][f"{tier}_rows"], report["checked"][f"{tier}_homes"]) or tier == "glacier"
    assert 4 == report["checked"]["partitions"]
    assert report["checked"]["files"] >= 1


async def test_a_node_at_work_raises_no_false_alarm(ageing: Settings) -> None:
    """While records age through four tiers, are updated, deleted and compacted: three looks, no problem."""
    async with MemoryManager.open(ageing) as memory:
        await memory.ready()
        await memory.store(rows(100, start=5_000))
        stop = asyncio.Event()

        async def churn() -> None:
            seed = 0
            while not stop.is_set():
                await memory.store(rows(10, start=10 * (seed % 50), seed=seed))
                await memory.delete(f"id-{17 * seed % 500}")
                seed += 1
                await asyncio.sleep(0.1)

        async with asyncio.TaskGroup() as group:
            group.create_task(churn())
            await until(lambda: memory.node.index.rows(TierName.GLACIER) > 50)
            for _ in range(3):
                report = await Verify(memory.node).run()
                assert [] == report["problems"]
            stop.set()


@pytest.mark.unit
async def test_suspects_are_judged_each_once_some_in_a_turn() -> None:
    """A turn in a busy lane waits for a move: each partition's suspects share a few of them."""
    turns: list[int] = []
    judged: list[int] = []

    class OneLane:
        def __init__(self, partition: int) -> None:
            self._partition = partition

        async def perform(self, job: Callable[[], Awaitable[None]]) -> None:
            turns.append(self._partition)
            await job()

    async def judge(number: int) -> None:
        judged.append(number)

    node = MagicMock(lanes={0: OneLane(0), 1: OneLane(1)})
    count = 2 * TOGETHER + 3
    await Verify(node)._in_lanes((number % 2, partial(judge, number)) for number in range(count))
    assert (list(range(count)), [0, 0, 1, 1]) == (sorted(judged), turns)


async def test_what_moved_while_it_was_looked_at_is_looked_at_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that left warm between the look at it and at the index, and a file rewritten in between, are no problem."""
    node, surveyed = service.memory.node, Survey.rows

    async def moving(self: Survey, tier: TierName) -> AsyncIterator[list[Found]]:
        async for page in surveyed(self, tier):
            for where in [each.where for each in page if tier is TierName.WARM]:
                keys = [(where.id, where.version)]
                job = partial(node.mover.move, where.partition, tier, TierName.COLD, "test", keys)
                await node.lanes[where.partition].perform(job)
            yield page
        if tier is TierName.GLACIER:
            token = await service.memory.store(rows(COUNT)[30:33])
            await service.http.get("/v1/memories/id-30", params={"at_least": token})
            assert await service.memory.cleanup() == 3

    monkeypatch.setattr(Survey, "rows", moving)
    report = await verify(service)
    assert [] == report["problems"]
    assert report["looked_again"] > 10


# -- planted damage ----------------------------------------------------------------------------------------------------


def warm_of(service: Service) -> WarmMemory:
    """Return the warm tier."""
    return cast("WarmMemory", service.memory.node.tiers[TierName.WARM])


def cold_of(service: Service) -> ColdMemory:
    """Return the cold tier."""
    return cast("ColdMemory", service.memory.node.tiers[TierName.COLD])


async def test_a_lost_and_a_damaged_row_of_warm_are_found(service: Service) -> None:
    """Each by its id; neither can be repaired here, because nothing else has it."""
    warm, find = warm_of(service), service.memory.node.index.find
    lost, bad = find("id-11"), find("id-12")
    assert lost is not None
    assert bad is not None
    await warm.client.delete(warm._keys.row(lost.partition, lost.id))
    await warm.client.setrange(warm._keys.row(bad.partition, bad.id), 60, b"\x00\x01\x02")

    report = await verify(service, repair=True)
    assert [("damaged", "warm", "id-12", False), ("missing", "warm", "id-11", False)] == kinds(report)
    assert not report["ok"]


async def test_rows_that_nothing_explains_are_found_and_older_ones_evicted(service: Service) -> None:
    """An older version waits for eviction from then on; a row that the index does not know at all is only told of."""
    warm, node = warm_of(service), service.memory.node
    before = node.index.find("id-5")
    token = await service.memory.store([replace(rows(6)[5], payload=b"newer")])
    await service.http.get("/v1/memories/id-5", params={"at_least": token})
    entry = node.index.find("id-5")
    assert entry is not None
    assert before is not None
    for identifier, partition, version in (("id-5", entry.partition, before.version), ("stranger", 0, 7)):
        row = replace(rows(1)[0], id=identifier, version=version)
        await warm.client.set(warm._keys.row(partition, identifier), codec.encode(row))

    expected = [("orphan", "warm", "id-5"), ("orphan", "warm", "stranger")]
    assert expected == [each[:3] for each in kinds(await verify(service))]
    report = await verify(service, repair=True)
    assert [(*expected[0], True), (*expected[1], False)] == kinds(report)
    await until(lambda: not len(node.index.queue))
    assert [expected[1]] == [each[:3] for each in kinds(await verify(service))]


async def test_a_side_file_that_differs_is_made_right(service: Service) -> None:
    """From DuckDB, which is the truth: a flipped row, and a slot that it alone has."""
    cold, entry = cold_of(service), service.memory.node.index.find("id-25")
    assert entry is not None
    wrong = pa.array([codec.encode(replace(rows(1)[0], id="x", version=1))], packed.BYTES)

    def damage() -> None:
        cold._rows._side.append(np.array([entry.slot]), wrong)
        cold._rows._side.append(np.array([10_000]), wrong)

    await cold._writer.run(damage)
    assert [("side", "cold", "", False), ("side", "cold", "id-25", False)] == kinds(await verify(service))
    report = await verify(service, repair=True)
    assert [("side", "cold", "", True), ("side", "cold", "id-25", True)] == kinds(report)
    assert report["ok"]
    await healthy(service)


async def test_a_row_lost_from_duckdb_is_found(service: Service) -> None:
    """Although the side file still shows it to readers."""
    cold, entry = cold_of(service), service.memory.node.index.find("id-21")
    assert entry is not None
    where = record_location(entry)
    await cold._writer.run(cold._rows._table.delete, Places.of([where]))

    assert ("missing", "cold", "id-21", False) in kinds(await verify(service))


def record_location(entry: Any) -> Any:
    """Return where an entry's home is."""
    from tiers.tier import Location

    return Location(entry.id, entry.version, entry.partition, entry.slot)


async def test_index_entries_that_point_elsewhere_are_put_right(service: Service) -> None:
    """The rows themselves are found, at the very version, and the index follows them there."""
    index, wrong = service.memory.node.index, [("id-25", "cold"), ("id-35", "glacier")]
    before = [index.find(identifier) for identifier, _ in wrong]
    for identifier, _ in wrong:
        found = index.row_of(identifier)
        assert found is not None
        found[0].slot[found[1]] += 1 << 30

    expected = sorted((kind, tier, identifier) for identifier, tier in wrong for kind in ("missing", "orphan"))
    assert expected == [each[:3] for each in kinds(await verify(service))]
    assert [(*each, True) for each in expected] == kinds(await verify(service, repair=True))
    await healthy(service)
    assert before == [index.find(identifier) for identifier, _ in wrong]


async def test_an_index_that_miscounts_is_found(service: Service) -> None:
    """Its sums by tier are its own to keep."""
    service.memory.node.index._rows[TierName.COLD] += 1
    assert [("count", "cold", "", False)] == kinds(await verify(service))


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)


def cut(path: Path) -> None:
    """Lose the end."""
    path.write_bytes(path.read_bytes()[:-100])


async def test_damaged_files_of_the_archive_are_found_by_name(service: Service) -> None:
    """A flipped bit, a cut file, a missing one; their records are missing with them."""
    glacier = service.memory.node.glacier
    _, files = await glacier.state()
    storage: Any = glacier._files.archive.storage
    for damage, file in zip((flip, cut, Path.unlink), files, strict=False):
        damage(Path(storage.root, file.path))

    report = await verify(service)
    named = " ".join(each["detail"] for each in report["problems"] if each["kind"] == "file")
    assert [True, True, True, False] == [file.path in named for file in files[:4]]
    lost = {each["id"] for each in report["problems"] if each["kind"] in ("missing", "damaged")}
    assert sum(file.rows for file in files[:3]) == len(lost)


async def test_a_cache_that_differs_from_its_files_is_made_right(service: Service) -> None:
    """A bit of a row flipped in memory, and of the vector that a search reads: named, and read from the file again."""
    glacier = cast("GlacierMemory", service.memory.node.tiers[TierName.GLACIER])
    homes = [where for page in homes_of(service.memory.node, TierName.GLACIER) for where in page]
    rows_there = [row for row in await glacier.get(homes) if row is not None]
    first = replace(rows_there[0], payload=b'{"n":999}')
    second = replace(rows_there[1], vector=np.negative(cast("Any", rows_there[1].vector)))
    glacier._recent.keep_rows([first, second])

    report = await verify(service)
    assert [("cache", "glacier", one, False) for one in sorted((first.id, second.id))] == kinds(report)
    repaired = await verify(service, repair=True)
    assert (True, 2) == (repaired["ok"], repaired["problems_total"])
    await healthy(service)
    assert rows_there[0].payload == (await glacier.get(homes[:1]))[0].payload  # type: ignore[union-attr]


async def test_a_topic_made_again_is_found(service: Service) -> None:
    """It has another id than the one that the data directory has read."""
    service.memory.node.manifest.topic = "another"
    report = await verify(service)
    assert ["log"] == [each["kind"] for each in report["problems"]]
    assert "isotherm log adopt" in report["problems"][0]["detail"]


async def test_offsets_committed_beyond_what_is_durable_are_found(service: Service) -> None:
    """Committed above the watermark a crash would lose what lies between (R1)."""
    node = service.memory.node
    await node.reader.commit({2: node.ingest.watermarks[2].value + 5})
    report = await verify(service)
    assert [("offsets", 2)] == [(each["kind"], each["partition"]) for each in report["problems"]]


async def test_the_command_exits_1_when_something_is_wrong(service: Service) -> None:
    """And 0 when nothing is; a table for people, one object for programs."""
    from typer.testing import CliRunner

    url = ["--url", str(service.http.base_url).rstrip("/")]
    fine = await asyncio.to_thread(CliRunner().invoke, app, ["verify", "--json", *url])
    report = next(line for line in fine.stdout.splitlines() if line.startswith("{"))  # the node's log is there as well
    assert (0, True) == (fine.exit_code, msgspec.json.decode(report)["ok"])
    service.memory.node.index._rows[TierName.WARM] += 1
    bad = await asyncio.to_thread(CliRunner().invoke, app, ["verify", *url])
    assert (1, True) == (bad.exit_code, "count" in bad.stdout)
