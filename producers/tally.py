"""A histogram that its owner counts into without a lock, a batch at a time; whoever shows metrics reads it when asked.

The measured cost is that of one bisection a value (0.3 µs) or of one pass of NumPy a batch (10 µs for 2,000 values):
the library's own histogram takes a lock for each value. Not safe to count into from two threads.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

#: Bounds of how long work takes, in seconds.
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
#: Bounds of how old an event is, in seconds: milliseconds at the top of the store, weeks at its bottom.
AGES = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0, 60.0, 300.0, 3_600.0, 21_600.0, 86_400.0, 604_800.0)


class Tally:
    """Counts values by upper bound; `sum` is of all values."""

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds, self.sum = tuple(bounds), 0.0
        self._counts = [0] * (len(bounds) + 1)
        self._array = np.array(bounds)

    def __len__(self) -> int:
        """Return how many values were counted."""
        return sum(self._counts)

    def add(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def add_all(self, values: npt.NDArray[np.generic]) -> None:
        """Count the values of a batch."""
        if not len(values):
            return
        first, last = (bisect_left(self.bounds, value) for value in (values.min(), values.max()))
        if first == last:  # as a poll's nearly always are
            self._counts[first] += len(values)
            self.sum += float(values.sum())
            return
        at = np.searchsorted(self._array, values, side="left")
        for bucket in np.flatnonzero(found := np.bincount(at)).tolist():
            self._counts[bucket] += int(found[bucket])
        self.sum += float(values.sum())

    def buckets(self) -> list[tuple[str, float]]:
        """Return (upper bound, values up to it) as Prometheus writes them; the last bound is "+Inf"."""
        totals = np.cumsum(self._counts).tolist()
        names = [*(repr(float(bound)) for bound in self.bounds), "+Inf"]
        return list(zip(names, map(float, totals), strict=True))
