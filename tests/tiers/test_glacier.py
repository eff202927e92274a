"""Glacier on real directories: the contract, slots over rewrites and restarts, the cache, damage and limits."""

from __future__ import annotations

import asyncio

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.tiers.contract import TierContract, by_id, everything
from tests.tiers.rows import NOW_MS, SHAPE, batch, row, same
from tiers import parquet, record
from tiers.deltalog import CHECKPOINT_COMMITS, ENTRIES_KEPT
from tiers.errors import SettingsError, TierCorrupt, TierFull, TierUnavailable
from tiers.glacier import GlacierMemory
from tiers.glacier_settings import BATCH_ROWS_MAX, GlacierSettings
from tiers.index import Index
from tiers.recent import Recent, blocks
from tiers.record import Row
from tiers.rewrite import MERGE_FILES
from tiers.tier import Location, Query

pytestmark = pytest.mark.unit

PARTITIONS = 4
SMALL = {"row_group_rows": 8, "file_rows_max": 24, "cache_bytes": 0}


class TestGlacier(TierContract):
    in_memory = True

    async def open_tier(self, tmp_path, server, prefix, shape):
        settings = GlacierSettings(path=str(tmp_path / prefix))
        return await GlacierMemory.open(settings, shape, partitions=PARTITIONS)


class TestGlacierOfSmallFiles(TestGlacier):
    """Many files and row groups, no cache: every get is a read of a file."""

    in_memory = False

    async def open_tier(self, tmp_path, server, prefix, shape):
        settings = GlacierSettings(path=str(tmp_path / prefix), **SMALL)
        return await GlacierMemory.open(settings, shape, partitions=PARTITIONS)


class Clock:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.now_s = 2e9  # later than any file of today

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def opened(tmp_path, clock):
    """Return a function that opens the archive with one partition, as part of a system or alone, owning it."""
    tiers = []

    async def open_it(*, alone: bool = False, epoch: int = 1, **settings) -> GlacierMemory:
        given = GlacierSettings(path=str(tmp_path / "archive"), **{**SMALL, **settings})
        index = None if alone else Index.of(SHAPE)
        tier = await GlacierMemory.open(given, SHAPE, partitions=1, index=index, clock=clock)
        tiers.append(tier)
        if not alone:
            await tier.raise_epoch(0, epoch)
        return tier

    yield open_it
    for tier in tiers:
        await tier.cleanup()


def numbered(start: int, count: int, version: int = 1) -> list[Row]:
    return [row(f"id-{at}", version) for at in range(start, start + count)]


def at(receipt) -> list[Location]:
    """Return where the rows of a receipt lie, in the one partition."""
    return [
        Location(i, version, 0, slot)
        for i, version, slot in zip(receipt.ids, receipt.held.tolist(), receipt.slots.tolist(), strict=True)
    ]


def files(tier: GlacierMemory) -> list[int]:
    """Return the rows of each live file."""
    return [file.rows for file in tier._files.live()]


async def physical(tier: GlacierMemory) -> dict[int, str]:
    """Return what lies at each slot."""
    return {slot: one.id for one, slot in await everything(tier)}


# -- slots ---------------------------------------------------------------------------------------------------------


async def test_a_store_fills_files_up_to_their_bound(opened):
    """Rows go into files of at most `file_rows_max` rows, in order; a slot is the file's number and the row."""
    tier = await opened()
    receipt = await tier.store(batch(*numbered(0, 60)))

    assert [24, 24, 12] == files(tier)
    assert [(n << 24) + r for n, rows in ((1, 24), (2, 24), (3, 12)) for r in range(rows)] == receipt.slots.tolist()


async def test_slots_are_the_same_after_a_restart(opened):
    """A row's slot comes from its file's name: another life, of another cache, finds it there."""
    first = await opened()
    rows = numbered(0, 60)
    receipt = await first.store(batch(*rows))
    await first.cleanup()
    again = await opened(epoch=2)

    assert [True] * 60 == [same(*pair) for pair in zip(rows, await again.get(at(receipt)), strict=True)]
    assert receipt.slots.tolist() == sorted(await physical(again))


async def test_numbers_are_never_given_twice(opened, tmp_path):
    """After the files with the highest numbers left the log, a new life numbers on after what is on the disk."""
    first = await opened()
    receipt = await first.store(batch(*numbered(0, 60)))
    await first.rewrite(0, at(receipt))
    await first.cleanup()
    again = await opened(epoch=2)
    later = await again.store(batch(*numbered(0, 1, version=2)))

    assert later.slots[0] >> 24 > receipt.slots.max() >> 24


async def test_one_store_of_many_partitions_is_one_commit(tmp_path):
    """All files of a batch appear together."""
    tier = await GlacierMemory.open(GlacierSettings(path=str(tmp_path)), SHAPE, partitions=8)
    before = tier._files.archive.log.version
    rows = numbered(0, 100)
    receipt = await tier.store(batch(*rows))
    partition = record.partitions(batch(*rows)["id"], 8).tolist()
    wanted = [Location(*one) for one in zip(receipt.ids, [1] * 100, partition, receipt.slots.tolist(), strict=True)]

    assert (before + 1, 8) == (tier._files.archive.log.version, len(files(tier)))
    assert [one.id for one in rows] == [one.id for one in await tier.get(wanted)]
    await tier.cleanup()


# -- rewriting -----------------------------------------------------------------------------------------------------


async def test_a_rewrite_keeps_every_other_row_and_says_where(opened):
    """Dropped are exactly the rows asked for; each other row of the file lies where the answer says."""
    tier = await opened()
    rows = numbered(0, 60)
    receipt = await tier.store(batch(*rows))
    where, before = at(receipt), await physical(tier)
    done = await tier.rewrite(0, [where[3], where[10], where[23]])
    moved = [
        Location(*one) for one in zip(done.ids, done.versions.tolist(), [0] * 21, done.new_slots.tolist(), strict=True)
    ]
    after = await physical(tier)

    assert 3 == done.dropped
    assert [before[slot] for slot in done.old_slots.tolist()] == list(done.ids)
    assert [after[slot] for slot in done.new_slots.tolist()] == list(done.ids)
    assert set(before.values()) - {"id-3", "id-10", "id-23"} == set(after.values())
    assert sorted(files(tier)) == [12, 21, 24]
    assert list(done.ids) == [one.id for one in await tier.get(moved)]
    assert all(same(rows[int(i[3:])], one) for i, one in zip(done.ids, await tier.get(moved), strict=True))


async def test_a_rewrite_drops_only_the_exact_row(opened):
    """Another version, another id, another slot, a slot that never was: nothing is dropped and nothing is written."""
    tier = await opened()
    receipt = await tier.store(batch(*numbered(0, 30)))
    one = at(receipt)[0]
    wrong = [
        Location(one.id, 2, 0, one.slot),
        Location("x", 1, 0, one.slot),
        Location(one.id, 1, 0, one.slot + 1),
        Location(one.id, 1, 0, one.slot + 100),
        Location(one.id, 1, 0, -1),
        Location(one.id, 1, 0, 99 << 24),
        Location(one.id, 1, 3, one.slot),
    ]
    before = tier._files.archive.log.version
    done = await tier.rewrite(0, wrong)
    version = tier._files.archive.log.version
    both = await tier.rewrite(0, [at(receipt)[29], Location("id-29", 2, 0, at(receipt)[29].slot), *at(receipt)[28:]])

    assert (2, 28) == (both.dropped, (await tier.usage()).rows)
    assert (0, [], before) == (done.dropped, list(done.ids), version)


async def test_equal_rows_at_two_slots_are_told_apart(opened):
    """A row stored twice (by a life that did not know) is dropped at the slot asked for, and stays at the other."""
    first = at(await (await opened()).store(batch(*numbered(0, 3))))
    tier = await opened(epoch=2)
    second = at(await tier.store(batch(*numbered(0, 3))))
    done = await tier.rewrite(0, second[:1])

    assert (1, ["id-1", "id-2"]) == (done.dropped, list(done.ids))
    assert first[0].slot in await physical(tier)
    assert second[0].slot not in await physical(tier)


async def test_a_file_without_rows_is_gone(opened):
    """Dropping every row of a file writes no other."""
    tier = await opened()
    receipt = await tier.store(batch(*numbered(0, 30)))
    done = await tier.rewrite(0, at(receipt)[:24])

    assert (24, [], [6]) == (done.dropped, list(done.ids), files(tier))


async def test_small_files_are_merged_when_asked(opened):
    """Files below the bound become one, in one commit; all rows stay and their new slots are told."""
    tier = await opened()
    for start in range(0, 30, 5):
        await tier.store(batch(*numbered(start, 5)))
    before = await physical(tier)
    done = await tier.rewrite(0, [], merge_below_rows=24)
    after = await physical(tier)

    assert [24, 6] == files(tier)
    assert sorted(before.values()) == sorted(after.values())
    assert {before[o]: n for o, n in zip(done.old_slots.tolist(), done.new_slots.tolist(), strict=True)} == {
        i: slot for slot, i in after.items()
    }


async def test_many_small_files_are_merged_on_the_way(opened):
    """A rewrite that was asked only to drop a row keeps the number of small files bounded."""
    tier = await opened()
    receipts = [await tier.store(batch(*numbered(at_, 1))) for at_ in range(17)]

    assert [1] * 17 == files(tier)
    assert 1 == (await tier.rewrite(0, at(receipts[0]))).dropped
    assert [16] == files(tier)


async def test_files_stay_bounded_over_hundreds_of_commits(opened, clock):
    """With updates and deletions all the while, files stay few and not too large; replaced ones and old entries go."""
    rng = np.random.default_rng(5)
    tier = await opened(alone=True, file_rows_max=128, row_group_rows=16, file_bytes_max=16_000, vacuum_after_s=60.0)
    model: dict[str, int] = {}
    most = {"files": 0, "small_files": 0, "waiting_files": 0, "log_entries": 0}
    for version in range(1, 151):
        ids = [f"id-{n}" for n in rng.choice(400, 20, replace=False)]
        await tier.store(batch(*(row(i, version, deleted=rng.random() < 0.1) for i in ids)))
        model |= dict.fromkeys(ids, version)
        clock.now_s += 10
        await tier.vacuum()
        census = tier.census()
        most = {name: max(high, getattr(census, name)) for name, high in most.items()}
    held = sum(file.rows for file in tier._files.live())
    full = max(file.bytes for file in tier._files.live())

    assert model == {one.id: one.version for one, _ in await everything(tier)}
    assert held == len(model)
    assert full < 16_000 + 6_000  # one row group and the footer more
    assert most["small_files"] <= MERGE_FILES
    assert most["files"] <= MERGE_FILES + 2 * held // 64
    assert most["log_entries"] <= ENTRIES_KEPT + 2 * CHECKPOINT_COMMITS + ENTRIES_KEPT // CHECKPOINT_COMMITS
    assert census.done.dropped_rows == 150 * 20 - held
    clock.now_s += 61
    await tier.vacuum()
    there = tier._files.archive.storage.list("partition=0")
    assert (len(tier._files.live()), 0) == (len(there), tier.census().waiting_files)


async def test_a_rewrite_takes_the_files_where_it_is_worth_most(opened):
    """Rows in many files are dropped a few files at a time: where the largest share is to go, first."""
    tier = await opened()
    where = at(await tier.store(batch(*numbered(0, 240))))
    keys = [one for number in range(10) for one in where[number * 24 : number * 24 + number + 1]]
    chosen = tier.together(keys)
    gone = Location("never", 1, 0, -1)

    assert [6, 7, 8, 9] == sorted({(one.slot >> 24) - 1 for one in chosen})
    assert [one for one in keys if (one.slot >> 24) - 1 >= 6] == chosen
    assert [gone] == tier.together([gone])


async def test_old_slots_are_read_until_vacuum(opened, clock):
    """A reader that looked before the rewrite still gets the rows that moved, never the dropped; later, nothing."""
    tier = await opened(vacuum_after_s=60.0)
    where = at(await tier.store(batch(*numbered(0, 24))))
    await tier.rewrite(0, where[:1])

    assert [None, "id-1"] == [one and one.id for one in await tier.get(where[:2])]
    assert await tier.vacuum() == 0

    clock.now_s += 59

    assert await tier.vacuum() == 0

    clock.now_s += 2

    assert await tier.vacuum() == 1
    assert [None] * 24 == await tier.get(where)
    assert await tier.vacuum() == 0


async def test_a_get_that_meets_a_vacuumed_file_answers_none(opened, clock):
    """The file went between the look and the read: the reader is told to look again."""
    tier = await opened()
    where = at(await tier.store(batch(*numbered(0, 3))))
    looked = tier._files.find
    seen = [looked(one) for one in where]
    await tier.rewrite(0, where[:1])
    clock.now_s += 10_000
    await tier.vacuum()
    tier._files.find = lambda one: seen[where.index(one)]

    assert [None] * 3 == await tier.get(where)


async def test_a_lost_file_is_not_taken_for_a_moved_one(opened, tmp_path):
    """A file that the log names and the disk has not is TierCorrupt, in gets, listings and rewrites."""
    tier = await opened()
    where = at(await tier.store(batch(*numbered(0, 3))))
    for file in tmp_path.glob("archive/partition=*/*.parquet"):
        file.unlink()
    for broken in (tier.get(where), everything(tier), tier.rewrite(0, where[:1])):
        with pytest.raises(TierCorrupt):
            await broken


async def test_vacuum_counts_from_the_replacement(opened, clock):
    """A file written long ago and replaced just now is kept: somebody may just have begun to read it."""
    tier = await opened(vacuum_after_s=60.0)
    where = at(await tier.store(batch(*numbered(0, 24))))
    clock.now_s += 10_000
    await tier.rewrite(0, where[:1])
    await tier.cleanup()
    again = await opened(epoch=2, vacuum_after_s=60.0)

    assert await again.vacuum() == 0

    clock.now_s += 61

    assert await again.vacuum() == 1


async def test_evicting_updates_the_index(opened, clock):
    """A tier used alone follows its own rewrites: with the old files gone, lookups find every row that stayed."""
    tier = await opened(alone=True)
    await tier.store(batch(*numbered(0, 60)))
    await tier.store(batch(*numbered(10, 20, version=2)))
    clock.now_s += 10_000
    vacuumed = await tier.vacuum()
    found = await by_id(tier, *(f"id-{n}" for n in range(60)))

    assert {f"id-{n}": 2 if 10 <= n < 30 else 1 for n in range(60)} == {i: one.version for i, one in found.items()}
    assert vacuumed == 2
    assert 60 == (await tier.usage()).rows == len(await everything(tier))


async def test_superseded_rows_of_a_crash_go_at_open(opened):
    """Rows that no index knew to be superseded are found and evicted when the tier is opened alone."""
    await (await opened()).store(batch(*numbered(0, 10)))
    await (await opened(epoch=2)).store(batch(*numbered(0, 10, version=2)))
    tier = await opened(alone=True)

    assert [2] * 10 == [one.version for one, _ in await everything(tier)]


# -- reading -------------------------------------------------------------------------------------------------------


async def test_a_listing_is_bounded(opened):
    """However large row groups and files are, a batch of the listing has at most 8,192 rows."""
    tier = await opened(row_group_rows=5_000, file_rows_max=30_000)
    await tier.store(batch(*numbered(0, 12_000)))
    sizes = [found.num_rows async for found in tier.retrieve_all()]

    assert (12_000, True) == (sum(sizes), max(sizes) <= BATCH_ROWS_MAX)


async def test_a_listing_of_large_payloads_is_bounded(opened, monkeypatch):
    """A batch of the listing ends at the row group that would exceed its bytes, and all rows come."""
    monkeypatch.setattr(parquet, "SCAN_BYTES", 50_000)
    tier = await opened(row_group_rows=8, file_rows_max=2_000, compression="none")
    rows = [Row(f"id-{n}", 1, NOW_MS, None, rows_vector(), bytes(1_000)) for n in range(300)]
    await tier.store(batch(*rows))
    found = [batch_ async for batch_ in tier.retrieve_all()]

    assert [one.id for one in rows] == [i for batch_ in found for i in batch_["id"].to_pylist()]
    assert 1 < len(found)
    assert max(batch_.nbytes for batch_ in found) < 60_000


async def test_a_file_that_is_already_there_is_neither_used_nor_removed(opened, tmp_path):
    """A number that another file has, against all rules, fails the store; what is there stays as it is."""
    tier = await opened()
    await tier.store(batch(*numbered(0, 3)))
    there = tmp_path / "archive" / "partition=0" / f"e1-{tier._files._number}.parquet"
    there.write_bytes(b"another's")
    with pytest.raises(TierUnavailable, match="did not write"):
        await tier.store(batch(*numbered(0, 3, version=2)))

    assert b"another's" == there.read_bytes()
    assert [2] * 3 == (await tier.store(batch(*numbered(0, 3, version=2)))).held.tolist()


async def test_a_damaged_group_is_never_served(opened, tmp_path):
    """A flipped bit raises TierCorrupt for the rows of its group, in gets, listings and rewrites; others are served."""
    tier = await opened()
    where = at(await tier.store(batch(*numbered(0, 24))))
    (file,) = tmp_path.glob("archive/partition=*/*.parquet")
    payload = pq.read_metadata(file).row_group(0).column(5)
    damaged = bytearray(file.read_bytes())
    damaged[payload.data_page_offset + payload.total_compressed_size - 1] ^= 1
    file.write_bytes(damaged)
    before = tier._files.archive.log.version
    with pytest.raises(TierCorrupt):
        await tier.get([where[0]])
    with pytest.raises(TierCorrupt):
        await everything(tier)
    with pytest.raises(TierCorrupt):
        await tier.rewrite(0, [where[20]])

    assert ["id-23"] == [one.id for one in await tier.get([where[23]])]
    assert before == tier._files.archive.log.version


async def test_the_cache_answers_like_the_file(opened):
    """What was stored or read lately is answered without the file, and is the same row."""
    tier = await opened(cache_bytes=1 << 20)
    rows = [*numbered(0, 40), row("gone", 7, deleted=True), row("full", 8, attributes={"rank": 1, "user": "ü"})]
    where = at(await tier.store(batch(*rows)))
    from_store = await tier.get(where)
    tier._recent.clear()
    from_file = await tier.get(where)
    reads = tier._files.fetch
    tier._files.fetch = None
    from_rows = await tier.get(where)
    tier._files.fetch = reads

    for found in (from_store, from_file, from_rows):
        assert [True] * 42 == [same(*pair) for pair in zip(rows, found, strict=True)]


async def test_an_evicted_row_is_not_answered_from_the_cache(opened):
    """What was dropped is gone at once, cached or not."""
    tier = await opened(cache_bytes=1 << 20)
    where = at(await tier.store(batch(*numbered(0, 5))))
    await tier.get(where)
    await tier.evict(where[:1], None)

    assert [None, "id-1"] == [one and one.id for one in await tier.get(where[:2])]


def test_the_cache_is_bounded_and_forgets_the_oldest():
    """Blocks and rows together stay within the bytes allowed; what was used last stays longest."""
    one = batch(*numbered(0, 3000))
    stored = blocks(one, np.zeros(3000, np.int32), np.arange(3000, dtype=np.int64) + (5 << 24))
    size = stored[0][1].get_total_buffer_size()
    cache = Recent(int(2.5 * size))
    cache.keep_blocks(stored[:2])
    first, second, third = (Location(f"id-{n}", 1, 0, (5 << 24) + n) for n in (0, 1024, 2048))

    assert cache.find(first).id == "id-0"

    cache.keep_blocks(stored[2:])

    assert ["id-0", None, "id-2048"] == [row_ and row_.id for row_ in map(cache.find, (first, second, third))]
    assert cache.bytes <= cache.bytes_limit

    cache.keep_rows(numbered(0, 3000))

    assert 0 < cache.bytes <= cache.bytes_limit
    assert cache.find(third) is None


def test_blocks_own_their_memory():
    """A cached block keeps nothing else of the stored batch alive."""
    one = batch(*numbered(0, 3000))
    stored = blocks(one, np.zeros(3000, np.int32), np.arange(3000, dtype=np.int64))

    assert [1024, 1024, 952] == [block.num_rows for _, block in stored]
    assert all(block.get_total_buffer_size() < one.nbytes / 2 for _, block in stored)
    assert all(block.schema.equals(SHAPE) for _, block in stored)


# -- limits and errors ---------------------------------------------------------------------------------------------


async def test_a_full_glacier_takes_nothing(opened, clock):
    """At its limit a store is TierFull and changes nothing; replaced files count until they are vacuumed."""
    tier = await opened(bytes_limit=20_000, vacuum_after_s=60.0)
    receipt = await tier.store(batch(*numbered(0, 24)))
    before = await tier.usage()
    with pytest.raises(TierFull):
        await tier.store(batch(*numbered(100, 400)))

    assert before == await tier.usage()
    assert 20_000 == before.bytes_limit

    await tier.rewrite(0, at(receipt))

    assert (0, before.bytes) == ((await tier.usage()).rows, (await tier.usage()).bytes)

    clock.now_s += 61
    await tier.vacuum()

    assert 0 == (await tier.usage()).bytes


async def test_stores_at_once_are_put_if_newer_too(opened):
    """Stores of the same ids that overlap leave the newest rows and no other."""
    tier = await opened(alone=True)
    versions = [3, 1, 4, 2, 5, 4]
    await asyncio.gather(*(tier.store(batch(*numbered(0, 8, version))) for version in versions))

    assert [5] * 8 == [one.version for one, _ in await everything(tier)]
    assert [5] * 8 == [hit.row.version for hit in (await tier.retrieve(Query(ids=[f"id-{n}" for n in range(8)]))).hits]


async def test_a_store_whose_caller_gave_up_is_whole(opened):
    """Cancelling the caller does not stop the commit: it lands whole or not at all, and is found by the next life."""
    tier = await opened()
    task = asyncio.ensure_future(tier.store(batch(*numbered(0, 30))))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await tier.cleanup()
    again = await opened(epoch=2)

    assert len(await everything(again)) in (0, 30)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("path", ""),
        ("row_group_rows", 0),
        ("row_group_rows", 8193),
        ("file_rows_max", 7),
        ("file_rows_max", 1 << 24),
        ("compression", "brotli"),
        ("level", 0),
        ("cache_bytes", -1),
        ("vacuum_after_s", -1.0),
        ("bytes_limit", -1),
    ],
)
async def test_an_impossible_setting_is_refused(opened, key, value):
    """The key, the value and what is possible are named, and nothing is created."""
    with pytest.raises(SettingsError, match=rf"^glacier\.{key} = {value!r}: "):
        await opened(**{key: value}) if key != "path" else await GlacierMemory.open(
            GlacierSettings(path=""), SHAPE, partitions=1
        )


async def test_times_are_in_milliseconds_again(opened):
    """The archive counts microseconds; what comes back does not differ by a millisecond, before 1970 too."""
    tier = await opened()
    rows = [row("a", 1, event_time=-1), row("b", 2, event_time=NOW_MS + 1), Row("c", 3, 5, 7, rows_vector(), b"")]
    await tier.store(batch(*rows))

    assert [True] * 3 == [same(*pair) for pair in zip(rows, [one for one, _ in await everything(tier)], strict=True)]


def rows_vector():
    return np.ones(4, np.float32)
