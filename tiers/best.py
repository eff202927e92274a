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


class Best(NamedTuple):
    """The best rows of one array, best first: `ids[row]` and `versions[row]` name them.

    Values lack the query's own factor; those of codes are approximate.
    """

    ids: Sequence[str]
    versions: Int64s
    rows: npt.NDArray[np.intp]
    values: Floats


class Candidates(NamedTuple):
    """Ids, each once, best first, and the version in which the scan saw each."""

    ids: list[str]
    versions: list[int]


def merged(bests: Sequence[Best], count: int | None) -> Candidates:
    """Return the `count` best of all, ties by id; None: all of them, in no order."""
    values = np.concatenate([NO_VALUES, *(best.values for best in bests)])
    of = np.repeat(np.arange(len(bests)), [len(best.rows) for best in bests])
    rows = np.concatenate([NO_ROWS, *(best.rows for best in bests)])
    versions = np.concatenate([NO_VERSIONS, *(best.versions[best.rows] for best in bests)])
    chosen = np.arange(len(values)) if count is None else score.top(values, np.ones(len(values), bool), count)
    ids = [best.ids for best in bests]
    places = zip(of[chosen].tolist(), rows[chosen].tolist(), versions[chosen].tolist(), strict=True)
    named = [(ids[at][row], version) for at, row, version in places]
    if count is not None:
        order = zip((-values[chosen]).tolist(), named, strict=True)
        named = [each for _, each in sorted(order)]
    once = dict(reversed(named))  # an id that two scans name counts once, by its better value
    if len(once) < len(named):
        named = [(identifier, once.pop(identifier)) for identifier, _ in named if identifier in once]
    return Candidates([identifier for identifier, _ in named], [version for _, version in named])
