"""From candidates to hits: exact vectors of the best where they lie, one score for all, rows of the k best (R6).

Codes put candidates only nearly in the right order. So the first ones are fetched and scored, and by how much their
codes were wrong says which of the others may still be among the k best: on real embeddings 60 to 80 fetches find more
of the true ten than the first 100 do (benchmarks/README.md).

A vector fetched at the version that the index showed during the read is right, whatever happened since. A record that
was updated after the scan saw it is fetched whole, filtered anew, and scored as its new version in the old one's place.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tiers import score
from tiers.best import Candidates
from tiers.placed import Located
from tiers.reading import Reading
from tiers.record import Floats, Row
from tiers.tier import WHOLE, Hit

EXACT_ROWS = 1_024  # vectors fetched at once for an exact search
FIRST_PER_K, FIRST_MORE = 2, 28  # fetched first: 48 for ten


class Near(NamedTuple):
    """A record, its exact score, and its row once that has been fetched."""

    score: float
    found: Located
    row: Row | None = None


async def hits(reading: Reading, vector: Floats, candidates: Candidates) -> list[Hit]:
    """Fetch and score candidates and return the k best of them; for an exact search all are, so many at a time."""
    query = reading.query
    near = await (_of_all if query.exact else _of_likely)(reading, vector, candidates)
    if query.include & WHOLE:
        near = await _whole(reading, vector, near)
    return [Hit(each.row or _bare(each.found), each.found.tier, each.score) for each in near[: query.k]]


async def _of_all(reading: Reading, vector: Floats, candidates: Candidates) -> list[Near]:
    """Score every candidate, and return the k best at least."""
    near: list[Near] = []
    for start in range(0, len(candidates), EXACT_ROWS):
        if start and reading.deadline.passed:
            reading.missed.update(reading.tiers)  # what was not scored could lie in any of them
            break
        some = candidates.at(np.arange(start, min(start + EXACT_ROWS, len(candidates))))
        near = ordered([*near[: reading.query.k], *await _near(reading, vector, some)])
    return near


async def _of_likely(reading: Reading, vector: Floats, candidates: Candidates) -> list[Near]:
    """Score the first candidates, and of the others those that may be among the k best by what was learnt of codes."""
    k = reading.query.k
    first = min(FIRST_PER_K * k + FIRST_MORE, len(candidates))
    some = candidates.at(np.arange(first))
    near = await _near(reading, vector, some)
    if len(candidates) > first and not reading.deadline.passed:
        as_seen = [each for each in near if each.found.version == some[each.found.id][0]]
        exact = np.array([each.score for each in as_seen], np.float32)
        places = np.array([some[each.found.id][1] for each in as_seen], np.intp)
        factor = float(score.scales(vector[None, :], reading.index.metric)[0])
        more = candidates.at(candidates.likely(first, exact, places, factor, k))
        near += await _near(reading, vector, {name: more[name] for name in more if name not in some})
    return ordered(near)


async def _near(reading: Reading, vector: Floats, candidates: Mapping[str, tuple[int, int]]) -> list[Near]:
    """Return those of these candidates (id -> version that the scan saw, place) that are still there, and how near."""
    if not candidates:
        return []
    found = await reading.vectors(list(candidates))
    reading.trace.count("reranked", len(found))
    if reading.criteria is None:
        return _scored(reading, vector, found)
    updated = {each.id for each in found if each.version != candidates[each.id][0]}
    near = _scored(reading, vector, [each for each in found if each.id not in updated])
    return near + await _fetched(reading, vector, updated)


async def _whole(reading: Reading, vector: Floats, near: list[Near]) -> list[Near]:
    """Return them with the rows of the k best, fetched where they lie; those that are gone make room for the next."""
    while lacking := {each.found.id for each in near[: reading.query.k] if each.row is None}:
        others = [each for each in near if each.found.id not in lacking]
        near = ordered(others + await _fetched(reading, vector, lacking))
    return near


async def _fetched(reading: Reading, vector: Floats, ids: Collection[str]) -> list[Near]:
    """Fetch these records whole; what is gone, or no longer meets the criteria, is left out."""
    rows = await reading.resolve(list(ids)) if ids else {}
    reading.trace.count("rows", len(rows))
    found = [
        Located(row.id, row.version, row.event_time, row.expires_at or 0, tier, row.vector)
        for row, tier in rows.values()
        if row.vector is not None
    ]
    return [each._replace(row=rows[each.found.id][0]) for each in _scored(reading, vector, found)]


def _scored(reading: Reading, vector: Floats, found: Sequence[Located]) -> list[Near]:
    if not found:
        return []
    values = score.scores(
        vector, np.concatenate([each.vector for each in found]).reshape(len(found), -1), reading.index.metric
    )
    return [Near(*pair) for pair in zip(values.tolist(), found, strict=True)]


def ordered(near: list[Near]) -> list[Near]:
    """Return them nearest first, ties by id. Pure."""
    return sorted(near, key=lambda each: (-each.score, each.found.id))


def _bare(found: Located) -> Row:
    """Return a row of what the index and the vector tell."""
    return Row(found.id, found.version, found.event_time, found.expires_at or None, found.vector, b"")
