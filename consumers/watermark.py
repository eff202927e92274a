"""The watermark of one partition: the first offset of its oldest dirty run (R2). Pure arithmetic.

A run is what one poll brought: offsets [first, end) and how many rows of it are still dirty. Only the watermark is
ever committed; after a crash everything from there on is replayed.

A conditional delete is decided by the row that it deletes. A replay must decide alike, so that row stays dirty as long
as the delete is (`hold`), although it is superseded.
"""

from __future__ import annotations

import numpy as np

from tiers.record import Int64s


class Watermark:
    """Runs are opened in offset order; `settle` says that rows are durable elsewhere, superseded, or dead letters."""

    def __init__(self, start: int) -> None:
        self._firsts: list[int] = []
        self._dirty: list[int] = []
        self._end = start
        self._held: dict[int, list[int]] = {}  # by the offset of a dirty conditional delete: what it was decided by

    def __repr__(self) -> str:
        return f"<Watermark {self.value} of {self._end}, {self.dirty} rows dirty>"

    @property
    def value(self) -> int:
        """The offset below which nothing depends on the log any more."""
        return self._firsts[0] if self._firsts else self._end

    @property
    def end(self) -> int:
        """The offset after the last one ingested."""
        return self._end

    @property
    def dirty(self) -> int:
        """How many rows only the log makes durable."""
        return sum(self._dirty)

    def open(self, first: int, end: int, dirty: int) -> None:
        """Add the run [first, end) of which `dirty` rows are not durable yet; first is at least the last end."""
        assert self._end <= first < end, f"run [{first}, {end}) after {self._end}"
        self._end = end
        if dirty:
            self._firsts.append(first)
            self._dirty.append(dirty)

    def skip(self, end: int) -> None:
        """Say that there are no records up to `end` (a transaction's marker takes an offset and carries none)."""
        self._end = max(self._end, end)

    def hold(self, until: int, offsets: Int64s) -> None:
        """Keep rows at these offsets dirty until the conditional delete at `until`, decided by them, is settled."""
        self._held.setdefault(until, []).extend(offsets.tolist())

    def holds(self, offset: int) -> bool:
        """Say whether there is a dirty conditional delete at this offset."""
        return offset in self._held

    def settle(self, offsets: Int64s) -> None:
        """Take rows at these offsets out of their runs, and what was held until then; each row exactly once."""
        if not len(offsets):
            return
        if self._held:
            offsets = self._with_held(offsets)
        runs = np.searchsorted(self._firsts, offsets, side="right") - 1
        assert runs.min() >= 0, "a row below the watermark was settled again"
        dirty_runs, counts = np.unique(runs, return_counts=True)
        for run, count in zip(dirty_runs.tolist(), counts.tolist(), strict=True):
            self._dirty[run] -= count
            assert self._dirty[run] >= 0, "more rows were settled than were dirty"
        clean = next((at for at, dirty in enumerate(self._dirty) if dirty), len(self._dirty))
        del self._firsts[:clean], self._dirty[:clean]

    def _with_held(self, offsets: Int64s) -> Int64s:
        """Return the offsets with those that are not held any more once these are settled."""
        found = offsets.tolist()
        for offset in found:  # grows meanwhile: what was held may have held others
            found += self._held.pop(offset, ())
        return np.array(found, np.int64)
