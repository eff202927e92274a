"""Vectors of a segment's rows that have no code yet, scanned exactly: few, or all until there is a codebook."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tiers.record import Floats

CHUNK_ROWS = 1_024  # a chunk of so many is not copied again: a move brings them in such steps


class Chunk(NamedTuple):
    """Row numbers of the segment, and float32[rows, dim] scaled as scores want them. Never changed."""

    rows: npt.NDArray[np.intp]
    vectors: Floats


class Rest:
    """Chunks are appended and merged by size, so that a row is copied O(log n) times and a scan reads few arrays.

    `taken` are those being coded: still scanned until `given` takes them away.
    """

    def __init__(self) -> None:
        self._chunks: list[Chunk] = []
        self._taken: tuple[Chunk, ...] = ()

    @property
    def rows(self) -> int:
        """Rows held."""
        return sum(len(chunk.rows) for chunk in self.chunks())

    @property
    def busy(self) -> bool:
        """Whether some are being coded."""
        return bool(self._taken)

    def chunks(self) -> tuple[Chunk, ...]:
        """Return what a scan reads."""
        return self._taken + tuple(self._chunks)

    def append(self, rows: npt.NDArray[np.intp], vectors: Floats) -> None:
        """Add rows; the arrays become the rest's own."""
        self._chunks.append(Chunk(rows, vectors))
        while len(self._chunks) > 1 and self._worth_merging(*self._chunks[-2:]):
            last = self._chunks.pop()
            before = self._chunks.pop()
            merged = Chunk(np.concatenate([before.rows, last.rows]), np.concatenate([before.vectors, last.vectors]))
            self._chunks.append(merged)

    @staticmethod
    def _worth_merging(before: Chunk, last: Chunk) -> bool:
        return len(before.rows) < min(2 * len(last.rows), CHUNK_ROWS)

    def take(self) -> tuple[Chunk, ...]:
        """Hand out everything to be coded."""
        assert not self._taken, "one job a segment at a time"
        self._taken, self._chunks = tuple(self._chunks), []
        return self._taken

    def given(self) -> None:
        """Forget what was taken: it has codes now."""
        self._taken = ()

    def keep(self, keep: npt.NDArray[np.bool_]) -> None:
        """Forget all rows but those where `keep`; what was taken counts as not taken."""
        chunks, self._chunks, self._taken = self.chunks(), [], ()
        for chunk in chunks:
            kept = keep[chunk.rows]
            if kept.any():
                self.append(chunk.rows[kept], chunk.vectors[kept])
