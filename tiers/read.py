"""A query answered over tiers: by ids, by vector or page by page; or at once, where it asks for one record of hot.

How rows are found while they move is `reading`'s part.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from tiers import listing, record, search
from tiers.index import Index
from tiers.reading import Reading
from tiers.record import Row
from tiers.scan import Scanner
from tiers.segment import NO_COPY
from tiers.tier import Hit, Location, Query, Result, Tier, TierName


class Peeks(Protocol):
    """Hot's own ability: show a row in this loop step."""

    def peek(self, where: Location, *, vector: bool) -> Row | None:
        """Return the row at this location, None where another version, or nothing, lies there now."""


async def retrieve(
    index: Index, tiers: Mapping[TierName, Tier], query: Query, scanner: Scanner | None = None, now_ms: int = 0
) -> Result:
    """Answer a query over these tiers: by ids in the order asked, the k nearest, or a page of those that meet it."""
    began = time.perf_counter()
    reading = Reading(index, tiers, query, now_ms)
    scanner = scanner if scanner is not None else Scanner()
    if query.vector is not None:
        result = await search.nearest(reading, scanner, query.vector)
    elif query.ids is not None:
        result = await _by_id(reading, list(dict.fromkeys(query.ids)))
    else:
        result = await listing.page(reading, scanner)
    result.missed = sorted(name.word for name in reading.missed)
    result.complete = not reading.missed
    result.trace = reading.trace
    result.explain = reading.trace.shown() if query.explain else None
    result.took_ms = (time.perf_counter() - began) * 1000
    return result


async def _by_id(reading: Reading, ids: Sequence[str]) -> Result:
    rows = await reading.resolve(ids)
    hits = [Hit(*rows[identifier]) for identifier in ids if identifier in rows]
    return Result(hits, scanned=len(ids), of=len(ids))


def at_once(
    index: Index,
    hot: Peeks,
    identifier: str,
    now_ms: int,
    namespaces: Collection[str] | None = None,
    *,
    vector: bool = True,
) -> Row | None:
    """Return a record that lies in hot, in this loop step; None: `retrieve` says whether there is one, and where.

    What `retrieve` answers, at a tenth of the cost: nothing can move, be updated or be late meanwhile.
    """
    entry = index.find(identifier)
    if entry is None or entry.deleted or 0 < entry.expires_at <= now_ms:
        return None
    if namespaces is not None and record.namespace(identifier) not in namespaces:
        return None
    if entry.copy == NO_COPY and entry.home != TierName.HOT:
        return None
    slot = entry.slot if entry.copy == NO_COPY else entry.copy
    return hot.peek(Location(identifier, entry.version, entry.partition, slot), vector=vector)


def plain(query: Query) -> bool:
    """Say whether a query asks for one record, maybe of hot, and has no criteria but namespaces."""
    return (
        query.ids is not None
        and len(query.ids) == 1
        and query.filter is None
        and query.time_from_ms is None
        and query.time_to_ms is None
        and not query.explain
        and TierName.HOT in query.tiers
    )
