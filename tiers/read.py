"""How a read finds its rows: look in the index, fetch where it says, look again if the row has moved (R6).

A row fetched at the version that the index showed at some moment of the read is right, whatever happened since.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Protocol, cast

import numpy as np

from tiers import score
from tiers.errors import TierUnavailable
from tiers.index import Entry, Index, Scan
from tiers.record import Floats, Row
from tiers.segment import NO_COPY
from tiers.tier import Hit, Location, Query, Result, Tier, TierName
from tiers.worker import SerialExecutor

LOOKS_MAX = 16  # a row that moves more often than this during one read is an error, not bad luck
MARGIN = 32  # candidates fetched beyond k: some may be deleted or get a lower score meanwhile


class Scans(Protocol):
    """Hot's own ability: scan a snapshot of its rows. Until `release` a snapshot keeps freed room from being used."""

    def snapshot(self, now_ms: int) -> object:
        """Copy what a scan needs, in this loop step."""

    def release(self, snapshot: object) -> None:
        """Let go of a snapshot, scanned or not; again does nothing."""

    async def scan(self, snapshot: object, query: Floats, k: int) -> tuple[list[tuple[float, str]], int]:
        """Return up to k (score, id), best first, and the rows scanned."""


async def resolve(
    index: Index, tiers: Mapping[TierName, Tier], ids: Sequence[str], missed: set[str], now_ms: int = 0
) -> dict[str, tuple[Row, TierName]]:
    """Return the newest row of each id that these tiers have; tiers that did not answer are named in `missed`.

    A record that has a copy in hot is read there. One that has expired by `now_ms` is absent.
    """
    found: dict[str, tuple[Row, TierName]] = {}
    wanted = list(dict.fromkeys(ids))
    for _ in range(LOOKS_MAX):
        by_tier: dict[TierName, list[Location]] = {}
        for identifier in wanted:
            entry = index.find(identifier)
            if entry is None or entry.deleted or 0 < entry.expires_at <= now_ms:
                continue
            name, where = _nearest(entry, tiers)
            if name in tiers:
                by_tier.setdefault(name, []).append(where)
        if not by_tier:
            return found
        names = list(by_tier)
        answers = await asyncio.gather(*(_get(tiers[name], by_tier[name], missed) for name in names))
        wanted = []
        for name, rows in zip(names, answers, strict=True):
            for where, row in zip(by_tier[name], rows or (), strict=rows is not None):
                if row is None:
                    wanted.append(where.id)
                else:
                    found[where.id] = (row, name)
    raise TierUnavailable(f"{wanted[0]!r} moved {LOOKS_MAX} times during one read; ask again")


def _nearest(entry: Entry, tiers: Mapping[TierName, Tier]) -> tuple[TierName, Location]:
    """Return where to fetch a record: from its copy, if it has one and hot is asked, else from its home."""
    name, slot = TierName(entry.home), entry.slot
    if entry.copy != NO_COPY and TierName.HOT in tiers:
        name, slot = TierName.HOT, entry.copy
    return name, Location(entry.id, entry.version, entry.partition, slot)


async def _get(tier: Tier, locations: list[Location], missed: set[str]) -> list[Row | None] | None:
    try:
        return await tier.get(locations)
    except TierUnavailable:
        missed.add(tier.name.word)
        return None


async def retrieve(
    index: Index, tiers: Mapping[TierName, Tier], query: Query, pool: SerialExecutor | None = None, now_ms: int = 0
) -> Result:
    """Answer a query over these tiers: by ids in the order asked, or the k nearest, nearest first.

    Records that have expired by `now_ms` are not there, whether or not their tombstone has come.
    """
    began = time.perf_counter()
    chosen = {name: tier for name, tier in tiers.items() if name in query.tiers}
    if query.vector is not None:
        result = await _search(index, chosen, query, query.vector, pool, now_ms)
    else:
        missed: set[str] = set()
        rows = await resolve(index, chosen, query.ids or (), missed, now_ms)
        hits = [Hit(*rows[identifier]) for identifier in dict.fromkeys(query.ids or ()) if identifier in rows]
        result = Result(hits, complete=not missed, missed=sorted(missed))
    result.took_ms = (time.perf_counter() - began) * 1000
    return result


async def _search(
    index: Index, tiers: Mapping[TierName, Tier], query: Query, vector: Floats, pool: SerialExecutor | None, now_ms: int
) -> Result:
    began = time.perf_counter()
    count = query.k + MARGIN
    hot = cast(Scans, tiers[TierName.HOT]) if TierName.HOT in tiers else None
    snapshot = hot.snapshot(now_ms) if hot else None  # no await between this and the next line: one moment
    scans, unseen = index.scans(tiers, now_ms)
    below = _scan_in(pool, scans, vector, count)
    if hot:
        try:
            (candidates, hot_rows), (lower, by_tier) = await asyncio.gather(hot.scan(snapshot, vector, count), below)
        finally:
            hot.release(snapshot)  # given up before the scan began, nobody else does
        candidates = candidates + lower
        by_tier[TierName.HOT] = hot_rows
    else:
        candidates, by_tier = await below
    scanned_ms = (time.perf_counter() - began) * 1000
    candidates.sort(key=lambda pair: (-pair[0], pair[1]))
    missed: set[str] = set()
    rows = await resolve(index, tiers, [identifier for _, identifier in candidates[:count]], missed, now_ms)
    if unseen:
        missed.add(TierName.GLACIER.word)
    return Result(
        hits=rank(rows, vector, query.k, index.metric),
        complete=not missed,
        missed=sorted(missed),
        searched={name.word: {"rows": rows_, "took_ms": round(scanned_ms, 3)} for name, rows_ in by_tier.items()},
        scanned=sum(by_tier.values()),
        of=sum(by_tier.values()) + unseen,
    )


def rank(rows: Mapping[str, tuple[Row, TierName]], vector: Floats, k: int, metric: str) -> list[Hit]:
    """Score the rows exactly and return the k best, ties by id. Pure."""
    alive = [(row, tier) for row, tier in rows.values() if row.vector is not None]
    if not alive:
        return []
    values = score.scores(vector, np.stack([cast(Floats, row.vector) for row, _ in alive]), metric)
    order = sorted(range(len(alive)), key=lambda at: (-float(values[at]), alive[at][0].id))
    return [Hit(*alive[at], score=float(values[at])) for at in order[:k]]


async def _scan_in(
    pool: SerialExecutor | None, scans: list[Scan], vector: Floats, k: int
) -> tuple[list[tuple[float, str]], dict[TierName, int]]:
    """Scan the segments, on a search thread if there is one."""
    if pool is None or not scans:
        return _scan(scans, vector, k)
    return await pool.run(_scan, scans, vector, k)


def _scan(scans: list[Scan], vector: Floats, k: int) -> tuple[list[tuple[float, str]], dict[TierName, int]]:
    """Return the k best (approximate score, id) of all segments, and the rows scanned by home tier."""
    found: list[tuple[float, str]] = []
    rows = np.zeros(len(TierName), np.int64)
    for scan in scans:
        values = np.vecdot(scan.codes, vector) * scan.scale
        best = score.top(values, scan.mask, k)
        found += [(float(values[row]), scan.segment.ids[row]) for row in best.tolist()]
        rows += np.bincount(scan.segment.home[: len(scan.mask)][scan.mask], minlength=len(TierName))
    found.sort(key=lambda pair: (-pair[0], pair[1]))
    return found[:k], {name: int(rows[name]) for name in TierName if rows[name]}
