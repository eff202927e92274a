"""HotMemory's own rules: slabs, room, what a scan may still read, and the memory of a device."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from tests.tiers.rows import DIM, SHAPE, batch, row
from tests.tiers.strict import StrictDevice
from tiers import read, record
from tiers.device import HostDevice
from tiers.errors import TierFull
from tiers.hot import HotMemory, HotSettings
from tiers.index import Index
from tiers.record import pack_version
from tiers.tier import Location, Query, TierName

pytestmark = pytest.mark.unit

SLAB = 4
ALLOCATIONS = 4  # vectors, masks, questions and scratch memory
QUERY = np.ones(DIM, np.float32)


DEVICES = [HostDevice, StrictDevice]
SETTINGS = HotSettings(device="cpu", capacity_rows=3 * SLAB, slab_rows=SLAB)


@pytest.fixture(params=DEVICES)
async def hot(request):
    """Three slabs of four rows, an index shared with nobody, on the host and on a strict device."""
    memory = HotMemory(SETTINGS, SHAPE, partitions=2, index=Index.of(SHAPE), device=request.param())
    yield memory
    await memory.cleanup()


async def nearest(hot: HotMemory, snapshot, query, k: int) -> list[tuple[float, str]]:
    """Return what a scan for one question finds, (value, id), best first."""
    (best,) = await hot.scan(snapshot, query[None], k)
    return list(zip(best.values.tolist(), best.ids, strict=True))


async def ingest(hot: HotMemory, partition: int, *rows: record.Row) -> list[Location]:
    """Append rows of a partition as ingest does; returns where they lie."""
    given = batch(*rows)
    slots = await hot.reserve(given, partition)
    hot.publish(slots)
    hot.index.put(given, np.full(len(rows), partition, np.int32), TierName.HOT, slots, 0)
    return [Location(one.id, one.version, partition, slot) for one, slot in zip(rows, slots.tolist(), strict=True)]


def numbered(first: int, count: int, prefix: str = "id") -> list[record.Row]:
    return [row(f"{prefix}-{at}", pack_version(0, at)) for at in range(first, first + count)]


async def test_a_full_hot_takes_nothing(hot):
    """Rows beyond the room raise TierFull, and what there is stays as it was."""
    kept = await ingest(hot, 0, *numbered(0, 10))
    with pytest.raises(TierFull):
        await hot.reserve(batch(*numbered(10, 3)), 0)

    assert hot.room(0) == 2
    assert hot.room(1) == 0
    assert [at.id for at in kept] == [one.id for one in await hot.get(kept)]


@pytest.mark.parametrize("device", DEVICES)
async def test_a_store_that_does_not_fit_takes_no_room(device):
    """Used alone too, TierFull means nothing was stored: not in the partitions that had room either."""
    alone = HotMemory(SETTINGS, SHAPE, partitions=2, device=device())
    rows = numbered(0, 100)
    fits = [one for one in rows if record.partition(one.id, 2) == 0][:SLAB]
    does_not = [one for one in rows if record.partition(one.id, 2) == 1][: 2 * SLAB + 1]
    await alone.store(batch(fits[0]))
    before = alone.room(0), alone.room(1)
    with pytest.raises(TierFull):
        await alone.store(batch(*fits, *does_not))

    assert before == (alone.room(0), alone.room(1))
    await alone.cleanup()


async def test_a_slab_is_free_when_its_last_row_is_gone(hot):
    """Evicting every row of a slab, and not one less, gives its room to any partition."""
    places = await ingest(hot, 0, *numbered(0, 3 * SLAB))
    hot.evict_now(places[1:SLAB])

    assert hot.room(1) == 0

    hot.evict_now(places[:1])

    assert hot.room(1) == SLAB


async def test_partitions_do_not_share_a_slab(hot):
    """A partition without an open slab needs a free one, whatever is left in those of others."""
    await ingest(hot, 0, *numbered(0, 2 * SLAB + 1))

    assert (hot.room(0), hot.room(1)) == (SLAB - 1, 0)


async def test_a_stale_place_does_not_evict_what_lies_there_now(hot):
    """A slot freed and used again by another partition, at the same offset, is not its former row's to evict."""
    stale = await ingest(hot, 0, *numbered(0, 3 * SLAB, "old"))
    hot.evict_now(stale)
    fresh = await ingest(hot, 1, *numbered(2 * SLAB, SLAB, "new"))  # the slab freed last is used first
    reused = {(at.slot, at.version) for at in stale} & {(at.slot, at.version) for at in fresh}

    assert reused, "the test needs a slot that holds the same version of another partition"
    assert hot.evict_now(stale) == 0
    assert [at.id for at in fresh] == [one.id for one in await hot.get(fresh)]
    assert [None] * len(stale) == await hot.get(stale)


async def test_reserved_rows_are_not_visible(hot):
    """Between reserve and publish a row is not found, listed, or counted as a result of a scan."""
    slots = await hot.reserve(batch(row("a", 1)), 0)
    rows = [one async for one in hot.retrieve_all()]
    found = await nearest(hot, hot.snapshot(), QUERY, 5)

    assert (rows, found) == ([], [])
    assert await hot.get([Location("a", 1, 0, int(slots[0]))]) == [None]


async def test_a_scan_reads_its_snapshot(hot):
    """Rows evicted after the snapshot are still found by its scan; their room is given out only when it has ended."""
    places = await ingest(hot, 0, *numbered(0, 3 * SLAB))
    snapshot = hot.snapshot()
    hot.evict_now(places)

    assert hot.room(1) == 0

    found = await nearest(hot, snapshot, QUERY, 3 * SLAB)

    assert {at.id for at in places} == {name for _, name in found}
    assert hot.room(1) == 3 * SLAB


async def test_a_narrowed_scan_finds_what_was_asked_for_and_is_there(hot):
    """Of the slots given, over several slabs, those of rows that the snapshot shows; no other row, and none twice."""
    places = await ingest(hot, 0, *numbered(0, 2 * SLAB + 1))
    hot.evict_now([places[1], places[SLAB]])
    for asked in ([0, 1, 2], [SLAB], [2 * SLAB, SLAB, 1, SLAB + 1], [], range(2 * SLAB + 1)):
        only = np.array([places[at].slot for at in asked], np.int64)
        (best,) = await hot.scan(hot.snapshot(), QUERY[None], 3 * SLAB, only)

        assert sorted({places[at].id for at in asked} - {places[1].id, places[SLAB].id}) == sorted(best.ids)


async def test_a_search_given_up_before_its_scan_began_holds_no_room(hot):
    """A reader that is cancelled at once does not keep the slabs of its snapshot for ever."""
    places = await ingest(hot, 0, *numbered(0, 3 * SLAB))
    search = asyncio.ensure_future(read.retrieve(hot.index, {TierName.HOT: hot}, Query(vector=QUERY)))
    asyncio.get_running_loop().call_soon(search.cancel)  # runs before the tasks that the search starts
    with pytest.raises(asyncio.CancelledError):
        await search
    hot.evict_now(places)

    assert hot.room(1) == 3 * SLAB


async def test_a_listing_leaves_out_a_slab_that_was_used_again(hot):
    """While rows are listed, a slab freed and filled anew is not listed with its former ids."""
    places = await ingest(hot, 0, *numbered(0, 3 * SLAB, "old"))
    listing = hot.retrieve_all()
    first = await anext(listing)
    hot.evict_now(places)
    await ingest(hot, 1, *numbered(0, 3 * SLAB, "new"))
    rest = [name async for one in listing for name in one["id"].to_pylist()]

    assert first["id"].to_pylist() == ["old-0", "old-1", "old-2", "old-3"]
    assert [name for name in rest if name.startswith("old")] == []


async def test_device_memory_is_allocated_once():
    """After start nothing is allocated on the device, whatever is stored, evicted and searched."""
    device = StrictDevice()
    hot = HotMemory(SETTINGS, SHAPE, partitions=2, index=Index.of(SHAPE), device=device)
    for turn in range(5):
        places = await ingest(hot, turn % 2, *numbered(turn * 100, 3 * SLAB))
        await nearest(hot, hot.snapshot(), QUERY, 3)
        hot.evict_now(places)
    await hot.cleanup()

    assert ALLOCATIONS == device.machine.allocations


# -- copies ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[HostDevice, StrictDevice])
async def lent(request):
    """Eight slabs of four rows, of which copies may take two."""
    settings = HotSettings(device="cpu", capacity_rows=8 * SLAB, slab_rows=SLAB, copy_fraction=0.25)
    memory = HotMemory(settings, SHAPE, partitions=2, index=Index.of(SHAPE), device=request.param())
    yield memory
    await memory.cleanup()


def at_home_in_cold(hot: HotMemory, *rows: record.Row) -> None:
    slots = np.arange(len(rows), dtype=np.int64)
    hot.index.put(batch(*rows), np.zeros(len(rows), np.int32), TierName.COLD, slots, 0)


async def copied(hot: HotMemory, *rows: record.Row) -> list[str]:
    """Put copies of rows at home in cold into hot; returns the ids that got one."""
    at_home_in_cold(hot, *rows)
    hot.copies.publish(await hot.copies.reserve(rows), 0, "test")
    return [one.id for one in rows if hot.copies.has(one.id)]


def place(hot: HotMemory, one: record.Row) -> Location:
    return Location(one.id, one.version, 0, hot.index.find(one.id).copy)


async def test_copies_are_read_listed_and_scanned(lent):
    """A copy is got by its place, found by a scan, and listed with its slot; usage counts it for nothing."""
    rows = numbered(0, 6)
    assert len(await copied(lent, *rows)) == 6
    found = await nearest(lent, lent.snapshot(), QUERY, 10)
    listed = [name async for one in lent.retrieve_all() for name in one["id"].to_pylist()]
    taken = await lent.get([place(lent, one) for one in rows])

    assert {one.id for one in rows} == {name for _, name in found}
    assert [one.id for one in rows] == listed == [one.id for one in taken]
    assert all(np.array_equal(one.vector, got.vector) for one, got in zip(rows, taken, strict=True))
    assert (0, 0) == ((await lent.usage()).rows, (await lent.usage()).bytes)


async def test_copies_keep_their_bound(lent):
    """So many rows as two slabs have get a copy; the others are left out."""
    assert [f"id-{at}" for at in range(8)] == await copied(lent, *numbered(0, 12))
    assert 0 == lent.copies.room()


async def test_a_copy_of_another_version_is_not_published(lent):
    """Between reserve and publish the record changed: the slot is given up, nothing is visible (R3)."""
    at_home_in_cold(lent, row("a", 1))
    reserved = await lent.copies.reserve([row("a", 1)])
    at_home_in_cold(lent, row("a", 2))

    assert 0 == lent.copies.publish(reserved, 0, "test")
    assert (0, 8) == (len(lent.copies), lent.copies.room())
    assert [] == await nearest(lent, lent.snapshot(), QUERY, 5)


async def test_a_slot_is_not_reused_while_a_scan_may_read_it(lent):
    """A copy evicted after the snapshot is still found by its scan; its slot is given out when the scan has ended."""
    rows = numbered(0, 8)
    await copied(lent, *rows)
    snapshot = lent.snapshot()
    lent.copies.evict(["id-3"], "test")
    assert (0, 0) == (lent.copies.room(), len(await lent.copies.reserve([row("new", 99)])))
    found = await nearest(lent, snapshot, QUERY, 8)

    assert {one.id for one in rows} == {name for _, name in found}
    assert 1 == lent.copies.room()
    assert ["new"] == await copied(lent, row("new", 99))
    assert [None] == await lent.get([Location("id-3", rows[3].version, 0, place(lent, row("new", 99)).slot)])


async def test_a_slab_of_copies_goes_back_when_the_last_is_gone(lent):
    """Empty, it is any partition's again, after the scans that may still read it."""
    await copied(lent, *numbered(0, 4))
    snapshot = lent.snapshot()
    lent.copies.evict([f"id-{at}" for at in range(4)], "test")
    assert (7 * SLAB, 0) == (lent.room(0), lent.copies.slabs)

    found = await nearest(lent, snapshot, QUERY, 4)

    assert len(found) == 4
    assert lent.room(0) == 8 * SLAB


async def test_dirty_rows_take_slabs_of_copies_back_and_no_more_than_they_need(lent):
    """A reservation beyond the free slabs evicts the emptiest slab of copies, at once, and says which went."""
    await copied(lent, *numbered(0, 6))
    await ingest(lent, 0, *numbered(100, 7 * SLAB, "dirty"))

    assert (4, 1, 0) == (len(lent.copies), lent.copies.slabs, lent.room(0) - SLAB)
    gone = [one.id for one in lent.copies.told[0] if one.target is None]
    assert ["id-4", "id-5"] == gone
    assert [lent.index.find(name).copy for name in gone] == [-1, -1]


async def test_a_reservation_under_way_loses_its_slab_to_dirty_rows(lent):
    """Slots that were reserved but not published go with their slab; publishing them then does nothing."""
    rows = numbered(0, 2)
    at_home_in_cold(lent, *rows)
    reserved = await lent.copies.reserve(rows)
    await ingest(lent, 0, *numbered(100, 8 * SLAB, "dirty"))

    assert 0 == lent.copies.publish(reserved, 0, "test")
    found = await nearest(lent, lent.snapshot(), QUERY, 9 * SLAB)
    assert len(found) == 8 * SLAB
    assert {name.split("-")[0] for _, name in found} == {"dirty"}


async def test_copies_held_by_a_scan_are_not_taken_twice(lent):
    """While a scan holds the slab that was taken back, further attempts wait for it and leave the other copies."""
    await copied(lent, *numbered(0, 8))
    await ingest(lent, 0, *numbered(100, 6 * SLAB, "dirty"))
    snapshot = lent.snapshot()
    for _ in range(3):
        with pytest.raises(TierFull):
            await lent.reserve(batch(*numbered(200, SLAB, "more")), 0)

    assert len(lent.copies) == SLAB

    lent.release(snapshot)
    await lent.reserve(batch(*numbered(200, SLAB, "more")), 0)

    assert len(lent.copies) == SLAB


async def test_clearing_hot_alone_takes_copies_too(lent):
    """`clear` leaves nothing in the tier, and all of its room."""
    await copied(lent, *numbered(0, 5))
    await lent.clear()

    assert (0, 8 * SLAB) == (len(lent.copies), lent.room(0))
    assert [] == [one async for one in lent.retrieve_all()]


async def test_what_has_expired_is_not_scanned(lent):
    """A snapshot of a moment leaves out rows whose time had come by then, dirty ones and copies."""
    soon = [replace(one, expires_at=1_000) for one in (row("dirty", 1), row("copy", 2))]
    await ingest(lent, 0, soon[0], row("for ever", 3))
    await copied(lent, soon[1])

    for now_ms, expected in ((999, {"dirty", "copy", "for ever"}), (1_000, {"for ever"})):
        found = await nearest(lent, lent.snapshot(now_ms), QUERY, 5)
        assert expected == {name for _, name in found}


async def test_device_memory_is_not_allocated_for_copies():
    """Copies come and go in what was allocated at start."""
    device = StrictDevice()
    settings = HotSettings(device="cpu", capacity_rows=8 * SLAB, slab_rows=SLAB)
    hot = HotMemory(settings, SHAPE, partitions=2, index=Index.of(SHAPE), device=device)
    for turn in range(5):
        names = await copied(hot, *numbered(turn * 10, 8))
        await nearest(hot, hot.snapshot(), QUERY, 3)
        hot.copies.evict(names, "test")
    await hot.cleanup()

    assert ALLOCATIONS == device.machine.allocations


async def test_a_reservation_given_up_keeps_no_slot(lent):
    """Cancelled while its vectors are on their way, a promotion leaves all room as it was, and no row."""
    reserving = asyncio.ensure_future(lent.copies.reserve(numbered(0, 3)))
    asyncio.get_running_loop().call_soon(reserving.cancel)  # on the host it is done by then, on a device under way
    with suppress(asyncio.CancelledError):
        lent.copies.withhold(await reserving)

    assert (8, 0) == (lent.copies.room(), lent.copies.slabs)
