"""ColdMemory on real files: versions, kills, damage, full disks, and two who want the same file."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import duckdb
import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiers.contract import PARTITIONS, TierContract
from tests.tiers.rows import ATTRIBUTES, NOW_MS, SHAPE, batch, row, same
from tiers import cold_file, cold_table, record
from tiers.cold import ColdMemory
from tiers.cold_settings import ColdSettings
from tiers.errors import InvalidRecord, OutcomeUnknown, ServiceMissing, SettingsError, TierCorrupt, TierFull
from tiers.index import Index
from tiers.record import Row
from tiers.tier import NO_SLOT, Location, Query, TierName

pytestmark = pytest.mark.unit


class TestCold(TierContract):
    """What every tier does, by the cold tier alone."""

    async def open_tier(self, tmp_path: Path, server: object, prefix: str, shape: pa.Schema) -> ColdMemory:
        return await ColdMemory.open(ColdSettings(path=str(tmp_path / prefix)), shape, partitions=PARTITIONS)


@pytest.fixture
def options(tmp_path: Path) -> ColdSettings:
    return ColdSettings(path=str(tmp_path / "deep" / "cold"), segment_bytes=16_384, memory_limit_mb=256)


@pytest.fixture
async def cold(options: ColdSettings) -> AsyncIterator[ColdMemory]:
    """The tier alone."""
    async with opened(options) as tier:
        yield tier


@asynccontextmanager
async def opened(
    options: ColdSettings, shape: pa.Schema = SHAPE, index: Index | None = None
) -> AsyncIterator[ColdMemory]:
    tier = await ColdMemory.open(options, shape, partitions=PARTITIONS, index=index)
    try:
        yield tier
    finally:
        await tier.cleanup()


async def physical(tier: ColdMemory) -> list[tuple[int, str, int]]:
    """Return (slot, id, version) of every physical row."""
    found: list[tuple[int, str, int]] = []
    async for page in tier.retrieve_all():
        assert page.num_rows <= 8_192
        found += zip(*(page[name].to_pylist() for name in ("slot", "id", "version")), strict=True)
    return found


async def stored(tier: ColdMemory, *rows: Row) -> list[Location]:
    """Store rows and return where they lie."""
    receipt = await tier.store(batch(*rows))
    where = zip(receipt.ids, receipt.versions.tolist(), receipt.slots.tolist(), strict=True)
    return [Location(name, version, record.partition(name, PARTITIONS), slot) for name, version, slot in where]


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 0x55]))


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own to its end."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def writer(options: ColdSettings, life: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WRITER, options.path, str(life)], stdout=subprocess.PIPE)


def disk_use(options: ColdSettings) -> int:
    return sum(path.stat().st_size for path in Path(options.path).rglob("*.d*"))


def side_files(options: ColdSettings) -> list[Path]:
    return sorted((Path(options.path) / "cold.side").glob("side-*.dat"))


# -- what is stored ----------------------------------------------------------------------------------------------------


async def test_every_kind_of_row_comes_back_from_both_files(options: ColdSettings) -> None:
    """All types, absent attributes, tombstones, expiry, any text and any bytes: equal bit for bit from either file."""
    attributes = {"user": 'a "b" \x00 ☃', "rank": -(2**63), "score": 0.1, "seen": False, "at": NOW_MS}
    expiring = row("expiring", 3)
    rows = [
        row("ns/full", 1, attributes=attributes),
        row("ns/some", 2, attributes={"rank": 2**63 - 1}),
        row("bare", 5),
        Row("expiring", 3, -1, NOW_MS + 5, expiring.vector, bytes(range(256)) * 1_024, {}, deleted=False),
        row("gone", 1 << 62, deleted=True),
    ]
    rows = [record.row_at(batch(one), 0) for one in rows]  # as they come out of any batch: times as datetimes
    async with opened(options) as cold:
        where = await stored(cold, *rows)
        from_side = await cold.get(where)
        found = [record.row_at(page, at) async for page in cold.retrieve_all() for at in range(page.num_rows)]

    assert all(one is not None and same(one, two) for one, two in zip(from_side, rows, strict=True))
    assert all(same(one, two) for one, two in zip(found, rows, strict=True))


async def test_without_attributes(options: ColdSettings) -> None:
    """A schema that declares no attributes works; its batches have the empty struct."""
    shape = record.schema(4, {})
    async with opened(options, shape) as cold:
        await cold.store(batch(row("a", 1), row("b", 1, deleted=True), shape=shape))
        pages = [page async for page in cold.retrieve_all()]

    assert [shape.append(pa.field("slot", pa.int64(), nullable=False))] == [page.schema for page in pages]
    assert ["a", "b"] == pages[0]["id"].to_pylist()


VERSIONS = st.tuples(st.sampled_from(["a", "b", "ns/c", "d"]), st.integers(1, 30), st.booleans())
BATCHES = st.lists(st.lists(VERSIONS, min_size=1, max_size=12), min_size=1, max_size=5)


@given(batches=BATCHES, backwards=st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_highest_version_wins_as_in_a_dict(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[tuple[str, int, bool]]], *, backwards: bool
) -> None:
    """Ids repeated in a batch and over batches, in any order and its reverse, give what a dict by version gives."""
    directory = tmp_path_factory.mktemp("cold")
    asyncio.run(_differential(ColdSettings(path=str(directory)), batches, backwards=backwards))
    shutil.rmtree(directory)


async def _differential(options: ColdSettings, batches: list[list[tuple[str, int, bool]]], *, backwards: bool) -> None:
    model: dict[str, Row] = {}
    async with opened(options) as cold:
        for keys in batches:
            rows = [row(name, version, deleted=deleted and version % 5 == 0) for name, version, deleted in keys]
            rows = list({(one.id, one.version): one for one in rows}.values())  # one log position is one record
            rows = [model[r.id] if r.id in model and model[r.id].version == r.version else r for r in rows]
            receipt = await cold.store(batch(*(reversed(rows) if backwards else rows)))
            for one in rows:
                model[one.id] = max(model.get(one.id, one), one, key=lambda r: r.version)
            held = dict(zip(receipt.ids, receipt.held.tolist(), strict=True))
            assert held == {one.id: model[one.id].version for one in rows}
        await _is(cold, model)
    async with opened(options) as cold:
        await _is(cold, model)


async def _is(cold: ColdMemory, model: dict[str, Row]) -> None:
    """Assert one physical row an id, and the same answers."""
    rows = await physical(cold)
    assert sorted((name, version) for _, name, version in rows) == sorted((r.id, r.version) for r in model.values())
    found = await cold.get([Location(name, version, 0, slot) for slot, name, version in rows])
    assert all(one is not None and same(one, model[one.id]) for one in found)
    answer = await cold.retrieve(Query(ids=sorted(model)))
    assert [hit.row.id for hit in answer.hits] == sorted(r.id for r in model.values() if not r.deleted)


async def test_storing_an_older_version_changes_nothing_and_is_receipted(cold: ColdMemory) -> None:
    """The receipt shows the version that is held, where it is held, and what was waited for."""
    (where,) = await stored(cold, row("a", 7))
    receipt = await cold.store(batch(row("a", 6)))

    assert ([6], [7], [where.slot]) == (receipt.versions.tolist(), receipt.held.tolist(), receipt.slots.tolist())
    assert "fdatasync" in receipt.proof
    assert await physical(cold) == [(where.slot, "a", 7)]


async def test_stores_at_once_leave_one_row_an_id(cold: ColdMemory) -> None:
    """Alone, nobody else keeps the stores of an id apart: the highest version stays, and only that."""
    await asyncio.gather(*(cold.store(batch(row("a", version))) for version in (3, 1, 5, 5, 2, 4)))

    assert [("a", 5)] == [(name, version) for _, name, version in await physical(cold)]


async def test_on_a_shared_index_older_rows_stay_until_they_are_evicted(options: ColdSettings) -> None:
    """The tier itself masks and evicts nothing: every physical row is listed, tombstones too, in slot order."""
    async with opened(options, index=Index.of(SHAPE)) as cold:
        for version in (1, 2, 3):
            await cold.store(batch(row("a", version, deleted=version == 3), row("b", version)))

        listed = await physical(cold)
        assert listed == [(slot, "ab"[slot % 2], slot // 2 + 1) for slot in range(6)]


async def test_a_row_that_a_move_has_only_announced_is_written(options: ColdSettings) -> None:
    """R4 queues the target row before the store: that is no proof that the tier holds it."""
    index = Index.of(SHAPE)
    async with opened(options, index=index) as cold:
        index.queue.add(TierName.COLD, Location("a", 1, record.partition("a", PARTITIONS), NO_SLOT))
        receipt = await cold.store(batch(row("a", 1)))

        assert await physical(cold) == [(receipt.slots[0], "a", 1)]


async def test_each_row_has_its_kafka_partition_in_the_file(options: ColdSettings) -> None:
    """The SQL engine, and an owner that leaves, find rows by partition."""
    names = [f"id-{number}" for number in range(20)]
    async with opened(options) as cold:
        await cold.store(batch(*(row(name, 1) for name in names)))
    with duckdb.connect(str(Path(options.path) / "cold.duckdb")) as reader:
        found = reader.sql('SELECT id, "partition" FROM rows').fetchall()

    assert {name: record.partition(name, PARTITIONS) for name in names} == dict(found)


async def test_slots_are_never_given_twice(options: ColdSettings) -> None:
    """A slot names one row for all lives of the file, even when the last rows were evicted before a restart."""
    async with opened(options) as cold:
        where = await stored(cold, row("a", 1), row("b", 1))
        await cold.evict(where[1:], None)
    async with opened(options) as cold:
        (again,) = await stored(cold, row("c", 1))

        assert again.slot > where[1].slot
        assert await cold.get(where[1:]) == [None]


async def test_a_time_beyond_the_files_range_is_refused_and_the_tier_goes_on(cold: ColdMemory) -> None:
    """DuckDB's timestamps end in the year 294,246; such a batch changes nothing."""
    with pytest.raises(InvalidRecord, match="no place"):
        await cold.store(batch(row("good", 1), row("far", 1, event_time=2**62)))

    await stored(cold, row("next", 1))
    assert [name for _, name, _ in await physical(cold)] == ["next"]


# -- eviction and space ------------------------------------------------------------------------------------------------


async def test_eviction_needs_slot_id_and_version(options: ColdSettings) -> None:
    """A stale version, another id or slot, or no slot drop nothing; the right key drops its row once."""
    async with opened(options, index=Index.of(SHAPE)) as cold:
        a, b = await stored(cold, row("a", 5), row("b", 5))
        stale = [
            Location("a", 4, 0, a.slot),
            Location("a", 6, 0, a.slot),
            Location("b", 5, 0, a.slot),
            Location("a", 5, 0, b.slot),
            Location("a", 5, 0, NO_SLOT),
            Location("a", 5, 0, 999),
        ]

        assert await cold.evict(stale, None) == 0
        assert len(await physical(cold)) == 2
        assert await cold.evict([a, a, *stale], None) == 1
        assert await cold.evict([a], None) == 0
        assert await cold.evict([], None) == 0
        assert [one and one.id for one in await cold.get([a, b])] == [None, "b"]


async def test_both_files_shrink_after_eviction(options: ColdSettings) -> None:
    """Rounds of storing and evicting leave the disk use of what lives, not of what ever lived."""
    small = msgspec.structs.replace(options, checkpoint_bytes=200_000)
    sizes: list[int] = []
    async with opened(small, index=Index.of(SHAPE)) as cold:
        old: list[Location] = []
        for version in range(1, 31):
            rows = (Row(f"id-{n}", version, NOW_MS, None, row("v", n).vector, os.urandom(200)) for n in range(500))
            new = await stored(cold, *rows)
            assert await cold.evict(old, None) == len(old)
            old = new
            sizes.append((await cold.usage()).bytes)
        assert (await cold.usage()).rows == 500
        assert max(sizes[15:]) <= 2 * max(sizes[:5])
        assert disk_use(options) < 8_000_000

        await cold.evict(old, None)
        assert side_files(options) == []


async def test_evicted_rows_give_their_bytes_back_though_deletions_are_few_bytes_of_wal(options: ColdSettings) -> None:
    """Evicted bytes too make a checkpoint due: a tier at its limit that only evicts must not stay full."""
    async with opened(options, index=Index.of(SHAPE)) as cold:
        where = await stored(
            cold, *(Row(f"{n}", 1, NOW_MS, None, row("v", n).vector, os.urandom(8_000)) for n in range(500))
        )
    async with opened(msgspec.structs.replace(options, checkpoint_bytes=1_000_000), index=Index.of(SHAPE)) as cold:
        full = (await cold.usage()).bytes
        assert await cold.evict(where, None) == 500
        assert await cold.evict(where, None) == 0

        assert (await cold.usage()).bytes < full / 10


async def test_clear_empties_the_tier_for_good(options: ColdSettings) -> None:
    """Nothing is left, now and after a reopening, and the tier takes the same versions again."""
    async with opened(options) as cold:
        where = await stored(cold, *(row(f"id-{n}", 1) for n in range(500)))
        await cold.clear()
        assert (await physical(cold), await cold.get(where), (await cold.usage()).rows) == ([], [None] * 500, 0)
        await stored(cold, row("id-1", 1))
    async with opened(options) as cold:
        assert [name for _, name, _ in await physical(cold)] == ["id-1"]


@pytest.mark.parametrize("limit", [{"rows_limit": 10}, {"bytes_limit": 600_000}, {"reserve_bytes": 1 << 60}])
async def test_limits_refuse_with_nothing_changed(options: ColdSettings, limit: dict[str, int]) -> None:
    """Beyond rows, bytes or the disk's reserve a store raises TierFull; eviction still works."""
    async with opened(msgspec.structs.replace(options, **limit), index=Index.of(SHAPE)) as cold:
        where: list[Location] = []
        with pytest.raises(TierFull, match="no room"):  # noqa: PT012 - which of them is refused depends on the limit
            for number in range(1_000):
                where += await stored(cold, *(row(f"{number}-{n}", 1) for n in range(5)))

        assert len(await physical(cold)) == len(where)
        assert await cold.evict(where, None) == len(where)


@pytest.mark.parametrize("bad", [{"threads": 0}, {"memory_limit_mb": 1}, {"segment_bytes": 0}, {"rows_limit": -1}])
def test_settings_that_cannot_work_are_refused(bad: dict[str, int]) -> None:
    """Before anything is opened."""
    with pytest.raises(SettingsError, match="cold"):
        ColdSettings(**bad)


# -- durability --------------------------------------------------------------------------------------------------------

WRITER = """
import asyncio, os, sys
import numpy as np
from tests.tiers.rows import SHAPE, batch, row
from tiers.cold import ColdMemory
from tiers.cold_settings import ColdSettings

async def main(path, life):
    options = ColdSettings(path=path, segment_bytes=16384, checkpoint_bytes=60000, memory_limit_mb=256)
    cold = await ColdMemory.open(options, SHAPE, partitions=4)
    for number in range(10_000):
        names = [f"{life}-{number}-{n}" for n in range(1 + number % 40)]
        await cold.store(batch(*(row(name, life) for name in names), row("shared", life * 100_000 + number)))
        os.write(1, f"{number}\\n".encode())

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


@pytest.mark.timeout(300)
async def test_a_kill_right_after_store_loses_nothing(options: ColdSettings) -> None:
    """SIGKILL at ten moments, during checkpoints too: every acknowledged row is there, in its newest version, once."""
    draw = random.Random(20)
    acknowledged: dict[str, int] = {}
    for life in range(1, 11):
        child = writer(options, life)
        for _ in range(draw.randrange(5, 120)):
            assert child.stdout is not None
            number = int(child.stdout.readline())
            acknowledged |= {f"{life}-{number}-{n}": life for n in range(1 + number % 40)}
            acknowledged["shared"] = life * 100_000 + number
        child.send_signal(signal.SIGKILL)
        rest, _ = child.communicate()
        for line in rest.split():
            acknowledged |= {f"{life}-{int(line)}-{n}": life for n in range(1 + int(line) % 40)}
            acknowledged["shared"] = life * 100_000 + int(line)
        async with opened(options) as cold:
            found = await physical(cold)
            held = {name: version for _, name, version in found}
            assert len(held) == len(found)
            assert {name for name, version in acknowledged.items() if held.get(name, -1) < version} == set()
            rows = await cold.get([Location(name, version, 0, slot) for slot, name, version in found])
            assert all(one is not None and same(one, row(one.id, one.version)) for one in rows)


async def test_a_checkpoint_writes_small_row_groups(options: ColdSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a checkpoint writes anew is what has changed, and little more; the file stays one that DuckDB 1.5 reads."""
    monkeypatch.setattr(cold_file, "GROUP_ROWS", 2_048)
    async with opened(options, index=Index.of(SHAPE)) as cold:
        await cold.store(batch(*(row(f"ns/{n}", n) for n in range(5_000))))
        assert await cold._writer.run(cold._rows._table.checkpoint)

    with duckdb.connect(f"{options.path}/cold.duckdb", read_only=True) as file:
        groups = file.execute("SELECT count(DISTINCT row_group_id) FROM pragma_storage_info('rows')").fetchone()
        made_for = file.execute("SELECT tags['storage_version'] FROM duckdb_databases() WHERE NOT internal").fetchone()

    assert (3,) == groups
    assert made_for is not None
    assert "v1.5.0" in made_for[0]


async def test_the_new_wal_has_its_name_synced_before_the_receipt(
    options: ColdSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint unlinks the WAL; the first commit after it, and only that, waits for the directory."""
    synced: list[Path] = []
    monkeypatch.setattr(cold_table, "fsync", synced.append)
    async with opened(options, index=Index.of(SHAPE)) as cold:
        directory = Path(options.path)
        assert synced == [directory]
        (where,) = await stored(cold, row("a", 1))
        assert synced == [directory] * 2
        await stored(cold, row("b", 1))
        assert synced == [directory] * 2
        assert await cold._writer.run(cold._rows._table.checkpoint)
        await cold.evict([where], None)
        assert synced == [directory] * 3


# -- damage ------------------------------------------------------------------------------------------------------------


def _delete(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink()


def _truncate(paths: Sequence[Path]) -> None:
    for path in paths:
        os.truncate(path, path.stat().st_size // 2)


def _flip(paths: Sequence[Path]) -> None:
    for path in paths:
        for at in range(60, path.stat().st_size, 97):
            flip(path, at)


def _empty(paths: Sequence[Path]) -> None:
    for path in paths:
        os.truncate(path, 0)


@pytest.mark.parametrize("damage", [_delete, _truncate, _flip, _empty])
async def test_a_damaged_side_file_costs_time_only(
    options: ColdSettings, damage: Callable[[Sequence[Path]], None]
) -> None:
    """Deleted, cut, flipped or emptied: rows read right at once, repaired, and again after a reopening."""
    rows = [row(f"id-{n}", n) for n in range(300)]
    async with opened(options) as cold:
        where = await stored(cold, *rows)
        damage(side_files(options))
        for _ in range(2):
            found = await cold.get(where)
            assert all(one is not None and same(one, two) for one, two in zip(found, rows, strict=True))
        _, doubtful = await cold._readers.run(cold._rows.read, where)
        assert doubtful == []
    damage(side_files(options))
    async with opened(options) as cold:
        found = await cold.get(where)
        assert all(one is not None and same(one, two) for one, two in zip(found, rows, strict=True))


async def test_few_rows_are_read_without_a_thread_and_never_wrongly(
    options: ColdSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the kernel has in memory is answered at once; one that is damaged, gone or another is asked for as ever."""
    async with opened(options) as cold:
        rows = [row(f"id-{n}", n) for n in range(1, 4)]
        where = await stored(cold, *rows)
        waits: list[str] = []
        run = cold._readers.run
        monkeypatch.setattr(cold._readers, "run", lambda job, *given: waits.append("") or run(job, *given))
        found = await cold.get(where)
        assert ([], True) == (waits, all(one and same(one, two) for one, two in zip(found, rows, strict=True)))

        assert [None] == await cold.get([replace(where[0], version=where[0].version + 1)])
        assert [None] == await cold.get([replace(where[0], id="another")])
        assert [None] == await cold.get([replace(where[0], slot=99)])
        _flip(side_files(options))
        found = await cold.get(where)
        assert (4, True) == (len(waits), all(one and same(one, two) for one, two in zip(found, rows, strict=True)))


async def test_a_side_file_that_is_gone_is_made_again_at_open(options: ColdSettings) -> None:
    """No read has to wait for DuckDB afterwards."""
    async with opened(options) as cold:
        where = await stored(cold, *(row(f"id-{n}", n) for n in range(300)))
    _delete(side_files(options))
    async with opened(options, index=Index.of(SHAPE)) as cold:
        rows, doubtful = await cold._readers.run(cold._rows.read, where)

        assert doubtful == []
        assert None not in rows


async def test_a_side_file_of_another_life_is_not_believed(options: ColdSettings, tmp_path: Path) -> None:
    """A DuckDB file restored from a backup beside a newer side file: what DuckDB holds is what is answered."""
    async with opened(options) as cold:
        (old,) = await stored(cold, row("old", 1))
        await cold.evict([old], None)
    other = msgspec.structs.replace(options, path=str(tmp_path / "other"))
    async with opened(other) as cold:
        (new,) = await stored(cold, row("new", 1))
    shutil.copytree(Path(other.path) / "cold.side", Path(options.path) / "cold.side", dirs_exist_ok=True)
    with duckdb.connect(str(Path(options.path) / "cold.duckdb")) as writer:
        writer.execute(f"ATTACH '{other.path}/cold.duckdb' AS other (READ_ONLY)")
        writer.execute("INSERT INTO rows SELECT * REPLACE ('kept' AS id) FROM other.rows")
    async with opened(options) as cold:
        (found,) = await cold.get([Location("kept", 1, 0, new.slot)])

        assert found is not None
        assert found.payload == b"new@1"
        assert await cold.get([new]) == [None]


async def test_what_is_damaged_in_both_files_is_never_served(options: ColdSettings) -> None:
    """Bytes that fail both checksums raise TierCorrupt; other rows are served."""
    names = [f"id-{n:04}" for n in range(400)]
    draw = random.Random(3)
    rows = [Row(name, 1, NOW_MS, None, row(name, 1).vector, draw.randbytes(8_000)) for name in names]
    async with opened(options) as cold:
        where = await stored(cold, *rows)
    target = rows[200].payload[4_000:4_100]
    for path in [Path(options.path) / "cold.duckdb", *side_files(options)]:
        if (at := path.read_bytes().find(target)) >= 0:
            flip(path, at)
    async with opened(options, index=Index.of(SHAPE)) as cold:  # alone, it would read every row at open
        with pytest.raises(TierCorrupt, match=r"cold\.duckdb"):
            await cold.get(where[200:201])
        (found,) = await cold.get(where[:1])
        assert found is not None
        assert same(found, rows[0])


async def test_a_file_that_is_no_duckdb_file_is_refused(tmp_path: Path) -> None:
    """The message names the file and warns of deleting a WAL."""
    (tmp_path / "cold.duckdb").write_bytes(b"\x00" * 50_000)

    with pytest.raises(ServiceMissing, match=r"cold\.duckdb.*never delete"):
        await ColdMemory.open(ColdSettings(path=str(tmp_path)), SHAPE, partitions=PARTITIONS)


async def test_a_file_made_for_other_records_is_refused(options: ColdSettings) -> None:
    """Another dimension or other attributes: the message names what the file has."""
    async with opened(options):
        pass
    for shape in (record.schema(8, ATTRIBUTES), record.schema(4, {}), record.schema(4, {"user": "string"})):
        with pytest.raises(SettingsError, match=r"FLOAT\[4\]|STRUCT"):
            await ColdMemory.open(options, shape, partitions=PARTITIONS)
    async with opened(options):
        pass


async def test_a_path_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """A file where the directory should be; no path at all."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceMissing, match="file"):
        await ColdMemory.open(ColdSettings(path=str(tmp_path / "file")), SHAPE, partitions=PARTITIONS)
    with pytest.raises(SettingsError, match=r"cold\.path"):
        await ColdMemory.open(ColdSettings(), SHAPE, partitions=PARTITIONS)


# -- two who want the same file ----------------------------------------------------------------------------------------

OPENER = """
import asyncio, sys
from tests.tiers.rows import SHAPE
from tiers.cold import ColdMemory
from tiers.cold_settings import ColdSettings
asyncio.run(ColdMemory.open(ColdSettings(path=sys.argv[1]), SHAPE, partitions=4))
"""

HOLDER = """
import duckdb, sys
connection = duckdb.connect(sys.argv[1])
print("open", flush=True)
sys.stdin.read()
"""


async def test_a_second_process_is_refused(cold: ColdMemory, options: ColdSettings) -> None:
    """It is told which file, who has it and what to do; the first goes on."""
    second = python(OPENER, options.path)

    assert second.returncode != 0
    assert f"ServiceMissing: {options.path}/cold.duckdb is in use by process {os.getpid()}: end it" in second.stderr
    assert await stored(cold, row("a", 1))


async def test_a_second_tier_in_the_same_process_is_refused(cold: ColdMemory, options: ColdSettings) -> None:
    """DuckDB itself would share the file and give both the same slots."""
    with pytest.raises(ServiceMissing, match="in use"):
        await ColdMemory.open(options, SHAPE, partitions=PARTITIONS)
    assert await stored(cold, row("a", 1))


@pytest.fixture
def holder(options: ColdSettings) -> Iterator[subprocess.Popen[str]]:
    Path(options.path).mkdir(parents=True)
    file = str(Path(options.path) / "cold.duckdb")
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLDER, file], stdin=pipe, stdout=pipe, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        yield child
        child.kill()


async def test_another_program_with_the_file_open_is_named(
    holder: subprocess.Popen[str], options: ColdSettings
) -> None:
    """DuckDB's own lock: someone looks into the file with another tool."""
    with pytest.raises(ServiceMissing, match=rf"cold\.duckdb.*PID {holder.pid}.*End whoever"):
        await ColdMemory.open(options, SHAPE, partitions=PARTITIONS)


async def test_an_opening_that_is_cancelled_gives_the_file_back(options: ColdSettings) -> None:
    """The thread cannot be stopped: what it opens is closed again, and the next opening finds the file free."""
    task = asyncio.create_task(ColdMemory.open(options, SHAPE, partitions=PARTITIONS))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    async with opened(options) as cold:
        assert await physical(cold) == []


async def test_cleanup_twice_is_fine_and_the_data_stays(options: ColdSettings) -> None:
    """A clean end leaves no WAL."""
    async with opened(options) as cold:
        await stored(cold, row("a", 1))
        await cold.cleanup()
    assert not (Path(options.path) / "cold.duckdb.wal").exists()
    async with opened(options) as cold:
        assert [name for _, name, _ in await physical(cold)] == ["a"]


# -- full disks --------------------------------------------------------------------------------------------------------

FULL_DISK = """
import asyncio, os, resource, sys
from pathlib import Path
from tests.tiers.rows import NOW_MS, SHAPE, batch, row
from tiers.cold import ColdMemory
from tiers.cold_settings import ColdSettings
from tiers.errors import OutcomeUnknown, TierFull
from tiers.index import Index
from tiers.record import Row
from tiers.tier import Location

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def rows(start):
    numbers = range(start, start + 100)
    return batch(*(Row(f"id-{n}", 1, NOW_MS, None, row("v", n).vector, os.urandom(500)) for n in numbers))

async def fill(options):
    cold = await ColdMemory.open(options, SHAPE, partitions=4, index=Index.of(SHAPE))
    where = []
    async def store(start):
        receipt = await cold.store(rows(start))
        where.extend(Location(i, 1, 0, int(s)) for i, s in zip(receipt.ids, receipt.slots, strict=True))
    return cold, where, store

async def wal_full(options):
    cold, where, store = await fill(options)
    await store(0)
    limit((Path(options.path) / "cold.duckdb.wal").stat().st_size + 30_000)
    for _ in range(3):
        try:
            await store(100)
        except TierFull as error:
            print("full:", error, file=sys.stderr)
        else:
            raise AssertionError("a full disk took rows")
    assert None not in await cold.get(where) and len(where) == 100
    assert await cold.evict(where[:5], None) == 5
    limit(resource.RLIM_INFINITY)
    await store(100)
    os.kill(os.getpid(), 9)

async def checkpoint_fails(options):
    cold, where, store = await fill(options)
    for start in range(0, 1_000, 100):
        await store(start)
    object.__setattr__(cold._rows, "_limits", ColdSettings(path=options.path, checkpoint_bytes=1))
    limit(300_000)
    for _ in range(2):
        try:
            await store(5_000)
        except OutcomeUnknown as error:
            print("unknown:", error, file=sys.stderr)
        else:
            raise AssertionError("a failed checkpoint went unnoticed")
    assert None not in await cold.get(where)
    await cold.cleanup()

asyncio.run(globals()[sys.argv[2]](ColdSettings(path=sys.argv[1], memory_limit_mb=256)))
"""


async def test_a_full_disk_is_tier_full_and_what_was_stored_stays(options: ColdSettings) -> None:
    """Three refusals with nothing changed, eviction still works, room again takes rows, and a kill loses none of it."""
    child = python(FULL_DISK, options.path, "wal_full")

    assert child.returncode == -signal.SIGKILL, child.stderr
    assert child.stderr.count("File too large") == 3
    async with opened(options, index=Index.of(SHAPE)) as cold:
        assert [f"id-{n}" for n in range(5, 200)] == [name for _, name, _ in await physical(cold)]


async def test_a_checkpoint_that_fails_stops_all_writing_and_a_restart_has_every_row(options: ColdSettings) -> None:
    """DuckDB invalidates itself: no write is tried again, rows are still read, and the WAL has them all."""
    child = python(FULL_DISK, options.path, "checkpoint_fails")

    assert child.returncode == 0, child.stderr
    assert child.stderr.count("needs a restart") == 2
    async with opened(options, index=Index.of(SHAPE)) as cold:
        assert [f"id-{n}" for n in range(1_000)] == [name for _, name, _ in await physical(cold)]


async def test_an_unknown_outcome_is_raised_as_such(cold: ColdMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error at COMMIT that is not a full disk leaves the outcome unknown, and nothing is written after it."""
    table = cold._rows._table

    class Failing:
        """A connection whose COMMIT answers with an error."""

        def __init__(self, real: duckdb.DuckDBPyConnection) -> None:
            self._real = real

        def execute(self, query: str, *given: object) -> object:
            if query == "COMMIT":
                raise duckdb.IOException("Input/output error")
            return self._real.execute(query, *given)

        def __getattr__(self, name: str) -> object:
            return getattr(self._real, name)

    monkeypatch.setattr(table, "_connection", Failing(table._connection))
    with pytest.raises(OutcomeUnknown, match="middle of a write"):
        await cold.store(batch(row("a", 1)))
    with pytest.raises(OutcomeUnknown):
        await cold.evict([Location("b", 1, 0, 0)], None)


async def test_vectors_are_found_in_the_tier_alone(cold: ColdMemory) -> None:
    """A search by vector answers from this tier's own index."""
    await stored(cold, *(row(f"id-{n}", 1, np.eye(4, dtype=np.float32)[n]) for n in range(4)))
    answer = await cold.retrieve(Query(vector=np.eye(4, dtype=np.float32)[2], k=1))

    assert [("id-2", TierName.COLD)] == [(hit.row.id, hit.tier) for hit in answer.hits]
