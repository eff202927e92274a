"""Codes everything anew by a new codebook, a segment at a time, while searches go on.

    train (a sample of live vectors of all tiers) -> note the codebook -> recode each segment -> make it the one in use

A segment keeps the codebook of its codes, so old and new ones are searched together meanwhile. Until the last segment
is done the old codebook is the one in use and its file of codes stays: a crash loses neither, the next start goes on
with what the new file has. Rows that need a vector are fetched where they lie.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import structlog

from consumers.kept import Kept
from consumers.vectors import Picked, Vectors, fetch_all, sample
from tiers import packing
from tiers.blocks import Bytes
from tiers.codes import Codebook, Packed
from tiers.errors import TierError
from tiers.index import Index
from tiers.saved import Saved
from tiers.segment import Segment
from tiers.tier import Tier, TierName
from tiers.worker import SerialExecutor

log = structlog.get_logger()

SAMPLE_ROWS = 20_000  # a codebook is trained with: more do not change the recall measured on real embeddings


class Reindex:
    """`codebook` is the one that is to take over, None while nothing is under way; `step` does a piece."""

    def __init__(self, index: Index, kept: Kept, pool: SerialExecutor, tiers: Mapping[TierName, Tier]) -> None:
        self._index, self._kept, self._pool = index, kept, pool
        self._vectors = Vectors(index, tiers)
        self._saved: Saved | None = None
        self._asked = False
        self.codebook: Codebook | None = None

    def request(self) -> bool:
        """Ask for a new codebook; says whether that is possible: False before there is a first one."""
        if self._index.codebook is None:
            return False
        self._asked = self._asked or self.codebook is None
        return True

    def progress(self) -> dict[str, int] | None:
        """Return how many segments are coded by the new codebook, of how many; None while nothing is under way."""
        if self.codebook is None:
            return {"segments": 0, "of": len(self._coded())} if self._asked else None
        return {"segments": sum(map(self._is_done, self._coded())), "of": len(self._coded())}

    async def resume(self) -> None:
        """Go on with what the life before had begun."""
        assert self._index.codebook is not None, "there is one to take over from"
        found = await self._pool.run(self._kept.coming, self._index.codebook)
        if found is not None:
            self.codebook, self._saved = found
            log.info("reindex.resumed", codebook=self.codebook.id, rows=len(self._saved))

    async def step(self) -> bool:
        """Train, recode one segment, or make the codebook the one in use; says whether there was something to do.

        A tier that does not answer leaves it for the next look.
        """
        try:
            if self.codebook is None:
                return self._asked and await self._begin()
            waiting = next((one for one in self._coded() if not self._is_done(one)), None)
            return await (self._finish(self.codebook) if waiting is None else self._recode(waiting, self.codebook))
        except TierError as error:
            log.warning("reindex.waits", error=str(error))
            return False

    def _coded(self) -> list[Segment]:
        return [segment for segment in self._index.segments() if segment.packed is not None]

    def _is_done(self, segment: Segment) -> bool:
        return self.codebook is not None and segment.packed is not None and segment.packed.codebook is self.codebook

    async def _begin(self) -> bool:
        picked = sample(self._coded(), SAMPLE_ROWS, np.random.default_rng())
        found = [vectors for _, vectors in await fetch_all(self._vectors, picked)]
        rows = sum(map(len, found))
        self._asked = False
        if not rows:
            return False
        codebook = await self._pool.run(Codebook.train, np.concatenate(found))
        if self._index.codebook is not None and codebook.id == self._index.codebook.id:
            log.info("reindex.not_needed", codebook=codebook.id)
            return True
        await self._pool.run(self._kept.announce, codebook)
        self.codebook = codebook
        log.info("reindex.began", codebook=codebook.id, sample=rows, segments=len(self._coded()))
        return True

    async def _recode(self, segment: Segment, codebook: Codebook) -> bool:
        """Give a segment codes by the new codebook; what lost its codes meanwhile is looked at again."""
        before = segment.packed
        assert before is not None, "only what has codes is recoded"
        numbers = before.numbers
        rows = np.unique(numbers[segment.alive[numbers] & segment.coded[numbers]]).astype(np.intp)
        codes = await self._codes(Picked(segment, rows), before, codebook)
        fresh = await self._pool.run(codebook.empty().plus_codes, rows, codes)
        if segment.packed is before:
            segment.packed = fresh if len(rows) else None
            segment.changed()
            await self._pool.run(self._kept.append, codebook, packing.frame_of(segment, rows, codes))
        return True

    async def _codes(self, picked: Picked, before: Packed, codebook: Codebook) -> Bytes:
        """Return new codes of these rows; of one that is gone the next best thing: of what its old code stands for."""
        segment, rows = picked
        codes = np.zeros((len(rows), codebook.code_bytes), np.uint8)
        done = np.zeros(len(rows), bool)
        if self._saved is not None:
            at = self._saved.find(segment.partition[rows], segment.version[rows])
            done = at >= 0
            codes[done] = self._saved.codes(at[done])
        missing = np.flatnonzero(~done)
        for start in range(0, len(missing), packing.STEP_ROWS):
            here = missing[start : start + packing.STEP_ROWS]
            vectors, there = await self._vectors.fetch(segment, rows[here])
            if not there.all():
                vectors[~there] = before.vectors(rows[here[~there]])
            codes[here] = await self._pool.run(codebook.encode, vectors)
        return codes

    async def _finish(self, codebook: Codebook) -> bool:
        await self._pool.run(self._kept.use, codebook)
        self._index.codebook, self.codebook, self._saved = codebook, None, None
        log.info("reindex.finished", codebook=codebook.id, segments=len(self._coded()))
        return True
