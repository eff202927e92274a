"""How a scan on a GPU is cut up so that what it needs beside the vectors stays within its bytes. Pure.

Scores of a tile of rows are made, and each chunk of them yields its `keep` best; those of all chunks, behind the k best
of the tiles before, are reduced to the k best again. So beside a question's scores there are k + chunks * keep places.
Tiles follow each other by growing row, and a later row must be better than the k-th so far: ties go to the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tiers.kernels import FEW

CHUNK = 8_192  # rows of a block of the selection: more would leave too few blocks for one question
QUESTIONS = 1_024  # that one product answers
FOUND_PLACES = 1 << 20  # that one pass brings to the host: 1,024 questions for a thousand rows each
FOUND_BYTES = 8  # a value and a row
SCORE_BYTES = 4
GAP = 8_192  # unwanted rows that a tile reads over rather than end


class Tiles(NamedTuple):
    """`questions` at a time, over tiles of `rows`; `columns` places a question for what is found on the way."""

    questions: int
    rows: int
    columns: int
    keep: int

    def bytes(self, k: int) -> int:
        """Return what it takes: scores, places, and the k best at the end."""
        return self.questions * (self.rows * SCORE_BYTES + (self.columns + k) * FOUND_BYTES)


def least(k: int) -> int:
    """Return the bytes without which not even one question has its k best."""
    return _tiles(1, 1, k).bytes(k)


def together(questions: int, rows: int, k: int, bytes_limit: int) -> Tiles:
    """Return the tiles for as many of these questions as go in one pass; ValueError where not one does.

    One, exactly FEW, or more than that: a kernel of its own takes the first two, cuBLAS the others.
    """
    wanted = questions if questions > FEW else FEW if questions > 1 else 1
    found = tiles(wanted, rows, k, bytes_limit)
    fit = found.questions == wanted or found.questions > FEW
    return found if fit else tiles(1, rows, k, bytes_limit)


def tiles(questions: int, rows: int, k: int, bytes_limit: int) -> Tiles:
    """Return the tiles of a scan: as many questions together as fit, and rows as many as there is room for then.

    At least one chunk of rows; ValueError where that does not fit for one question.
    """
    assert questions > 0
    assert 0 < k <= rows
    chunks = -(-rows // CHUNK)
    most = min(bytes_limit // least(k), FOUND_PLACES // k)
    if most == 0:
        raise ValueError(f"the {k:,} best are more than hot.scratch_bytes = {bytes_limit} has room for")
    together = min(questions, most, QUESTIONS)
    for_chunk = SCORE_BYTES * CHUNK + FOUND_BYTES * min(k, CHUNK)
    fit = (bytes_limit // together - 2 * k * FOUND_BYTES) // for_chunk
    return _tiles(together, max(1, min(fit, chunks)), k)


def _tiles(questions: int, chunks: int, k: int) -> Tiles:
    keep = min(k, CHUNK)
    return Tiles(questions, chunks * CHUNK, k + chunks * keep, keep)


def runs(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return growing [start, end) ranges as few as may be: small gaps are read over, their rows are not wanted."""
    found: list[tuple[int, int]] = []
    for start, end in ranges:
        if found and start - found[-1][1] <= GAP:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


def cut(found: Iterable[tuple[int, int]], rows: int) -> Iterator[tuple[int, int]]:
    """Yield (first row, rows) of each tile."""
    for start, end in found:
        for first in range(start, end, rows):
            yield first, min(rows, end - first)
