"""Codes for what lies in hot: where hot is large, a search reads codes of its rows instead of their vectors.

They get them in the index's segments, as they will need them anyway when they leave; hot then leaves them out of its
own exact scan. On a GPU hot scans everything itself.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tiers import score
from tiers.codes import Codebook, Packed
from tiers.hot import HotMemory, Sealed
from tiers.index import Index
from tiers.record import Floats, Int64s
from tiers.segment import Segment
from tiers.tier import TierName

Rows = npt.NDArray[np.intp]


class Sealing(NamedTuple):
    """Rows of one sealed slab to be coded: `codes` runs on any thread, `install` and `release` on the loop."""

    hot: HotMemory
    metric: str
    sealed: Sealed
    parts: list[tuple[Segment, Packed, Rows, Int64s]]  # the segment, its codes, rows in it, and their slots in hot

    def codes(self) -> list[Packed]:
        """Return each segment's codes with these rows'."""
        return [packed.plus(rows, self._scaled(slots)) for _, packed, rows, slots in self.parts]

    def _scaled(self, slots: Int64s) -> Floats:
        vectors = self.hot.vectors_at(slots)
        return np.asarray(vectors * score.scales(vectors, self.metric)[:, None], np.float32)

    def install(self, found: list[Packed]) -> int:
        """Let searches read codes of the rows that are still where they were; returns how many.

        One that has left hot meanwhile waits for a code of its own, and will have two: a search names it once.
        """
        installed = 0
        for (segment, before, rows, slots), packed in zip(self.parts, found, strict=True):
            if segment.packed is not before and segment.packed is not None:
                continue  # its codes were dropped meanwhile, and begun anew
            here = segment.alive[rows] & ~segment.coded[rows]
            here &= (segment.home[rows] == TierName.HOT) & (segment.slot[rows] == slots)
            segment.packed = packed
            segment.coded[rows[here]] = True
            segment.changed()
            self.hot.coded(slots[here])
            installed += int(np.count_nonzero(here))
        return installed

    def release(self) -> None:
        """Let the slab be used again once it is free."""
        self.hot.release(self.sealed.snapshot)


def due(index: Index, hot: HotMemory, codebook: Codebook) -> Sealing | None:
    """Hand out the sealed slab that has most to gain; None while hot reads no more rows exactly than it may."""
    sealed = hot.sealed()
    if sealed is None:
        return None
    parts = []
    for segment, rows, slots in index.homes(sealed.ids, sealed.versions, TierName.HOT, sealed.slots):
        if not segment.rest.busy:
            packed = segment.packed if segment.packed is not None else codebook.empty()
            parts.append((segment, packed, rows, slots))
    return Sealing(hot, index.metric, sealed, parts)
