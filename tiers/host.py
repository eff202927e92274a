"""Hot's memory on the host: NumPy arrays, read at memory bandwidth by one thread."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tiers import score
from tiers.arrays import Floats, Int64s
from tiers.part import Ask, Nearest, Part, Shape


class HostArena:
    """Vectors as they came, and the factor of each that turns a dot product into its score."""

    asks_max = 1  # questions about other rows gain nothing by waiting for each other
    chunk_rows = None  # a copy is done when `put` returns, so there is nothing to cut

    def __init__(self, shape: Shape) -> None:
        self._rows, self._metric = shape.slab_rows, shape.metric
        rows = shape.slabs * shape.slab_rows
        self._vectors: Floats = np.zeros((rows, shape.dim), np.float32)
        self._scale: Floats = np.zeros(rows, np.float32)
        self._values: Floats = np.empty(rows, np.float32)  # of one question; one thread asks

    def put(self, start: int, vectors: Floats) -> None:
        """See Arena."""
        rows = slice(start, start + len(vectors))
        self._vectors[rows] = vectors
        self._scale[rows] = score.scales(vectors, self._metric)

    def best(self, asks: Sequence[Ask]) -> list[list[Nearest]]:
        """See Arena."""
        return [[self._best(ask, question) for question in ask.questions] for ask in asks]

    def _best(self, ask: Ask, question: Floats) -> Nearest:
        """Return the best of all parts: first all values, one part after another, then the k highest of them."""
        parts, at = ask.parts, 0
        ends = np.cumsum([part.fill for part in parts])
        while at < len(parts):
            upto = self._stretch(parts, at)
            begin, end = int(ends[at]) - parts[at].fill, int(ends[upto - 1])
            self._fill(self._values[begin:end], parts[at:upto], question)
            at = upto
        values = self._values[: ends[-1]] if parts else self._values[:0]
        found = score.highest(values, ask.k)
        of = np.searchsorted(ends, found, side="right")
        slots = np.array([part.slab * self._rows + part.fill for part in parts], np.intp) - ends
        return Nearest(found + slots[of], values[found])

    def _stretch(self, parts: Sequence[Part], at: int) -> int:
        """Return the end of the parts from `at` on that lie side by side and are read whole, in one call of NumPy."""
        upto = at + 1
        while (
            upto < len(parts)
            and parts[upto].slab == parts[upto - 1].slab + 1
            and parts[upto - 1].fill == self._rows
            and not _sparse(parts[upto - 1])
            and not _sparse(parts[upto])
        ):
            upto += 1
        return upto

    def _fill(self, values: Floats, parts: Sequence[Part], question: Floats) -> None:
        """Write the values of adjacent parts; -inf where a row is not wanted."""
        start = parts[0].slab * self._rows
        matrix, scale = self._vectors[start : start + len(values)], self._scale[start : start + len(values)]
        if _sparse(parts[0]):
            rows = np.flatnonzero(parts[0].wanted[: len(values)])
            values.fill(-np.inf)
            values[rows] = np.vecdot(matrix[rows], question) * scale[rows]
            return
        np.vecdot(matrix, question, out=values)
        values *= scale
        for number, part in enumerate(parts):
            if part.size < part.fill:
                here = values[number * self._rows : number * self._rows + part.fill]
                np.copyto(here, -np.inf, where=~part.wanted[: part.fill])

    def vectors(self, slots: Int64s) -> Floats | None:
        """See Arena."""
        found: Floats = self._vectors[slots]
        return found

    def memory(self) -> dict[str, int]:
        """See Arena."""
        return {}


def _sparse(part: Part) -> bool:
    """Say whether so few rows are wanted that gathering them reads less."""
    return part.size * score.SPARSE < part.fill
