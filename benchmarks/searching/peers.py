"""The same rows in lancedb and chromadb: time and recall of a search, and how soon a new row is found.

They come with the extra `bench` (`pip install --require-hashes -r locks/bench.txt`); without them the run goes on.
Not equal work, and said so: both write to disk, chromadb builds a graph, ours holds its codes in memory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from benchmarks.report import promise, spread
from benchmarks.searching.corpus import DIM, EVENT_MS, PAYLOAD, SHAPE, recall, scaled, truth
from benchmarks.searching.node import BARE, ask, coded, fill
from benchmarks.searching.run import Run
from benchmarks.searching.scans import WARM_UP, K
from pipeline import MemoryManager, Query
from tiers import Row, TierName, record
from tiers.record import Floats

MISSING = "pip install --require-hashes -r locks/bench.txt (lancedb, chromadb) to compare with them"
BLOCKS = 4
CHROMA_ROWS = 5_000  # it takes at most 5,461 at once
NPROBES, REFINE = 20, 10
FOUND_S = 10.0


class Peer(Protocol):
    """A store of vectors beside ours."""

    name: str

    def ask(self, question: Floats) -> list[str]:
        """Return the ids of the K nearest."""

    def add(self, identifier: str, vector: Floats) -> None:
        """Store one more."""


class Lance:
    """lancedb, without an index or with the one that it recommends."""

    def __init__(self, table: Any, name: str, indexed: bool) -> None:
        self._table, self.name, self._indexed = table, name, indexed

    def ask(self, question: Floats) -> list[str]:
        """See Peer."""
        search = self._table.search(question).distance_type("cosine").select(["id", "_distance"]).limit(K)
        if self._indexed:
            search = search.nprobes(NPROBES).refine_factor(REFINE)
        found: list[str] = search.to_arrow()["id"].to_pylist()
        return found

    def add(self, identifier: str, vector: Floats) -> None:
        """See Peer."""
        self._table.add(_rows([identifier], vector[None]))


class Chroma:
    """chromadb's HNSW with its defaults."""

    name = "chromadb"

    def __init__(self, collection: Any) -> None:
        self._collection = collection

    def ask(self, question: Floats) -> list[str]:
        """See Peer."""
        found: list[str] = self._collection.query(query_embeddings=question[None], n_results=K, include=[])["ids"][0]
        return found

    def add(self, identifier: str, vector: Floats) -> None:
        """See Peer."""
        self._collection.add(ids=[identifier], embeddings=vector[None])


class Seen(NamedTuple):
    """What one store did: ms of each question, ids found, seconds to load."""

    took_ms: list[float]
    found: list[list[str]]
    load_s: float


def _rows(ids: list[str], vectors: Floats) -> pa.Table:
    return pa.table({"id": ids, "vector": record.vector_array(vectors)})


def _stores(vectors: Floats, folder: Path, say: Callable[[str], None]) -> Iterator[tuple[Peer, float]]:
    """Yield each peer that is installed, loaded, with the seconds that took."""
    os.environ.setdefault("LANCE_LOG", "error")
    try:
        import chromadb  # noqa: PLC0415 - an extra
        import lancedb  # noqa: PLC0415 - an extra
    except ImportError:
        return
    ids = [f"id-{row}" for row in range(len(vectors))]
    say("loading lancedb")
    began = time.perf_counter()
    table = lancedb.connect(folder / "lance").create_table("plain", data=_rows(ids, vectors))
    yield Lance(table, "lancedb, no index", indexed=False), time.perf_counter() - began
    say("building lancedb's IVF_PQ")
    began = time.perf_counter()
    table = lancedb.connect(folder / "lance").create_table("indexed", data=_rows(ids, vectors))
    lists = max(1, int(np.sqrt(len(vectors))))
    table.create_index(metric="cosine", num_partitions=lists, num_sub_vectors=DIM // 16)
    yield Lance(table, "lancedb, IVF_PQ with refine", indexed=True), time.perf_counter() - began
    say("building chromadb's HNSW")
    began = time.perf_counter()
    client = chromadb.PersistentClient(str(folder / "chroma"), chromadb.Settings(anonymized_telemetry=False))
    collection = client.create_collection("rows", metadata={"hnsw:space": "cosine"})
    for start in range(0, len(ids), CHROMA_ROWS):
        collection.add(ids=ids[start : start + CHROMA_ROWS], embeddings=vectors[start : start + CHROMA_ROWS])
    yield Chroma(collection), time.perf_counter() - began


async def peers(run: Run) -> dict[str, Any]:
    """Ask all of them in turns; ours holds the rows in cold."""
    corpus = run.corpus.first(run.size.peers)
    questions = corpus.questions[: run.size.peer_questions + WARM_UP]
    true = truth(scaled(corpus.vectors), questions[WARM_UP:], K)
    await run.close()  # room and quiet for the others
    stores = list(_stores(corpus.vectors, run.folder, run.say))
    async with run.node("peers", len(corpus.vectors)) as memory:
        load_s = await fill(memory, corpus.vectors, 0, len(corpus.vectors), TierName.COLD)
        await coded(memory)

        async def ours(question: Floats) -> list[str]:
            return (await ask(memory, Query(vector=question, k=K, **BARE)))[1]

        ways: dict[str, Callable[[Floats], Awaitable[list[str]]]] = {"ours": ours}
        seen = {"ours": Seen([], [], load_s)}
        for peer, seconds in stores:
            ways[peer.name], seen[peer.name] = _awaited(peer), Seen([], [], seconds)
        run.say(f"asking {', '.join(ways)}")
        await _in_turns(ways, seen, questions)
        fresh = await _freshness(run, memory, [peer for peer, _ in stores])
    out: dict[str, Any] = {
        name: spread(one.took_ms) | {"recall": round(recall(one.found, true), 4), "load_s": round(one.load_s, 1)}
        for name, one in seen.items()
    }
    lines = [line for peer, _ in stores for line in _promises(peer.name, out)]
    if stores:
        medians = {name: float(np.median(took)) for name, took in fresh.items()}
        lancedb = medians[stores[0][0].name]
        lines.append(promise("a new row found after: ours / lancedb", medians["ours"] / lancedb, "<=", 1))
    else:
        lines.append(promise("faster than lancedb and chromadb", None, ">=", 1))
    return {
        "rows": len(corpus.vectors),
        "stores": out,
        "new_row_found_ms": {name: spread(took) for name, took in fresh.items()},
        "promises": lines,
        "note": None if stores else MISSING,
    }


def _awaited(peer: Peer) -> Callable[[Floats], Awaitable[list[str]]]:
    async def asked(question: Floats) -> list[str]:
        return peer.ask(question)

    return asked


async def _in_turns(
    ways: dict[str, Callable[[Floats], Awaitable[list[str]]]], seen: dict[str, Seen], questions: Floats
) -> None:
    for way in ways.values():
        for question in questions[:WARM_UP]:
            await way(question)
    for part in np.array_split(questions[WARM_UP:], BLOCKS):
        for name, way in ways.items():
            for question in part:
                began = time.perf_counter()
                seen[name].found.append(await way(question))
                seen[name].took_ms.append((time.perf_counter() - began) * 1_000)


def _promises(name: str, out: dict[str, Any]) -> list[dict[str, Any]]:
    faster = out[name]["p50_ms"] / out["ours"]["p50_ms"]
    return [
        promise(f"times faster than {name}", faster, ">=", 1),
        promise(f"recall@10 - that of {name}", round(out["ours"]["recall"] - out[name]["recall"], 4), ">=", 0),
    ]


async def _freshness(run: Run, memory: MemoryManager, stores: list[Peer]) -> dict[str, list[float]]:
    """Return the ms from handing over one new row until a search finds it; ours goes through Kafka."""
    random = np.random.default_rng(2)
    out: dict[str, list[float]] = {"ours": [], **{peer.name: [] for peer in stores if "IVF" not in peer.name}}
    for turn in range(run.size.fresh):
        vector = random.normal(size=DIM).astype(np.float32)
        name = f"id-{10_000_000 + turn}"
        row = Row(name, 0, EVENT_MS, None, vector, PAYLOAD, {"group": 0})
        began = time.perf_counter()
        await memory.store(record.to_batch([row], SHAPE))
        while (await ask(memory, Query(vector=vector, k=1, **BARE)))[1] != [name]:
            assert time.perf_counter() - began < FOUND_S, "the new row is not found"
        out["ours"].append((time.perf_counter() - began) * 1_000)
        for peer in stores:
            if peer.name in out:
                began = time.perf_counter()
                peer.add(name, vector)
                while peer.ask(vector)[:1] != [name]:
                    assert time.perf_counter() - began < FOUND_S, f"{peer.name} does not find the new row"
                out[peer.name].append((time.perf_counter() - began) * 1_000)
    return out
