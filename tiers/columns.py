"""Hot's columns by slot, and of each slab the rows that a scan may find.

A scan must see one moment, so it gets arrays that nobody changes any more. They are made anew for a slab that has
changed, and shared by all scans until then: what a search costs beside reading vectors does not grow with a hot that
lies still.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tiers.arrays import Int64s
from tiers.part import Part
from tiers.segment import NEVER

Mask = npt.NDArray[np.bool_]


class Shown(NamedTuple):
    """The rows of a slab that may be found from `since_ms` until one expires, `size` of them."""

    rows: Mask
    size: int
    since_ms: int
    until_ms: int


class Columns:
    """`alive` rows are held; tombstones are `deleted`, and rows that are found by their codes `coded`."""

    def __init__(self, slabs: int, slab_rows: int) -> None:
        rows = slabs * slab_rows
        self._rows = slab_rows
        self.alive = np.zeros(rows, bool)
        self.deleted = np.zeros(rows, bool)
        self.coded = np.zeros(rows, bool)
        self.version = np.zeros(rows, np.int64)
        self.expires_at = np.full(rows, NEVER)
        self._shown: dict[tuple[int, bool], Shown] = {}

    def appear(self, slots: Int64s) -> None:
        """Make rows visible whose other columns are set."""
        self.alive[slots] = True
        self._changed(np.unique(slots // self._rows).tolist())

    def vanish(self, slots: int | Int64s) -> None:
        """Make rows invisible."""
        self.alive[slots] = False
        self._changed(np.unique(np.asarray(slots) // self._rows).tolist())

    def empty(self, slab: int) -> None:
        """Make all rows of a slab invisible."""
        self.alive[slab * self._rows : (slab + 1) * self._rows] = False
        self._changed([slab])

    def code(self, slots: Int64s) -> None:
        """Leave rows to their codes."""
        self.coded[slots] = True
        self._changed(np.unique(slots // self._rows).tolist())

    def _changed(self, slabs: Iterable[int]) -> None:
        for slab in slabs:
            self._shown.pop((slab, False), None)
            self._shown.pop((slab, True), None)

    def part(self, slab: int, fill: int, now_ms: int, *, exact: bool) -> Part:
        """Return what a scan of this moment may find in a slab: no tombstones, none expired, coded ones if `exact`."""
        shown = self._shown.get((slab, exact))
        if shown is None or not shown.since_ms <= now_ms < shown.until_ms:
            shown = self._shown[slab, exact] = self._look(slab, now_ms, exact)
        return Part(slab, fill, shown.rows, shown.size)

    def _look(self, slab: int, now_ms: int, exact: bool) -> Shown:
        here = slice(slab * self._rows, (slab + 1) * self._rows)
        rows = self.alive[here] & ~self.deleted[here]
        if not exact:
            rows &= ~self.coded[here]
        times = self.expires_at[here]
        rows &= times > now_ms
        until_ms = int(times.min(where=rows, initial=NEVER))
        return Shown(rows, int(np.count_nonzero(rows)), now_ms, until_ms)
