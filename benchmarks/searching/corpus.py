"""Real texts as vectors, jittered to any number of rows, and the true neighbours as NumPy finds them.

Debian's package descriptions and the docstrings of the standard library are embedded once; beyond their number each is
taken again with Gaussian noise of `NOISE` times its norm, so that a million rows are not a million copies.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.demo_texts import collect
from pipeline.embed import load_embedder
from tiers import record
from tiers.record import Floats

DIM = 256
NOISE = 0.3
GROUPS = 10_000  # attribute `group` is row modulo this: `"group" < g` lets g of 10,000 pass
SHAPE = record.schema(DIM, {"group": "int"})
PAYLOAD = b'{"text": "' + b"x" * 178 + b'"}'  # 190 bytes
EVENT_MS = 1_700_000_000_000
EMBED_ROWS = 1_000
BLOCK_ROWS = 65_536

Bools = npt.NDArray[np.bool_]


class Corpus(NamedTuple):
    """float32[rows, DIM], float32[questions, DIM] held out of it, and where the texts came from."""

    vectors: Floats
    questions: Floats
    source: dict[str, Any]

    def first(self, rows: int) -> Corpus:
        """Return the same with fewer rows."""
        return self._replace(vectors=self.vectors[:rows])


def corpus(rows: int, questions: int, file: Path | None, texts_max: int | None = None) -> Corpus:
    """Return so many rows and questions; of the texts at most `texts_max` are embedded."""
    texts, source = _texts(file, texts_max)
    embed = load_embedder("wordllama", DIM)
    assert embed is not None, "the embedder was named"
    parts = [embed(texts[at : at + EMBED_ROWS]) for at in range(0, len(texts), EMBED_ROWS)]
    found = np.unique(np.concatenate(parts), axis=0)
    random = np.random.default_rng(0)
    random.shuffle(found)
    held_out, base = found[:questions], found[questions:]
    assert len(base) > questions, f"{len(found)} distinct texts are too few for {questions} questions"
    out = np.empty((rows, DIM), np.float32)
    for start in range(0, rows, len(base)):
        part = base[: rows - start]
        if start:
            noise = random.standard_normal(part.shape, np.float32)
            part = part + noise * (NOISE / np.sqrt(DIM) * np.linalg.norm(part, axis=1, keepdims=True))
        out[start : start + len(part)] = part
    source |= {"distinct": len(base), "noise": NOISE, "held_out": len(held_out)}
    return Corpus(out, np.ascontiguousarray(held_out, np.float32), source)


def _texts(file: Path | None, most: int | None) -> tuple[list[str], dict[str, Any]]:
    if file is not None:
        texts = sorted(set(file.read_text().splitlines()))
        counts = {"file": len(texts)}
    else:
        debian, docstrings = sorted(set(_debian())), [one.text for one in collect()]
        texts = sorted({*debian, *docstrings})
        counts = {"debian": len(debian), "docstrings": len(docstrings)}
    if most is not None and most < len(texts):
        texts = [texts[at * len(texts) // most] for at in range(most)]
    return texts, {"texts": counts, "embedded": len(texts)}


def _debian() -> Iterator[str]:
    """Yield the descriptions of Debian's packages, none where there is no apt."""
    if shutil.which("apt-cache") is None:
        return
    told = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=False).stdout  # noqa: S607
    for line in told.splitlines():
        if line.startswith(("Description:", "Description-en:")):
            yield line.split(": ", 1)[1]


def batch(vectors: Floats, start: int, stop: int, first: int = 0) -> pa.RecordBatch:
    """Return vectors start to stop as records "id-<row + first>" of version row + 1; no work for each row."""
    numbers = pa.array(np.arange(start, stop) + first)
    count = stop - start
    times = pa.array(np.full(count, EVENT_MS)).cast(pa.timestamp("ms", "UTC"))
    group = pa.array(np.arange(start, stop) % GROUPS)
    columns = [
        pc.binary_join_element_wise("id-", numbers.cast(pa.string()), ""),
        pa.array(np.arange(start, stop) + 1),
        times,
        pa.nulls(count, pa.timestamp("ms", "UTC")),
        record.vector_array(vectors[start:stop]),
        pa.array([PAYLOAD] * count, pa.binary()),
        pa.StructArray.from_arrays([group], ["group"]),
        pa.array(np.zeros(count, bool)),
    ]
    return pa.RecordBatch.from_arrays([*columns], schema=SHAPE)


def row_of(identifier: str) -> int:
    """Return the row that an id stands for."""
    return int(identifier.removeprefix("id-"))


def scaled(vectors: Floats) -> Floats:
    """Return unit vectors."""
    units: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return units


def truth(units: Floats, questions: Floats, k: int, mask: Bools | None = None) -> list[set[int]]:
    """Return the k nearest rows of each question, of those where `mask`. NumPy alone, nothing of the product."""
    best: list[tuple[Floats, npt.NDArray[np.intp]]] = []
    for start in range(0, len(units), BLOCK_ROWS):
        rows = np.arange(start, min(start + BLOCK_ROWS, len(units)))
        if mask is not None:
            rows = rows[mask[rows]]
        if len(rows):
            values = questions @ units[rows].T
            at = np.argpartition(-values, min(k, len(rows)) - 1, axis=1)[:, :k]
            best.append((np.take_along_axis(values, at, axis=1), rows[at]))
    values, rows = np.concatenate([v for v, _ in best], axis=1), np.concatenate([r for _, r in best], axis=1)
    at = np.argsort(-values, axis=1)[:, :k]
    return [set(one.tolist()) for one in np.take_along_axis(rows, at, axis=1)]


def recall(found: list[list[str]], true: list[set[int]]) -> float:
    """Return the share of the true neighbours that were found."""
    hits = sum(len({row_of(one) for one in ids} & rows) for ids, rows in zip(found, true, strict=False))
    return hits / sum(map(len, true[: len(found)]))
