"""Exact vectors of rows that have codes, for whoever makes or judges codes: fetched where the index says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tiers import score
from tiers.errors import TierUnavailable
from tiers.index import Index
from tiers.record import Floats
from tiers.segment import Segment
from tiers.tier import Places, Tier, TierName

FETCH_ROWS = 1_024  # at once
LOOKS = 2  # a row that moved meanwhile is asked for again
RUN_ROWS = 64  # of a sample lie beside each other: in an archive they cost one read

Rows = npt.NDArray[np.intp]
Bools = npt.NDArray[np.bool_]


class Picked(NamedTuple):
    """Rows of one segment."""

    segment: Segment
    rows: Rows


class Vectors:
    """`fetch` returns them scaled as scores want them. TierUnavailable, also once `stopping`, is the caller's."""

    def __init__(self, index: Index, tiers: Mapping[TierName, Tier]) -> None:
        self._index, self._tiers = index, tiers
        self.stopping: Callable[[], bool] = lambda: False

    async def fetch(self, segment: Segment, rows: Rows) -> tuple[Floats, Bools]:
        """Return float32[rows, dim], and which rows are there: not those superseded or dropped meanwhile."""
        vectors, there = np.zeros((len(rows), self._index.dim), np.float32), np.zeros(len(rows), bool)
        for start in range(0, len(rows), FETCH_ROWS):
            if self.stopping():
                raise TierUnavailable("the node stops: what was begun goes on at the next start")
            part = slice(start, start + FETCH_ROWS)
            for _ in range(LOOKS):
                missing = np.flatnonzero(~there[part]) + start
                await self._look(segment, rows, missing, vectors, there)
        vectors *= score.scales(vectors, self._index.metric)[:, None]
        return vectors, there

    async def _look(self, segment: Segment, rows: Rows, wanted: Rows, vectors: Floats, there: Bools) -> None:
        """Fill in what is found of the rows at the `wanted` positions."""
        at = wanted[segment.alive[rows[wanted]]]
        for home in np.unique(segment.home[rows[at]]).tolist():
            here = at[segment.home[rows[at]] == home]
            of = rows[here]
            ids = [segment.ids[row] for row in of.tolist()]
            places = Places(ids, segment.version[of], segment.partition[of].astype(np.int32), segment.slot[of])
            found = await self._tiers[TierName(home)].vectors(places, spent=None)
            for position, vector in zip(here.tolist(), found.found, strict=True):
                if vector is not None:
                    vectors[position], there[position] = vector, True


def sample(segments: Sequence[Segment], count: int, random: np.random.Generator) -> list[Picked]:
    """Return about `count` live rows that have codes, in short runs from anywhere."""
    live = [
        Picked(one, np.unique(one.packed.numbers[one.alive[one.packed.numbers]]).astype(np.intp))
        for one in segments
        if one.packed is not None
    ]
    starts = np.cumsum([0, *(len(one.rows) for one in live)])
    if starts[-1] <= count:
        return [one for one in live if len(one.rows)]
    runs = np.sort(random.choice(starts[-1] // RUN_ROWS + 1, max(1, count // RUN_ROWS), replace=False)) * RUN_ROWS
    chosen = [
        Picked(one.segment, np.concatenate([one.rows[max(0, at) : at + RUN_ROWS] for at in here.tolist()]))
        for one, start, end in zip(live, starts[:-1], starts[1:], strict=True)
        if len(here := runs[(runs >= start) & (runs < end)] - start)
    ]
    return [one for one in chosen if len(one.rows)]


async def fetch_all(vectors: Vectors, picked: Sequence[Picked]) -> list[tuple[Picked, Floats]]:
    """Return those of these rows that are there, with their vectors."""
    found: list[tuple[Picked, Floats]] = []
    for one in picked:
        fetched, there = await vectors.fetch(one.segment, one.rows)
        found.append((Picked(one.segment, one.rows[there]), fetched[there]))
        await asyncio.sleep(0)
    return found
