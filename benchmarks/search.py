"""How fast, and how right, the scan of everything below hot is, on real embeddings, beside FAISS's flat index.

    python -m benchmarks.search --rows 200000 --json

Texts are the descriptions of Debian's packages (`apt-cache dumpavail`) or the lines of --texts FILE, embedded with
wordllama, jittered (noise of 0.3 of their length) where more rows are asked for than there are texts. Rows are dealt
over warm, cold and glacier; what the tiers would fetch comes from an array in memory, so that this measures the index:
views, scan, candidates, scores. Truth is NumPy over all rows, outside the product. One client, threads as stated.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before FAISS and NumPy: both sides are compared a thread at a time

import faiss
import numpy as np
import pyarrow as pa

from consumers.coding import Coder
from pipeline.embed import load_embedder
from tiers import read, record
from tiers.index import Index
from tiers.record import Floats, Row
from tiers.score import scales
from tiers.tier import Location, Query, TierName
from tiers.worker import SerialExecutor

DIM, K, QUESTIONS, THREADS = 256, 10, 300, 2
BATCH_ROWS = 8_192
NOISE = 0.3
BELOW = (TierName.WARM, TierName.COLD, TierName.GLACIER)
SHAPE = record.schema(DIM, {"group": "int"})
GROUPS = 1_000
#: Share of rows that pass, and how many of the groups those are (all: no filter).
SELECTIVITY = {"100 %": GROUPS, "10 %": 100, "1 %": 10, "0.1 %": 1}


class Shelf:
    """A tier whose rows lie in an array, by slot."""

    def __init__(self, name: TierName, vectors: Floats) -> None:
        self.name, self._vectors = name, vectors

    async def get(self, locations: Sequence[Location]) -> list[Row | None]:
        """Return the rows."""
        return [
            Row(at.id, at.version, 0, None, self._vectors[at.slot], b"", {"group": at.slot % GROUPS})
            for at in locations
        ]


def embeddings(texts: Path | None, rows: int) -> tuple[Floats, Floats]:
    """Return (float32[rows, DIM], questions held out)."""
    if texts is not None:
        lines = texts.read_text().splitlines()
    else:
        told = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True).stdout  # noqa: S607
        lines = [
            line.split(": ", 1)[1] for line in told.splitlines() if line.startswith(("Description:", "Description-en:"))
        ]
    embed = load_embedder("wordllama", DIM)
    assert embed is not None, "the embedder was named"
    distinct = sorted(set(lines))
    found = np.concatenate([embed(distinct[at : at + 1_000]) for at in range(0, len(distinct), 1_000)])
    rng = np.random.default_rng(0)
    rng.shuffle(found)
    questions, corpus = found[:QUESTIONS], found[QUESTIONS:]
    out = np.empty((rows, DIM), np.float32)
    for start in range(0, rows, len(corpus)):
        part = corpus[: rows - start]
        size = NOISE * np.linalg.norm(part, axis=1, keepdims=True) / np.sqrt(DIM) if start else 0.0
        out[start : start + len(part)] = part + size * rng.normal(size=part.shape)
    return out, questions.astype(np.float32)


async def fill(index: Index, vectors: Floats, coder: Coder) -> float:
    """Put all rows into the index and code them; returns the seconds."""
    began = time.perf_counter()
    for number, start in enumerate(range(0, len(vectors), BATCH_ROWS)):
        part = vectors[start : start + BATCH_ROWS]
        rows = [
            Row(f"id-{at}", at + 1, 0, None, vector, b"", {"group": at % GROUPS})
            for at, vector in enumerate(part, start)
        ]
        slots = np.arange(start, start + len(part))
        tier = BELOW[number % len(BELOW)]
        index.put(record.to_batch(rows, SHAPE), np.zeros(len(part), np.int32), tier, slots, 0)
        await coder.drain()
    return time.perf_counter() - began


async def ask(index: Index, vectors: Floats, questions: Floats, pool: SerialExecutor) -> dict[str, Any]:
    """Return recall and samples (ms) by selectivity, each question alone."""
    tiers = {name: Shelf(name, vectors) for name in BELOW}
    scaled = vectors * scales(vectors, "cosine")[:, None]
    out: dict[str, Any] = {}
    for share, groups in SELECTIVITY.items():
        where = f'"group" < {groups}' if groups < GROUPS else None
        rows = np.flatnonzero(np.arange(len(vectors)) % GROUPS < groups)
        samples, found = [], []
        for question in questions:
            began = time.perf_counter()
            result = await read.retrieve(index, tiers, Query(vector=question, k=K, filter=where), pool)
            samples.append((time.perf_counter() - began) * 1_000)
            found.append({hit.row.version - 1 for hit in result.hits})
        chosen = scaled[rows]
        truth = [set(rows[np.argpartition(-(chosen @ q), K)[:K]].tolist()) for q in questions]
        recall = sum(len(a & b) for a, b in zip(found, truth, strict=True)) / (K * len(questions))
        out[share] = {"recall": round(recall, 4), **spread(samples)}
    result = await read.retrieve(index, tiers, Query(vector=questions[0], k=K, explain=True), pool)
    return {"by_selectivity": out, "explain": result.explain}


def flat(vectors: Floats, questions: Floats) -> dict[str, Any]:
    """Return what FAISS's flat index takes for the same rows, one thread."""
    index = faiss.IndexFlatIP(DIM)
    index.add(vectors * scales(vectors, "cosine")[:, None])
    samples = []
    for question in questions[:100]:
        began = time.perf_counter()
        index.search(question[None], K)
        samples.append((time.perf_counter() - began) * 1_000)
    return spread(samples)


def spread(samples_ms: list[float]) -> dict[str, Any]:
    """Return p50 and p99 of all but the first twenty, and the samples."""
    settled = np.array(samples_ms[20:])
    p50, p99 = (round(float(np.percentile(settled, at)), 3) for at in (50, 99))
    return {"p50_ms": p50, "p99_ms": p99, "samples_ms": [round(one, 3) for one in samples_ms]}


async def measure(rows: int, texts: Path | None) -> dict[str, Any]:
    """Run it all."""
    vectors, questions = embeddings(texts, rows)
    index, pool, coding = Index.of(SHAPE), SerialExecutor("search", THREADS), SerialExecutor("codes")
    with tempfile.TemporaryDirectory() as scratch:
        seconds = await fill(index, vectors, Coder(index, Path(scratch) / "codebook", 20_000, coding))
    try:
        return {
            "benchmark": "search",
            "host": {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()},
            "versions": {"faiss": faiss.__version__, "numpy": np.__version__, "pyarrow": pa.__version__},
            "rows": rows,
            "threads": THREADS,
            "fill_s": round(seconds, 2),
            "code_bytes_per_row": round(index.code_bytes / rows, 1),
            **(await ask(index, vectors, questions, pool)),
            "faiss_flat_one_thread": flat(vectors, questions),
        }
    finally:
        pool.close()
        coding.close()


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--texts", type=Path, help="a file of texts, one a line, instead of Debian's descriptions")
    parser.add_argument("--json", action="store_true", help="the whole result, samples too, as one JSON object")
    asked = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S607
    result = {"commit": commit.stdout.strip(), **asyncio.run(measure(asked.rows, asked.texts))}
    if asked.json:
        print(json.dumps(result))
        return
    base = result["faiss_flat_one_thread"]
    print(f"{asked.rows:,} rows, {THREADS} threads; faiss IndexFlatIP, one thread: p50 {base['p50_ms']} ms")
    for share, found in result["by_selectivity"].items():
        print(f"{share:>6} pass: recall@{K} {found['recall']}, p50 {found['p50_ms']} ms, p99 {found['p99_ms']} ms")


if __name__ == "__main__":
    main()
