"""How a node ends: in order and in time, or without committing; and never silently."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline import app
from pipeline.stack import Stack
from producers.events import encode_token
from tests.chaos.audit import committed
from tests.chaos.checker import Checker
from tests.chaos.ledger import Ledger
from tests.chaos.nodes import Node, Nursery
from tests.chaos.producer import Sender
from tests.chaos.world import SETTINGS
from tests.nodes import until

READY_S = 90.0
PARTITIONS = 2
DRAIN_S = 3.0
IDS = 900  # at 400 events a second an id is updated every two seconds: a slow machine has time to move it


def settings(stack: Stack, prefix: str, data: Path, **more: Any) -> dict[str, Any]:
    """A small node, ageing fast."""
    given = {key.replace("__", "."): value for key, value in more.items()}
    where = {"data": data, "kafka.bootstrap": stack.kafka, "warm.url": stack.redis}
    names = {"kafka.prefix": prefix, "warm.prefix": prefix, "kafka.partitions": PARTITIONS}
    return {**SETTINGS, **where, **names, "node.drain_s": DRAIN_S, "gateway.drain_s": 1.0, **given}


async def stream(sender: Sender, rate: int, stop: asyncio.Event) -> None:
    """Publish to the node's topic until stopped."""
    n = 0
    while not stop.is_set():
        for _ in range(rate // 20):
            sender.send(f"k/{n % IDS}", deleted=n % 11 == 0)
            n += 1
        await asyncio.to_thread(sender.step, 0.0)
        await asyncio.sleep(1 / 20)  # the rate: acknowledgements come sooner
    await asyncio.to_thread(sender.close)


@pytest.mark.timeout(300)
async def test_sigterm_under_load_drains_and_loses_nothing(stack: Stack, prefix: str, tmp_path: Path) -> None:
    """Messages and moves go on while it stops: exit 0 within the deadlines, and the next life has everything."""
    checker = Checker(Ledger(tmp_path / "ledger"))
    given, log = settings(stack, prefix, tmp_path / "node"), tmp_path / "log"
    async with Nursery() as nursery:
        node = await Node.start(nursery, given, log)
        assert await node.ready(READY_S), node.said()
        stop, sender = asyncio.Event(), Sender(stack.kafka, f"{prefix}.memories", tmp_path / "ledger")
        streaming = asyncio.create_task(stream(sender, 400, stop))
        await until(lambda: len(node.events("batch.moved")) > 10, READY_S)
        began = time.monotonic()
        node.signal(signal.SIGTERM)
        assert await node.dies(60)
        assert (0, True) == (node.death.result(), time.monotonic() - began < 1.0 + DRAIN_S + 5)
        assert node.events("node.stopped")
        stop.set()
        await streaming
        node = await Node.start(nursery, given, log)
        assert await node.ready(READY_S), node.said()
        await _all_there(node, checker)
        await node.kill()


async def _all_there(node: Node, checker: Checker) -> None:
    checker.ledger.read()
    ids = sorted(checker.ledger.events)
    token = encode_token({partition: end - 1 for partition, end in checker.ledger.ends.items()}, 0)
    async with httpx.AsyncClient(base_url=node.address, timeout=60) as http:
        response = await http.post("/v1/retrieve", json={"ids": ids, "at_least": token})
    found = {hit["id"]: hit["payload"]["n"] for hit in response.json()["hits"]}
    for identifier in ids:
        checker.settled(identifier, found.get(identifier), "read")
    assert [] == checker.wrong
    assert 100 < checker.ledger.acknowledged


@pytest.mark.timeout(300)
async def test_past_its_deadline_a_stop_ends_without_committing(stack: Stack, prefix: str, tmp_path: Path) -> None:
    """The thread that writes glacier never comes back, so a lane never ends: exit 1, and the offset stays.

    Whatever was ingested after the last commit is not committed by the stop, although it is durable in cold by now.
    """
    given = settings(stack, prefix, tmp_path / "node", commit__interval_ms=3_600_000)
    async with Nursery() as nursery:
        node = await Node.start(nursery, given, tmp_path / "log", point="archive.file_written 1 hang")
        assert await node.ready(READY_S), node.said()
        sender = Sender(stack.kafka, f"{prefix}.memories", tmp_path / "ledger")
        for n in range(50):
            sender.send(f"k/{n}", deleted=False)
        await asyncio.to_thread(sender.close)
        await until(lambda: node.reached, READY_S)
        began = time.monotonic()
        node.signal(signal.SIGTERM)
        assert await node.dies(90)
        took_s = time.monotonic() - began
    assert (1, True) == (node.death.result(), took_s > DRAIN_S)
    assert not node.events("node.stopped")
    assert node.events("node.overdue")
    assert {0: 0, 1: 0} == await asyncio.to_thread(committed, stack.kafka, prefix, PARTITIONS)


SERVICES = {
    "reader", "lane-0", "lane-1", "age", "access", "commit", "upkeep", "promotion", "expiry", "codes", "recall", "sql",
    "lease", "loop-probe", "log-watch", "gateway", "ending", "device", "publisher",
}  # fmt: skip


@pytest.mark.timeout(400)
async def test_a_service_that_breaks_ends_the_process(stack: Stack, prefix: str, tmp_path: Path) -> None:
    """Each of the node's services in turn: a status that is not 0, and its reason in the log (R9)."""
    wrong: list[object] = []
    async with Nursery() as nursery:
        for name in sorted(SERVICES):
            node = await Node.start(nursery, settings(stack, prefix, tmp_path / "node"), tmp_path / "log", crash=name)
            await node.dies(READY_S)
            if not node.dead or node.death.result() != 1 or f"{name} was broken" not in node.reason():
                wrong.append((name, node.death, node.said()[-500:]))
                await node.kill()
            assert set(node.events("services.named")[0]["names"]) == SERVICES
            failed = node.events("node.failed")
            if f"RuntimeError('{name} was broken on purpose')" not in [each["error"] for each in failed]:
                wrong.append((name, failed))
    assert [] == wrong


class Deaf:
    """A service whose first cancellation gets lost, as it did inside a client library."""

    name = "deaf"

    async def run(self, stop: asyncio.Event) -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await stop.wait()


class Failing:
    name = "failing"

    async def run(self, _: asyncio.Event) -> None:
        await asyncio.sleep(0)
        raise RuntimeError("broken")


class Ending:
    name = "ending"

    async def run(self, _: asyncio.Event) -> None:
        await asyncio.sleep(0)


@pytest.mark.unit
@pytest.mark.parametrize(("one", "reason"), [(Failing(), "broken"), (Ending(), "ended before it was told to")])
async def test_a_lost_cancellation_does_not_keep_a_broken_node_running(one: app.Service, reason: str) -> None:
    """The supervisor ends although a service has not heard that it was cancelled."""
    with pytest.raises(BaseExceptionGroup) as caught:
        async with asyncio.timeout(20):
            await app.supervise([Deaf(), one], asyncio.Event(), 1.0)
    assert reason in str(caught.value.exceptions[0])
