"""Codes that fit other records than there are: it is seen, it is said, and a reindex heals it (real codes)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import structlog

from consumers import recall as recall_module
from consumers.coding import Coder
from consumers.recall import Recall, recall
from consumers.vectors import RUN_ROWS, sample
from tests.tiers.rows import batch
from tests.tiers.shelves import World
from tiers import segment
from tiers.codes import Codebook
from tiers.errors import TierUnavailable
from tiers.index import Index
from tiers.record import Row
from tiers.tier import TierName
from tiers.worker import SerialExecutor

pytestmark = pytest.mark.unit

DIM, COUNT = 32, 2_000


def mixture(kind: int, count: int, seed: int = 0) -> np.ndarray:
    """Return vectors of forty groups; those of kind 1 all point nearly the same way, as another model's may."""
    rng, centres = np.random.default_rng(seed), np.random.default_rng(99).normal(size=(40, DIM))
    vectors = centres[rng.integers(0, 40, count)] + 0.4 * rng.normal(size=(count, DIM))
    return (vectors if kind == 0 else vectors / 3 + np.where(np.arange(DIM) % 3, 1, -1)).astype(np.float32)


class Corpus:
    """A world in small segments, with what codes it and what judges the codes."""

    def __init__(self, directory: Path) -> None:
        self.world = World(dim=DIM)
        self.pool = SerialExecutor("codes")
        self.coder = Coder(self.world.index, directory / "codebook", 1_000, self.pool, self.world.shelves)
        self.recall = Recall(
            self.world.index,
            self.world.shelves,
            self.pool,
            every_s=1.0,
            recall_min=0.8,
            random=lambda: np.random.default_rng(5),
        )

    def put(self, vectors: np.ndarray, start: int = 0) -> None:
        """Put rows onto the shelves, in turn."""
        for number, tier in enumerate((TierName.WARM, TierName.COLD, TierName.GLACIER)):
            mine = range(number, len(vectors), 3)
            rows = [Row(f"id-{start + at}", start + at + 1, 0, None, vectors[at], b"", {}) for at in mine]
            found = batch(*rows, shape=self.world.shape)
            self.world.index.put(found, np.zeros(len(rows), np.int32), tier, np.arange(len(rows)), 0)
            self.world.shelves[tier].rows.update({(one.id, one.version): one for one in rows})

    async def code(self) -> None:
        """Give every row its code."""
        stop = asyncio.Event()
        stop.set()
        await self.coder.drain()
        await self.coder.run(stop)

    async def mean(self) -> float:
        """Ask as often as a warning needs, and return the mean."""
        for _ in range(recall_module.QUESTIONS_MIN):
            assert await self.recall.step() is not None
        assert self.recall.mean is not None
        return self.recall.mean

    def codebooks(self) -> set[str]:
        """Return the names of the codebooks that segments are coded by."""
        return {one.packed.codebook.id for one in self.world.index.segments() if one.packed is not None}


@pytest.fixture
def corpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Corpus:
    monkeypatch.setattr(segment, "SEGMENT_ROWS", 1_024)
    return Corpus(tmp_path)


async def drifted(corpus: Corpus) -> None:
    """Train with records of one kind, then let those of another be all there is."""
    corpus.put(mixture(0, COUNT))
    await corpus.code()
    assert await corpus.mean() >= 0.9
    corpus.put(mixture(1, COUNT, seed=1), COUNT)
    await corpus.code()
    corpus.world.index.drop([(f"id-{at}", at + 1) for at in range(COUNT)])
    while corpus.world.index.compact():
        await corpus.coder.drain()


async def test_recall_falls_when_records_change_and_a_reindex_heals_it(corpus: Corpus, tmp_path: Path) -> None:
    """Seen by the questions, said in the log once with what to do, and gone after a reindex of all segments."""
    await drifted(corpus)
    corpus.recall._answers.clear()
    with structlog.testing.capture_logs() as logs:
        assert await corpus.mean() < 0.6
        await corpus.recall.step()
    assert ["codes.recall_low"] == [line["event"] for line in logs]
    assert "isotherm reindex" in logs[0]["hint"]

    before = corpus.codebooks()
    assert corpus.coder.reindex.request()
    while await corpus.coder.reindex.step():
        assert 10 == len(set(await corpus.world.found(vector=mixture(1, 1)[0], k=10)))  # searches go on

    assert await corpus.mean() >= 0.85
    assert corpus.codebooks() == {corpus.world.index.codebook.id}
    assert not before & corpus.codebooks()
    assert [f"{corpus.world.index.codebook.id}.codes"] == [path.name for path in (tmp_path / "codes").iterdir()]
    assert corpus.coder.reindex.progress() is None


async def test_a_reindex_goes_on_after_a_crash(corpus: Corpus, tmp_path: Path) -> None:
    """What the new file holds is not fetched again; until the last segment is done the old codes are in use."""
    await drifted(corpus)
    corpus.coder.reindex.request()
    await corpus.coder.reindex.step()  # trains
    await corpus.coder.reindex.step()  # one segment
    told = corpus.coder.reindex.progress()
    old = corpus.world.index.codebook.id
    assert told == {"segments": 1, "of": len(corpus.world.index.segments())}

    again = Coder(corpus.world.index, tmp_path / "codebook", 1_000, corpus.pool, corpus.world.shelves)
    await again.load()
    assert (old, 2) == (corpus.world.index.codebook.id, len(list((tmp_path / "codes").glob("*.codes"))))
    coming = again.reindex.codebook
    assert coming is not None
    done = next(one for one in corpus.world.index.segments() if one.packed and one.packed.codebook.id == coming.id)
    for shelf in corpus.world.shelves.values():  # the rows of that segment need no vector any more
        shelf.rows = {key: row for key, row in shelf.rows.items() if key[0] not in set(done.ids)}
    codes = {done.ids[at]: done.packed.codes(np.array([at]))[0].tolist() for at in done.packed.numbers.tolist()}
    while await again.reindex.step():
        pass

    assert {coming.id} == corpus.codebooks()
    assert codes == {done.ids[at]: done.packed.codes(np.array([at]))[0].tolist() for at in done.packed.numbers.tolist()}
    assert corpus.world.index.codebook.id == coming.id == again.reindex._index.codebook.id


async def test_a_reindex_waits_for_a_tier_that_does_not_answer(corpus: Corpus) -> None:
    """Nothing is half coded: the segment keeps its codes, and the next look goes on."""
    await drifted(corpus)
    reindex, before = corpus.coder.reindex, corpus.codebooks()
    reindex.request()
    await reindex.step()

    def refuse() -> None:
        raise TierUnavailable("not now")

    for shelf in corpus.world.shelves.values():
        shelf.before_answer = refuse
    assert not await reindex.step()
    assert before == corpus.codebooks()
    for shelf in corpus.world.shelves.values():
        shelf.before_answer = lambda: None
    while await reindex.step():
        pass
    assert not before & corpus.codebooks()


async def test_a_codebook_that_would_be_the_same_is_left(corpus: Corpus) -> None:
    """The same rows train the same codebook: there is nothing to code anew."""
    corpus.put(mixture(0, COUNT))
    await corpus.code()
    before = [one.packed for one in corpus.world.index.segments()]
    corpus.coder.reindex.request()
    while await corpus.coder.reindex.step():
        pass

    assert before == [one.packed for one in corpus.world.index.segments()]


async def test_without_a_codebook_there_is_nothing_to_train_anew(corpus: Corpus) -> None:
    """A reindex before there are codes is refused, and recall is not asked."""
    corpus.put(mixture(0, 300))

    assert not corpus.coder.reindex.request()
    assert await corpus.recall.step() is None
    assert corpus.recall.mean is None


@pytest.mark.parametrize(
    ("found", "exact", "share"), [([1, 2, 3], [1, 2, 3], 1.0), ([3, 9], [1, 3], 0.5), ([], [1], 0.0), ([1], [], 1.0)]
)
def test_recall_is_the_share_that_is_found(found: Sequence[int], exact: Sequence[int], share: float) -> None:
    """Order does not matter; nothing to find is all found."""
    assert share == recall(found, exact)


def test_a_sample_is_bounded_and_of_live_rows() -> None:
    """From anywhere, in short runs, never more than was asked for by more than a run, and none that is dead."""
    index = Index(DIM)
    vectors = mixture(0, 5_000)
    book = Codebook.train(vectors)
    rows = [Row(f"id-{at}", at + 1, 0, None, vectors[at], b"", {}) for at in range(5_000)]
    index.put(batch(*rows, shape=World(dim=DIM).shape), np.zeros(5_000, np.int32), TierName.COLD, np.arange(5_000), 0)
    (one,) = index.segments()
    one.packed = book.empty().plus(np.arange(5_000), vectors)
    index.drop([(f"id-{at}", at + 1) for at in range(0, 5_000, 2)])
    (picked,) = sample(index.segments(), 512, np.random.default_rng(0))

    assert 512 - RUN_ROWS <= len(picked.rows) <= 512 + RUN_ROWS
    assert one.alive[picked.rows].all()
    assert len(picked.rows) == len(set(picked.rows.tolist()))
