"""One run from the first start to the last audit, and what it ends with."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.chaos import points
from tests.chaos.audit import audit
from tests.chaos.campaign import OTHERS_SHARE, START_S, Campaign, Tally
from tests.chaos.checker import KINDS, Checker
from tests.chaos.clearing import Clearings
from tests.chaos.ledger import Ledger
from tests.chaos.readers import Readers
from tests.chaos.world import PARTITIONS, PREFIX, World

READERS = 2
CLEARINGS = 0.2  # of the kills are in clearings: a fifth of the points are theirs
SETTLE_S = 240.0


@dataclass(slots=True)
class Outcome:
    """What is printed at the end."""

    tally: Tally
    checker: Checker
    refused: dict[int, int] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def line(self) -> str:
        """Return the last line of a run."""
        counts = " ".join(f"{kind}={self.checker.counts[kind]}" for kind in KINDS)
        most = max(self.tally.recovery_s, default=0.0)
        done = f"kills={self.tally.kills.total()} acknowledged={self.checker.acknowledged}"
        return f"{done} {counts} recovery_s_max={most:.1f}"

    @property
    def good(self) -> bool:
        """Whether nothing was wrong and the harness itself went on to its end."""
        return self.checker.clean and not self.tally.failures


async def run(
    directory: Path,
    *,
    kills: int,
    seed: int,
    minutes: float = float("inf"),
    rule: str = "",
    ids: int = 1_500,
    rate: float = 80.0,
    wanted: list[str] | None = None,
    share: float = OTHERS_SHARE,
    before: Counter[str] | None = None,
) -> Outcome:
    """Run a campaign in a directory; `share` of the lives have another fault than a point.

    `before` is how often points were hit in an earlier run: those hit least come first.
    """
    began, dice = time.monotonic(), random.Random(seed)
    checker = Checker(Ledger(directory / "ledger.jsonl"))
    readers = Readers(checker, ids, dice)
    wanted = points.everything() if wanted is None else wanted
    clearings = int(kills * CLEARINGS) if any(map(points.of_clearing, wanted)) else 0
    async with World(directory, rule) as world:
        campaign = Campaign(world, readers, dice, [point for point in wanted if not points.of_clearing(point)], share)
        campaign.tally.before.update(before or {})
        outcome = Outcome(campaign.tally, checker)
        node = await world.start()  # makes the topics
        assert await node.ready(START_S), node.said().decode()
        await world.produce(seed, ids, rate)
        asking = [asyncio.create_task(readers.run(), name=f"reader-{n}") for n in range(READERS)]
        try:
            readers.address = node.address
            await asyncio.sleep(2)
            readers.address = ""
            await node.kill()
            await campaign.run(kills - clearings, began + minutes * 60 * (1 - CLEARINGS))
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        outcome.refused = dict(readers.refused)
        if status := await world.stop_producing():
            campaign.tally.failures.append(f"the producer ended with {status}")
        await _settle(world, outcome)
        clearing = Clearings(world, campaign.tally, dice, [point for point in wanted if points.of_clearing(point)])
        if clearings and not campaign.tally.failures:
            await clearing.run(clearings, began + minutes * 60)
        checker.take(clearing.checker)
    outcome.seconds = time.monotonic() - began
    return outcome


async def _settle(world: World, outcome: Outcome) -> None:
    """Start once more, ask for everything, stop in order, and look into the stores themselves."""
    checker = outcome.checker
    checker.ledger.read()
    node = await world.start()
    if not await node.ready(START_S):
        outcome.tally.failures.append(f"the last node did not answer: {node.said()[-1500:]!r}")
        return
    async with httpx.AsyncClient(base_url=node.address, timeout=60) as http:
        try:
            if not await rest(http, checker.ledger):
                outcome.tally.failures.append(f"not at rest after {SETTLE_S} s")
            await sweep(http, checker)
        except httpx.TransportError as error:
            outcome.tally.failures.append(f"the last node went away: {error!r}")
    node.signal(signal.SIGTERM)
    await node.dies(60)
    if not node.dead or node.death.result():
        outcome.tally.failures.append(f"the last stop did not end well: {node.said()[-1500:]!r}")
        await node.kill()
    servers = world.servers
    outcome.held = await audit(checker, servers.kafka, servers.redis, PREFIX, world.directory / "node", PARTITIONS)


async def rest(http: httpx.AsyncClient, ledger: Ledger, within_s: float = SETTLE_S) -> bool:
    """Wait until everything acknowledged is applied and nothing superseded waits."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        said = (await http.get("/v1/tiers")).json()
        applied = said["freshness"]["applied"]
        reached = all(applied[str(partition)] >= end for partition, end in ledger.ends.items())
        if reached and not sum(tier["queued"] for tier in said["tiers"].values()):
            return True
        await asyncio.sleep(0.3)
    return False


async def sweep(http: httpx.AsyncClient, checker: Checker) -> None:
    """Ask for every id, and for the listing of all."""
    ids = sorted(checker.ledger.events)
    for start in range(0, len(ids), 500):
        part = ids[start : start + 500]
        answer = await http.post("/v1/retrieve", json={"ids": part})
        if answer.status_code != 200:
            checker.note("lost", "", f"the last read of {len(part)} ids was answered {answer.text[:200]}")
            continue
        found = {hit["id"]: hit["payload"]["n"] for hit in answer.json()["hits"]}
        for identifier in part:
            checker.settled(identifier, found.get(identifier), "last read")
    lines = (await http.get("/v1/memories")).text.splitlines()
    said = [json.loads(line) for line in lines]
    listed = [(each["id"], each["payload"]["n"]) for each in said if "id" in each]  # else it broke off, and says why
    if len(dict(listed)) != len(listed):
        checker.note("stale", "", "the listing has an id twice")
    shown = dict(listed)
    for identifier in ids:
        checker.settled(identifier, shown.get(identifier), "last listing")
