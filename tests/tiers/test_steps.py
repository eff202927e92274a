"""Steps: long work on the loop leaves room for others, and of several who work only one goes on at a time."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from tiers.steps import LOOKS, STEP_ROWS, looks, steps, turn

pytestmark = pytest.mark.unit


def test_steps_are_all_rows_once():
    """The slices follow each other, none is longer than a step."""
    found = list(steps(2 * STEP_ROWS + 1))

    assert [STEP_ROWS, STEP_ROWS, 1] == [at.stop - at.start for at in found]
    assert all(before.stop == after.start for before, after in pairwise(found))
    assert [] == list(steps(0))
    assert [slice(0, LOOKS * STEP_ROWS), slice(LOOKS * STEP_ROWS, LOOKS * STEP_ROWS + 1)] == list(
        looks(LOOKS * STEP_ROWS + 1)
    )


async def test_one_of_many_goes_on_in_an_iteration_of_the_loop():
    """Somebody who asks once each iteration never sees two steps between two of his turns."""
    done: list[int] = []
    seen: list[int] = []

    async def work(number: int) -> None:
        for _ in range(5):
            await turn()
            done.append(number)

    async def watch() -> None:
        while len(done) < 20:
            await asyncio.sleep(0)
            seen.append(len(done))

    await asyncio.gather(watch(), *map(work, range(4)))

    assert 1 == max(after - before for before, after in pairwise(seen))
    assert {5} == {done.count(number) for number in range(4)}


async def test_who_is_cancelled_holds_nobody_up():
    """The turn of one that ends while it waits goes to the next."""
    first, second, third = (asyncio.ensure_future(turn()) for _ in range(3))
    await asyncio.sleep(0)
    second.cancel()

    await asyncio.wait_for(asyncio.gather(first, third), 10)
    assert second.cancelled()
