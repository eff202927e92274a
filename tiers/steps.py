"""Long work on the event loop in steps, so that others have their turn: a search waits for one step, not for a move.

What must be one moment (a row's home rewritten and its source queued) happens within a step, never across two.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from weakref import WeakKeyDictionary

STEP_ROWS = 1_024  # some 2 ms of what a move does on the loop at once
LOOKS = 3  # times as many rows where each is only looked up in the index

_last: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Future[None]] = WeakKeyDictionary()  # who asked, by loop


def steps(rows: int) -> Iterator[slice]:
    """Cut `rows` into the slices of its steps."""
    return _slices(rows, STEP_ROWS)


def looks(rows: int) -> Iterator[slice]:
    """Cut `rows` into the slices of steps in which rows are looked up, and nothing is changed."""
    return _slices(rows, LOOKS * STEP_ROWS)


def _slices(rows: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


async def turn() -> None:
    """Let others have their turn before the next step; of several who ask, one goes on in an iteration of the loop.

    All lanes have steps to do at once. If all went on in the same iteration, a search would wait for a step of each.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:  # driven by hand, by whom the others are
        await asyncio.sleep(0)
        return
    before, mine = _last.get(loop), loop.create_future()
    _last[loop] = mine
    try:
        if before is None or before.done():
            await asyncio.sleep(0)
        else:
            await asyncio.wait({before})  # which our own cancellation leaves alone
    finally:
        mine.set_result(None)
