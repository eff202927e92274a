"""One read under way: look in the index, fetch where it says, look again if the row has moved (R6).

A row fetched at the version that the index showed at some moment of the read is right, whatever happened since. What a
tier did not answer by the deadline is named in the answer (R7).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from tiers import record
from tiers.criteria import Criteria
from tiers.deadline import Deadline
from tiers.errors import TierUnavailable
from tiers.index import Index
from tiers.placed import Located, Placed
from tiers.record import Row
from tiers.segment import NO_COPY, View
from tiers.tier import WHOLE, Location, Places, Query, Tier, TierName, Vectors
from tiers.trace import Trace

TIERS = tuple(TierName)  # by number: an enum's own look-up costs a microsecond
#: Of the time left, what vectors may take where rows are fetched after them: a tier that hangs must not cost the answer
#: what the others have.
VECTORS_SHARE = 0.5
LOOKS_MAX = 16  # a row that moves more often than this during one read is an error, not bad luck

T = TypeVar("T")


class Answer:
    """What a tier gave: a row or a vector for each that was asked, None before it has answered."""

    rows: Sequence[object] | None = None


class Reading:
    """One read under way: where it may look, until when, and what did not answer.

    Records that have expired by `now_ms` are not there, whether or not their tombstone has come.
    """

    def __init__(
        self,
        index: Index,
        tiers: Mapping[TierName, Tier],
        query: Query,
        now_ms: int = 0,
    ) -> None:
        self.index, self.query, self.now_ms = index, query, now_ms
        self.tiers = {name: tier for name, tier in tiers.items() if name in query.tiers}
        self.names = frozenset(self.tiers)
        self.criteria = Criteria.of(query, index.attributes)
        self.deadline = Deadline(query.deadline_ms)
        #: Equal for questions that one scan can answer.
        self.kind = (query.tiers, query.namespaces, query.filter, query.time_from_ms, query.time_to_ms, query.exact)
        self.missed: set[TierName] = set()
        self.took_ms = dict.fromkeys(self.tiers, 0.0)
        self.trace = Trace()
        self._row_groups = 0  # read from files for this query so far

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
            answers = await together([self._get(name, places) for name, places in by_tier.items()])
            wanted = []
            for (name, places), rows in zip(by_tier.items(), answers, strict=True):
                for where, row in zip(places, rows or (), strict=rows is not None):
                    if row is None:
                        wanted.append(where.id)
                    else:
                        found[where.id] = (row, name)
            self.trace.count("rechecked", len(wanted))
        raise TierUnavailable(f"{wanted[0]!r} moved {LOOKS_MAX} times during one read; ask again")

    async def vectors(self, ids: Sequence[str]) -> list[Located]:
        """Return the vectors of these records, in no order; those that these tiers do not have are left out.

        So are those whose reading would cost too much, unless the search is exact.
        """
        located: list[Located] = []
        wanted = ids
        for _ in range(LOOKS_MAX):
            placed = self.index.placed(wanted)
            parts = list(placed.by_tier(self.names - self.missed, self.now_ms))
            answers = [self._at_once(name, places) for name, _, places in parts]
            late = [number for number, answer in enumerate(answers) if answer is None]
            came = await together([self._vectors(parts[number][0], parts[number][2]) for number in late])
            for number, vectors in zip(late, came, strict=True):
                answers[number] = vectors
            wanted = []
            for (name, at, places), answer in zip(parts, answers, strict=True):
                if answer is not None:
                    wanted += self._locate(located, placed, name, at.tolist(), places, answer)
            if not wanted:
                return located
            self.trace.count("rechecked", len(wanted))
        raise TierUnavailable(f"{wanted[0]!r} moved {LOOKS_MAX} times during one read; ask again")

    def _locate(
        self, located: list[Located], placed: Placed, name: TierName, at: list[int], places: Places, answer: Vectors
    ) -> list[str]:
        """Add what a tier answered; returns the ids that are not (any more) where the index said."""
        again = []
        times = placed.event_time[at].tolist(), placed.expires_at[at].tolist()
        for identifier, version, event_time, expires_at, vector in zip(
            places.ids, places.versions.tolist(), *times, answer.found, strict=True
        ):
            if vector is None:
                again.append(identifier)
            elif len(vector):
                located.append(Located(identifier, version, event_time, expires_at, name, vector))
            else:
                self.trace.count("skipped", 1)
        return again

    def _places(self, ids: Sequence[str]) -> dict[TierName, list[Location]]:
        """Return where the index says that these ids are, by tier; deleted, expired and unknown ones left out."""
        by_tier: dict[TierName, list[Location]] = {}
        spaces = self.query.namespaces
        for entry in self.index.entries(ids):
            if entry is None or entry.deleted or 0 < entry.expires_at <= self.now_ms:
                continue
            if spaces is not None and record.namespace(entry.id) not in spaces:
                continue  # before any tier is asked: one that does not answer must not tell that the id is there (R12)
            name, slot = TIERS[entry.home], entry.slot
            if entry.copy != NO_COPY and TierName.HOT in self.tiers:
                name, slot = TierName.HOT, entry.copy
            if name in self.tiers and name not in self.missed:  # what did not answer once is not waited for again
                where = Location(entry.id, entry.version, entry.partition, slot)
                by_tier.setdefault(name, []).append(where)
        return by_tier

    async def _get(self, name: TierName, locations: list[Location]) -> list[Row | None] | None:
        """Return what the tier says, None when it does not in time."""
        rows: list[Row | None] | None = None
        with self._asking("get", name, len(locations)) as answer:
            answer.rows = rows = await within(self.deadline.left_s, self.tiers[name].get(locations))
        return None if rows is None else self._noted(name, rows)

    def _at_once(self, name: TierName, places: Places) -> Vectors | None:
        """Return what the tier can say in this loop step, None where it has to wait: it must be asked then."""
        began = time.perf_counter()
        vectors = self.tiers[name].vectors_at_once(places)
        if vectors is not None:
            ended = time.perf_counter()
            self.took_ms[name] += (ended - began) * 1000
            self.trace.asked("vectors", name.word, began, ended, len(places), vectors.found)
            self._explain(name, vectors)
        return vectors

    async def _vectors(self, name: TierName, places: Places) -> Vectors | None:
        """Return what the tier says, None when it does not in time."""
        vectors: Vectors | None = None
        left_s = self.deadline.left_s
        if left_s is not None and self.query.include & WHOLE:
            left_s *= VECTORS_SHARE
        with self._asking("vectors", name, len(places.ids)) as answer:
            spent = None if self.query.exact else self._row_groups
            vectors = await within(left_s, self.tiers[name].vectors(places, spent=spent))
            answer.rows = vectors.found
        if vectors is not None:
            self._row_groups += vectors.row_groups
            self._explain(name, vectors)
        return vectors

    def _explain(self, name: TierName, vectors: Vectors) -> None:
        if self.query.explain:
            found = [vector for vector in vectors.found if vector is not None and len(vector)]
            self.trace.fetched(name.word, len(found), sum(vector.nbytes for vector in found))
            self.trace.count("row_groups", vectors.row_groups)

    @contextmanager
    def _asking(self, what: str, name: TierName, wanted: int) -> Iterator[Answer]:
        """Time what a tier is asked, and note what came of it; one that does not answer is missed."""
        began, answer = time.perf_counter(), Answer()
        try:
            yield answer
        except (TierUnavailable, TimeoutError):
            self.missed.add(name)
        finally:
            ended = time.perf_counter()
            self.took_ms[name] += (ended - began) * 1000
            self.trace.asked(what, name.word, began, ended, wanted, answer.rows)

    def took_below(self, ms: float) -> None:
        """Take note of a scan of segments, in which all tiers but hot are scanned at once."""
        for name in self.tiers:
            if name != TierName.HOT:
                self.took_ms[name] += ms

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


async def together(asked: Sequence[Awaitable[T]]) -> list[T]:
    """Wait for all of these; one alone costs no task."""
    if len(asked) > 1:
        return await asyncio.gather(*asked)
    return [await each for each in asked]


async def within(limit_s: float | None, asked: Coroutine[Any, Any, T]) -> T:
    """Wait for a tier's answer; TimeoutError after `limit_s`, however long the tier then takes to notice.

    A client that is connecting to a server that hangs notices late (redis-py, its own timeout later).
    """
    if limit_s is None:
        return await asked
    task = asyncio.create_task(asked)
    try:
        done, _ = await asyncio.wait({task}, timeout=limit_s)
    finally:
        if not task.done():
            task.cancel()
            task.add_done_callback(lambda late: late.cancelled() or late.exception())  # nobody waits for it any more
    if not done:
        raise TimeoutError
    return task.result()
