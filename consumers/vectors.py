"""Exact vectors of rows below hot, for whoever makes or judges codes: fetched where the index says, some at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tiers import score
from tiers.index import Index
from tiers.record import Floats, Int64s
from tiers.segment import Segment
from tiers.tier import Location, Tier, TierName

FETCH_ROWS = 512  # at once: with the largest payloads 128 MB
LOOKS = 2  # a row that moved meanwhile is asked for again
RUN_ROWS = 64  # of a sample lie beside each other: in an archive they cost one read

Rows = npt.NDArray[np.intp]


class Picked(NamedTuple):
    """Rows of one segment."""

    segment: Segment
    rows: Rows


class Vectors:
    """`fetch` returns them scaled as scores want them. TierUnavailable is the caller's."""

    def __init__(self, index: Index, tiers: Mapping[TierName, Tier]) -> None:
        self._index, self._tiers = index, tiers

    async def fetch(self, segment: Segment, rows: Rows) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Return float32[rows, dim], and which rows are there: not those superseded or dropped meanwhile."""
        vectors, there = np.zeros((len(rows), self._index.dim), np.float32), np.zeros(len(rows), bool)
        for start in range(0, len(rows), FETCH_ROWS):
            part = slice(start, start + FETCH_ROWS)
            for _ in range(LOOKS):
                missing = np.flatnonzero(~there[part]) + start
                await self._look(segment, rows, missing, vectors, there)
        vectors *= score.scales(vectors, self._index.metric)[:, None]
        return vectors, there

    async def _look(
        self, segment: Segment, rows: Rows, wanted: Int64s, vectors: Floats, there: npt.NDArray[np.bool_]
    ) -> None:
        """Fill in what is found of the rows at the `wanted` positions."""
        entries = zip(wanted.tolist(), segment.entries(rows[wanted]), strict=True)
        live = [(at, entry) for at, entry in entries if segment.alive[rows[at]] and entry.home != TierName.HOT]
        for home, group in groupby(sorted(live, key=lambda pair: (pair[1].home, pair[0])), lambda pair: pair[1].home):
            asked = list(group)
            places = [Location(entry.id, entry.version, entry.partition, entry.slot) for _, entry in asked]
            found = await self._tiers[TierName(home)].get(places)
            for (at, _), row in zip(asked, found, strict=True):
                if row is not None and row.vector is not None:
                    vectors[at], there[at] = row.vector, True


def sample(segments: Sequence[Segment], count: int, random: np.random.Generator) -> list[Picked]:
    """Return about `count` live rows that have codes, in short runs from anywhere."""
    live = [
        Picked(one, np.sort(one.packed.numbers[one.alive[one.packed.numbers]]).astype(np.intp))
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
