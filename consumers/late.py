"""Work that the poll loop does not wait for longer than a moment: it goes on beside it, and is asked for later.

What a handler does may have to wait for the log to take a message (a dead letter, a move announced again): as long as
that takes, and meanwhile the other partitions are read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Hashable
from typing import Generic, TypeVar

PATIENCE_S = 1.0  # a poll waits so long for its messages to be applied

Of = TypeVar("Of", bound=Hashable)


class Late(Generic[Of]):
    """At most one piece of work for each `Of`; `waiting` are those whose work goes on."""

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._tasks: dict[Of, asyncio.Task[None]] = {}

    @property
    def waiting(self) -> set[Of]:
        """Whose work goes on."""
        return set(self._tasks)

    async def begin(self, of: Of, work: Coroutine[None, None, None]) -> bool:
        """Say whether the work was done within the patience; what it raises is raised, here or by `ended`."""
        assert of not in self._tasks, f"{of} has work under way"
        task = self._tasks[of] = asyncio.get_running_loop().create_task(work, name=f"late {of}")
        await asyncio.wait({task}, timeout=self._patience_s)
        if not task.done():
            return False
        self._tasks.pop(of).result()  # of this one alone: whose work has ended meanwhile is for `ended` to tell
        return True

    def ended(self) -> list[Of]:
        """Return whose work has ended since it was asked; raises what one raised."""
        ended = [of for of, task in self._tasks.items() if task.done()]
        for of in ended:
            self._tasks.pop(of).result()
        return ended

    async def close(self) -> None:
        """Cancel what goes on, and wait until it has ended."""
        for task in self._tasks.values():
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values())
