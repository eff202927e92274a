"""The k nearest: one scan over all temperatures, exact vectors of the best, one score for all (design §5).

    views of all segments and a snapshot of hot, in one loop step -> criteria -> scan, hot beside the rest
    -> fetch the best where they lie -> look again (R6) -> score -> top-k

Segments are scanned on a search thread, which asks the deadline between them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt

from tiers import score
from tiers.criteria import Criteria
from tiers.deadline import Deadline
from tiers.record import Floats, Int64s, Row
from tiers.segment import View
from tiers.tier import Hit, Result, TierName

if TYPE_CHECKING:
    from tiers.read import Reading

LOOKS_MAX = 4
MARGIN = 32  # candidates fetched beyond k: some may be deleted or get a lower score meanwhile

NO_SLOTS = np.zeros(0, np.int64)

Candidate = tuple[float, str]
T = TypeVar("T")


class Scans(Protocol):
    """Hot's own ability: scan a snapshot of its rows. Until `release` a snapshot keeps freed room from being used."""

    def snapshot(self) -> object:
        """Copy what a scan needs, in this loop step."""

    def release(self, snapshot: object) -> None:
        """Let go of a snapshot, scanned or not; again does nothing."""

    async def scan(self, snapshot: object, query: Floats, k: int, only: Int64s | None = None) -> list[Candidate]:
        """Return up to k (score, id), best first; `only` these slots if given."""


class Part(NamedTuple):
    """One segment once the criteria have been asked: its rows still wanted, and the slots of those in hot."""

    view: View
    mask: npt.NDArray[np.bool_]
    hot_slots: Int64s


async def nearest(reading: Reading, vector: Floats) -> Result:
    """Return the k nearest to `vector` that meet the criteria, nearest first, ties by id.

    Where so many candidates were deleted while they were fetched that fewer than k are left, it looks again.
    """
    for _ in range(LOOKS_MAX - 1):
        result, wanted = await _once(reading, vector)
        if len(result.hits) >= min(reading.query.k, wanted) or reading.missed or reading.deadline.passed:
            return result
    return (await _once(reading, vector))[0]


async def _once(reading: Reading, vector: Floats) -> tuple[Result, int]:
    """Return the answer of one look, and how many records met the criteria when it began."""
    hot = cast(Scans, reading.tiers[TierName.HOT]) if TierName.HOT in reading.tiers else None
    snapshot = hot.snapshot() if hot else None  # no await between this and the next line: one moment
    views = reading.index.views(reading.tiers, reading.query.namespaces, facts=reading.criteria is not None)
    try:
        parts = await _narrow(reading, views)
        (hot_done, found), below = await asyncio.gather(
            _scan_hot(reading, hot, snapshot, vector, parts), _scan_below(reading, vector, parts)
        )
    finally:
        if hot:
            hot.release(snapshot)  # given up before the scan began, nobody else does
    candidates = found + [candidate for best in below for candidate in best]
    candidates.sort(key=lambda pair: (-pair[0], pair[1]))
    hits = await _fetch(reading, vector, list(dict.fromkeys(identifier for _, identifier in candidates)))
    live = sum((_by_tier(view, view.mask) for view in views), np.zeros(len(TierName), np.int64))
    seen = _seen(parts[: len(below)], hot_done)
    reading.missed.update(name for name in reading.tiers if seen[name] < live[name])
    result = Result(
        hits=hits,
        searched={n.word: {"rows": int(seen[n]), "took_ms": round(ms, 3)} for n, ms in reading.took_ms.items()},
        scanned=int(seen.sum()),
        of=int(live.sum()),
    )
    return result, sum(int(part.mask.sum()) for part in parts)


async def _narrow(reading: Reading, views: list[View]) -> list[Part]:
    """Ask the criteria of each segment in turn, as far as the deadline lets."""
    if reading.criteria is None:
        return [Part(view, view.mask, view.hot_slots) for view in views]
    return await on_thread(reading, _narrowed, views, reading.criteria, reading.deadline)


async def _scan_hot(
    reading: Reading, hot: Scans | None, snapshot: object, vector: Floats, parts: list[Part]
) -> tuple[bool, list[Candidate]]:
    """Return whether hot was scanned, and its best."""
    if hot is None:
        return False, []
    began = time.perf_counter()
    only = None if reading.criteria is None else np.concatenate([NO_SLOTS, *(part.hot_slots for part in parts)])
    try:
        async with asyncio.timeout(reading.deadline.left_s):
            return True, await hot.scan(snapshot, vector, reading.query.k + MARGIN, only)
    except TimeoutError:
        return False, []
    finally:
        reading.took_ms[TierName.HOT] += (time.perf_counter() - began) * 1000


async def _scan_below(reading: Reading, vector: Floats, parts: list[Part]) -> list[list[Candidate]]:
    """Return the best of each segment outside hot, for as many segments as the deadline lets."""
    began = time.perf_counter()
    found = await on_thread(reading, _scanned, parts, vector, reading.query.k + MARGIN, reading.deadline)
    for name in reading.tiers:
        if name != TierName.HOT:
            reading.took_ms[name] += (time.perf_counter() - began) * 1000
    return found


async def on_thread(reading: Reading, job: Callable[..., Iterator[T]], *given: object) -> list[T]:
    """Run a job that yields results one by one on a search thread; returns those that it had by the deadline."""
    done: list[T] = []

    def collect() -> None:
        done.extend(job(*given))

    if reading.pool is None:
        collect()
    else:
        with suppress(TimeoutError):  # the thread waits for others, or is late: what it has is what there is
            async with asyncio.timeout(reading.deadline.left_s):
                await reading.pool.run(collect)
    return list(done)


def _narrowed(views: Sequence[View], criteria: Criteria, deadline: Deadline) -> Iterator[Part]:
    for view in views:
        if deadline.passed:
            return
        assert view.facts is not None, "criteria were given, so facts were asked for"
        mask = view.mask & criteria.mask(view.facts, view.event_time)
        yield Part(view, mask, view.hot_slots[mask[view.hot]])


def _scanned(parts: Sequence[Part], vector: Floats, k: int, deadline: Deadline) -> Iterator[list[Candidate]]:
    for view, mask, _ in parts:
        if deadline.passed:
            return
        rows, values = np.zeros(0, np.intp), np.zeros(0, np.float32)
        if view.codes is not None:
            below = view.below(mask)
            rows, values = score.nearest(view.codes[: len(below)], view.scale[: len(below)], below, vector, k)
        yield [(float(values[at]), view.ids[row]) for at, row in enumerate(rows.tolist())]


def _by_tier(view: View, mask: npt.NDArray[np.bool_]) -> Int64s:
    return np.bincount(view.home[mask], minlength=len(TierName))


def _seen(parts: Sequence[Part], hot_done: bool) -> Int64s:
    """Return how many rows were looked at, by tier: all of a segment but those wanted that have no code."""
    seen = np.zeros(len(TierName), np.int64)
    for view, mask, _ in parts:
        seen += _by_tier(view, view.mask & ~view.blind(mask))
    seen[TierName.HOT] *= hot_done
    return seen


async def _fetch(reading: Reading, vector: Floats, ids: Sequence[str]) -> list[Hit]:
    """Fetch candidates, best first, until k of them are still wanted; a few more than k at once."""
    k, step = reading.query.k, reading.query.k + MARGIN
    rows: dict[str, tuple[Row, TierName]] = {}
    for start in range(0, len(ids), step):
        rows |= await reading.resolve(ids[start : start + step])
        if len(rows) >= k or reading.deadline.passed:
            break
    return rank(rows, vector, k, reading.index.metric)


def rank(rows: Mapping[str, tuple[Row, TierName]], vector: Floats, k: int, metric: str) -> list[Hit]:
    """Score the rows exactly and return the k best, ties by id. Pure."""
    alive = [(row, tier) for row, tier in rows.values() if row.vector is not None]
    if not alive:
        return []
    values = score.scores(vector, np.stack([cast(Floats, row.vector) for row, _ in alive]), metric)
    order = sorted(range(len(alive)), key=lambda at: (-float(values[at]), alive[at][0].id))
    return [Hit(*alive[at], score=float(values[at])) for at in order[:k]]
