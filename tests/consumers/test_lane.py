"""The lane: order, bounds, and which errors it survives."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Self

import pytest

from consumers.lane import Lane
from tiers.errors import Fenced, OutcomeUnknown, TierUnavailable

pytestmark = pytest.mark.unit


class Runs:
    """A lane that runs, and what its jobs did."""

    def __init__(self, jobs_max: int = 8) -> None:
        self.lane = Lane(0, jobs_max)
        self.stop = asyncio.Event()
        self.did: list[str] = []
        self.task: asyncio.Task[None] | None = None

    def job(
        self, name: str, *, fails: Exception | None = None, waits: asyncio.Event | None = None, stops: bool = False
    ):
        async def work() -> None:
            self.did.append(f"{name} begun")
            if waits is not None:
                await waits.wait()
            if fails is not None:
                raise fails
            self.did.append(f"{name} done")
            if stops:
                self.stop.set()

        return work

    async def __aenter__(self) -> Self:
        self.task = asyncio.ensure_future(self.lane.run(self.stop))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop.set()
        with suppress(Exception):
            await self.task


async def until(condition) -> None:
    """Let others run until the condition holds; bounded, so that a broken lane fails the test."""
    for _ in range(50):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to pass")


async def test_jobs_run_one_after_another_in_order():
    """A job begins only when the one before it has ended, however long that takes."""
    gate = asyncio.Event()
    async with Runs() as runs:
        runs.lane.offer(runs.job("a", waits=gate))
        runs.lane.offer(runs.job("b"))
        await until(lambda: runs.did == ["a begun"])
        assert runs.lane.waiting == 1
        gate.set()
        await runs.lane.perform(runs.job("c"))

    assert runs.did == ["a begun", "a done", "b begun", "b done", "c begun", "c done"]


async def test_a_full_lane_refuses():
    """Beyond `jobs_max` an offer is refused, at once; it is taken again when there is room."""
    runs = Runs(jobs_max=2)

    assert [runs.lane.offer(runs.job(name)) for name in "abc"] == [True, True, False]

    async with runs:
        await until(lambda: "b done" in runs.did)
        assert runs.lane.offer(runs.job("d"))


async def test_a_lane_is_behind_when_some_jobs_wait():
    """Long before it is full: what is asked then is asked again before it is done."""
    lane = Lane(0, 64)
    behind = []
    for _ in range(6):
        lane.offer(asyncio.Event().wait)
        behind.append(lane.behind)
    assert [False] * 4 + [True] * 2 == behind


async def test_perform_waits_for_room_and_for_its_job():
    """A performed job is never refused: its caller waits."""
    gate = asyncio.Event()
    async with Runs(jobs_max=1) as runs:
        runs.lane.offer(runs.job("a", waits=gate))
        await until(lambda: runs.did == ["a begun"])
        runs.lane.offer(runs.job("b"))
        performed = asyncio.ensure_future(runs.lane.perform(runs.job("c")))
        await until(lambda: runs.lane.waiting == 1)
        assert not performed.done()
        gate.set()
        await performed

    assert runs.did[-1] == "c done"


async def test_a_retriable_error_costs_its_job_only():
    """A tier that is unwell fails one move; the lane counts it and goes on."""
    async with Runs() as runs:
        runs.lane.offer(runs.job("a", fails=TierUnavailable("away")))
        await runs.lane.perform(runs.job("b"))

    assert runs.did == ["a begun", "b begun", "b done"]
    assert runs.lane.stalls == 1


@pytest.mark.parametrize(
    "error", [Fenced("not ours"), OutcomeUnknown("sent"), ValueError("a bug"), AssertionError("x")]
)
async def test_any_other_error_ends_the_lane(error):
    """What no repetition heals is raised by `run`, which ends the process; no later job begins."""
    runs = Runs()
    runs.lane.offer(runs.job("a", fails=error))
    runs.lane.offer(runs.job("b", stops=True))
    with pytest.raises(type(error)):
        await runs.lane.run(runs.stop)

    assert runs.did == ["a begun"]


async def test_a_stopped_lane_finishes_the_job_it_has_begun():
    """Stop is looked at between jobs: what is begun is finished, what waits is left."""
    gate = asyncio.Event()
    runs = Runs()
    async with runs:
        runs.lane.offer(runs.job("a", waits=gate))
        runs.lane.offer(runs.job("b"))
        await until(lambda: runs.did == ["a begun"])
        runs.stop.set()
        gate.set()
        await runs.task

    assert runs.did == ["a begun", "a done"]


async def test_an_idle_lane_stops_at_once():
    """Without a job, stop ends `run`."""
    runs = Runs()
    async with runs:
        await asyncio.sleep(0)

    assert runs.task.done()


async def test_a_performed_job_that_is_unwell_costs_only_itself():
    """A retriable error of a performed job is raised to its caller; the lane goes on."""
    async with Runs() as runs:
        with pytest.raises(TierUnavailable):
            await runs.lane.perform(runs.job("a", fails=TierUnavailable("away")))
        await runs.lane.perform(runs.job("b"))

    assert runs.did[-1] == "b done"


@pytest.mark.parametrize("error", [Fenced("not ours"), OutcomeUnknown("sent")])
async def test_a_performed_job_that_lost_its_partition_ends_the_lane(error):
    """An unknown outcome or a fence ends the process also when somebody waits for the job (R4, R4a)."""
    runs = Runs()
    performed = asyncio.ensure_future(runs.lane.perform(runs.job("a", fails=error)))
    ran = asyncio.ensure_future(runs.lane.run(runs.stop))
    await until(lambda: ran.done() and performed.done())

    assert [type(error)] * 2 == [type(task.exception()) for task in (ran, performed)]


async def test_a_caller_who_goes_away_does_not_stop_the_job():
    """Cancelling who waits for a performed job leaves the job to the lane."""
    gate = asyncio.Event()
    async with Runs() as runs:
        performed = asyncio.ensure_future(runs.lane.perform(runs.job("a", waits=gate)))
        await until(lambda: runs.did == ["a begun"])
        performed.cancel()
        gate.set()
        await runs.lane.perform(runs.job("b"))

    assert runs.did == ["a begun", "a done", "b begun", "b done"]
