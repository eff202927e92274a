"""Ten times what a node can take, for minutes: its memory stays flat, it pauses, answers in time, and has everything.

    python -m tests.chaos.overload --minutes 10 [--json out.json]

Valkey is made slow by a proxy, so that the machine's own speed does not matter and the backlog can be worked off
afterwards. First the log is filled with a backlog, and what the node makes durable of it a second is what it can take;
then ten times that comes in, while readers ask with a deadline; then the proxy is let go, and everything that was
acknowledged must be there. The last line says it all; exit 1 when it is not so.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from tests.chaos.campaign import START_S
from tests.chaos.checker import KINDS, Checker
from tests.chaos.ledger import Ledger
from tests.chaos.nodes import Node
from tests.chaos.run import SETTLE_S, rest, sweep
from tests.chaos.world import World

IDS, TIMES = 10_000, 10  # many ids: a row that a newer one supersedes in hot needs no move, and costs nothing
FILL, FILL_RATE = 3, 2_000.0  # events an id before it begins: the records there are, and the caches, are then all there
DELAY_S = 0.25  # of each of Valkey's answers
DEADLINE_MS, LATE_MS = 2_000.0, 4_000.0
SETTINGS: dict[str, Any] = {
    "hot__capacity_rows": 2_048,
    "move__rows_max": 20,
    "move__lane_jobs_max": 16,
    "policy__warm_heat_min": 0.0,
    "policy__promote_heat_min": 1e9,
    "index__train_rows": 0,
    "cold__memory_limit_mb": 64,
    "glacier__cache_bytes": 1_048_576,
}
EXPECTED = (200, 404, 429, 503, 504)
GROWTH_MB = 32.0  # over the whole of it: what allocators and caches take that are not full yet
BACKLOG = 1.5  # times the minutes that it took to come: so long it may take to be worked off
SETTLED_MINUTES = 1.0  # until then what has a bound may still be on its way to it


@dataclass(slots=True)
class Load:
    """What was measured."""

    checker: Checker
    sustainable: float = 0.0  # rows made durable a second
    sent: float = 0.0  # rows acknowledged a second, under overload
    minutes: float = 0.0
    rss_mb: list[tuple[float, float]] = field(default_factory=list)  # (seconds, MB)
    paused: int = 0  # looks at which a partition was paused
    answers: Counter[int] = field(default_factory=Counter)
    took_ms: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def slope(self) -> float:
        """MB a minute, over the second half: by then whatever has a bound has reached it."""
        half = self.rss_mb[len(self.rss_mb) // 2 :]
        seconds, sizes = np.array(half).T
        return float(np.polyfit(seconds / 60, sizes, 1)[0])

    def judge(self) -> None:
        """Say what is not as promised."""
        half = self.rss_mb[-1][0] / 60 / 2
        checks = {
            f"memory grows by {self.slope:.1f} MB a minute": half >= SETTLED_MINUTES and self.slope * half > GROWTH_MB,
            "no partition was ever paused": not self.paused,
            f"answers {dict(self.answers)}": not set(self.answers) <= set(EXPECTED) or not self.answers[200],
            f"an answer took {max(self.took_ms):.0f} ms": max(self.took_ms) > LATE_MS,
            f"sent {self.sent:.0f} rows/s, not {TIMES} times {self.sustainable:.0f}": self.sent
            < 0.7 * TIMES * self.sustainable,
        }
        self.wrong += [text for text, bad in checks.items() if bad] + self.checker.wrong

    @property
    def line(self) -> str:
        """Return the last line."""
        counts = " ".join(f"{kind}={self.checker.counts[kind]}" for kind in KINDS)
        return (
            f"sustainable={self.sustainable:.0f}/s sent={self.sent:.0f}/s minutes={self.minutes:.1f} "
            f"rss_mb={self.rss_mb[0][1]:.0f}..{self.rss_mb[-1][1]:.0f} slope_mb_per_min={self.slope:.2f} "
            f"paused={self.paused} p99_ms={np.percentile(self.took_ms, 99):.0f} answers={sum(self.answers.values())} "
            f"acknowledged={self.checker.acknowledged} {counts}"
        )


async def overload(directory: Path, minutes: float, measure_s: float = 15.0) -> Load:
    """Measure, overload, and look."""
    load = Load(Checker(Ledger(directory / "ledger.jsonl")), minutes=minutes)
    async with World(directory, **SETTINGS) as world:
        world.valkey.delay_s, world.valkey.fault = DELAY_S, ""
        node = await world.start(through="valkey")
        assert await node.ready(START_S), node.said()
        try:
            async with httpx.AsyncClient(base_url=node.address, timeout=30) as http:
                await _load(world, node, http, load, measure_s)
        except httpx.TransportError as error:
            raise RuntimeError(
                f"the node does not answer ({error!r}); it ends with {node.said()[-2_000:].decode()}"
            ) from error
        await node.kill()
    load.judge()
    return load


async def _load(world: World, node: Node, http: httpx.AsyncClient, load: Load, measure_s: float) -> None:
    await _fill(world, http, load.checker.ledger)
    world.valkey.fault = "delay"
    await world.produce(1, IDS, 2_000.0)
    load.sustainable = await _sustainable(http, measure_s)
    await world.stop_producing()
    await world.produce(2, IDS, TIMES * load.sustainable)
    await _watch(node, http, load)
    await world.stop_producing()
    world.valkey.fault = ""
    load.checker.ledger.read()
    within_s = max(SETTLE_S, BACKLOG * load.minutes * 60)
    if await rest(http, load.checker.ledger, within_s):
        await sweep(http, load.checker)
    else:  # what is there then says nothing of what will be
        load.wrong.append(f"the backlog was not worked off within {within_s:.0f} s")


async def _fill(world: World, http: httpx.AsyncClient, ledger: Ledger) -> None:
    """Make nearly every id a record, and let them settle: what grows after that grows with the load alone."""
    await world.produce(0, IDS, FILL_RATE)
    while ledger.acknowledged < FILL * IDS:
        await asyncio.sleep(0.5)
        ledger.read()
    await world.stop_producing()
    ledger.read()
    if not await rest(http, ledger):
        raise TimeoutError("the records to begin with were not taken in")


async def _sustainable(http: httpx.AsyncClient, seconds: float) -> float:
    """Return how many rows a second become durable while more than enough are waiting."""
    while not (await _tiers(http))["paused"]:  # noqa: ASYNC110 - another process, which cannot call back
        await asyncio.sleep(0.2)
    first, began = await _durable(http), time.monotonic()
    await asyncio.sleep(seconds)
    return max(1.0, (await _durable(http) - first) / (time.monotonic() - began))


async def _tiers(http: httpx.AsyncClient) -> dict[str, Any]:
    said: dict[str, Any] = (await http.get("/v1/tiers")).json()
    return said


async def _durable(http: httpx.AsyncClient) -> int:
    return sum((await _tiers(http))["watermark"].values())


async def _watch(node: Node, http: httpx.AsyncClient, load: Load) -> None:
    """Ask and look, a few times a second, until the time is over."""
    ledger = load.checker.ledger
    ledger.read()
    first, began = ledger.acknowledged, time.monotonic()
    at = 0
    while time.monotonic() < began + load.minutes * 60:
        at += 1
        asked = time.monotonic()
        body = {"ids": [f"k/{(at * 7 + n) % IDS}" for n in range(20)], "deadline_ms": DEADLINE_MS}
        load.answers[(await http.post("/v1/retrieve", json=body)).status_code] += 1
        load.took_ms.append((time.monotonic() - asked) * 1000)
        if at % 5 == 0:
            ledger.read()  # little by little: the proxies are on this loop, and a node whose lease is held up ends
            load.rss_mb.append((time.monotonic() - began, _rss_mb(node.pid)))
            load.paused += bool((await _tiers(http))["paused"])
        await asyncio.sleep(0.1)
    ledger.read()
    load.sent = (ledger.acknowledged - first) / (time.monotonic() - began)


def _rss_mb(pid: int) -> float:
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="overload-") as scratch:
        load = asyncio.run(overload(Path(scratch), given.minutes))
    if given.json:
        given.json.write_text(json.dumps({"line": load.line, "rss_mb": load.rss_mb, "answers": dict(load.answers)}))
    print("\n".join([*load.wrong, load.line]), flush=True)  # noqa: T201 - what it is for
    return 1 if load.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
