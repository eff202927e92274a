"""Scans that wait for the device while it is busy go together: one turn of its thread answers as many as it can.

On a GPU they share one product, whatever rows each may see. A question that was given up is not scanned for.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from tiers.device import Arena
from tiers.part import Ask, Nearest
from tiers.worker import SerialExecutor


@dataclass(eq=False, slots=True)
class _Waiting:
    """A question, and what came of it."""

    ask: Ask
    answer: list[Nearest] | BaseException | None = None
    given_up: bool = False


class Together:
    """Asks an arena, on its thread, for any number of callers. Each adds its ask and a turn; a turn may find none."""

    def __init__(self, arena: Arena, thread: SerialExecutor) -> None:
        self._arena, self._thread = arena, thread
        self._waiting: deque[_Waiting] = deque()

    async def best(self, ask: Ask) -> list[Nearest]:
        """Return what the arena answers for each question; TierUnavailable, DeviceLost."""
        waiting = _Waiting(ask)
        self._waiting.append(waiting)
        try:
            await self._thread.run(self._turn)  # in order: by its end an earlier turn or this one has answered
        finally:
            waiting.given_up = True
        if isinstance(waiting.answer, BaseException):
            raise waiting.answer
        assert waiting.answer is not None, "a turn answers all that waited before it"
        return waiting.answer

    def _turn(self) -> None:
        group: list[_Waiting] = []
        while len(group) < self._arena.asks_max and self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.given_up:
                group.append(waiting)
        if not group:
            return
        try:
            found = self._arena.best([waiting.ask for waiting in group])
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the answer to each
            for waiting in group:
                waiting.answer = error
            return
        for waiting, answer in zip(group, found, strict=True):
            waiting.answer = answer
