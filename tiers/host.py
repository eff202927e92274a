"""Hot's memory on the host: NumPy arrays, read at memory bandwidth by one thread."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tiers import score
from tiers.arrays import Floats, Int64s
from tiers.part import Ask, Nearest, Shape

NOTHING = Nearest(np.zeros(0, np.intp), np.zeros(0, np.float32))


class HostArena:
    """Vectors as they came, and the factor of each that turns a dot product into its score."""

    asks_max = 1  # questions about other rows gain nothing by waiting for each other
    chunk_rows = None  # a copy is done when `put` returns, so there is nothing to cut

    def __init__(self, shape: Shape) -> None:
        self._rows, self._metric = shape.slab_rows, shape.metric
        rows = shape.slabs * shape.slab_rows
        self._vectors: Floats = np.zeros((rows, shape.dim), np.float32)
        self._scale: Floats = np.zeros(rows, np.float32)

    def put(self, start: int, vectors: Floats) -> None:
        """See Arena."""
        rows = slice(start, start + len(vectors))
        self._vectors[rows] = vectors
        self._scale[rows] = score.scales(vectors, self._metric)

    def best(self, asks: Sequence[Ask]) -> list[list[Nearest]]:
        """See Arena."""
        return [[self._best(ask, question) for question in ask.questions] for ask in asks]

    def _best(self, ask: Ask, question: Floats) -> Nearest:
        """Return the best of all parts; what is no better than the k best so far is left out before it is sorted."""
        k, best = ask.k, NOTHING
        for part in ask.parts:
            start = part.slab * self._rows
            matrix, scale = self._vectors[start : start + part.fill], self._scale[start : start + part.fill]
            wanted = part.wanted[: part.fill]
            if part.size * score.SPARSE < part.fill:
                at, values = score.nearest(matrix, scale, wanted, question, k)
            else:
                values = np.vecdot(matrix, question)
                values *= scale
                better = wanted & (values > best.values[k - 1]) if len(best.values) >= k else wanted
                at = score.top(values, better, k)
                values = values[at]
            best = merged(best, Nearest(at + start, values), k)
        return best

    def vectors(self, slots: Int64s) -> Floats | None:
        """See Arena."""
        found: Floats = self._vectors[slots]
        return found

    def memory(self) -> dict[str, int]:
        """See Arena."""
        return {}


def merged(one: Nearest, other: Nearest, k: int) -> Nearest:
    """Return the k best of both, ties by slot."""
    if not len(other.slots):
        return one
    slots, values = np.concatenate([one.slots, other.slots]), np.concatenate([one.values, other.values])
    order = np.lexsort((slots, -values))[:k]
    return Nearest(slots[order], np.asarray(values[order], np.float32))
