"""Makes the codes by which searches scan what lies below hot: a codebook once there are rows enough, then codes.

Derived state, off the loop, one job at a time. Codebook and codes are kept in files, so that the next start need make
neither (consumers/kept.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import structlog

from consumers.kept import Kept
from consumers.reindex import Reindex
from producers.ticks import ticks
from tiers import packing, sealing
from tiers.codes import Codebook, Packed, possible
from tiers.hot import HotMemory
from tiers.index import Index
from tiers.saved import Saved
from tiers.segment import Segment
from tiers.tier import Tier, TierName
from tiers.worker import SerialExecutor

log = structlog.get_logger()

PACK_ROWS = 1_024  # so many vectors of a segment wait at least until they get their codes together…
PACK_ROWS_FULL = 64  # …and of one that takes no more rows
INTERVAL_MS = 200
LAST_STEPS = 32  # at an orderly stop, segments whose last vectors still get codes
TIDY_ROWS = 65_536  # rows beyond twice those alive that a file of codes may hold


class Coder:
    """`run` looks every 200 ms; `step` is one look. `train_rows` is how many vectors a codebook is trained with.

    `tiers` are where a reindex fetches vectors, and hot's full slabs get codes. `saved` are the codes of the life
    before, for the rebuild; `settle` lets go of them.
    """

    name = "codes"

    def __init__(
        self,
        index: Index,
        file: Path,
        train_rows: int,
        pool: SerialExecutor,
        tiers: Mapping[TierName, Tier] | None = None,
    ) -> None:
        self._index, self._train_rows, self.pool = index, train_rows, pool
        self._tiers = tiers or {}
        self._kept = Kept(file)
        self._untidy_at = 0  # rows in the file at which it is worth a look
        self.saved: Saved | None = None
        self.reindex = Reindex(index, self._kept, pool, self._tiers)
        self.enabled = train_rows > 0 and possible(index.dim)

    @property
    def kept(self) -> int:
        """Codes in the file for the next start, those of dead rows too."""
        return 0 if self._index.codebook is None else self._kept.rows(self._index.codebook)

    async def load(self) -> None:
        """Take codebook and codes of the life before; a codebook that is damaged is trained anew."""
        if not self.enabled:
            return
        found = await self.pool.run(self._kept.open, self._index.dim)
        if found is not None:
            self._index.codebook, self.saved = found
            await self.reindex.resume()

    async def settle(self) -> None:
        """Let go of the codes of the life before: what the tiers still hold has taken its own."""
        self.saved = None
        await self._tidy()

    async def run(self, stop: asyncio.Event) -> None:
        """Look until stopped; then give codes to what still waits, so that the next start need not."""
        self.reindex.vectors.stopping = stop.is_set
        async for _ in ticks(stop, INTERVAL_MS):
            while not stop.is_set() and (await self.step() or await self.reindex.step()):
                pass
        for _ in range(LAST_STEPS):
            if self._index.codebook is None or not await self._code(1, 1):
                break

    async def drain(self) -> None:
        """Make all codes that are due."""
        while await self.step():
            pass

    async def step(self) -> bool:
        """Train, or code one segment's vectors; says whether there was something to do."""
        if not self.enabled:
            return False
        if self._index.codebook is None:
            return await self._train()
        if await self._code(PACK_ROWS, PACK_ROWS_FULL):
            return True
        await self._tidy()
        return False

    async def _code(self, rows: int, rows_full: int) -> bool:
        codebook = self.reindex.codebook or self._index.codebook
        assert codebook is not None, "codes need a codebook"
        waiting = packing.due(self._index.segments(), codebook, rows, rows_full)
        if waiting is None:
            return await self._seal(codebook)
        packed, frame = await self.pool.run(waiting.codes)
        waiting.install(packed)
        await self.pool.run(self._kept.append, packed.codebook, frame)
        return True

    async def _seal(self, codebook: Codebook) -> bool:
        """Code a full slab of hot."""
        hot = self._tiers.get(TierName.HOT)
        waiting = sealing.due(self._index, hot, codebook) if isinstance(hot, HotMemory) else None
        if waiting is None:
            return False
        try:
            found = await self.pool.run(waiting.codes)
            installed = waiting.install(found)
        finally:
            waiting.release()
        for (segment, _, rows, _), packed in zip(waiting.parts, found, strict=True):  # as they will be needed below
            await self.pool.run(self._keep, segment, rows, packed)
        return installed > 0  # else the same rows would be handed out again at once

    def _keep(self, segment: Segment, rows: npt.NDArray[np.intp], packed: Packed) -> None:
        self._kept.append(packed.codebook, packing.frame_of(segment, rows, packed.codes(rows)))

    async def _train(self) -> bool:
        sample = packing.sample(self._index.segments(), self._train_rows)
        if sample is None:
            return False
        codebook = await self.pool.run(Codebook.train, sample)
        await self.pool.run(self._kept.use, codebook)
        self._index.codebook = codebook
        log.info("codebook.trained", rows=len(sample), codebook=codebook.id)
        return True

    async def _tidy(self) -> None:
        """Write the file of codes anew where most of it is of rows that are gone."""
        codebook = self._index.codebook
        if codebook is None or self.saved is not None or self._kept.rows(codebook) < self._untidy_at:
            return
        picked = packing.alive(self._index.segments(), codebook)
        rows = sum(len(one.rows) for one in picked)
        if self._kept.rows(codebook) > 2 * rows + TIDY_ROWS:
            await self.pool.run(self._kept.replace, codebook, map(packing.frame, picked))
            log.info("codes.tidied", rows=rows)
        self._untidy_at = self._kept.rows(codebook) + TIDY_ROWS
