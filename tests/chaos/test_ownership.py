"""An owner that was stopped for longer than its lease, taken over meanwhile, and continued: nothing of it lands.

The owner stops itself (SIGSTOP) at a named point right before a write. The node that takes over has a copy of its
data directory, as after a move to another machine, and the same archive, Valkey and log.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
from deltalake import DeltaTable
from redis.asyncio import Redis

from pipeline import demo_checks
from pipeline.stack import Stack
from tests.chaos.audit import committed
from tests.chaos.nodes import Node, Nursery
from tests.chaos.producer import Sender, vector_of
from tests.chaos.world import SETTINGS
from tests.nodes import until

READY_S, LEASE_S = 90.0, 6.0
IDS = [f"k/{n}" for n in range(40)]
UPDATED, DELETED = IDS[:20], IDS[20:30]
PARTITIONS = 2


def settings(stack: Stack, prefix: str, tmp_path: Path, data: str) -> dict[str, Any]:
    """A node on its own directory, and on the archive of all."""
    where = {"data": tmp_path / data, "kafka.bootstrap": stack.kafka, "warm.url": stack.redis}
    names = {"kafka.prefix": prefix, "warm.prefix": prefix, "kafka.partitions": PARTITIONS}
    times = {"node.lease_ttl_s": LEASE_S, "node.drain_s": 4.0, "policy.warm_heat_min": 0.0}
    return {**SETTINGS, **where, **names, **times, "glacier.path": tmp_path / "glacier"}


async def put(address: str, ids: list[str], n: int) -> None:
    """Publish event n of these ids through a gateway, and wait until it is applied there."""
    body = [{"id": i, "vector": vector_of(i, n).tolist(), "payload": {"n": n}} for i in ids]
    async with httpx.AsyncClient(base_url=address, timeout=60) as http:
        for each in body:
            answer = await http.post("/v1/memories", json=each)
            assert 202 == answer.status_code, answer.text
        token = {"at_least": answer.json()["token"]}
        assert 200 == (await http.get(f"/v1/memories/{ids[-1]}", params=token)).status_code


async def listing(address: str) -> dict[str, int]:
    """Return which event of each id is there."""
    async with httpx.AsyncClient(base_url=address, timeout=60) as http:
        hits = (await http.post("/v1/retrieve", json={"ids": IDS})).json()["hits"]
    return {hit["id"]: hit["payload"]["n"] for hit in hits}


async def at_rest(address: str) -> bool:
    """Say whether everything of a node is in glacier, and nothing is superseded."""
    async with httpx.AsyncClient(base_url=address, timeout=60) as http:
        tiers = (await http.get("/v1/tiers")).json()["tiers"]
    above = sum(tiers[name]["records"] + tiers[name]["tombstones"] for name in ("hot", "warm", "cold"))
    return not above and not sum(tier["queued"] for tier in tiers.values())


async def fenced(redis: str) -> int:
    """Return how often the server's scripts have refused an epoch."""
    async with Redis.from_url(redis) as client:
        return int((await client.info("errorstats")).get("errorstat_FENCED", {"count": 0})["count"])


async def state(stack: Stack, prefix: str, tmp_path: Path) -> tuple[object, ...]:
    """Return what lies in the stores that both could write to."""
    warm = {(identifier, row.version) for identifier, row in await demo_checks.read_warm(stack.redis, prefix)}
    archive = DeltaTable(str(tmp_path / "glacier"))
    return warm, archive.version(), sorted(archive.file_uris()), committed(stack.kafka, prefix, PARTITIONS)


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("point", "refusal"),
    [
        ("warm.packed", "FENCED"),  # between the look at the epoch and the script
        ("archive.file_written", ""),  # a file is there, and no log entry names it
        ("archive.admitted", ""),  # between the look at the archive's epoch and the entry
        ("commit.due", ""),
    ],
)
async def test_a_stopped_owner_is_fenced(stack: Stack, prefix: str, tmp_path: Path, point: str, refusal: str) -> None:
    """It ends with an error, and the stores are as the new owner left them."""
    async with Nursery() as nursery:
        owner = await Node.start(
            nursery, settings(stack, prefix, tmp_path, "node"), tmp_path / "owner.log", point=f"{point} 3 stop"
        )
        try:
            assert await owner.ready(READY_S), owner.said()
            await _until_stopped(owner, stack.kafka, f"{prefix}.memories", tmp_path / "ledger")
            early = await Node.start(nursery, settings(stack, prefix, tmp_path, "fresh"), tmp_path / "early.log")
            assert await early.dies(READY_S)
            assert 1 == early.death.result()
            assert "is owned by" in early.reason()
            await asyncio.to_thread(shutil.copytree, tmp_path / "node", tmp_path / "moved")
            await until(lambda: _expired(stack.redis, prefix), READY_S)
            heir = await Node.start(nursery, settings(stack, prefix, tmp_path, "moved"), tmp_path / "heir.log")
            assert await heir.ready(READY_S), heir.said()
            await put(heir.address, UPDATED, 7)
            await _delete(heir.address, DELETED)
            wanted = dict.fromkeys(IDS, 0) | dict.fromkeys(UPDATED, 7)
            wanted = {identifier: n for identifier, n in wanted.items() if identifier not in DELETED}
            assert wanted == {i: n for i, n in (await listing(heir.address)).items() if n in (0, 7)}
            await until(lambda: at_rest(heir.address), READY_S)
            await heir.kill()  # so that nobody but the owner can change the stores
            before, refused = await state(stack, prefix, tmp_path), await fenced(stack.redis)
            owner.signal(signal.SIGCONT)
            assert await owner.dies(READY_S), owner.said()[-2_000:]
            assert owner.death.result() > 0, owner.reason()
            assert any("Fenced" in failed["error"] for failed in owner.events("node.failed")), owner.reason()
            assert before == await state(stack, prefix, tmp_path)
            assert not refusal or refused < await fenced(stack.redis)
            heir = await Node.start(nursery, settings(stack, prefix, tmp_path, "moved"), tmp_path / "heir.log")
            assert await heir.ready(READY_S), heir.said()
            assert wanted == await listing(heir.address)
            await heir.kill()
        finally:
            await owner.kill()


@pytest.mark.timeout(400)
async def test_a_commit_that_lands_late_costs_a_replay_and_nothing_else(
    stack: Stack, prefix: str, tmp_path: Path
) -> None:
    """Stopped between the look at its lease and the commit: Kafka takes the old offset, and knows no epoch of ours.

    It is the one write of a former owner that can land. It carries a watermark that was true, so the next start replays
    more, and shows the same.
    """
    async with Nursery() as nursery:
        owner = await Node.start(
            nursery, settings(stack, prefix, tmp_path, "node"), tmp_path / "owner.log", point="commit.checked 2 stop"
        )
        try:
            assert await owner.ready(READY_S), owner.said()
            await _until_stopped(owner, stack.kafka, f"{prefix}.memories", tmp_path / "ledger")
            await asyncio.to_thread(shutil.copytree, tmp_path / "node", tmp_path / "moved")
            await until(lambda: _expired(stack.redis, prefix), READY_S)
            given = settings(stack, prefix, tmp_path, "moved")
            heir = await Node.start(nursery, given, tmp_path / "heir.log")
            assert await heir.ready(READY_S), heir.said()
            await put(heir.address, UPDATED, 7)
            await _delete(heir.address, DELETED)
            await until(lambda: at_rest(heir.address), READY_S)
            wanted = await listing(heir.address)
            await heir.kill()
            before = committed(stack.kafka, prefix, PARTITIONS)
            owner.signal(signal.SIGCONT)
            assert await owner.dies(READY_S), owner.said()[-2_000:]
            assert owner.death.result() > 0
            after = committed(stack.kafka, prefix, PARTITIONS)
            assert all(after[partition] <= offset for partition, offset in before.items())
            assert after != before, "the old offset has landed: it is what the next start reads on from"
            heir = await Node.start(nursery, given, tmp_path / "heir.log")
            assert await heir.ready(READY_S), heir.said()
            assert wanted == await listing(heir.address)
            await heir.kill()
        finally:
            await owner.kill()


async def _until_stopped(owner: Node, broker: str, topic: str, ledger: Path) -> None:
    """Publish every id's event 0, and records of other ids until the owner has stopped itself at its point."""
    sender = Sender(broker, topic, ledger)
    for identifier in IDS:
        sender.send(identifier, deleted=False)
    await asyncio.to_thread(sender.close)
    n = 0

    async def reached() -> bool:
        nonlocal n
        n += 1
        sender.send(f"other/{n}", deleted=False)
        await asyncio.to_thread(sender.step, 0.02)
        return owner.reached

    await until(reached, READY_S)
    await asyncio.to_thread(sender.close)


async def _delete(address: str, ids: list[str]) -> None:
    async with httpx.AsyncClient(base_url=address, timeout=60) as http:
        for identifier in ids:
            answer = await http.delete(f"/v1/memories/{identifier}")
            assert 202 == answer.status_code, answer.text
        token = {"at_least": answer.json()["token"]}
        assert 404 == (await http.get(f"/v1/memories/{ids[-1]}", params=token)).status_code


async def _expired(redis: str, prefix: str) -> bool:
    async with Redis.from_url(redis) as client:
        return not any([await client.exists(f"{{{prefix}:{p}:lease}}") for p in range(PARTITIONS)])
