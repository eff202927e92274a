"""Kills inside an operator's clearing of a tier, which deletes, and so has checks of its own.

A round: everything is brought to rest, mostly in the tier that will be cleared; a node with one point armed is asked to
clear it, and dies there; the next life has to have finished or forgotten the clearing, partition by partition (what the
manifest has noted is finished), with every other record as it was; and the life after that shows the same again.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import defaultdict
from contextlib import suppress
from typing import Any

import httpx

from producers.events import encode_token
from tests.chaos import points
from tests.chaos.campaign import REACH_S, START_S, Tally
from tests.chaos.checker import Checker
from tests.chaos.ledger import Ledger
from tests.chaos.nodes import Node
from tests.chaos.producer import Sender
from tests.chaos.world import World

PREFIX = "clearing"
IDS, PUTS, DELETES = 80, 50, 5
REST_S = 60.0
LOWER = ("warm", "cold", "glacier")
NEVER = 1e9

#: Where everything comes to rest.
STILL: dict[str, dict[str, float]] = {
    "hot": {"policy.hot_age_s": NEVER},
    "warm": {"policy.hot_age_s": 0.1, "policy.warm_heat_min": 0.0, "policy.warm_idle_s": NEVER},
    "cold": {"policy.hot_age_s": 0.1, "policy.warm_heat_min": NEVER, "policy.cold_idle_s": NEVER},
    "glacier": {"policy.hot_age_s": 0.1, "policy.warm_heat_min": NEVER, "policy.cold_idle_s": 0.1},
}
#: What has to be empty before everything has come to rest there.
BEFORE: dict[str, tuple[str, ...]] = {"hot": (), "warm": ("hot",), "cold": ("hot",), "glacier": ("hot", "cold")}
#: From here on the clearing is noted, and must be finished by whoever starts next.
NOTED = ("clear.remembered", "clear.hot", "clear.noted", "clear.older", "clear.announced", "clear.disc", "clear.struck")


class Clearings:
    """`run` clears and kills until there are enough, or the time is over."""

    def __init__(self, world: World, tally: Tally, dice: random.Random, wanted: list[str]) -> None:
        self._world, self._tally, self._dice, self._wanted = world, tally, dice, wanted
        self._file = world.directory / "clearing.jsonl"
        self.checker = Checker(Ledger(self._file))
        self._there: dict[str, int] | None = None  # what the life before has shown

    async def run(self, kills: int, until: float) -> None:
        """Clear and die."""
        aim = self._tally.kills.total() + kills
        while self._tally.kills.total() < aim and time.monotonic() < until and not self._tally.failures:
            await self._round(min(self._wanted, key=lambda each: (self._tally.hit(each), each)))

    async def _round(self, point: str) -> None:
        name, _, tier = point.partition(":")
        tier = tier or ("hot" if name.startswith(("clear.hot", "clear.remembered")) else self._dice.choice(LOWER))
        node = await self._start(tier, f"{point} 1 kill")
        async with httpx.AsyncClient(base_url=node.address, timeout=60) as http:
            if self._there is None:
                self._there = {}
            else:
                self._same(await _listing(http), point)
            await self._fill(http, tier)
            there, inside = await _listing(http), await _listing(http, tier)
            with suppress(httpx.TransportError):
                await http.post(f"/v1/tiers/{tier}:clear")
        await node.dies(REACH_S)
        if node.dead and node.reached:
            self._tally.points[point] += 1
            self._tally.kills["point"] += 1
        else:
            self._tally.missed[point] += 1
            await self._kill(node)
        node = await self._start(tier)
        async with httpx.AsyncClient(base_url=node.address, timeout=60) as http:
            after = await _listing(http)
        await self._kill(node)
        self._judge(point, there, inside, after)
        self._there = after

    def _judge(self, point: str, there: dict[str, int], inside: dict[str, int], after: dict[str, int]) -> None:
        """Each partition of the tier was cleared whole or not at all; whatever lay elsewhere is there."""
        by_partition: defaultdict[int, list[str]] = defaultdict(list)
        for identifier in inside:
            by_partition[self.checker.ledger.newest[identifier].partition].append(identifier)
        cleared = 0
        for partition, ids in by_partition.items():
            gone = sum(identifier not in after for identifier in ids)
            cleared += gone == len(ids)
            if gone not in (0, len(ids)):
                self.checker.note(
                    "lost", ids[0], f"{point}: partition {partition} was cleared in part: {gone} of {len(ids)}"
                )
        if by_partition and not cleared and point.startswith(NOTED):
            self.checker.note("resurrected", "", f"{point}: the clearing was noted, and everything is there again")
        for identifier in there.keys() - inside.keys():
            if after.get(identifier) != there[identifier]:
                self.checker.note("lost", identifier, f"{point}: it lay in another tier than the one that was cleared")
        for identifier in after.keys() - there.keys():
            self.checker.note("resurrected", identifier, f"{point}: it was not there before")

    def _same(self, now: dict[str, int], point: str) -> None:
        assert self._there is not None
        for identifier in now.keys() | self._there.keys():
            if now.get(identifier) != self._there.get(identifier):
                kind = "resurrected" if identifier in now else "lost"
                self.checker.note(
                    kind, identifier, f"before {point}: {self._there.get(identifier)}, now {now.get(identifier)}"
                )

    async def _start(self, tier: str, point: str = "") -> Node:
        """Begin a life in which everything comes to rest in a tier."""
        still = {"policy.promote_heat_min": NEVER, "kafka.prefix": PREFIX, "warm.prefix": PREFIX, **STILL[tier]}
        node = await self._world.start(point, data=self._world.directory / "clearing", **still)
        if not await node.ready(START_S):
            self._tally.failures.append(f"clearing: a node did not start: {node.said()[-1500:]!r}")
            raise RuntimeError("the campaign is over")
        return node

    async def _fill(self, http: httpx.AsyncClient, tier: str) -> None:
        """Publish, and wait until nothing is on its way to the tier any more."""
        await asyncio.to_thread(self._publish)
        self.checker.ledger.read()
        token = encode_token({partition: end - 1 for partition, end in self.checker.ledger.ends.items()}, 0)
        await http.post("/v1/retrieve", json={"ids": ["c/0"], "at_least": token})
        deadline = time.monotonic() + REST_S
        while time.monotonic() < deadline:
            tiers: dict[str, Any] = (await http.get("/v1/tiers")).json()["tiers"]
            if tiers[tier]["records"] and not any(
                tiers[each]["records"] + tiers[each]["tombstones"] for each in BEFORE[tier]
            ):
                return
            await asyncio.sleep(0.1)
        self._tally.failures.append(f"clearing: nothing came to rest in {tier}")

    def _publish(self) -> None:
        sender = Sender(self._world.servers.kafka, f"{PREFIX}.memories", self._file)
        for n in self._dice.sample(range(IDS), PUTS):
            sender.send(f"c/{n}", deleted=n < DELETES)
        sender.close()

    async def _kill(self, node: Node) -> None:
        await node.kill()
        self._tally.kills["node"] += 1


async def _listing(http: httpx.AsyncClient, tier: str = "") -> dict[str, int]:
    """Return which event of each id is there."""
    lines = (await http.get("/v1/memories", params={"tiers": tier} if tier else {})).text.splitlines()
    return {said["id"]: said["payload"]["n"] for said in map(json.loads, lines)}


def of_clearing() -> list[str]:
    """Return the points that a clearing reaches."""
    return [point for point in points.everything() if points.of_clearing(point)]
