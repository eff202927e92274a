"""A workload in which few records are asked for often and many seldom: the n-th most popular is read 1/n as often."""

from __future__ import annotations

import numpy as np

from pipeline import MemoryManager, Query
from tests.nodes import rows
from tiers import TierName

EXPONENT = 1.1


class Popular:
    """`read` asks by id, `search` for the vector of a record; each returns the share of answers that came from hot."""

    def __init__(self, count: int, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._rows = rows(count)
        self.ids = [row.id for row in self._rows]
        weight = 1 / np.arange(1, count + 1) ** EXPONENT
        self._weight = self._random.permutation(weight / weight.sum())

    def _picked(self, times: int) -> list[int]:
        return self._random.choice(len(self.ids), times, p=self._weight).tolist()

    async def read(self, memory: MemoryManager, times: int) -> float:
        """Read records by id, one at a time."""
        hits = [(await memory.retrieve(Query(ids=[self.ids[at]]))).hits[0] for at in self._picked(times)]
        return float(np.mean([hit.tier is TierName.HOT for hit in hits]))

    async def search(self, memory: MemoryManager, times: int) -> float:
        """Search for records by their own vectors; the best hit is the record."""
        from_hot = []
        for at in self._picked(times):
            hit = (await memory.retrieve(Query(vector=self._rows[at].vector, k=1))).hits[0]
            assert hit.row.id == self.ids[at]
            from_hot.append(hit.tier is TierName.HOT)
        return float(np.mean(from_hot))
