"""One scan over all temperatures: views of all segments and a snapshot of hot at one moment, then both side by side.

Segments are dealt out to as many threads as search; each asks the deadline between two. Questions of the same kind
(tiers, criteria, count) that come while one is being scanned wait, and then share the next scan: it reads the codes
once for all of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt

from tiers import score
from tiers.best import Best, Candidates, merged
from tiers.criteria import Criteria
from tiers.deadline import Deadline
from tiers.reading import Reading
from tiers.record import Floats, Int64s
from tiers.running import Running
from tiers.segment import SEGMENT_ROWS, View
from tiers.tier import TierName
from tiers.trace import Trace
from tiers.worker import SerialExecutor

ONES = np.ones(SEGMENT_ROWS, np.float32)
NO_SLOTS = np.zeros(0, np.int64)
NO_TIER = np.zeros(len(TierName), np.int64)
SHARED_MAX = 16  # questions that one scan answers

T = TypeVar("T")


class Scans(Protocol):
    """Hot's own ability: scan a snapshot of its rows. Until `release` a snapshot keeps freed room from being used."""

    def snapshot(self, now_ms: int = 0, *, exact: bool = False) -> object:
        """Copy what a scan needs, in this loop step; what has expired by `now_ms` is not in it.

        Nor are rows that have codes, unless it is to be `exact`.
        """

    def release(self, snapshot: object) -> None:
        """Let go of a snapshot, scanned or not; again does nothing."""

    async def scan(self, snapshot: object, queries: Floats, k: int, only: Int64s | None = None) -> list[Best]:
        """Return the k best for each of float32[queries, dim], best first; `only` these slots if given."""


class Part(NamedTuple):
    """One segment once the criteria have been asked: its rows still wanted, and the slots of those in hot."""

    view: View
    mask: npt.NDArray[np.bool_]
    hot_slots: Int64s

    @property
    def whole(self) -> bool:
        """Whether no row of the view is unwanted."""
        return self.mask is self.view.mask


class Scanned(NamedTuple):
    """What a scan found for one question: candidates, best first; int64[tiers] live rows, and those looked at.

    `wanted` is how many records met the criteria, `done` the segments that were scanned.
    """

    candidates: Candidates
    live: Int64s
    seen: Int64s
    wanted: int
    done: Sequence[Part] = ()


class Scanner:
    """Scans for all readers of one index, on `threads` of its own; with none on the caller's."""

    def __init__(self, threads: int = 0) -> None:
        self.threads = max(1, threads)
        self._pool = SerialExecutor("search", threads) if threads else None
        self._waiting: dict[object, list[_Asked]] = {}  # by kind of question; there while one is being scanned
        self._serving: set[asyncio.Task[None]] = set()
        self._forward = True

    def close(self) -> None:
        """End the threads once what has begun is done."""
        if self._pool is not None:
            self._pool.close()

    async def scan(self, reading: Reading, vector: Floats, count: int) -> Scanned:
        """Return up to `count` candidates (an exact question: every row that only a code tells of, too)."""
        kind = (reading.kind, count)
        if kind in self._waiting:
            return await self._wait(kind, reading, vector, count)
        self._waiting[kind] = []
        try:
            return (await self._scan([reading], vector[None, :], count, reading.trace))[0]
        finally:
            self._next(kind)

    async def _wait(self, kind: object, reading: Reading, vector: Floats, count: int) -> Scanned:
        asked = _Asked(reading, vector, count, asyncio.get_running_loop().create_future())
        self._waiting[kind].append(asked)
        with reading.trace.step("scan"):
            try:
                async with asyncio.timeout(reading.deadline.left_s):
                    return await asked.answer
            except TimeoutError:
                live = sum((view.live for view in reading.views(facts=False)), NO_TIER)
                return Scanned(merged([], 0), live, NO_TIER, 0)

    def _next(self, kind: object) -> None:
        """Scan for those who waited, in a task that none of them can cancel; with nobody waiting the kind is free."""
        waiting = [each for each in self._waiting[kind] if not each.answer.done()]
        if not waiting:
            del self._waiting[kind]
            return
        self._waiting[kind] = waiting[SHARED_MAX:]
        task = asyncio.create_task(self._serve(kind, waiting[:SHARED_MAX]))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, kind: object, group: list[_Asked]) -> None:
        try:
            vectors = np.stack([each.vector for each in group])
            found = await self._scan([each.reading for each in group], vectors, group[0].most, Trace())
            for each, scanned in zip(group, found, strict=True):
                each.reading.trace.count("shared", len(group) - 1)
                if not each.answer.done():
                    each.answer.set_result(scanned)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the answer to each question
            for each in group:
                if not each.answer.done():
                    each.answer.set_exception(error)
        finally:
            self._next(kind)

    async def _scan(self, readings: Sequence[Reading], vectors: Floats, count: int, trace: Trace) -> list[Scanned]:
        """Scan for several questions of one kind; the last deadline counts, and each reader has an eye on its own."""
        reading = max(readings, key=lambda each: each.deadline.at_s)
        hot = cast(Scans, reading.tiers[TierName.HOT]) if TierName.HOT in reading.tiers else None
        with trace.step("look"):  # no await between these two: one moment
            snapshot = hot.snapshot(reading.now_ms, exact=reading.query.exact) if hot else None
            views = reading.views(facts=reading.criteria is not None)
        try:
            with trace.step("filter"):
                parts = await self._narrow(reading, views)
            with trace.step("scan"):
                began, hands = time.perf_counter(), self._hands(parts)
                jobs = [
                    partial(_scanned, hand, vectors, count, reading.query.exact, reading.deadline) for hand in hands
                ]
                with Running(self._pool, jobs) as running:
                    hot_done, hot_best = await _scan_hot(reading, hot, snapshot, vectors, count, parts)
                    had = await running.by(reading.deadline)
                reading.took_below((time.perf_counter() - began) * 1000)
        finally:
            if hot:
                hot.release(snapshot)  # given up before the scan began, nobody else does
        done = [part for hand, bests in zip(hands, had, strict=True) for part in hand[: len(bests)]]
        below = [best for bests in had for of_part in bests for best in of_part]
        live = sum((view.live for view in views), NO_TIER)
        seen = _seen(done, parts, hot_done, reading.query.exact)
        wanted = sum(int(part.view.live.sum()) if part.whole else int(np.count_nonzero(part.mask)) for part in parts)
        take = None if reading.query.exact else count
        bests = ([*hot_best[at : at + 1], *(part[at] for part in below)] for at in range(len(vectors)))
        for each in readings:
            each.took_ms.update(reading.took_ms)
        return [Scanned(merged(best, take), live, seen, wanted, done) for best in bests]

    async def _narrow(self, reading: Reading, views: list[View]) -> list[Part]:
        """Ask the criteria of each segment in turn, as far as the deadline lets."""
        if reading.criteria is None:
            return [Part(view, view.mask, view.hot_slots) for view in views]
        hands = [hand for at in range(self.threads) if (hand := views[at :: self.threads])]
        jobs = [partial(_narrowed, hand, reading.criteria, reading.deadline) for hand in hands]
        return [part for parts in await self.on_threads(reading.deadline, jobs) for part in parts]

    def _hands(self, parts: list[Part]) -> list[list[Part]]:
        """Deal segments out to the threads, to and fro: what was read last is still in the processor's cache."""
        self._forward = not self._forward
        order = parts if self._forward else parts[::-1]
        return [hand for at in range(self.threads) if (hand := order[at :: self.threads])]

    async def on_threads(self, deadline: Deadline, jobs: Sequence[Callable[[], Iterator[T]]]) -> list[list[T]]:
        """Run jobs that yield results one by one on the search threads; returns what each had by the deadline."""
        with Running(self._pool, jobs) as running:
            return await running.by(deadline)


class _Asked(NamedTuple):
    """A question that waits for the next scan of its kind."""

    reading: Reading
    vector: Floats
    most: int
    answer: asyncio.Future[Scanned]


async def _scan_hot(
    reading: Reading, hot: Scans | None, snapshot: object, vectors: Floats, count: int, parts: list[Part]
) -> tuple[bool, list[Best]]:
    """Return whether hot was scanned, and its best for each question."""
    if hot is None:
        return False, []
    began = time.perf_counter()
    only = None if reading.criteria is None else np.concatenate([NO_SLOTS, *(part.hot_slots for part in parts)])
    try:
        async with asyncio.timeout(reading.deadline.left_s):
            return True, await hot.scan(snapshot, vectors, count, only)
    except TimeoutError:
        return False, []
    finally:
        reading.took_ms[TierName.HOT] += (time.perf_counter() - began) * 1000


def _narrowed(views: Sequence[View], criteria: Criteria, deadline: Deadline) -> Iterator[Part]:
    for view in views:
        if deadline.passed:
            return
        assert view.facts is not None, "criteria were given, so facts were asked for"
        mask = view.mask & criteria.mask(view.facts, view.event_time)
        yield Part(view, mask, view.hot_slots[mask[view.hot]])


def _scanned(
    parts: Sequence[Part], vectors: Floats, k: int, exact: bool, deadline: Deadline
) -> Iterator[list[list[Best]]]:
    """Yield, for each segment, lists that have its best for each question; if `exact`, all that have only a code."""
    for part in parts:
        if deadline.passed:
            return
        view = part.view
        wanted = view.whole if part.whole and not exact else view.wanted(part.mask, exact=exact)
        found: list[list[Best]] = []
        for chunk, inside in wanted.by_vector:
            near = (score.nearest(chunk.vectors, ONES[: len(chunk.rows)], inside, vector, k) for vector in vectors)
            found.append([Best(view.ids, view.version, chunk.rows[at], values) for at, values in near])
        if wanted.by_code.count and exact:
            rows = np.flatnonzero(wanted.by_code.mask)
            found.append([Best(view.ids, view.version, rows, np.full(len(rows), np.inf, np.float32))] * len(vectors))
        elif wanted.by_code.count and view.packed is not None:
            near_codes = view.packed.best(wanted.by_code, vectors, k)
            found.append([Best(view.ids, view.version, *each, approximate=True) for each in near_codes])
        yield found


def _seen(done: Sequence[Part], narrowed: Sequence[Part], hot_done: bool, exact: bool) -> Int64s:
    """Return how many rows were looked at, by tier; rows of hot that have codes were if their segment was."""
    seen = sum((part.view.seen(part.mask) for part in done), NO_TIER.copy())
    seen[TierName.HOT] = sum(int(part.view.live[TierName.HOT]) for part in narrowed) * hot_done
    if hot_done and not exact and len(done) < len(narrowed):
        unseen = {id(part.view): part.view.sealed for part in narrowed}
        for part in done:
            del unseen[id(part.view)]
        seen[TierName.HOT] -= sum(int(np.count_nonzero(sealed)) for sealed in unseen.values() if sealed is not None)
    return np.asarray(seen)
