"""Codes: what they find is nearly the exact answer, and they are made without anyone noticing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from consumers import coding
from consumers.coding import Coder
from tests.tiers.rows import row
from tests.tiers.shelves import World
from tiers import index as index_module
from tiers import segment
from tiers.codes import Codebook, possible
from tiers.record import Row
from tiers.score import scales
from tiers.tier import TierName
from tiers.worker import SerialExecutor

pytestmark = pytest.mark.unit

DIM, COUNT = 32, 3_000
RNG = np.random.default_rng(0)
CENTRES = RNG.normal(size=(40, DIM))
VECTORS = (CENTRES[RNG.integers(0, 40, COUNT)] + RNG.normal(size=(COUNT, DIM))).astype(np.float32)
SCALED = VECTORS * scales(VECTORS, "cosine")[:, None]


@pytest.fixture(scope="module")
def codebook() -> Codebook:
    return Codebook.train(SCALED)


def test_codes_find_the_nearest_of_the_rows_that_are_asked_for(codebook: Codebook) -> None:
    """A hundred candidates hold the ten nearest of any masked set, to within one in a hundred."""
    packed = codebook.empty().plus(np.arange(COUNT), SCALED)
    hits = 0
    for at in range(50):
        mask = RNG.random(COUNT) < (1.0, 0.5, 0.05)[at % 3]
        exact = np.where(mask, SCALED @ SCALED[at], -np.inf)
        best = np.argsort(-exact)[: min(10, int(mask.sum()))]
        ((rows, _),) = packed.best(mask, SCALED[at : at + 1], 100)
        assert mask[rows].all()
        hits += len(set(best.tolist()) & set(rows.tolist()))

    assert hits >= 495


def test_adding_rows_leaves_what_a_scan_holds_as_it_was(codebook: Codebook) -> None:
    """Codes are never changed in place: a scan under way goes on with the old ones."""
    before = codebook.empty().plus(np.arange(10), SCALED[:10])
    after = before.plus(np.arange(10, 20), SCALED[10:20])
    everything = np.ones(COUNT, bool)

    assert (10, 20) == (before.rows, after.rows)
    assert set(range(10)) == set(before.best(everything, SCALED[15:16], 100)[0][0].tolist())
    assert 15 in after.best(everything, SCALED[15:16], 5)[0][0].tolist()


def test_what_codes_stand_for_has_the_same_codes(codebook: Codebook) -> None:
    """A rewritten segment codes the reconstruction, and nothing drifts."""
    packed = codebook.empty().plus(np.arange(100), SCALED[:100])
    vectors = packed.vectors(np.arange(100))
    again = codebook.empty().plus(np.arange(100), vectors)

    assert np.array_equal(vectors, again.vectors(np.arange(100)))


@pytest.mark.parametrize(("dim", "can"), [(256, True), (16, True), (15, False), (8, False)])
def test_small_or_odd_vectors_are_scanned_exactly(dim: int, can: bool) -> None:
    """Two dimensions make a code, and a handful of them no index."""
    assert can == possible(dim)


async def coder(world: World, file: Path) -> Coder:
    """Return a coder of a world's index, with what a life before left in the file."""
    made = Coder(world.index, file, 1_000, SerialExecutor("codes"))
    await made.load()
    return made


async def filled(monkeypatch: pytest.MonkeyPatch, count: int) -> World:
    """Return a world of so many rows below hot, in small segments."""
    monkeypatch.setattr(segment, "SEGMENT_ROWS", 512)
    monkeypatch.setattr(index_module, "SEGMENT_ROWS", 512)
    monkeypatch.setattr(coding, "PACK_ROWS", 100)
    world = World(dim=DIM)
    for at in range(count):
        tier = (TierName.WARM, TierName.COLD, TierName.GLACIER)[at % 3]
        world.put(Row(f"id-{at}", at + 1, 0, None, VECTORS[at], b"", {"rank": at}), tier)
    return world


async def recall(world: World, live: set[int], k: int = 10, **asked: object) -> float:
    """Return the share of the exact k nearest that searches find."""
    hits, rows = 0, np.array(sorted(live))
    for at in range(0, COUNT, 100):
        exact = rows[np.argsort(-(SCALED[rows] @ SCALED[at]), kind="stable")[:k]]
        found = {int(name.removeprefix("id-")) for name in await world.found(vector=VECTORS[at], k=k, **asked)}
        hits += len(found & set(exact.tolist()))
    return hits / (k * len(range(0, COUNT, 100)))


async def test_a_codebook_is_trained_once_there_are_rows_enough_and_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Exact before; codes after, with the same answers; the next life takes the codebook from the file."""
    world = await filled(monkeypatch, 900)
    first = await coder(world, tmp_path / "codebook")
    assert not await first.step()
    assert await recall(world, set(range(900))) == 1.0

    for at in range(900, COUNT):
        world.put(Row(f"id-{at}", at + 1, 0, None, VECTORS[at], b"", {"rank": at}), TierName.COLD)
    exact_bytes = world.index.code_bytes
    await first.drain()
    assert world.index.code_bytes < exact_bytes / 4
    assert await recall(world, set(range(COUNT))) >= 0.99

    second = await coder(World(dim=DIM), tmp_path / "codebook")
    assert second._index.codebook is not None
    damaged = (tmp_path / "codebook").read_bytes()[:-1]
    (tmp_path / "codebook").write_bytes(damaged)
    third = await coder(World(dim=DIM), tmp_path / "codebook")
    assert third._index.codebook is None


async def test_answers_hold_while_segments_are_coded_superseded_and_rewritten(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Deletes mask at once, updates count once, rewritten segments keep their codes."""
    world = await filled(monkeypatch, COUNT)
    makes = await coder(world, tmp_path / "codebook")
    await makes.drain()
    gone = {at for at in range(COUNT) if at % 8 and at < 2_000}
    for at in gone:
        world.put(row(f"id-{at}", 10_000 + at, deleted=True), TierName.WARM)
    live = set(range(COUNT)) - gone
    assert await recall(world, live) >= 0.99

    while world.index.compact():
        await makes.step()
    assert await recall(world, live) >= 0.99
    result = await world.retrieve(vector=VECTORS[0], k=10)
    assert (len(live), len(live), []) == (result.scanned, result.of, result.missed)


async def test_an_exact_search_needs_no_codes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """exact=true scores every row that passes, whatever is coded."""
    world = await filled(monkeypatch, COUNT)
    await (await coder(world, tmp_path / "codebook")).drain()

    assert await recall(world, set(range(COUNT)), exact=True) == 1.0
    assert await recall(world, set(range(500)), exact=True, filter="rank < 500") == 1.0


async def test_a_bound_on_codes_holds_with_codes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """At the limit the oldest glacier rows lose their codes first; all others are still found."""
    world = await filled(monkeypatch, 1_500)
    await (await coder(world, tmp_path / "codebook")).drain()
    world.index.bytes_limit = world.index.code_bytes
    for at in range(1_500, 2_500):
        world.put(Row(f"id-{at}", at + 1, 0, None, VECTORS[at], b"", {"rank": at}), TierName.COLD)
        assert world.index.code_bytes <= world.index.bytes_limit or not any(
            (one.coded & one.alive & (one.home == TierName.GLACIER)).any() for one in world.index.segments()
        )
    result = await world.retrieve(vector=VECTORS[0])

    assert (["glacier"], False) == (result.missed, result.complete)
    assert result.scanned < result.of == 2_500
    assert ["id-2"] == await world.found(ids=["id-2"])
