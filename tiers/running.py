"""Jobs on threads that yield results one by one: what each had by a deadline is what there is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Generic, Self, TypeVar

from tiers.deadline import Deadline
from tiers.worker import SerialExecutor

T = TypeVar("T")


class Running(Generic[T]):
    """Jobs begun on threads of a pool; without one they run when they are waited for."""

    def __init__(self, pool: SerialExecutor | None, jobs: Sequence[Callable[[], Iterator[T]]]) -> None:
        self._jobs = jobs
        self._had: list[list[T]] = [[] for _ in jobs]
        self._futures = []
        if pool is not None:
            self._futures = [pool.submit(_collect, job, had) for job, had in zip(jobs, self._had, strict=True)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._futures:
            each.cancel()  # does nothing to what has ended, and what has not begun never will

    async def by(self, deadline: Deadline) -> list[list[T]]:
        """Return what each job had by the deadline."""
        if not self._futures:
            for job, had in zip(self._jobs, self._had, strict=True):
                _collect(job, had)
        with suppress(TimeoutError):  # a thread that is late, or waits for others: what it has is what there is
            async with asyncio.timeout(deadline.left_s):
                for each in self._futures:
                    await each
        return [list(had) for had in self._had]


def _collect(job: Callable[[], Iterator[T]], results: list[T]) -> None:
    results.extend(job())
