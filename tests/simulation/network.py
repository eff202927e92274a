"""Requests between the node and its stores: each lands once, later, or never; its answer may be lost.

What a request does happens when it lands, in one step, and whoever sent it may be dead by then. A server that stops
loses what has not landed; what has, it answers (`appendfsync always`), unless it was told to promise less
(`Faults.unsynced`), as a rule that simulations break on purpose.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.loop import OUTSIDE, Handle, Loop
from tiers.errors import LogUnavailable, OutcomeUnknown, TierFull, TierUnavailable
from tiers.tier import TierName

READS = frozenset({"get", "retrieve_all"})
LOG = "log"
Where = TierName | str


@dataclass
class Faults:
    """What may go wrong. Chances are per request; an outage lasts until it is taken out of `out`."""

    slow: float = 0.1  # a request takes ten times as long
    refused: float = 0.0  # nothing happened, and the caller is told so
    lost: float = 0.0  # a write's answer never comes
    late: float = 0.0  # of the writes on their way at a crash: they land in a later life
    out: dict[Where, str] = field(default_factory=dict)  # "down" or "full", by store
    retry: bool = False  # broken on purpose: the client library sends again what takes long


@dataclass
class Request:
    """One on its way, or landed and not answered."""

    where: Where
    what: str
    effect: Callable[[], Any]
    answer: asyncio.Future[Any]
    life: int
    handle: Handle | None = None


class Network:
    """`carry` is what the fake tiers are given; `log` tells whoever watches."""

    def __init__(self, loop: Loop, faults: Faults, tell: Callable[[str], None]) -> None:
        self._loop, self.faults, self._tell = loop, faults, tell
        self._away: dict[int, Request] = {}
        self.landed: Callable[[], None] = lambda: None
        self._count = 0
        self.unknown = 0  # answers lost: a process may end because of them

    def delay(self) -> float:
        """Return how long one way takes."""
        random = self._loop.random
        return random.random() * (0.03 if random.random() < self.faults.slow else 0.003)

    async def carry(self, where: Where, what: str, effect: Callable[[], Any]) -> Any:
        """Send a request and wait for what comes of it."""
        self._refuse(where, what)
        answer = self._loop.create_future()
        self._send(Request(where, what, effect, answer, self._loop.life))
        if self.faults.retry and what not in READS and self._loop.random.random() < 0.2:
            self._send(Request(where, what, effect, answer, self._loop.life), self.delay() * 10)
        return await answer

    def _refuse(self, where: Where, what: str) -> None:
        out = self.faults.out.get(where)
        refused = self._loop.random.random() < self.faults.refused
        if out == "full" and what == "store":
            raise TierFull(f"{where!r} is full")
        if out == "down" or refused:
            raise LogUnavailable("the log does not answer") if where == LOG else TierUnavailable(f"{where!r} is down")

    def _send(self, request: Request, delay: float | None = None) -> None:
        self._count += 1
        request.handle = self._loop.later(self.delay() if delay is None else delay, self._land, self._count)
        self._away[self._count] = request

    def _land(self, number: int) -> None:
        request = self._away.pop(number)
        alive = request.life == self._loop.life
        late = "" if alive else "late: "
        try:
            result = request.effect()
        except Exception as error:  # noqa: BLE001 - what the server answers
            self._tell(f"{late}{_name(request.where)}.{request.what} refused: {error}")
            if alive:
                self._loop.call_later(self.delay(), _fail, request.answer, error)
            return
        if request.what not in READS:
            self.landed()
            self._tell(f"{late}{_name(request.where)}.{request.what} lands")
        if not alive:
            return
        if request.what not in READS and self._loop.random.random() < self.faults.lost:
            self._lose(request)
        else:
            self._loop.call_later(self.delay(), _finish, request.answer, result)

    def _lose(self, request: Request) -> None:
        self.unknown += request.where != LOG
        error = LogUnavailable("no answer") if request.where == LOG else OutcomeUnknown("no answer")
        self._tell(f"{_name(request.where)}.{request.what}: the answer is lost")
        self._loop.call_later(self.delay(), _fail, request.answer, error)

    @property
    def writing(self) -> bool:
        """Whether a write of this life is on its way."""
        return any(one.life == self._loop.life and one.what not in READS for one in self._away.values())

    def crash(self) -> None:
        """The sender dies: each of its requests lands now, later, or never."""
        random = self._loop.random
        for number, request in sorted(self._away.items()):
            if request.life != self._loop.life or request.handle is None:
                continue
            if request.what not in READS and random.random() < 0.4:
                if request.where is not TierName.COLD and random.random() < self.faults.late:  # cold dies with its node
                    self._move(number, request, random.random() * random.choice((0.02, 0.1, 0.3)))
                else:
                    request.handle.cancel()
                    request.life = OUTSIDE
                    self._land(number)
                continue
            self._drop(number, request)

    def stop(self, where: Where) -> None:
        """The server dies: what has not landed never does, and nobody is told."""
        for number, request in sorted(self._away.items()):
            if request.where == where:
                self._drop(number, request)
                if request.life == self._loop.life and request.what in READS:
                    self._loop.call_later(self.delay(), _fail, request.answer, TierUnavailable("the server ended"))
                elif request.life == self._loop.life:
                    self._lose(request)

    def _move(self, number: int, request: Request, delay: float) -> None:
        if request.handle is not None:
            request.handle.cancel()
        request.handle = self._loop.later(delay, self._land, number)

    def _drop(self, number: int, request: Request) -> None:
        if request.handle is not None:
            request.handle.cancel()
        del self._away[number]


def _name(where: Where) -> str:
    return where.word if isinstance(where, TierName) else where


def _finish(answer: asyncio.Future[Any], result: object) -> None:
    if not answer.done():
        answer.set_result(result)


def _fail(answer: asyncio.Future[Any], error: BaseException) -> None:
    if not answer.done():
        answer.set_exception(error)
