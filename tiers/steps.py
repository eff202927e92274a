"""Long work on the event loop in steps, so that others have their turn: a search waits for one step, not for a move.

What must be one moment (a row's home rewritten and its source queued) happens within a step, never across two.
"""

from __future__ import annotations

from collections.abc import Iterator

STEP_ROWS = 1_024  # some 2 ms of what a move does on the loop at once


def steps(rows: int) -> Iterator[slice]:
    """Cut `rows` into the slices of its steps."""
    return (slice(start, min(start + STEP_ROWS, rows)) for start in range(0, rows, STEP_ROWS))
