"""Lives and deaths: one fault each, the next life heals it, and readers and producer never stop."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import time
from collections import Counter
from dataclasses import dataclass, field

import httpx

from tests.chaos import points
from tests.chaos.nodes import Node
from tests.chaos.readers import Readers
from tests.chaos.world import LEASE_S, World

START_S = 120.0  # on a busy machine; a node that needs longer is a failure
REACH_S = 30.0  # that a point may take to be reached; after that the life ends by a plain SIGKILL
#: What else may happen in a life, and how often beside the points: SIGKILL, SIGSTOP, and what proxies do to answers.
OTHERS = {
    "kill node": 8,
    "kill valkey": 4,
    "kill kafka": 1,
    "stop node": 2,
    "stop valkey": 3,
    "valkey delay": 1,
    "valkey cut": 2,
    "valkey drop": 2,
    "kafka delay": 1,
    "kafka cut": 1,
    "kafka drop": 1,
}
OTHERS_SHARE = 0.22


@dataclass(slots=True)
class Tally:
    """What was done, and what came of it."""

    kills: Counter[str] = field(default_factory=Counter)  # by what was killed and how
    faults: Counter[str] = field(default_factory=Counter)  # what did not kill
    points: Counter[str] = field(default_factory=Counter)  # SIGKILLs at a point, by its name
    before: Counter[str] = field(default_factory=Counter)  # likewise, of an earlier run
    missed: Counter[str] = field(default_factory=Counter)  # a point that a life did not reach in time
    ended: Counter[str] = field(default_factory=Counter)  # nodes that ended by themselves, by their reason
    recovery_s: list[float] = field(default_factory=list)
    replayed: list[tuple[int, float]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def hit(self, point: str) -> int:
        """Return how often a point was hit, or has cost a life that did not reach it: the least comes next."""
        return self.points[point] + self.before[point] + 3 * self.missed[point]


class Campaign:
    """`run` kills until there are enough, or the time is over."""

    def __init__(self, world: World, readers: Readers, dice: random.Random, wanted: list[str], share: float) -> None:
        self._share = share
        self.world, self._readers, self._dice, self._wanted = world, readers, dice, wanted
        self.tally = Tally()
        self._died: float | None = None

    async def run(self, kills: int, until: float) -> None:
        """Live and die."""
        while self.tally.kills.total() < kills and time.monotonic() < until and not self.tally.failures:
            if self._dice.random() < self._share or not self._wanted:
                [deed] = self._dice.choices(list(OTHERS), list(OTHERS.values()))
                await self._otherwise(deed)
            else:
                await self._at_point(self._rarest())

    def _rarest(self) -> str:
        tally = self.tally
        return min(self._wanted, key=lambda point: (tally.hit(point), self._dice.random()))

    # -- a life ------------------------------------------------------------------------------------------------------

    async def _at_point(self, point: str) -> None:
        often = not points.once(point) and not self.tally.missed[point]
        hit = self._dice.choice((1, 1, 2, 3)) if often else 1
        node = await self.world.start(f"{point} {hit} kill")
        if await self._lives(node):
            if (stimulus := points.STIMULUS.get(point)) == "stop":
                node.signal(signal.SIGTERM)
            elif stimulus == "reindex":
                async with httpx.AsyncClient(timeout=20) as http:
                    await _reindex(http, node)
            await node.dies(REACH_S)
        self._readers.address = ""
        if node.dead and node.reached:
            self._dead(node, "point")
            self.tally.points[point] += 1
        else:
            self.tally.missed[point] += 1
            await self._kill(node)

    async def _otherwise(self, deed: str) -> None:
        verb, _, whom = deed.partition(" ")
        through = verb if verb in ("valkey", "kafka") else ""
        node = await self.world.start(through=through)
        early = deed == "kill node" and self._dice.random() < 0.5
        if early:
            await asyncio.sleep(self._dice.uniform(0, 2))
        elif await self._lives(node):
            await asyncio.sleep(self._dice.uniform(0.2, 2))
            if through:
                await self._disturb(through, whom)
            elif whom == "node" and verb == "stop":
                await self._stop(node)
            elif whom != "node" and not node.dead:
                await self._server(whom, verb)
            if deed != "kill node":
                await node.dies(self._dice.uniform(0.5, 3))  # it may well go on
        await self._kill(node)

    async def _disturb(self, server: str, fault: str) -> None:
        proxy = self.world.valkey if server == "valkey" else self.world.kafka
        proxy.fault = fault
        await asyncio.sleep(self._dice.uniform(0.2, 2))
        proxy.fault = ""
        self.tally.faults[f"{server} {fault}"] += 1

    async def _stop(self, node: Node) -> None:
        self.tally.faults["node stopped"] += 1
        node.signal(signal.SIGSTOP)
        await asyncio.sleep(LEASE_S + 1)
        node.signal(signal.SIGCONT)
        if not await node.dies(60):
            self.tally.failures.append("a node stopped for longer than its lease went on")

    async def _server(self, name: str, verb: str) -> None:
        servers = self.world.servers
        if verb == "stop":
            self.tally.faults[f"{name} stopped"] += 1
            pid = next(service.pid for service in servers.services if service.name == name)
            _signal(pid, signal.SIGSTOP)
            await asyncio.sleep(self._dice.uniform(0.3, 6))
            _signal(pid, signal.SIGCONT)
            return
        await servers.kill(name)
        self.tally.kills[name] += 1
        await asyncio.sleep(self._dice.uniform(0, 2))
        await servers.start(name)

    async def _lives(self, node: Node) -> bool:
        """Wait until it answers, let readers at it, and say so; False when it died on its way."""
        if not await node.ready(START_S):
            if not node.dead:
                self.tally.failures.append(f"a node did not answer within {START_S} s")
            return False
        assert node.ready_s is not None
        if self._died is not None:
            self.tally.recovery_s.append(node.ready_s - self._died)
            self._died = None
        if (replayed := node.replayed()) is not None:
            self.tally.replayed.append(replayed)
        self._readers.address = node.address
        return True

    async def _kill(self, node: Node) -> None:
        """End a life that has not ended by itself; one that has is told of."""
        self._readers.address = ""
        await node.kill()
        if node.death.result() == -signal.SIGKILL:
            self._dead(node, "node")
            return
        self._died = self._died or time.monotonic()
        self._readers.failed.clear()  # a node that ends by itself may break what it is asked (500, or no answer)
        code, reason = node.death.result(), node.reason()
        self.tally.ended[f"exit {code}: {_kind(reason)}"] += 1
        if code <= 0 or not reason:
            self.tally.failures.append(f"a node ended with {code} and the reason {reason!r}: {node.said()[-1500:]!r}")

    def _dead(self, node: Node, how: str) -> None:
        self.tally.kills[how] += 1
        self.tally.failures += [f"an answer: {text}" for text in self._readers.failed]
        self._readers.failed.clear()
        self._died = self._died or time.monotonic()
        if node.death.result() != -signal.SIGKILL:
            self.tally.failures.append(f"a node that reached its point ended with {node.death.result()}")


async def _reindex(http: httpx.AsyncClient, node: Node) -> None:
    """Ask for a new codebook as soon as there is one."""
    while not node.dead:
        try:
            if (await http.post(f"{node.address}/v1/index:reindex")).status_code != 409:
                return
        except httpx.TransportError:
            pass
        await asyncio.sleep(0.2)


def _signal(pid: int, number: signal.Signals) -> None:
    os.kill(pid, number)


def _kind(reason: str) -> str:
    """Return a reason without its numbers, so that equal ones count together."""
    return re.sub(r"[0-9a-f]{8}-[0-9a-f-]+|[\d.]+", "…", reason)[:90]
