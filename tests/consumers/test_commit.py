"""Commits: watermarks only, with the lease only, and what was answered is what counts."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from consumers.commit import Commit, CommitSettings
from consumers.watermark import Watermark
from tiers.errors import Fenced, LogUnavailable

pytestmark = pytest.mark.unit


class Log:
    """Takes commits, or fails with `error`."""

    def __init__(self) -> None:
        self.committed: list[dict[int, int]] = []
        self.error: Exception | None = None

    async def commit(self, offsets) -> None:
        if self.error is not None:
            raise self.error
        self.committed.append(dict(offsets))


class Lease:
    """Holds all partitions but those in `lost`."""

    def __init__(self) -> None:
        self.lost: set[int] = set()

    def check(self, partition: int) -> None:
        if partition in self.lost:
            raise Fenced(f"partition {partition} is another's")


@pytest.fixture
def marks():
    """Two partitions at offset 10."""
    return {0: Watermark(10), 1: Watermark(10)}


def commit_of(marks) -> tuple[Commit, Log, Lease]:
    log, lease = Log(), Lease()
    return Commit(CommitSettings(), log, lease, marks), log, lease


async def test_only_watermarks_that_advanced_are_committed(marks):
    """A partition whose oldest dirty row still depends on the log commits nothing, whatever was read."""
    commit, log, _ = commit_of(marks)
    marks[0].open(10, 20, 2)
    marks[1].open(10, 20, 0)

    assert await commit.step() == 1
    assert log.committed == [{1: 20}]
    assert await commit.step() == 0


async def test_settled_rows_let_the_commit_go_on(marks):
    """The commit follows the watermark, not the position of the reader."""
    commit, log, _ = commit_of(marks)
    marks[0].open(10, 20, 1)
    marks[0].open(20, 30, 1)
    marks[0].settle(np.array([10], np.int64))
    await commit.step()

    assert log.committed == [{0: 20}]


async def test_acknowledged_is_what_was_read_or_answered(marks):
    """Before an answer the offset read at start counts; afterwards the answered one (R5)."""
    commit, log, _ = commit_of(marks)
    marks[0].open(10, 20, 0)

    assert commit.acknowledged(0) == 10

    log.error = LogUnavailable("no answer")
    with pytest.raises(LogUnavailable):
        await commit.step()

    assert commit.acknowledged(0) == 10

    log.error = None
    await commit.step()

    assert commit.acknowledged(0) == 20


async def test_nothing_is_committed_without_the_lease(marks):
    """A partition that is another's stops the whole commit, before anything is sent (R2, R4a)."""
    commit, log, lease = commit_of(marks)
    marks[0].open(10, 20, 0)
    marks[1].open(10, 20, 0)
    lease.lost.add(1)
    with pytest.raises(Fenced):
        await commit.step()

    assert log.committed == []
    assert commit.acknowledged(0) == 10


async def test_commits_do_not_overtake_each_other(marks):
    """A second commit begins when the first is answered: else the lower could land last (R5)."""
    commit, log, _ = commit_of(marks)
    answer = asyncio.Event()
    take = log.commit

    async def slow(offsets) -> None:
        await answer.wait()
        await take(offsets)

    log.commit = slow
    marks[0].open(10, 20, 0)
    first = asyncio.create_task(commit.step())
    await asyncio.sleep(0)
    marks[0].open(20, 30, 0)
    log.commit = take
    second = asyncio.create_task(commit.step())
    await asyncio.sleep(0)

    assert log.committed == []

    answer.set()
    await asyncio.gather(first, second)

    assert log.committed == [{0: 20}, {0: 30}]
    assert commit.acknowledged(0) == 30
