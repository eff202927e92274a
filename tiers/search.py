"""The k nearest: one scan over all temperatures, exact vectors of the best, one score for all (design §5).

    scan (views of one moment -> criteria -> codes, hot beside) -> candidates
    -> vectors where they lie -> look again (R6) -> score -> rows of the top k

Each arrow is a module: `scan`, `rerank`.
"""

from __future__ import annotations

import numpy as np

from tiers import rerank
from tiers.reading import Reading
from tiers.record import Floats
from tiers.scan import Scanned, Scanner
from tiers.tier import Result, TierName

LOOKS_MAX = 4
CANDIDATES = 200  # taken at least where there are codes; those of them that may be among the k best are fetched
MARGIN = 32  # candidates taken beyond k: some may be deleted or get a lower score meanwhile


async def nearest(reading: Reading, scanner: Scanner, vector: Floats) -> Result:
    """Return the k nearest to `vector` that meet the criteria, nearest first, ties by id.

    Where so many candidates were deleted while they were fetched that fewer than k are left, it looks again.
    """
    for _ in range(LOOKS_MAX - 1):
        result, wanted = await _once(reading, scanner, vector)
        if len(result.hits) >= min(reading.query.k, wanted) or reading.missed or reading.deadline.passed:
            return result
    return (await _once(reading, scanner, vector))[0]


async def _once(reading: Reading, scanner: Scanner, vector: Floats) -> tuple[Result, int]:
    """Return the answer of one look, and how many records met the criteria when it began."""
    reading.trace.count("looks", 1)
    count = _count(reading)
    scanned = await scanner.scan(reading, vector, count)
    reading.trace.count("candidates", len(scanned.candidates))
    with reading.trace.step("fetch"):
        hits = await rerank.hits(reading, vector, scanned.candidates)
    if reading.query.explain:
        _count_scanned(reading, scanned)
    reading.missed.update(name for name in reading.tiers if scanned.seen[name] < scanned.live[name])
    result = Result(
        hits=hits,
        searched={n.word: {"rows": int(scanned.seen[n]), "took_ms": round(ms, 3)} for n, ms in reading.took_ms.items()},
        scanned=int(scanned.seen.sum()),
        of=int(scanned.live.sum()),
    )
    return result, scanned.wanted


def _count(reading: Reading) -> int:
    """Return how many candidates to take: codes put them only nearly in the right order, vectors do it exactly."""
    count = reading.query.k + MARGIN
    return max(count, CANDIDATES) if reading.index.codebook is not None else count


def _count_scanned(reading: Reading, scanned: Scanned) -> None:
    """Tell the trace what the scan read: vectors of hot and of rows without a code, and codes."""
    views = [part.view for part in scanned.done]
    packed = [view.packed for view in views if view.packed is not None]
    sealed = () if reading.query.exact else (view.sealed for view in views if view.sealed is not None)
    in_hot = int(scanned.seen[TierName.HOT]) - sum(int(np.count_nonzero(rows)) for rows in sealed)
    by_vector = in_hot + sum(len(chunk.rows) for view in views for chunk in view.rest)
    reading.trace.count("segments", len(scanned.done))
    reading.trace.count("by_vector", by_vector)
    reading.trace.count("by_code", sum(codes.rows for codes in packed))
    reading.trace.count("bytes_read", by_vector * 4 * reading.index.dim + sum(codes.bytes for codes in packed))
