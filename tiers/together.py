"""Scans that wait for the device while it is busy go together: one turn of its thread answers as many as it can.

On a GPU they share one product, whatever rows each may see. A question that was given up is not scanned for.
"""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import Future
from typing import NamedTuple

from tiers.device import Arena
from tiers.part import Ask, Nearest
from tiers.worker import SerialExecutor


class _Waiting(NamedTuple):
    ask: Ask
    answer: Future[list[Nearest]]


class Together:
    """Asks an arena, on its thread, for any number of callers. Each adds its ask and a turn; a turn may find none."""

    def __init__(self, arena: Arena, thread: SerialExecutor) -> None:
        self._arena, self._thread = arena, thread
        self._waiting: deque[_Waiting] = deque()

    async def best(self, ask: Ask) -> list[Nearest]:
        """Return what the arena answers for each question; TierUnavailable, DeviceLost."""
        waiting = _Waiting(ask, Future())
        self._waiting.append(waiting)
        self._thread.start(self._turn)
        return await asyncio.wrap_future(waiting.answer)

    def _turn(self) -> None:
        group: list[_Waiting] = []
        while len(group) < self._arena.asks_max:
            try:
                waiting = self._waiting.popleft()
            except IndexError:
                break
            if waiting.answer.set_running_or_notify_cancel():
                group.append(waiting)
        if not group:
            return
        try:
            found = self._arena.best([waiting.ask for waiting in group])
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the answer to each
            for waiting in group:
                waiting.answer.set_exception(error)
            return
        for waiting, answer in zip(group, found, strict=True):
            waiting.answer.set_result(answer)
