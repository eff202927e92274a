"""A lane: the ordered executor of one partition's changes (R4). One job at a time, in the order submitted.

Jobs are advice carried out: a full lane refuses more (the advice comes again), a tier that is unwell costs the job and
not the lane. Any other error ends the process (R9). A lane that is stopped finishes the job it has begun.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import structlog

from tiers.errors import IsothermError, TierUnavailable

log = structlog.get_logger()

Job = Callable[[], Awaitable[object]]

BEHIND = 1 / 16  # of the jobs that may wait: advice for more would wait so long that it is given again


class Lane:
    """`offer` and `perform` hand in jobs; `run` executes them until stopped."""

    def __init__(self, partition: int, jobs_max: int) -> None:
        self.partition = partition
        self.name = f"lane-{partition}"
        self._jobs: asyncio.Queue[Job] = asyncio.Queue(jobs_max)
        self._performing: set[asyncio.Future[None]] = set()
        self._ended = False
        self.stalls = 0
        self.stalled: Counter[str] = Counter()  # by the name of the error

    @property
    def behind(self) -> bool:
        """Whether so many jobs wait that advice for more had better wait where it is."""
        return self._jobs.qsize() > self._jobs.maxsize * BEHIND

    @property
    def waiting(self) -> int:
        """Jobs not yet begun."""
        return self._jobs.qsize()

    def offer(self, job: Job) -> bool:
        """Queue a job if there is room; says whether there was."""
        if self._jobs.full():
            return False
        self._jobs.put_nowait(job)
        return True

    async def perform(self, job: Job) -> None:
        """Queue a job, wait until it is done, and raise what it raises."""
        if self._ended:
            raise TierUnavailable("the node is stopping")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def report() -> None:
            try:
                await job()
            except IsothermError as error:
                if not done.done():
                    done.set_exception(error)
                if not error.retriable:  # it ends the process, whoever waits for it
                    raise
            else:
                if not done.done():
                    done.set_result(None)

        self._performing.add(done)
        try:
            await self._jobs.put(report)
            await done
        finally:
            self._performing.discard(done)

    async def run(self, stop: asyncio.Event) -> None:
        """Execute jobs until stopped. The stop is looked at between jobs only: a job begun is finished."""
        stopped = asyncio.ensure_future(stop.wait())
        try:
            while not stop.is_set():
                next_job = asyncio.ensure_future(self._jobs.get())
                await asyncio.wait({next_job, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if not next_job.done():
                    next_job.cancel()
                    return
                await self._execute(next_job.result())
        finally:
            stopped.cancel()
            self._refuse()

    def _refuse(self) -> None:
        """Nothing runs any more: whoever waits for a job of theirs is told so."""
        self._ended = True
        while not self._jobs.empty():
            self._jobs.get_nowait()
        for waiting in self._performing:
            if not waiting.done():
                waiting.set_exception(TierUnavailable("the node is stopping"))

    async def _execute(self, job: Job) -> None:
        try:
            await job()
        except IsothermError as error:
            if not error.retriable:
                raise
            self.stalls += 1
            self.stalled[type(error).__name__] += 1
            log.warning("move.stalled", partition=self.partition, error=str(error), stalls=self.stalls)
