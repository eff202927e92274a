"""Codes: what they find is nearly the exact answer, and they are made without anyone noticing."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from consumers import coding
from consumers.coding import Coder
from tests.tiers.rows import ATTRIBUTES, batch, row
from tests.tiers.shelves import World
from tiers import packing, record, segment
from tiers.codes import Chosen, Codebook, possible
from tiers.index import Coded, Index
from tiers.record import Row
from tiers.score import scales
from tiers.tier import TierName
from tiers.worker import SerialExecutor

pytestmark = pytest.mark.unit

DIM, COUNT = 32, 3_000
RNG = np.random.default_rng(0)
CENTRES = RNG.normal(size=(40, DIM))
VECTORS = (CENTRES[RNG.integers(0, 40, COUNT)] + RNG.normal(size=(COUNT, DIM))).astype(np.float32)
ALL = list(TierName)
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
        ((rows, _),) = packed.best(Chosen(mask), SCALED[at : at + 1], 100)
        assert mask[rows].all()
        hits += len(set(best.tolist()) & set(rows.tolist()))

    assert hits >= 495


def test_few_rows_are_found_without_reading_the_others(codebook: Codebook) -> None:
    """The best of a few rows are those that their codes stand for, whatever the order they were added in."""
    order = np.random.default_rng(1).permutation(COUNT)
    sorted_, shuffled = codebook.empty().plus(np.arange(COUNT), SCALED), codebook.empty().plus(order, SCALED[order])
    for few in (1, 7, 200):
        mask = np.zeros(COUNT, bool)
        mask[RNG.choice(COUNT, few, replace=False)] = True
        wanted = np.flatnonzero(mask)
        values = sorted_.vectors(wanted) @ SCALED[0]
        best = wanted[np.argsort(-values, kind="stable")[:10]]
        for packed in (sorted_, shuffled):
            ((rows, found),) = packed.best(Chosen(mask), SCALED[:1], 10)
            assert len(set(best.tolist()) & set(rows.tolist())) >= min(few, 10) - 1  # FAISS rounds its tables
            assert np.allclose(np.sort(values)[::-1][: len(found)], found, atol=0.05)


def test_adding_rows_leaves_what_a_scan_holds_as_it_was(codebook: Codebook) -> None:
    """Codes are never changed in place: a scan under way goes on with the old ones."""
    before = codebook.empty().plus(np.arange(10), SCALED[:10])
    after = before.plus(np.arange(10, 20), SCALED[10:20])
    everything = np.ones(COUNT, bool)

    assert (10, 20) == (before.rows, after.rows)
    assert set(range(10)) == set(before.best(Chosen(everything), SCALED[15:16], 100)[0][0].tolist())
    assert 15 in after.best(Chosen(everything), SCALED[15:16], 5)[0][0].tolist()


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


async def test_a_corpus_embedded_anew_is_found_all_the_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every row of several segments superseded bit by bit: k hits at each moment, each once, and no memory left."""
    count, step, dim = 24_000, 1_000, 16
    monkeypatch.setattr(segment, "SEGMENT_ROWS", 8_192)
    rng = np.random.default_rng(3)
    world = World(dim=dim)
    makes = await coder(world, tmp_path / "codebook")

    def embed(start: int, version: int) -> None:
        vectors = rng.normal(size=(step, dim)).astype(np.float32)
        rows = [Row(f"id-{start + at}", version + start + at, 0, None, vectors[at], b"", {}) for at in range(step)]
        found = batch(*rows, shape=world.shape)
        world.index.put(found, np.zeros(step, np.int32), TierName.COLD, np.arange(step), 0)
        world.shelves[TierName.COLD].rows.update({(one.id, one.version): one for one in rows})

    for start in range(0, count, step):
        embed(start, 1)
    await makes.drain()
    bytes_before, former = world.index.code_bytes, weakref.ref(world.index.segments()[0])
    for start in range(0, count, step):
        embed(start, 1_000_000)
        if start % 3_000 == 0:
            result = await world.retrieve(vector=rng.normal(size=dim).astype(np.float32), k=10)
            assert (10, 10) == (len(result.hits), len({hit.row.id for hit in result.hits}))
            assert (count, count, []) == (result.scanned, result.of, result.missed)
            await makes.drain()
        while world.index.compact():
            pass
    await makes.drain()

    assert former() is None
    assert world.index.code_bytes <= 2 * bytes_before
    assert all(hit.row.version >= 1_000_000 for hit in (await world.retrieve(vector=np.ones(dim, np.float32))).hits)


def test_a_row_takes_at_most_160_bytes_beside_its_id_and_attributes() -> None:
    """Counted over the arrays of a full segment at 256 dimensions: columns, codes with their row numbers, last view."""
    dim, count = 256, segment.SEGMENT_ROWS
    index = Index(dim)
    rng = np.random.default_rng(0)
    index.codebook = Codebook.train(rng.normal(size=(640, dim)).astype(np.float32))
    shape = record.entries(record.schema(dim, {}))
    times = pa.array(np.zeros(count, np.int64), pa.timestamp("ms", "UTC"))
    given = {
        "id": pa.array([f"{n:x}" for n in range(count)]),
        "version": pa.array(np.arange(count)),
        "event_time": times,
        "expires_at": times,
        "attributes": record.attribute_array([{}] * count, pa.struct([])),
        "deleted": pa.array(np.arange(count) % 7 == 0),  # these have no code, and are not in the count
        "slot": pa.array(np.arange(count)),
        "partition": pa.array(np.zeros(count, np.int32)),
    }
    found = pa.RecordBatch.from_arrays([given[name] for name in shape.names], schema=shape)
    live = ~record.deleted_of(found)
    codes = rng.integers(0, 256, (int(live.sum()), dim // 4), np.uint8)
    index.put(found, np.zeros(count, np.int32), TierName.COLD, np.arange(count), 0, Coded(live, codes))
    (one,) = index.segments()
    one.install(one.adopted, one.pack(one.adopted, index.codebook))
    (view,) = index.views(TierName)

    arrays = [getattr(one, name) for name in segment.COLUMNS]
    seen = {id(value): value for value in (*vars(view).values(), view.whole.by_code.mask)}
    arrays += [value for value in seen.values() if isinstance(value, np.ndarray) and value.base is None]
    columns = sum(array.nbytes for array in arrays) / count + 1 / 8  # FAISS's bitmap of the view
    packed = one.packed.bytes / int(live.sum())
    assert one.packed._blocks.nbytes + one.packed.numbers.nbytes <= one.packed.bytes + 32 * 64
    assert columns + packed <= 160


async def test_at_the_limit_the_oldest_glacier_rows_go_first_and_are_said_to_be_missed() -> None:
    """Younger ones keep their codes, others stay found, and what lost its code is there by id and filter."""
    world = World(dim=DIM)
    for at in range(1_000):
        world.put(Row(f"id-{at}", at + 1, 0, None, VECTORS[at], b"", {"rank": at}), ALL[at % 2 + 2])
    book = Codebook.train(SCALED)
    world.index.codebook = book
    while (work := packing.due(world.index.segments(), book, 1, 1)) is not None:
        work.install(work.codes()[0])
    packing.shed(world.index.segments(), world.index.code_bytes - 1)
    asked = await world.retrieve(vector=VECTORS[1], k=10)

    assert (["glacier"], False, 500, 1_000) == (asked.missed, asked.complete, asked.scanned, asked.of)
    assert {hit.tier for hit in asked.hits} == {TierName.COLD}
    assert ["id-1"] == await world.found(ids=["id-1"])
    assert ["id-1"] == await world.found(filter="rank = 1")
    assert (await world.retrieve(filter="rank < 10")).complete


def test_shedding_costs_what_is_shed(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit a put looks at the segments once in a 256th of it, and a segment gives its codes up once."""
    monkeypatch.setattr(segment, "SEGMENT_ROWS", 256)
    looks, shed = 0, packing.shed

    def counted(segments: Sequence[segment.Segment], limit: int) -> None:
        nonlocal looks
        looks += 1
        shed(segments, limit)

    monkeypatch.setattr(packing, "shed", counted)
    index = Index(DIM, bytes_limit=1_000 * 4 * DIM)
    kept = 0
    for start in range(0, 4_000, 8):
        rows = [Row(f"id-{at}", at + 1, 0, None, VECTORS[at % COUNT], b"", {}) for at in range(start, start + 8)]
        found = batch(*rows, shape=record.schema(DIM, ATTRIBUTES))
        index.put(found, np.zeros(8, np.int32), TierName.GLACIER, np.arange(8), 0)
        kept = max(kept, index.code_bytes)

    assert kept <= index.bytes_limit
    assert looks <= 4_000 / 8
    assert index.code_bytes >= index.bytes_limit * 0.6
