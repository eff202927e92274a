"""From candidates to hits: exact vectors of the best where they lie, one score for all, rows of the k best (R6).

A vector fetched at the version that the index showed during the read is right, whatever happened since. A record that
was updated after the scan saw it is fetched whole, filtered anew, and scored as its new version in the old one's place.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tiers import score
from tiers.best import Candidates
from tiers.placed import Located
from tiers.record import Floats, Row
from tiers.tier import WHOLE, Hit

if TYPE_CHECKING:
    from tiers.read import Reading

EXACT_ROWS = 1_024  # vectors fetched at once for an exact search


class Near(NamedTuple):
    """A record, its exact score, and its row once that has been fetched."""

    score: float
    found: Located
    row: Row | None = None


async def hits(reading: Reading, vector: Floats, candidates: Candidates, count: int) -> list[Hit]:
    """Fetch and score the best `count` candidates and return the k best; for an exact search all, so many at a time.

    Beyond `count` the candidates are not the next best: each part of the scan has named no more than that.
    """
    query = reading.query
    step = EXACT_ROWS if query.exact else count
    near: list[Near] = []
    for start in range(0, len(candidates.ids) if query.exact else min(count, len(candidates.ids)), step):
        if start and reading.deadline.passed:
            reading.missed.update(reading.tiers)  # what was not scored could lie in any of them
            break
        some = Candidates(candidates.ids[start : start + step], candidates.versions[start : start + step])
        near = ordered([*near[: query.k], *await _near(reading, vector, some)])
    if query.include & WHOLE:
        near = await _whole(reading, vector, near)
    return [Hit(each.row or _bare(each.found), each.found.tier, each.score) for each in near[: query.k]]


async def _near(reading: Reading, vector: Floats, candidates: Candidates) -> list[Near]:
    """Return the candidates that are still there with their exact scores."""
    found = await reading.vectors(candidates.ids)
    reading.trace.count("reranked", len(found))
    if reading.criteria is None:
        return _scored(reading, vector, found)
    scan_saw = dict(zip(candidates.ids, candidates.versions, strict=True))
    updated = {each.id for each in found if each.version != scan_saw[each.id]}
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
    values = score.scores(vector, np.stack([each.vector for each in found]), reading.index.metric)
    return [Near(*pair) for pair in zip(values.tolist(), found, strict=True)]


def ordered(near: list[Near]) -> list[Near]:
    """Return them nearest first, ties by id. Pure."""
    return sorted(near, key=lambda each: (-each.score, each.found.id))


def _bare(found: Located) -> Row:
    """Return a row of what the index and the vector tell."""
    return Row(found.id, found.version, found.event_time, found.expires_at or None, found.vector, b"")
