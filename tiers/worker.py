"""One thread that owns one blocking handle (a DuckDB connection, a CUDA stream, an archive).

Jobs are functions, run one after another; errors come back to the awaiting caller. Cancelling the caller does not
stop a job that has begun (a thread cannot be stopped): the caller must treat its outcome as unknown, or wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class SerialExecutor:
    """Runs functions one at a time, in order, on a thread of its own (or a few, for readers that may overlap)."""

    def __init__(self, name: str, threads: int = 1) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `job` on the thread and return what it returns, or raise what it raises."""
        return await self.submit(job, *args, **kwargs)

    def submit(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """Start `job` and return its future, which the caller awaits."""
        return asyncio.get_running_loop().run_in_executor(self._pool, lambda: job(*args, **kwargs))

    async def ahead(self, jobs: Iterable[Callable[[], T]]) -> AsyncGenerator[T]:
        """Yield what each job returns, in order; the next one runs while the caller works on what it was given."""
        coming = None
        for job in jobs:
            following = self.submit(job)
            if coming is not None:
                yield await coming
            coming = following
        if coming is not None:
            yield await coming

    def close(self) -> None:
        """Wait for what has begun, then end the thread."""
        self._pool.shutdown(wait=True)
