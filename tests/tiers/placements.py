"""The same records placed anyhow: every version lies in every tier, and an index of one's own says which one counts.

Real vectors: docstrings of the standard library. Every sixth id was updated and every twentieth deleted; what was there
before is as near to the questions as can be, so that an answer which shows it is caught.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from consumers.coding import Coder
from pipeline.demo_texts import collect
from pipeline.embed import load_embedder
from tests.tiers.rows import NOW_MS
from tests.valkey_server import ValkeyServer
from tiers import read, record
from tiers.cold import ColdMemory
from tiers.cold_settings import ColdSettings
from tiers.glacier import GlacierMemory
from tiers.glacier_settings import GlacierSettings
from tiers.hot import HotMemory, HotSettings
from tiers.index import Index
from tiers.record import Floats, Int64s, Row
from tiers.scan import Scanner
from tiers.tier import Location, Query, Tier, TierName
from tiers.warm import WarmMemory
from tiers.warm_settings import WarmSettings
from tiers.worker import SerialExecutor

DIM, PARTITIONS, GROUPS = 256, 2, 100
QUESTIONS, RECORDS, COPIES, MOVED = 12, 2_000, 30, 0.5
CROWD, JITTER = 800, 0.001
CHARACTERS = 200  # of a docstring: more take longer to embed than anything else here
TRAIN_ROWS, EXACT_ROWS = 1_000, 100  # small, so that so few records have codes, below hot and in it
SHAPE = record.schema(DIM, {"rank": "int"})
BELOW = (TierName.WARM, TierName.COLD, TierName.GLACIER)
#: Filter, and the share of the records that pass.
FILTERS = {None: GROUPS, "rank < 10": 10, "rank = 7": 1}


class Corpus(NamedTuple):
    """Batches `old` (superseded) and `new` (the newest of every id, tombstones too), and what is asked.

    So many lie so near to `crowded` that no code tells them apart: only an exact search finds the nearest.
    """

    old: pa.RecordBatch
    new: pa.RecordBatch
    questions: Floats
    crowded: Floats

    def truth(self, question: Floats, ranks: int, k: int) -> list[tuple[str, float]]:
        """Return (id, score) of the k best as NumPy finds them, ties by id."""
        vectors, ids = record.vectors_of(self.new), self.new["id"].to_pylist()
        rank = self.new["attributes"].field("rank").fill_null(GROUPS).to_numpy()
        rows = np.flatnonzero((rank < ranks) if ranks > 1 else (rank == 7))
        unit = np.float32(1) / np.sqrt(np.vecdot(vectors[rows], vectors[rows]))
        scores = np.vecdot(vectors[rows], question) * unit * (np.float32(1) / np.sqrt(np.vecdot(question, question)))
        order = sorted(range(len(rows)), key=lambda at: (-float(scores[at]), ids[rows[at]]))[:k]
        return [(ids[rows[at]], float(scores[at])) for at in order]


def corpus() -> Corpus:
    """Return the docstrings as records; the last few are the questions."""
    embed = load_embedder("wordllama", DIM)
    assert embed is not None
    texts = collect(RECORDS - CROWD + QUESTIONS)
    found = np.concatenate(
        [embed([one.text[:CHARACTERS] for one in texts[at : at + 500]]) for at in range(0, len(texts), 500)]
    )
    held_out = np.arange(QUESTIONS) * len(found) // QUESTIONS
    questions, random = found[held_out], np.random.default_rng(0)
    crowded = random.normal(size=DIM).astype(np.float32)  # far from every text
    near = crowded + JITTER * random.normal(size=(CROWD, DIM))
    vectors = np.concatenate([np.delete(found, held_out, axis=0), near]).astype(np.float32)
    at = np.arange(RECORDS)
    deleted = at % 20 == 3
    before = at[(at % 6 == 0) | deleted]
    decoys = questions[before % QUESTIONS] + np.float32(1e-3)
    return Corpus(
        _batch(before, 1 + before, decoys, np.zeros(len(before), bool)),
        _batch(at, 10_000 + at, vectors, deleted),
        questions,
        crowded,
    )


def _batch(numbers: Int64s, versions: Int64s, vectors: Floats, deleted: np.ndarray) -> pa.RecordBatch:
    rows = [
        Row(
            f"id-{at}",
            int(version),
            NOW_MS,
            None,
            None if gone else vector,
            b"{}",
            {} if gone else {"rank": at % GROUPS},
            gone,
        )
        for at, version, vector, gone in zip(numbers.tolist(), versions, vectors, deleted.tolist(), strict=True)
    ]
    return record.to_batch(rows, SHAPE)


class Places:
    """Real tiers that hold every version, and the slots of each by tier."""

    def __init__(self, tiers: dict[TierName, Tier], found: Corpus, codebook: Path) -> None:
        self.tiers, self.corpus, self._codebook = tiers, found, codebook
        self._slots: dict[TierName, tuple[Int64s, Int64s]] = {}
        self._scanner = Scanner(2)

    async def store(self) -> None:
        """Store every version in each tier below hot, the superseded first."""
        for name in BELOW:
            tier = self.tiers[name]
            receipts = [await tier.store(batch) for batch in (self.corpus.old, self.corpus.new)]
            self._slots[name] = (receipts[0].slots, receipts[1].slots)

    def close(self) -> None:
        """End the search threads."""
        self._scanner.close()

    async def placed(self, seed: int) -> Placement:
        """Place every record at random: first anywhere, then some moved down, some with a copy in hot, all coded."""
        placement = Placement(self, np.random.default_rng(seed))
        for which, batch in enumerate((self.corpus.old, self.corpus.new)):
            await placement.put(batch, {name: slots[which] for name, slots in self._slots.items()})
        await placement.promote()
        codes = SerialExecutor("codes")
        coder = Coder(placement.index, self._codebook, TRAIN_ROWS, codes, {TierName.HOT: placement.hot})
        await coder.load()
        await coder.drain()
        codes.close()
        return placement

    async def ask(self, placement: Placement, query: Query) -> list[tuple[str, float]]:
        """Return (id, score) of what a search over all tiers finds."""
        tiers = {TierName.HOT: placement.hot, **self.tiers}
        result = await read.retrieve(placement.index, tiers, query, self._scanner, NOW_MS)
        assert result.complete
        return [(hit.row.id, hit.score or 0.0) for hit in result.hits]


class Placement:
    """One index and one hot; below, the rows are there already."""

    def __init__(self, places: Places, random: np.random.Generator) -> None:
        self.index = Index.of(SHAPE)
        settings = HotSettings(device="cpu", capacity_rows=8_192, slab_rows=64, exact_rows=EXACT_ROWS)
        self.hot = HotMemory(settings, SHAPE, partitions=PARTITIONS, index=self.index)
        self._places, self._random = places, random

    async def put(self, batch: pa.RecordBatch, slots: dict[TierName, Int64s]) -> None:
        """Let each row arrive in a tier, and move it to the same or a lower one."""
        order = self._random.permutation(batch.num_rows)
        first = self._random.integers(0, len(TierName), batch.num_rows)
        moves = np.where(self._random.random(batch.num_rows) < MOVED, self._random.integers(0, 4, batch.num_rows), 0)
        home = np.maximum(first, moves)
        for rows in np.array_split(order, 6):
            for tier in TierName:
                await self._arrive(batch, rows[first[rows] == tier], tier, slots)
        for tier in BELOW:
            self._move(batch, np.flatnonzero((home == tier) & (first != tier)), tier, slots[tier])

    async def _arrive(
        self, batch: pa.RecordBatch, rows: np.ndarray, tier: TierName, slots: dict[TierName, Int64s]
    ) -> None:
        if tier != TierName.HOT:
            self._put(batch.take(pa.array(rows)), tier, slots[tier][rows])
            return
        partition = record.partitions(batch["id"], PARTITIONS)
        for number in range(PARTITIONS):
            part = batch.take(pa.array(rows[partition[rows] == number]))
            taken = await self.hot.reserve(part, number)
            self.hot.publish(taken)
            self._put(part, tier, taken)

    def _put(self, part: pa.RecordBatch, tier: TierName, slots: Int64s) -> None:
        if part.num_rows:
            partition = record.partitions(part["id"], PARTITIONS)
            for name, where in self.index.put(part, partition, tier, slots, NOW_MS):
                self._leave(name, where)

    def _leave(self, name: TierName, where: Location) -> None:
        if name == TierName.HOT:
            self.hot.evict_now([where])
        else:
            self.index.queue.add(name, where)

    def _move(self, batch: pa.RecordBatch, rows: np.ndarray, tier: TierName, slots: Int64s) -> None:
        part = batch.take(pa.array(rows))
        ids = part["id"].to_pylist()
        sources = [entry for entry in self.index.entries(ids) if entry is not None]
        self.index.relocate(tier, ids, record.versions_of(part), slots[rows], record.vectors_of(part))
        for entry in sources:
            self._leave(TierName(entry.home), Location(entry.id, entry.version, entry.partition, entry.slot))

    async def promote(self) -> None:
        """Put copies of some records into hot."""
        new = self._places.corpus.new
        chosen = self._random.choice(new.num_rows, COPIES, replace=False)
        rows = [row for row in record.rows_of(new.take(pa.array(chosen))) if not row.deleted]
        for one in rows:
            self.hot.copies.publish(await self.hot.copies.reserve([one]), record.partition(one.id, PARTITIONS), "heat")

    def homes(self) -> Iterator[int]:
        """Yield how many records each tier is home of."""
        return (self.index.rows(tier) for tier in TierName)


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Places]:
    """Open a Valkey, a DuckDB file and a Delta table in `folder`, and fill them."""
    async with AsyncExitStack() as stack:
        (folder / "valkey").mkdir()
        server = stack.enter_context(ValkeyServer(folder / "valkey"))
        shared = {"partitions": PARTITIONS, "index": Index.of(SHAPE)}
        warm = await WarmMemory.open(WarmSettings(url=server.url, prefix="places"), SHAPE, **shared)
        stack.push_async_callback(warm.cleanup)
        cold = await ColdMemory.open(ColdSettings(path=str(folder / "cold")), SHAPE, **shared)
        stack.push_async_callback(cold.cleanup)
        glacier = await GlacierMemory.open(GlacierSettings(path=str(folder / "glacier")), SHAPE, **shared)
        stack.push_async_callback(glacier.cleanup)
        for partition in range(PARTITIONS):
            await warm.raise_epoch(partition, 1)
            await glacier.raise_epoch(partition, 1)
        places = Places(
            {TierName.WARM: warm, TierName.COLD: cold, TierName.GLACIER: glacier}, corpus(), folder / "codebook"
        )
        stack.callback(places.close)
        await places.store()
        yield places
