"""How a read finds its rows: look in the index, fetch where it says, look again if the row has moved (R6).

A row fetched at the version that the index showed at some moment of the read is right, whatever happened since. What a
tier did not answer by the deadline is named in the answer (R7).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

from tiers import listing, search
from tiers.criteria import Criteria
from tiers.deadline import Deadline
from tiers.errors import TierUnavailable
from tiers.index import Index
from tiers.record import Row
from tiers.segment import NO_COPY, View
from tiers.tier import Hit, Location, Query, Result, Tier, TierName
from tiers.trace import Trace
from tiers.worker import SerialExecutor

TIERS = tuple(TierName)  # by number: an enum's own look-up costs a microsecond
LOOKS_MAX = 16  # a row that moves more often than this during one read is an error, not bad luck


class Reading:
    """One read under way: where it may look, until when, and what did not answer.

    Records that have expired by `now_ms` are not there, whether or not their tombstone has come.
    """

    def __init__(
        self,
        index: Index,
        tiers: Mapping[TierName, Tier],
        query: Query,
        pool: SerialExecutor | None = None,
        now_ms: int = 0,
    ) -> None:
        self.index, self.query, self.pool, self.now_ms = index, query, pool, now_ms
        self.tiers = {name: tier for name, tier in tiers.items() if name in query.tiers}
        self.criteria = Criteria.of(query, index.attributes)
        self.deadline = Deadline(query.deadline_ms)
        self.missed: set[TierName] = set()
        self.took_ms = dict.fromkeys(self.tiers, 0.0)
        self.trace = Trace()

    def views(self, *, facts: bool) -> list[View]:
        """Return what the index shows of the tiers and namespaces asked for, at this moment."""
        return self.index.views(self.tiers, self.query.namespaces, facts=facts, now_ms=self.now_ms)

    async def resolve(self, ids: Sequence[str]) -> dict[str, tuple[Row, TierName]]:
        """Return the newest row of each id that these tiers have and that meets the criteria.

        A record that has a copy in hot is read there, if hot is asked.
        """
        found: dict[str, tuple[Row, TierName]] = {}
        wanted = list(dict.fromkeys(ids))
        for _ in range(LOOKS_MAX):
            by_tier = self._places(wanted)
            if not by_tier:
                return self._meeting(found)
            answers = await asyncio.gather(*(self._get(name, places) for name, places in by_tier.items()))
            wanted = []
            for (name, places), rows in zip(by_tier.items(), answers, strict=True):
                for where, row in zip(places, rows or (), strict=rows is not None):
                    if row is None:
                        wanted.append(where.id)
                    else:
                        found[where.id] = (row, name)
            self.trace.count("rechecked", len(wanted))
        raise TierUnavailable(f"{wanted[0]!r} moved {LOOKS_MAX} times during one read; ask again")

    def _places(self, ids: Sequence[str]) -> dict[TierName, list[Location]]:
        """Return where the index says that these ids are, by tier; deleted, expired and unknown ones left out."""
        by_tier: dict[TierName, list[Location]] = {}
        for entry in self.index.entries(ids):
            if entry is None or entry.deleted or 0 < entry.expires_at <= self.now_ms:
                continue
            name, slot = TIERS[entry.home], entry.slot
            if entry.copy != NO_COPY and TierName.HOT in self.tiers:
                name, slot = TierName.HOT, entry.copy
            if name in self.tiers:
                where = Location(entry.id, entry.version, entry.partition, slot)
                by_tier.setdefault(name, []).append(where)
        return by_tier

    async def _get(self, name: TierName, locations: list[Location]) -> list[Row | None] | None:
        """Return what the tier says, None when it does not in time."""
        began = time.perf_counter()
        rows: list[Row | None] | None = None
        try:
            async with asyncio.timeout(self.deadline.left_s):
                rows = await self.tiers[name].get(locations)
        except (TierUnavailable, TimeoutError):
            self.missed.add(name)
        ended = time.perf_counter()
        self.took_ms[name] += (ended - began) * 1000
        self.trace.asked(name.word, began, ended, len(locations), rows)
        return None if rows is None else self._noted(name, rows)

    def _noted(self, name: TierName, rows: list[Row | None]) -> list[Row | None]:
        """Return the rows, counted if the query wants to be explained."""
        if self.query.explain:
            found = [row for row in rows if row is not None]
            size = sum(len(row.payload) + (row.vector.nbytes if row.vector is not None else 0) for row in found)
            self.trace.fetched(name.word, len(found), size)
        return rows

    def _meeting(self, found: dict[str, tuple[Row, TierName]]) -> dict[str, tuple[Row, TierName]]:
        """Return what still meets the criteria: a row may have been updated since the index was asked."""
        if self.criteria is None:
            return found
        passing = self.criteria.passing([row for row, _ in found.values()], self.index.attributes)
        return {row.id: found[row.id] for row in passing}


async def retrieve(
    index: Index, tiers: Mapping[TierName, Tier], query: Query, pool: SerialExecutor | None = None, now_ms: int = 0
) -> Result:
    """Answer a query over these tiers: by ids in the order asked, the k nearest, or a page of those that meet it."""
    began = time.perf_counter()
    reading = Reading(index, tiers, query, pool, now_ms)
    if query.vector is not None:
        result = await search.nearest(reading, query.vector)
    elif query.ids is not None:
        result = await _by_id(reading, list(dict.fromkeys(query.ids)))
    else:
        result = await listing.page(reading)
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
