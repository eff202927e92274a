"""An event loop whose every choice is the seed's: which ready callback runs next, and how long anything takes.

Time is virtual and moves only when nothing is ready. The product's tasks, futures, locks and queues are asyncio's own;
what this replaces is the order in which they run. A life's callbacks carry its number: `kill` drops them all at once,
as SIGKILL does, while what is under way outside of the process (`later`) goes on.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
from asyncio import events
from collections.abc import Callable, Coroutine
from contextlib import suppress
from random import Random
from types import TracebackType
from typing import Any, Self

OUTSIDE = 0  # the number of what no process owns: requests on their way, servers


class Handle:
    """A callback that may be cancelled; `when` is its time if it waits for one."""

    __slots__ = ("args", "callback", "cancelled", "context", "life", "when")

    def __init__(self, callback, args, context, life, when=0.0) -> None:
        self.callback, self.args, self.context, self.life = callback, args, context, life
        self.when, self.cancelled = when, False

    def cancel(self) -> None:
        self.cancelled = True


class Loop(asyncio.AbstractEventLoop):
    """Use as a context manager: inside it is the running loop. `step` runs one callback."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.now = 0.0
        self.life = OUTSIDE + 1
        self.failed: list[BaseException] = []
        self._ready: list[Handle] = []
        self._timers: list[tuple[float, int, Handle]] = []
        self._count = 0
        self._tasks: list[asyncio.Task[Any]] = []  # of the process
        self._muted = False

    def __enter__(self) -> Self:
        events._set_running_loop(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        events._set_running_loop(None)

    # -- what asyncio asks of a loop ---------------------------------------------------------------------------------

    def time(self) -> float:
        return self.now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def call_soon(self, callback, *args, context=None) -> Handle:
        handle = Handle(callback, args, context or contextvars.copy_context(), self.life)
        if not self._muted:
            self._ready.append(handle)
        return handle

    def call_at(self, when, callback, *args, context=None) -> Handle:
        handle = Handle(callback, args, context or contextvars.copy_context(), self.life, when)
        self._wait(handle)
        return handle

    def call_later(self, delay, callback, *args, context=None) -> Handle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Coroutine[Any, Any, Any], *, name=None, context=None) -> asyncio.Task[Any]:
        task = asyncio.Task(coro, loop=self, name=name or "", context=context)  # a name costs a count and a text
        self._tasks.append(task)
        return task

    def run_in_executor(self, executor, func, *args) -> asyncio.Future[Any]:
        """Run the job at once, and let its answer come later: a thread's work has no moment that others could see."""
        answer = self.create_future()
        try:
            result = func(*args)
        except Exception as error:  # noqa: BLE001 - it is the caller's
            self.call_later(self.random.random() * 0.002, _fail, answer, error)
        else:
            self.call_later(self.random.random() * 0.002, _finish, answer, result)
        return answer

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if "exception" in context:
            self.failed.append(context["exception"])

    # -- what the simulation asks ------------------------------------------------------------------------------------

    def later(self, delay: float, callback: Callable[..., object], *args: object) -> Handle:
        """Call back after a time, whatever process has died meanwhile."""
        handle = Handle(callback, args, None, OUTSIDE, self.now + delay)
        self._wait(handle)
        return handle

    def _wait(self, handle: Handle) -> None:
        if not self._muted:
            self._count += 1
            heapq.heappush(self._timers, (handle.when, self._count, handle))

    def step(self) -> bool:
        """Run one callback; False when there is none, and none to wait for."""
        ready = self._ready
        while True:
            if not ready and not self._advance():
                return False
            at = self.random.randrange(len(ready)) if len(ready) > 1 else 0
            handle, ready[at] = ready[at], ready[-1]
            ready.pop()
            if handle.cancelled:
                continue
            if handle.context is None:
                handle.callback(*handle.args)
            else:
                handle.context.run(handle.callback, *handle.args)
            return True

    def _advance(self) -> bool:
        """Go on to the next moment at which something is due."""
        while self._timers:
            when, _, handle = heapq.heappop(self._timers)
            if handle.cancelled:
                continue
            self.now = max(self.now, when)
            self._ready.append(handle)
            return True
        return False

    def kill(self) -> None:
        """End the process: nothing of its tasks runs any more, not even their `finally`."""
        self._muted = True
        for task in self._tasks:
            if task.done():
                continue
            task._log_destroy_pending = False
            with suppress(RuntimeError):  # it awaits something in its `finally`: too late
                task.get_coro().close()
        self._tasks.clear()
        self._muted = False
        self._ready = [handle for handle in self._ready if handle.life == OUTSIDE]
        self._timers = [timer for timer in self._timers if timer[2].life == OUTSIDE]
        heapq.heapify(self._timers)
        self.life += 1


def _finish(answer: asyncio.Future[Any], result: object) -> None:
    if not answer.done():
        answer.set_result(result)


def _fail(answer: asyncio.Future[Any], error: BaseException) -> None:
    if not answer.done():
        answer.set_exception(error)
