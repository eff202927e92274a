"""What scans find: the best rows of each array they read, and of all of these the candidates. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tiers import score
from tiers.record import Floats, Int64s

NO_ROWS = np.zeros(0, np.intp)
NO_VERSIONS = np.zeros(0, np.int64)
NO_VALUES = np.zeros(0, np.float32)
SURE = 3.0  # standard deviations of what codes were wrong by, beyond which no candidate is expected among the k best
BASIS = 16  # candidates that say by how much codes are wrong


class Best(NamedTuple):
    """The best rows of one array, best first: `ids[row]` and `versions[row]` name them.

    Values lack the query's own factor; those of codes are `approximate`.
    """

    ids: Sequence[str]
    versions: Int64s
    rows: npt.NDArray[np.intp]
    values: Floats
    approximate: bool = False


class Candidates(NamedTuple):
    """What scans found, best first: `rows[i]` of array `bests[of[i]]`. Ids are looked up when they are wanted."""

    bests: Sequence[Best]
    of: npt.NDArray[np.intp]
    rows: npt.NDArray[np.intp]
    values: Floats

    def __len__(self) -> int:
        """How many there are; an id may be among them twice."""
        return len(self.rows)

    def at(self, places: npt.NDArray[np.intp]) -> dict[str, tuple[int, int]]:
        """Return id -> (the version that the scan saw, its place) for these places; an id once, at its best."""
        named: dict[str, tuple[int, int]] = {}
        triples = zip(self.of[places].tolist(), self.rows[places].tolist(), places.tolist(), strict=True)
        for array, row, place in triples:
            best = self.bests[array]
            named.setdefault(best.ids[row], (best.versions.item(row), place))
        return named

    def likely(
        self, first: int, exact: Floats, places: npt.NDArray[np.intp], factor: float, k: int
    ) -> npt.NDArray[np.intp]:
        """Return the places from `first` on that may still be among the k best.

        `exact` are the scores of `places`, which were fetched; `factor` is the query's own. By how much codes are wrong
        is read off those: a candidate whose score would have to be further off than nearly all of them are is left
        out. Values that are not of codes are right already.
        """
        rest = np.arange(first, len(self))
        coded = np.array([best.approximate for best in self.bests], bool)[self.of]
        wrong = exact - self.values[places] * factor
        wrong = wrong[coded[places]]
        if len(exact) < k or (len(wrong) < BASIS and coded[rest].any()):
            return rest
        kth = np.partition(exact, len(exact) - k)[len(exact) - k]
        spread = wrong.mean() + SURE * wrong.std() if len(wrong) else 0.0
        possible = self.values[rest] * factor + np.where(coded[rest], spread, 0.0)
        return np.asarray(rest[possible >= kth], np.intp)


def merged(bests: Sequence[Best], count: int | None) -> Candidates:
    """Return the `count` best of all, best first; None: all of them, in no order."""
    values = np.concatenate([NO_VALUES, *(best.values for best in bests)])
    of = np.repeat(np.arange(len(bests)), [len(best.rows) for best in bests])
    rows = np.concatenate([NO_ROWS, *(best.rows for best in bests)])
    if count is None:
        return Candidates(bests, of, rows, values)
    chosen = score.top(values, np.ones(len(values), bool), count)
    return Candidates(bests, of[chosen], rows[chosen], values[chosen])
