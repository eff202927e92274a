"""What every figure is measured against: the memory's own bandwidth, and FAISS's flat index, each on one thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np

from benchmarks.searching.corpus import DIM, scaled
from tiers.record import Floats

REPEATS = 3


def bandwidth(megabytes: int) -> dict[str, float]:
    """Return the GB/s at which one thread of NumPy reads an array, in two ways; medians of a few."""
    array = np.ones((megabytes * 1_000_000 // (4 * DIM), DIM), np.float32)
    one = np.ones(DIM, np.float32)
    ways: dict[str, Callable[[], Any]] = {
        "vecdot_float32": lambda: np.vecdot(array, one),
        "max_int32": lambda: array.view(np.int32).max(),
    }
    out = {}
    for name, read in ways.items():
        took = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            read()
            took.append(time.perf_counter() - began)
        out[name] = round(array.nbytes / float(np.median(took)) / 1e9, 2)
    return out


def best_of(measured: list[dict[str, float]]) -> float:
    """Return the bandwidth: the faster way, by its median over the run."""
    return max(float(np.median([one[name] for one in measured])) for name in measured[0])


class Flat:
    """FAISS IndexFlatIP over unit vectors: every search reads all of them."""

    def __init__(self, vectors: Floats) -> None:
        self._index: Any = faiss.IndexFlatIP(DIM)
        self._index.add(scaled(vectors))

    def ask(self, question: Floats, k: int) -> None:
        """Search, on one thread."""
        faiss.omp_set_num_threads(1)
        self._index.search(question[None], k)
