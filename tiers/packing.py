"""Turning the vectors that segments hold into codes, and keeping both within their bound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tiers.codes import TRAIN_ROWS_MAX, Codebook, Packed
from tiers.record import Floats
from tiers.rest import Chunk
from tiers.segment import Segment
from tiers.tier import TierName


class Packing(NamedTuple):
    """Vectors of one segment to be coded: `codes` runs on any thread, `install` on the loop."""

    segment: Segment
    packed: Packed
    chunks: tuple[Chunk, ...]

    def codes(self) -> Packed:
        """Return the segment's codes with these."""
        packed = self.packed
        for chunk in self.chunks:
            packed = packed.plus(chunk.rows, chunk.vectors)
        return packed

    def install(self, packed: Packed) -> None:
        """Let searches read codes instead of vectors; a segment that lost its codes meanwhile stays without."""
        if self.segment.rest.busy:
            self.segment.packed = packed
            self.segment.rest.given()
            self.segment.changed()


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


def due(segments: Sequence[Segment], codebook: Codebook, rows: int) -> Packing | None:
    """Hand out the vectors of the first segment where so many wait for a code; None where none do."""
    for segment in segments:
        if not segment.rest.busy and segment.rest.rows >= rows:
            packed = segment.packed if segment.packed is not None else codebook.empty()
            return Packing(segment, packed, segment.rest.take())
    return None


def shed(segments: Sequence[Segment], bytes_limit: int) -> None:
    """Drop codes of the oldest glacier rows until within the limit; they stay reachable by id and filter."""
    excess = code_bytes(segments) - bytes_limit
    for segment in segments:
        if excess <= 0:
            return
        glacier = segment.home == TierName.GLACIER
        if not (segment.coded & segment.alive & glacier).any():
            continue
        before = segment.code_bytes
        kept = [(rows[~glacier[rows]], vectors[~glacier[rows]]) for rows, vectors in segment.coded_vectors()]
        segment.forget_codes()
        for rows, vectors in kept:
            segment.encode(rows, vectors)
        excess -= before - segment.code_bytes
