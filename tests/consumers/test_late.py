"""Work that a poll waits for only so long."""

from __future__ import annotations

import asyncio

import pytest

from consumers.late import Late

pytestmark = pytest.mark.unit


async def test_what_is_done_in_time_leaves_nothing() -> None:
    """Work that ends within the patience is done when `begin` returns."""
    late, done = Late[str](10), []

    async def work() -> None:
        await asyncio.sleep(0)
        done.append(1)

    assert await late.begin("a", work())
    assert ([1], set(), []) == (done, late.waiting, late.ended())


async def test_what_takes_longer_goes_on_and_is_told_of_once() -> None:
    """Past the patience the caller goes on, other work can begin, and the end is told of once."""
    late, gate = Late[str](0.001), asyncio.Event()

    async def work() -> None:
        await gate.wait()

    assert not await late.begin("a", work())
    assert await late.begin("b", asyncio.sleep(0))
    assert ({"a"}, []) == (late.waiting, late.ended())

    gate.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert (["a"], [], set()) == (late.ended(), late.ended(), late.waiting)


async def test_work_that_ends_while_other_begins_is_told_of() -> None:
    """Its partition was paused: were the end lost to the other's `begin`, it would be read no more."""
    late, gate = Late[str](0.001), asyncio.Event()

    async def work() -> None:
        await gate.wait()

    async def other() -> None:
        gate.set()
        await asyncio.sleep(0)

    assert not await late.begin("a", work())
    late._patience_s = 10
    assert await late.begin("b", other())
    assert ["a"] == late.ended()


async def test_what_late_work_raises_is_raised() -> None:
    """An error is raised where the end is told of, in time or late."""
    late, gate = Late[str](0.001), asyncio.Event()

    async def work() -> None:
        await gate.wait()
        raise RuntimeError("a bug")

    await late.begin("a", work())
    gate.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="a bug"):
        late.ended()
    with pytest.raises(RuntimeError, match="a bug"):
        await late.begin("b", work())


async def test_closing_cancels_what_goes_on() -> None:
    """After `close` nothing runs any more."""
    late, ends = Late[str](0.001), []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ends.append(1)

    await late.begin("a", work())
    await late.close()

    assert [1] == ends
