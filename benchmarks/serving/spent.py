"""What of the time this thread ran, and how much of that a search took: on the loop's thread, by its own CPU clock."""

from __future__ import annotations

import time
from dataclasses import dataclass

from pipeline import MemoryManager, Query
from tiers.tier import Result


@dataclass(frozen=True)
class Spent:
    """Time, and how much of it this thread ran."""

    wall_s: float = 0.0
    cpu_s: float = 0.0

    def plus(self, other: Spent) -> Spent:
        """Return both."""
        return Spent(self.wall_s + other.wall_s, self.cpu_s + other.cpu_s)

    def beyond(self, share: float) -> float:
        """Return the CPU seconds without what the node takes anyway, as a share of the time."""
        return self.cpu_s - share * self.wall_s


class Clock:
    """Begins now."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.thread_time()

    def spent(self) -> Spent:
        """Return the time since."""
        return Spent(time.perf_counter() - self._wall, time.thread_time() - self._cpu)


class Watched(MemoryManager):
    """A memory that says how long its searches took of the loop's thread, other work that came in between included."""

    spent = Spent()

    async def retrieve(self, query: Query) -> Result:
        """Time it."""
        clock = Clock()
        result = await super().retrieve(query)
        self.spent = self.spent.plus(clock.spent())
        return result
