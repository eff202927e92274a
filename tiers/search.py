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
from tiers.segment import SEGMENT_ROWS, View
from tiers.tier import Hit, Result, TierName

if TYPE_CHECKING:
    from tiers.read import Reading

LOOKS_MAX = 4
RERANK = 100  # candidates scored exactly at least: recall 0.9987 at k = 10 on real embeddings (measurements)
MARGIN = 32  # candidates fetched beyond k: some may be deleted or get a lower score meanwhile

ONES = np.ones(SEGMENT_ROWS, np.float32)
NO_SLOTS = np.zeros(0, np.int64)
NO_ROWS = np.zeros(0, np.intp)
NO_VALUES = np.zeros(0, np.float32)

Candidate = tuple[float, str]


class Best(NamedTuple):
    """The best rows of one array: `ids[row]` names them, values lack the query's own factor."""

    ids: Sequence[str]
    rows: npt.NDArray[np.intp]
    values: Floats


T = TypeVar("T")


class Scans(Protocol):
    """Hot's own ability: scan a snapshot of its rows. Until `release` a snapshot keeps freed room from being used."""

    def snapshot(self, now_ms: int = 0) -> object:
        """Copy what a scan needs, in this loop step; what has expired by `now_ms` is not in it."""

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
    trace = reading.trace
    trace.count("looks", 1)
    hot = cast(Scans, reading.tiers[TierName.HOT]) if TierName.HOT in reading.tiers else None
    with trace.step("look"):  # no await between these two: one moment
        snapshot = hot.snapshot(reading.now_ms) if hot else None
        views = reading.views(facts=reading.criteria is not None)
    try:
        with trace.step("filter"):
            parts = await _narrow(reading, views)
        with trace.step("scan"):
            count = _count(reading, views)
            (hot_done, hot_best), (done, below) = await asyncio.gather(
                _scan_hot(reading, hot, snapshot, vector, count, parts), _scan_below(reading, vector, count, parts)
            )
    finally:
        if hot:
            hot.release(snapshot)  # given up before the scan began, nobody else does
    ids = merged([*hot_best, *below], None if reading.query.exact else count)
    trace.count("candidates", len(ids))
    with trace.step("fetch"):
        hits = await _fetch(reading, vector, ids, count)
    live = sum((view.live for view in views), np.zeros(len(TierName), np.int64))
    seen = _seen(done, parts, hot_done)
    if reading.query.explain:
        _count_scanned(reading, done, int(seen[TierName.HOT]))
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
    reading: Reading, hot: Scans | None, snapshot: object, vector: Floats, count: int, parts: list[Part]
) -> tuple[bool, list[Best]]:
    """Return whether hot was scanned, and its best."""
    if hot is None:
        return False, []
    began = time.perf_counter()
    only = None if reading.criteria is None else np.concatenate([NO_SLOTS, *(part.hot_slots for part in parts)])
    try:
        async with asyncio.timeout(reading.deadline.left_s):
            found = await hot.scan(snapshot, vector, count, only)
        values = np.array([value for value, _ in found], np.float32)
        return True, [Best([identifier for _, identifier in found], np.arange(len(found)), values)]
    except TimeoutError:
        return False, []
    finally:
        reading.took_ms[TierName.HOT] += (time.perf_counter() - began) * 1000


async def _scan_below(reading: Reading, vector: Floats, count: int, parts: list[Part]) -> tuple[list[Part], list[Best]]:
    """Return the segments scanned, as many as the deadline lets, and the best of each outside hot.

    They are dealt out to as many threads as search; each scans its own, one thread of FAISS and NumPy apiece.
    """
    began = time.perf_counter()
    threads = reading.pool.threads if reading.pool is not None else 1
    hands = [hand for at in range(threads) if (hand := parts[at::threads])]
    scans = (on_thread(reading, _scanned, hand, vector, count, reading.query.exact, reading.deadline) for hand in hands)
    done: list[Part] = []
    found: list[Best] = []
    for hand, bests in zip(hands, await asyncio.gather(*scans), strict=True):
        done += hand[: len(bests)]
        found += [best for of_part in bests for best in of_part]
    for name in reading.tiers:
        if name != TierName.HOT:
            reading.took_ms[name] += (time.perf_counter() - began) * 1000
    return done, found


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


def _scanned(parts: Sequence[Part], vector: Floats, k: int, exact: bool, deadline: Deadline) -> Iterator[list[Best]]:
    """Yield the best of each segment outside hot; if `exact`, every row that has only a code."""
    for view, mask, _ in parts:
        if deadline.passed:
            return
        below = mask & view.below
        found: list[Best] = []
        for chunk in view.rest if below.any() else ():
            at, values = score.nearest(chunk.vectors, ONES[: len(chunk.rows)], below[chunk.rows], vector, k)
            found.append(Best(view.ids, chunk.rows[at], values))
            below[chunk.rows] = False
        if exact:
            rows = np.flatnonzero(below)
            found.append(Best(view.ids, rows, np.full(len(rows), np.inf, np.float32)))
        elif view.packed is not None and below.any():
            found.append(Best(view.ids, *view.packed.best(below, vector, k)))
        yield found


def merged(bests: Sequence[Best], count: int | None) -> list[str]:
    """Return the ids of the `count` best of all (None: of all), best first, ties by id, each once. Pure."""
    values = np.concatenate([NO_VALUES, *(best.values for best in bests)])
    chosen = score.top(values, np.ones(len(values), bool), count) if count is not None else np.arange(len(values))
    of = np.repeat(np.arange(len(bests)), [len(best.rows) for best in bests])
    rows = np.concatenate([NO_ROWS, *(best.rows for best in bests)])
    places = zip(values[chosen].tolist(), of[chosen].tolist(), rows[chosen].tolist(), strict=True)
    named = sorted((-value, bests[at].ids[row]) for value, at, row in places)
    return list(dict.fromkeys(identifier for _, identifier in named))


def _seen(done: Sequence[Part], narrowed: Sequence[Part], hot_done: bool) -> Int64s:
    """Return how many rows were looked at, by tier."""
    seen = sum((part.view.seen(part.mask) for part in done), np.zeros(len(TierName), np.int64))
    seen[TierName.HOT] = sum(int(part.view.live[TierName.HOT]) for part in narrowed) * hot_done
    return np.asarray(seen)


def _count_scanned(reading: Reading, done: Sequence[Part], hot_rows: int) -> None:
    """Tell the trace what the scans read: vectors of hot and of rows without a code, and codes."""
    by_vector = hot_rows + sum(len(chunk.rows) for part in done for chunk in part.view.rest)
    packed = [part.view.packed for part in done if part.view.packed is not None]
    reading.trace.count("segments", len(done))
    reading.trace.count("by_vector", by_vector)
    reading.trace.count("by_code", sum(codes.rows for codes in packed))
    reading.trace.count("bytes_read", by_vector * 4 * reading.index.dim + sum(codes.bytes for codes in packed))


def _count(reading: Reading, views: Sequence[View]) -> int:
    """Return how many candidates to take: codes put them only nearly in the right order, vectors do it exactly."""
    count = reading.query.k + MARGIN
    return max(count, RERANK) if any(view.packed is not None for view in views) else count


async def _fetch(reading: Reading, vector: Floats, ids: Sequence[str], count: int) -> list[Hit]:
    """Fetch the best `count` candidates and score them; for an exact search all, so many at a time.

    Beyond `count` the candidates are not the next best: each part of the scan has named no more than that.
    """
    k, exact = reading.query.k, reading.query.exact
    rows: dict[str, tuple[Row, TierName]] = {}
    for start in range(0, len(ids) if exact else min(count, len(ids)), count):
        if start and reading.deadline.passed:
            reading.missed.update(reading.tiers)  # what was not scored could lie in any of them
            break
        fetched = await reading.resolve(ids[start : start + count])
        reading.trace.count("reranked", len(fetched))
        rows |= fetched
        if exact:  # only the best so far need be kept
            rows = {hit.row.id: (hit.row, hit.tier) for hit in rank(rows, vector, k, reading.index.metric)}
    return rank(rows, vector, k, reading.index.metric)


def rank(rows: Mapping[str, tuple[Row, TierName]], vector: Floats, k: int, metric: str) -> list[Hit]:
    """Score the rows exactly and return the k best, ties by id. Pure."""
    alive = [(row, tier) for row, tier in rows.values() if row.vector is not None]
    if not alive:
        return []
    values = score.scores(vector, np.stack([cast(Floats, row.vector) for row, _ in alive]), metric)
    order = sorted(range(len(alive)), key=lambda at: (-float(values[at]), alive[at][0].id))
    return [Hit(*alive[at], score=float(values[at])) for at in order[:k]]
