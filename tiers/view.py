"""What a reader sees of one segment of the index."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tiers.codes import Chosen, Packed
from tiers.record import Int64s
from tiers.rest import Chunk
from tiers.tier import TierName

Bools = npt.NDArray[np.bool_]


class Wanted(NamedTuple):
    """Rows of a view to be scanned: by their vectors, in these chunks where the bitmap is set, and by their codes."""

    by_vector: list[tuple[Chunk, Bools]]
    by_code: Chosen


@dataclass(frozen=True, eq=False)
class View:
    """One segment as a reader sees it at one moment: copied bitmap and places, and arrays that only grow beyond it.

    `place` is where a record is read: in hot if it has a copy there and hot was asked, else at its home. `mask` are the
    live records in the tiers and namespaces asked for, `live` their number by place. `below` are those of them that a
    scan of codes sees outside hot, and `sealed` those at home in hot that have a code, which hot leaves out of its own
    scan unless that is to be exact; `blind` are those that no scan sees. `hot` are the rows of them in hot, and
    `hot_slots` where; both only when facts were asked for. Shared between readers: nobody writes to it.
    """

    ids: list[str]
    version: Int64s
    mask: Bools
    place: npt.NDArray[np.int8]
    live: Int64s
    below: Bools
    sealed: Bools | None
    blind: Bools | None
    packed: Packed | None
    rest: tuple[Chunk, ...]
    event_time: Int64s
    facts: pa.Table | None
    hot: npt.NDArray[np.intp]
    hot_slots: Int64s

    @cached_property
    def whole(self) -> Wanted:
        """What a scan without criteria reads here; kept, since most searches have none."""
        return self.wanted(self.mask, exact=False)

    def wanted(self, mask: Bools, *, exact: bool) -> Wanted:
        """Return how to find the rows of `mask` below hot, and those in hot that it leaves out unless `exact`."""
        below = self.below if exact or self.sealed is None else self.below | self.sealed
        if mask is not self.mask or self.rest:
            below = mask & below
        by_vector: list[tuple[Chunk, Bools]] = []
        for chunk in self.rest:
            by_vector.append((chunk, below[chunk.rows]))
            below[chunk.rows] = False
        return Wanted(by_vector, Chosen(below))

    def seen(self, mask: Bools) -> Int64s:
        """Return how many rows a search that wants `mask` has looked at here, by place: all but the wanted uncoded."""
        return self.live if self.blind is None else self.live - by_tier(self.place, mask & self.blind)


def by_tier(place: npt.NDArray[np.int8], mask: Bools) -> Int64s:
    """Return int64[tiers]: how many of the rows where `mask` are in each."""
    return np.array([np.count_nonzero(mask & (place == tier)) for tier in TierName], np.int64)
