"""Turning the vectors that segments hold into codes, and keeping both within their bound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tiers.blocks import Bytes
from tiers.codes import TRAIN_ROWS_MAX, Codebook, Packed
from tiers.record import Floats
from tiers.rest import Chunk
from tiers.saved import Frame
from tiers.segment import Segment
from tiers.tier import TierName

STEP_ROWS = 4_096  # coded in one job: 20 ms at 256 dimensions


class Packing(NamedTuple):
    """Vectors of one segment to be coded: `codes` runs on any thread, `install` on the loop."""

    segment: Segment
    packed: Packed
    chunks: tuple[Chunk, ...]

    def codes(self) -> tuple[Packed, Frame]:
        """Return the segment's codes with these, and these alone."""
        rows = np.concatenate([chunk.rows for chunk in self.chunks])
        codes = np.concatenate([self.packed.codebook.encode(chunk.vectors) for chunk in self.chunks])
        return self.packed.plus_codes(rows, codes), frame_of(self.segment, rows, codes)

    def install(self, packed: Packed) -> None:
        """Let searches read codes instead of vectors; a segment that lost its codes meanwhile stays without."""
        if self.segment.rest.busy:
            self.segment.packed = packed
            self.segment.rest.given()
            self.segment.changed()


class Alive(NamedTuple):
    """Rows of one segment that are alive and have codes."""

    segment: Segment
    packed: Packed
    rows: npt.NDArray[np.intp]


def alive(segments: Sequence[Segment], codebook: Codebook) -> list[Alive]:
    """Return the live rows that have codes by this codebook, by segment. On the loop; `frame` on any thread."""
    found: list[Alive] = []
    for segment in segments:
        if segment.packed is not None and segment.packed.codebook is codebook:
            numbers = segment.packed.numbers
            found.append(Alive(segment, segment.packed, np.unique(numbers[segment.alive[numbers]]).astype(np.intp)))
    return found


def frame(one: Alive) -> Frame:
    """Return the codes of these rows, as a file keeps them."""
    return frame_of(one.segment, one.rows, one.packed.codes(one.rows))


def frame_of(segment: Segment, rows: npt.NDArray[np.intp], codes: Bytes) -> Frame:
    """Return codes of rows with what they are of; a row's version and partition never change."""
    return Frame(segment.version[rows], segment.partition[rows], codes)


def code_bytes(segments: Sequence[Segment]) -> int:
    """Return the bytes of codes and of vectors that have none yet."""
    return sum(segment.code_bytes for segment in segments)


def sample(segments: Sequence[Segment], rows: int) -> Floats | None:
    """Return scaled vectors to train a codebook with, at most about 50,000; None while fewer than `rows` wait."""
    chunks = [chunk for segment in segments for chunk in segment.rest.chunks()]
    waiting = sum(len(chunk.rows) for chunk in chunks)
    if waiting < rows:
        return None
    step = max(1, waiting // TRAIN_ROWS_MAX)
    return np.concatenate([chunk.vectors[::step] for chunk in chunks])


def due(segments: Sequence[Segment], codebook: Codebook, rows: int, rows_full: int) -> Packing | None:
    """Hand out the vectors of the first segment where `rows` wait for a code; None where none do.

    `rows_full` are enough in a segment that takes no more rows.
    """
    for segment in segments:
        if not segment.rest.busy and segment.rest.rows >= (rows if segment.room else rows_full):
            packed = segment.packed if segment.packed is not None else codebook.empty()
            return Packing(segment, packed, segment.rest.take())
    return None


def shed(segments: Sequence[Segment], bytes_limit: int) -> None:
    """Drop codes of the oldest glacier rows until within the limit; they stay reachable by id and filter."""
    excess = code_bytes(segments) - bytes_limit
    for segment in segments:
        if excess <= 0:
            return
        n = segment.count
        glacier = segment.home[:n] == TierName.GLACIER
        if (segment.coded[:n] & segment.alive[:n] & glacier).any():
            before = segment.code_bytes
            segment.keep_codes(segment.alive[:n] & ~glacier)
            excess -= before - segment.code_bytes
