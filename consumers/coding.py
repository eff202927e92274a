"""Makes the codes by which searches scan what lies below hot: a codebook once there are rows enough, then codes.

Derived state, off the loop, one job at a time. The codebook is kept in a file, so that the next start need not train.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import google_crc32c
import structlog

from producers.ticks import ticks
from tiers import packing, sealing
from tiers.codes import Codebook, possible
from tiers.hot import HotMemory
from tiers.index import Index
from tiers.worker import SerialExecutor

log = structlog.get_logger()

PACK_ROWS = 1_024  # so many vectors of a segment wait at least until they get their codes together
INTERVAL_MS = 200


class Coder:
    """`run` looks every 200 ms; `step` is one look. `train_rows` is how many vectors a codebook is trained with."""

    name = "codes"

    def __init__(
        self, index: Index, file: Path, train_rows: int, pool: SerialExecutor, hot: HotMemory | None = None
    ) -> None:
        self._index, self._file, self._train_rows, self._pool = index, file, train_rows, pool
        self._hot = hot
        self.enabled = train_rows > 0 and possible(index.dim)

    async def load(self) -> None:
        """Take the codebook that a life before trained; one that is damaged is trained anew."""
        if not self.enabled or not self._file.exists():
            return
        codebook = await self._pool.run(read, self._file)
        if codebook is None or codebook.dim != self._index.dim:
            log.warning("codebook.unreadable", file=str(self._file))
        else:
            self._index.codebook = codebook

    async def run(self, stop: asyncio.Event) -> None:
        """Look until stopped."""
        async for _ in ticks(stop, INTERVAL_MS):
            while await self.step() and not stop.is_set():
                pass

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
        waiting = packing.due(self._index.segments(), self._index.codebook, PACK_ROWS)
        if waiting is None:
            return await self._seal(self._index.codebook)
        waiting.install(await self._pool.run(waiting.codes))
        return True

    async def _seal(self, codebook: Codebook) -> bool:
        """Code a full slab of hot."""
        waiting = sealing.due(self._index, self._hot, codebook) if self._hot is not None else None
        if waiting is None:
            return False
        try:
            waiting.install(await self._pool.run(waiting.codes))
        finally:
            waiting.release()
        return True

    async def _train(self) -> bool:
        sample = packing.sample(self._index.segments(), self._train_rows)
        if sample is None:
            return False
        codebook = await self._pool.run(Codebook.train, sample)
        await self._pool.run(write, self._file, codebook)
        self._index.codebook = codebook
        log.info("codebook.trained", rows=len(sample))
        return True


def write(file: Path, codebook: Codebook) -> None:
    """Keep a codebook, with its checksum first: it is derived, so a crash may cost it but must not garble it."""
    data = codebook.to_bytes()
    fresh = file.with_suffix(".new")
    fresh.write_bytes(google_crc32c.value(data).to_bytes(4, "little") + data)
    fresh.replace(file)


def read(file: Path) -> Codebook | None:
    """Return the codebook kept in a file, None where its bytes are not what was written."""
    data = file.read_bytes()
    if len(data) < 4 or google_crc32c.value(data[4:]) != int.from_bytes(data[:4], "little"):
        return None
    return Codebook.from_bytes(data[4:])
