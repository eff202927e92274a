"""Codes everything anew by a new codebook, in the background, while searches go on."""

from __future__ import annotations

from consumers.kept import Kept
from tiers.codes import Codebook
from tiers.index import Index
from tiers.worker import SerialExecutor


class Reindex:
    """`codebook` is the one that is to take over, None while nothing is under way."""

    def __init__(self, index: Index, kept: Kept, pool: SerialExecutor) -> None:
        self._index, self._kept, self._pool = index, kept, pool
        self.codebook: Codebook | None = None

    async def resume(self) -> None:
        """Go on with what the life before had begun."""

    async def step(self) -> bool:
        """Do a piece; says whether there was something to do."""
        return False
