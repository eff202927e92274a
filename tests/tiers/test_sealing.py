"""Full slabs of a large hot are searched by their codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from consumers.coding import Coder
from tests.tiers.rows import row
from tests.tiers.shelves import World
from tiers import record, sealing
from tiers.codes import Codebook
from tiers.hot import HotMemory, HotSettings
from tiers.record import Row
from tiers.score import scales
from tiers.tier import Location, Result, TierName
from tiers.worker import SerialExecutor

pytestmark = pytest.mark.unit

DIM, COUNT, SLAB = 32, 1_000, 64
RNG = np.random.default_rng(0)
VECTORS = (RNG.normal(size=(20, DIM))[RNG.integers(0, 20, COUNT)] + RNG.normal(size=(COUNT, DIM))).astype(np.float32)
SCALED = VECTORS * scales(VECTORS, "cosine")[:, None]


@pytest.fixture(scope="module")
def codebook() -> Codebook:
    return Codebook.train(SCALED)


def rows() -> list[Row]:
    return [row(f"id-{at}", at + 1, vector, attributes={"rank": at}) for at, vector in enumerate(VECTORS)]


async def world_of(codebook: Codebook, exact_rows: int = 100) -> World:
    world = World(dim=DIM)
    settings = HotSettings(device="cpu", capacity_rows=2_048, slab_rows=SLAB, exact_rows=exact_rows)
    world.hot = HotMemory(settings, world.shape, partitions=1, index=world.index)
    world.index.codebook = codebook
    await world.heat(*rows())
    return world


@pytest.fixture
async def world(codebook: Codebook) -> World:
    return await world_of(codebook)


@pytest.fixture
async def coder(world: World, tmp_path: Path):
    pool = SerialExecutor("codes")
    yield Coder(world.index, tmp_path / "codebook", 1_000, pool, {TierName.HOT: world.hot})
    pool.close()


def cool(world: World, one: Row) -> None:
    """Move a row from hot to cold, as the mover does."""
    entry = world.index.find(one.id)
    world.shelves[TierName.COLD].rows[one.id, one.version] = one
    vectors = record.vectors_of(record.to_batch([one], world.shape))
    world.index.relocate(TierName.COLD, [one.id], np.array([one.version]), np.zeros(1, np.int64), vectors)
    world.hot.evict_now([Location(entry.id, entry.version, entry.partition, entry.slot)])


async def ask(world: World, at: int, **asked: object) -> Result:
    return await world.retrieve(vector=VECTORS[at], k=10, explain=True, **asked)


def ids(result: Result) -> list[str]:
    return [hit.row.id for hit in result.hits]


async def test_slabs_are_coded_until_few_enough_are_read_exactly(world, coder):
    """Whole slabs, and no more of them than it takes; every row is looked at once, by code or by vector."""
    await coder.drain()
    told = await ask(world, 0)

    coded = told.explain["by_code"]
    assert coded % SLAB == 0
    assert COUNT - coded <= 100 < COUNT - coded + SLAB
    assert COUNT - coded == told.explain["by_vector"] == told.searched["hot"]["rows"] - coded
    assert (COUNT, COUNT, True) == (told.scanned, told.of, told.complete)


async def test_answers_are_those_of_an_exact_scan(world, coder):
    """Exact searches give the very same answers; others nearly, with the same scores for the same records."""
    before = [[(hit.row.id, hit.score) for hit in (await ask(world, at)).hits] for at in range(60)]
    await coder.drain()
    found = [[(hit.row.id, hit.score) for hit in (await ask(world, at)).hits] for at in range(60)]
    exact = [[(hit.row.id, hit.score) for hit in (await ask(world, at, exact=True)).hits] for at in range(60)]

    assert before == exact
    assert sum(len(set(a) & set(b)) for a, b in zip(before, found, strict=True)) >= 0.99 * 600
    assert (await ask(world, 0, exact=True)).explain["by_vector"] == COUNT


async def test_filters_and_tiers_hold_for_what_is_coded(world, coder):
    """Only what passes is found, and nothing when hot is not asked."""
    await coder.drain()

    assert {"id-5", "id-6"} == set(ids(await ask(world, 5, filter="rank IN (5, 6)")))
    assert [] == ids(await ask(world, 5, tiers=frozenset({TierName.COLD})))


async def test_what_leaves_hot_takes_its_code_along(world, coder):
    """A row that moves down needs no second code, and is found where it lies now."""
    await coder.drain()
    held = world.index.code_bytes
    cool(world, rows()[0])
    found = await ask(world, 0)

    assert held == world.index.code_bytes
    assert ("id-0", TierName.COLD) == (found.hits[0].row.id, found.hits[0].tier)


async def test_updates_and_deletes_mask_what_is_coded(world, coder):
    """The new version is found by its vector; a deleted record not at all."""
    await coder.drain()
    await world.heat(row("id-0", 5_000, VECTORS[1]), row("id-2", 5_001, deleted=True))

    assert {"id-0", "id-1"} <= set(ids(await ask(world, 1))[:2])
    assert "id-2" not in ids(await ask(world, 2))


async def test_a_slab_used_again_is_read_exactly(world, coder):
    """Rows that come to lie where coded ones were are found by what they are."""
    await coder.drain()
    await world.heat(*(row(f"id-{at}", 10_000 + at, -VECTORS[at]) for at in range(COUNT)))
    world.hot.release(world.hot.snapshot())
    for at in range(0, COUNT, 100):
        found = await world.retrieve(vector=-VECTORS[at], k=1)
        assert [(f"id-{at}", 10_000 + at)] == [(hit.row.id, hit.row.version) for hit in found.hits]


async def test_a_row_that_moves_while_it_is_coded_is_found_once(world):
    """Handed out, moved to cold, coded, installed: it waits for a code of its own and is named once."""
    work = sealing.due(world.index, world.hot, world.index.codebook)
    codes = work.codes()
    one = rows()[int(work.sealed.ids[0].removeprefix("id-"))]
    cool(world, one)
    work.install(codes)
    work.release()
    at = int(one.id.removeprefix("id-"))
    found = await world.retrieve(vector=VECTORS[at], k=COUNT)

    assert 1 == ids(found).count(one.id)
    assert TierName.COLD == next(hit.tier for hit in found.hits if hit.row.id == one.id)


async def test_a_slab_being_coded_is_not_used_again_meanwhile(world):
    """Its rows are all superseded while they are coded: their room comes back only afterwards."""
    work = sealing.due(world.index, world.hot, world.index.codebook)
    first = int(work.sealed.ids[0].removeprefix("id-"))
    fresh = RNG.normal(size=DIM)
    await world.heat(*(row(f"id-{at}", 10_000 + at, fresh) for at in range(first, first + SLAB)))
    vectors = world.hot.vectors_at(work.sealed.slots)

    assert np.array_equal(VECTORS[first : first + SLAB], vectors)
    work.install(work.codes())
    work.release()
    assert f"id-{first}" in ids(await world.retrieve(vector=fresh.astype(np.float32), k=COUNT))


async def test_zero_means_never(codebook):
    """With `exact_rows` 0 nothing of hot is coded."""
    world = await world_of(codebook, exact_rows=0)

    assert sealing.due(world.index, world.hot, codebook) is None
