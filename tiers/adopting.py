"""Puts codes kept from the life before among those that searches read: a segment at a time, off the loop."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from tiers.codes import Codebook, Packed
from tiers.index import Index
from tiers.segment import Adopted, Segment
from tiers.worker import SerialExecutor


class Job(NamedTuple):
    """One segment's codes being packed."""

    segment: Segment
    adopted: list[Adopted]
    packed: asyncio.Future[Packed]


class Adopting:
    """`begin` packs segments that take no more rows; `finish` the others. Without a `pool` it is all done at once."""

    def __init__(self, index: Index, pool: SerialExecutor | None) -> None:
        self._index, self._pool = index, pool
        self._jobs: list[Job] = []

    def begin(self) -> None:
        """Start packing what is complete."""
        busy = {id(job.segment) for job in self._jobs}
        for segment in self._index.segments():
            if segment.adopted and not segment.room and id(segment) not in busy:
                self._start(segment)

    def _start(self, segment: Segment) -> None:
        codebook, adopted = self._codebook(), segment.adopted
        if self._pool is None:
            segment.install(adopted, segment.pack(adopted, codebook))
        else:
            self._jobs.append(Job(segment, adopted, self._pool.submit(segment.pack, adopted, codebook)))

    async def finish(self) -> None:
        """Let searches find everything that was adopted."""
        for job in self._jobs:
            job.segment.install(job.adopted, await job.packed)
        self._jobs = []
        for segment in self._index.segments():
            if segment.adopted:
                segment.install(segment.adopted, segment.pack(segment.adopted, self._codebook()))

    def _codebook(self) -> Codebook:
        assert self._index.codebook is not None, "codes were adopted, so there is their codebook"
        return self._index.codebook
