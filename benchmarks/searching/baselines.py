"""What every figure is measured against: the memory's own bandwidth, and FAISS's flat index, each on one thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np

from benchmarks.searching.corpus import DIM, scaled
from tiers.record import Floats


class Memory:
    """An array far larger than any cache; `read` says at how many GB/s one thread of NumPy reads it, in two ways."""

    def __init__(self, megabytes: int) -> None:
        self._array = np.ones((megabytes * 1_000_000 // (4 * DIM), DIM), np.float32)
        self._one = np.ones(DIM, np.float32)

    def read(self) -> dict[str, float]:
        """Read it once each way."""
        ways: dict[str, Callable[[], Any]] = {
            "vecdot_float32": lambda: np.vecdot(self._array, self._one),
            "max_int32": lambda: self._array.view(np.int32).max(),
        }
        out = {}
        for name, read in ways.items():
            began = time.perf_counter()
            read()
            out[name] = round(self._array.nbytes / (time.perf_counter() - began) / 1e9, 2)
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
