"""Codes kept from one life to the next: what the file says is checked, and the tiers alone say which rows there are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers import coding
from consumers.coding import Coder
from tests.tiers.rows import ATTRIBUTES, batch, row
from tiers import blocks, record, saved
from tiers.adopting import Adopting
from tiers.codes import Chosen, Codebook, Packed
from tiers.cold import ColdMemory
from tiers.cold_settings import ColdSettings
from tiers.glacier import GlacierMemory
from tiers.glacier_settings import GlacierSettings
from tiers.index import Index
from tiers.rebuild import load
from tiers.record import Row
from tiers.saved import CodesFile, Frame
from tiers.score import scales
from tiers.tier import Location, TierName
from tiers.worker import SerialExecutor

pytestmark = pytest.mark.unit

DIM, COUNT, PARTITIONS = 32, 640, 2
SHAPE = record.schema(DIM, ATTRIBUTES)
VECTORS = np.random.default_rng(1).normal(size=(COUNT, DIM)).astype(np.float32)
SCALED = VECTORS * scales(VECTORS, "cosine")[:, None]


@pytest.fixture(scope="module")
def codebook() -> Codebook:
    return Codebook.train(SCALED)


# -- blocks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [16, 34, 64])
def test_blocks_are_those_of_faiss(dim: int) -> None:
    """Packed by us or by FAISS as it adds vectors: the same bytes, for any number of rows, also of an odd code."""
    import faiss

    vectors = np.random.default_rng(dim).normal(size=(640, dim)).astype(np.float32)
    book = Codebook.train(vectors)
    for rows in (1, 31, 32, 33, 300):
        theirs = book.index(np.zeros(0, np.int64), np.zeros((0, book.code_bytes, 32), np.uint8))
        theirs.add_with_ids(vectors[:rows], np.arange(rows))
        lists = faiss.downcast_InvertedLists(theirs.invlists)
        ours = blocks.pack(book.encode(vectors[:rows]))
        assert np.array_equal(faiss.rev_swig_ptr(lists.get_codes(0), ours.size), ours.reshape(-1))


@given(st.integers(1, 100), st.integers(1, 9))
def test_what_was_packed_can_be_taken_out(rows: int, size: int) -> None:
    """Any rows, in any order, any number of times."""
    rng = np.random.default_rng(rows * size)
    codes = rng.integers(0, 256, (rows, size), np.uint8)
    at = rng.integers(0, rows, 50)

    assert np.array_equal(codes[at], blocks.take(blocks.pack(codes), at))


def test_codes_added_bit_by_bit_are_those_added_at_once(codebook: Codebook) -> None:
    """Whatever the sizes of the steps; and the rows taken out of them have the same codes."""
    codes, packed, start = codebook.encode(SCALED), codebook.empty(), 0
    for step in (1, 30, 5, 64, 100, 440):
        rows = np.arange(start, start + step)
        packed, start = packed.plus_codes(rows, codes[rows]), start + step
    whole = codebook.empty().plus(np.arange(COUNT), SCALED)

    def found(one: Packed) -> list[int]:
        return one.best(Chosen(np.ones(COUNT, bool)), SCALED[7:8], 50)[0][0].tolist()

    assert found(packed) == found(whole)
    assert np.array_equal(codes[[599, 3, 64]], packed.codes(np.array([599, 3, 64])))
    assert np.array_equal(codes[[5, 9]], whole.only(np.array([9, 5])).codes(np.array([5, 9])))


# -- the file ----------------------------------------------------------------------------------------------------------


def frame(start: int, rows: int) -> Frame:
    """Return codes that tell what they are of; the same versions lie in both partitions."""
    numbers = np.arange(start, start + rows)
    codes = np.stack([numbers % 251, numbers // 251, numbers % 7], axis=1).astype(np.uint8)
    return Frame(numbers // 2, (numbers % 2).astype(np.int16), codes)


FRAMES = [frame(0, 40), frame(40, 1), frame(41, 19)]
DATA = b"".join(map(saved.pack, FRAMES))


def test_a_code_is_found_by_partition_and_version(tmp_path: Path) -> None:
    """A version alone is not enough: every partition has its own log."""
    file = CodesFile(tmp_path / "codes" / "a.codes", 3)
    for one in FRAMES:
        file.append(one)
    found = CodesFile(file.path, 3).load()
    everything = frame(0, 60)
    at = found.find(everything.partitions, everything.versions)

    assert np.array_equal(everything.codes, found.codes(at))
    assert [-1, -1] == found.find(np.array([2, 1], np.int32), np.array([5, 1_000])).tolist()


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(DATA) - 1), st.integers(0, 255), st.booleans())
def test_a_damaged_file_ends_where_the_damage_begins(at: int, byte: int, cut: bool) -> None:
    """Frames before it are read as they were written, nothing is made up, and nothing raises."""
    data = DATA[:at] if cut else DATA[:at] + bytes([byte]) + DATA[at + 1 :]
    found = [one for one, _ in saved.frames(data, 3)]
    ends = np.cumsum([len(saved.pack(one)) for one in FRAMES])
    whole = 3 if data == DATA else int(np.searchsorted(ends, at, "right"))

    assert whole == len(found)
    for one, expected in zip(found, FRAMES, strict=False):
        assert all(np.array_equal(left, right) for left, right in zip(one, expected, strict=True))


def test_a_torn_file_is_cut_and_goes_on(tmp_path: Path) -> None:
    """What a crash left out is written behind what is whole, not behind what is torn."""
    path = tmp_path / "a.codes"
    path.write_bytes(DATA[:-1])
    file = CodesFile(path, 3)
    assert len(file.load()) == 41
    file.append(FRAMES[2])

    assert path.read_bytes() == DATA


# -- the rebuild -------------------------------------------------------------------------------------------------------


class Life:
    """Cold and glacier in a directory, with the index over them and its coder: one life of a node."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.index = directory, Index.of(SHAPE)
        self.pool = SerialExecutor("codes")
        self.coder = Coder(self.index, directory / "codebook", 400, self.pool)
        self.with_vectors = 0  # rows that the rebuild read with their vectors

    async def __aenter__(self) -> Self:
        cold = ColdSettings(path=str(self.directory / "cold"))
        self.cold = await ColdMemory.open(cold, SHAPE, partitions=PARTITIONS, index=self.index)
        glacier = GlacierSettings(path=str(self.directory / "glacier"), row_group_rows=64)
        self.glacier = await GlacierMemory.open(glacier, SHAPE, partitions=PARTITIONS, index=self.index)
        for partition in range(PARTITIONS):
            await self.glacier.raise_epoch(partition, self.glacier.epoch(partition) + 1)
        await self.coder.load()
        self.twice = [
            pair
            for tier in (self.cold, self.glacier)
            for pair in await load(
                self.index, Watched(tier, self), PARTITIONS, 0, self.coder.drain, self.coder.saved, self.pool
            )
        ]
        await self.coder.settle()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cold.cleanup()
        await self.glacier.cleanup()
        self.pool.close()

    async def store(self, tier: ColdMemory | GlacierMemory, *rows: Row) -> None:
        """Store rows and enter them."""
        given_batch = batch(*rows, shape=SHAPE)
        receipt = await tier.store(given_batch)
        partition = record.partitions(given_batch["id"], PARTITIONS)
        for name, where in self.index.put(given_batch, partition, tier.name, receipt.slots, 0):
            self.index.queue.add(name, where)

    async def code(self) -> None:
        """Give every row its code."""
        stop = coding.asyncio.Event()
        stop.set()
        await self.coder.drain()
        await self.coder.run(stop)

    def scanned(self) -> dict[str, list[int] | None]:
        """Return the code of every live record, None where it has none."""
        found: dict[str, list[int] | None] = {}
        for segment in self.index.segments():
            for at in np.flatnonzero(segment.alive[: segment.count] & ~segment.deleted[: segment.count]).tolist():
                has = segment.packed is not None and at in segment.packed.numbers
                found[segment.ids[at]] = segment.packed.codes(np.array([at]))[0].tolist() if has else None
        return found

    def entries(self, ids: Sequence[str]) -> list[object]:
        """Return what the index knows of these ids, and what is queued of them."""
        return [(self.index.find(name), sorted(self.index.queue.of(name))) for name in ids]


class Watched:
    """A tier of which is counted how many rows it lists with vectors."""

    def __init__(self, tier: ColdMemory | GlacierMemory, life: Life) -> None:
        self._tier, self._life, self.name = tier, life, tier.name

    async def entries(self, known: object) -> AsyncIterator[pa.RecordBatch]:
        async for found in self._tier.entries(known):
            self._life.with_vectors += found.num_rows * ("vector" in found.schema.names)
            yield found

    async def retrieve_all(self) -> AsyncIterator[pa.RecordBatch]:
        async for found in self._tier.retrieve_all():
            self._life.with_vectors += found.num_rows
            yield found


def rows(start: int, end: int, version: int = 0) -> list[Row]:
    """Return rows "id-<n>" with the vectors of this module."""
    return [
        Row(f"id-{n}", version + n + 1, 0, None, VECTORS[n], b"", {"rank": n, "user": f"u{n}"})
        for n in range(start, end)
    ]


IDS = [f"id-{n}" for n in range(COUNT)]


async def test_a_start_reads_no_vector_whose_code_was_kept(tmp_path: Path) -> None:
    """Everything coded, closed and opened: the same entries, filters and codes, and not one vector was read."""
    async with Life(tmp_path) as first:
        await first.store(first.cold, *rows(0, 300))
        await first.store(first.glacier, *rows(300, COUNT))
        await first.code()
        before, codes = first.entries(IDS), first.scanned()
        assert None not in codes.values()

    async with Life(tmp_path) as second:
        assert second.with_vectors == 0
        assert before == second.entries(IDS)
        assert codes == second.scanned()
        (view,) = second.index.views(TierName, facts=True)
        ranks = zip(view.facts.column("id").to_pylist(), view.facts.column("rank").to_pylist(), strict=True)
        assert {f"id-{n}": n for n in range(COUNT)} == dict(ranks)
        assert (view.blind, int(view.below.sum())) == (None, COUNT)


async def test_what_changed_after_it_was_kept_is_as_the_tiers_say(tmp_path: Path) -> None:
    """Moved, superseded, deleted and dropped since: entries and codes are those of a rebuild without the file."""
    async with Life(tmp_path) as first:
        await first.store(first.cold, *rows(0, 400))
        await first.store(first.glacier, *rows(400, COUNT))
        await first.code()
        kept = (tmp_path / "codes" / f"{first.index.codebook.id}.codes").read_bytes()
        await first.glacier.store(batch(*rows(0, 100), shape=SHAPE))  # moved down, and the eviction never came
        await first.store(first.cold, *(row(f"id-{n}", 5_000 + n, VECTORS[n - 1]) for n in range(150, 200)))
        await first.store(first.cold, *(row(f"id-{n}", 6_000 + n, deleted=True) for n in range(200, 250)))
        await first.store(first.glacier, *(row(f"new-{n}", 7_000 + n, VECTORS[n]) for n in range(20)))
        gone = [first.index.find(f"id-{n}") for n in range(250, 300)]
        await first.cold.evict([Location(e.id, e.version, e.partition, e.slot) for e in gone], None)

    (tmp_path / "codes" / f"{first.index.codebook.id}.codes").write_bytes(kept)
    async with Life(tmp_path) as with_file:
        seen = (with_file.entries(IDS), sorted(with_file.twice, key=lambda pair: pair[1].id))
        await with_file.code()
        codes = with_file.scanned()
        assert with_file.with_vectors == 450 + 20  # the one page of cold, and the new files of glacier
        assert len(with_file.twice) == 100
        assert with_file.index.find("id-250") is None
    (tmp_path / "codes" / f"{first.index.codebook.id}.codes").unlink()
    async with Life(tmp_path) as without:
        await without.code()
        assert seen == (without.entries(IDS), sorted(without.twice, key=lambda pair: pair[1].id))
        assert codes == without.scanned()


async def test_a_file_of_another_codebook_says_nothing(tmp_path: Path) -> None:
    """Without its codebook a code is noise: the rows are coded anew by the new one."""
    async with Life(tmp_path) as first:
        await first.store(first.cold, *rows(0, COUNT))
        await first.code()
    (tmp_path / "codebook").write_bytes(b"damaged")
    async with Life(tmp_path) as second:
        await second.code()
        assert second.with_vectors == COUNT
        assert None not in second.scanned().values()
        assert [f"{second.index.codebook.id}.codes"] == [path.name for path in (tmp_path / "codes").iterdir()]


async def test_a_file_that_cannot_be_written_costs_no_code(tmp_path: Path) -> None:
    """The codes are made and searched; only the next start has to make them again."""
    (tmp_path / "codes").write_text("in the way")
    async with Life(tmp_path) as first:
        await first.store(first.cold, *rows(0, COUNT))
        await first.code()
        assert None not in first.scanned().values()


async def test_a_file_of_dead_rows_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds no more than twice the live rows and a bit."""
    monkeypatch.setattr(coding, "TIDY_ROWS", 50)
    monkeypatch.setattr(coding, "PACK_ROWS", 10)
    async with Life(tmp_path) as life:
        for version in range(0, 5_000, 1_000):
            await life.store(life.cold, *rows(0, COUNT, version))
            await life.code()
            kept = CodesFile(tmp_path / "codes" / f"{life.index.codebook.id}.codes", life.index.codebook.code_bytes)
            assert COUNT <= len(kept.load()) <= 2 * COUNT + 50 + COUNT


async def test_codes_given_up_while_they_are_packed_stay_given_up(codebook: Codebook) -> None:
    """The index reached its limit while a segment's codes were packed: what it let go does not come back."""
    index = Index.of(SHAPE)
    index.codebook = codebook
    found = batch(*rows(0, COUNT), shape=SHAPE)
    index.put(found, np.zeros(COUNT, np.int32), TierName.GLACIER, np.arange(COUNT), 0)
    (segment,) = index.segments()
    segment.keep_codes(np.zeros(COUNT, bool))
    segment.adopt(np.arange(COUNT), codebook.encode(SCALED))
    adopted = segment.adopted
    packed = segment.pack(adopted, codebook)
    segment.keep_codes(np.arange(COUNT) < 10)
    segment.install(adopted, packed)
    await Adopting(index, None).finish()

    assert segment.packed.rows == int(segment.coded.sum()) == 10
