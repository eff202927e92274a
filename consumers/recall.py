"""How well the codes still find what is nearest: asked of a few records a minute, so that drift is seen.

A codebook is trained once; records that come later may be of another kind, and their codes tell them less apart. One
live record is taken as a question to some two thousand others: its ten nearest by exact score, and by codes and exact
scores of the fifty that these name (a search rescores a hundred, of many more).
The mean of the last questions is shown; below `recall_min` the log says what to do: `isotherm reindex`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import structlog

from consumers.vectors import Picked, Vectors, fetch_all, sample
from producers.ticks import ticks
from tiers import score
from tiers.codes import Chosen, Codebook
from tiers.errors import TierError
from tiers.index import Index
from tiers.record import Floats
from tiers.tier import Tier, TierName
from tiers.worker import SerialExecutor

log = structlog.get_logger()

ROWS = 2_048  # that a question is asked of
NEAREST, CANDIDATES = 10, 50
QUESTIONS = 32  # that the mean is of
QUESTIONS_MIN = 8  # before a warning
FETCH_S = 10.0  # that the vectors may take; longer, and there is no question this time


def recall(found: Sequence[int], exact: Sequence[int]) -> float:
    """Return the share of `exact` that is in `found`. Pure."""
    return len(set(found) & set(exact)) / len(exact) if exact else 1.0


class Recall:
    """`run` asks every `every_s`; `step` asks once. `mean` is None until the first answer."""

    name = "recall"

    def __init__(
        self,
        index: Index,
        tiers: Mapping[TierName, Tier],
        pool: SerialExecutor,
        *,
        every_s: float,
        recall_min: float,
        random: Callable[[], np.random.Generator] = np.random.default_rng,
    ) -> None:
        self._index, self._pool = index, pool
        self._vectors = Vectors(index, tiers)
        self._every_s, self._recall_min, self._random = every_s, recall_min, random()
        self._answers: deque[float] = deque(maxlen=QUESTIONS)
        self._warned = False
        self._codebook: Codebook | None = None
        self.asked = 0

    @property
    def mean(self) -> float | None:
        """The mean recall of the last questions."""
        return float(np.mean(self._answers)) if self._answers else None

    async def run(self, stop: asyncio.Event) -> None:
        """Ask until stopped."""
        if not self._every_s:
            await stop.wait()
            return
        self._vectors.stopping = stop.is_set
        async for _ in ticks(stop, int(self._every_s * 1000)):
            await self.step()

    async def step(self) -> float | None:
        """Ask once; returns the recall, None where there was nothing to ask, or no answer in time."""
        if self._index.codebook is not self._codebook:  # what was asked of other codes says nothing
            self._codebook, self._warned = self._index.codebook, False
            self._answers.clear()
        picked = sample(self._index.segments(), ROWS, self._random)
        if sum(len(one.rows) for one in picked) <= CANDIDATES:
            return None
        try:
            async with asyncio.timeout(FETCH_S):
                found = await fetch_all(self._vectors, picked)
        except (TierError, TimeoutError) as error:
            log.info("recall.not_asked", error=str(error))
            return None
        answer = await self._pool.run(judged, found, self._random.random())
        if answer is not None:
            self._note(answer)
        return answer

    def _note(self, answer: float) -> None:
        self.asked += 1
        self._answers.append(answer)
        low = len(self._answers) >= QUESTIONS_MIN and (self.mean or 0.0) < self._recall_min
        if low and not self._warned:
            hint = "the records are not what the codebook was trained with: isotherm reindex"
            log.warning("codes.recall_low", recall=round(self.mean or 0.0, 3), below=self._recall_min, hint=hint)
        self._warned = low


def judged(found: Sequence[tuple[Picked, Floats]], at: float) -> float | None:
    """Return the recall of one question: the row a fraction `at` of the way, asked of all others. Any thread.

    None where too few rows are left to tell anything.
    """
    vectors = np.concatenate([vectors for _, vectors in found])
    if len(vectors) <= CANDIDATES:
        return None
    asked = int(at * len(vectors))
    others = np.arange(len(vectors)) != asked
    query = np.ascontiguousarray(vectors[asked])
    ones = np.ones(len(vectors), np.float32)
    exact, _ = score.nearest(vectors, ones, others, query, NEAREST)
    named, values = _named(found, others, query)
    likely = np.zeros(len(vectors), bool)
    likely[named[np.argsort(-values, kind="stable")[:CANDIDATES]]] = True
    chosen, _ = score.nearest(vectors, ones, likely, query, NEAREST)
    return recall(chosen.tolist(), exact.tolist())


def _named(
    found: Sequence[tuple[Picked, Floats]], others: np.ndarray[tuple[int], np.dtype[np.bool_]], query: Floats
) -> tuple[np.ndarray[tuple[int], np.dtype[np.intp]], Floats]:
    """Return (positions, approximate scores) of what the codes of each segment name."""
    positions: list[np.ndarray[tuple[int], np.dtype[np.intp]]] = [np.zeros(0, np.intp)]
    values: list[Floats] = [np.zeros(0, np.float32)]
    start = 0
    for (segment, rows), _ in found:
        end, packed = start + len(rows), segment.packed
        wanted = rows[others[start:end]]
        if packed is not None and len(wanted):
            mask, place = np.zeros(segment.count, bool), np.zeros(segment.count, np.intp)
            mask[wanted], place[rows] = True, np.arange(start, end)
            ((best, approximate),) = packed.best(Chosen(mask), query[None, :], CANDIDATES)
            positions.append(place[best])
            values.append(approximate)
        start = end
    return np.concatenate(positions), np.concatenate(values)
