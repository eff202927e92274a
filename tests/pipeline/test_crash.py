"""SIGKILL: the node dies in the middle of a stream, again and again, and nothing that was acknowledged is missing."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import httpx
import numpy as np
import pytest

from pipeline.demo import audit
from pipeline.demo_checks import Checks
from pipeline.demo_node import NodeProcess
from pipeline.stack import Stack
from producers import KafkaSettings, MemoryProducer
from tests.nodes import until

DIM = 256
KILLS = 4
PARTITIONS = 8


@pytest.mark.timeout(240)
async def test_a_node_killed_in_the_middle_of_a_stream_has_everything_after_a_restart(
    stack: Stack, prefix: str, tmp_path: Path
) -> None:
    """Every acknowledged record, update and delete is there after each SIGKILL (R1), and the ledger still folds."""
    node = NodeProcess(tmp_path, stack, {"kafka.prefix": prefix, "warm.prefix": prefix, "embedder": ""})
    settings = KafkaSettings(bootstrap=stack.kafka, prefix=prefix, partitions=PARTITIONS)
    dice = random.Random(1)
    known: dict[str, int | None] = {}
    try:
        async with MemoryProducer(settings) as producer:
            for life in range(KILLS):
                address = await node.start()
                publishing = asyncio.create_task(_publish(producer, known, life))
                await asyncio.sleep(dice.uniform(1.0, 4.0))
                await node.kill()
                await publishing
                assert address
        address = await node.start()
        async with httpx.AsyncClient(base_url=address, timeout=30) as http:
            wrong = []
            for identifier, n in known.items():
                response = await http.get(f"/v1/memories/{identifier}")
                found = response.json()["payload"]["n"] if response.status_code == 200 else response.status_code
                if found != (n if n is not None else 404):
                    wrong.append((identifier, n, found))
            assert wrong == []
            listed = (await http.get("/v1/memories")).text.count("\n")
            assert sum(n is not None for n in known.values()) == listed
            await until(lambda: _quiet(http), 60)
        reported = await node.stop()
        assert sum(reported.values()) == listed
        checks = Checks()
        await audit(checks, tmp_path, stack, settings, reported, warm_prefix=prefix)
        assert [] == [check for check in checks.results if not check["ok"] and "all four" not in check["check"]]
    finally:
        await node.cleanup()


async def _publish(producer: MemoryProducer, known: dict[str, int | None], life: int) -> None:
    """Publish for about four seconds; what is in `known` was acknowledged."""
    rng = np.random.default_rng(life)
    for step in range(60):
        ids = [f"k/{rng.integers(0, 900)}" for _ in range(20)]
        ids = list(dict.fromkeys(ids))
        values = {identifier: None if rng.random() < 0.1 else life * 1_000 + step for identifier in ids}
        sent = []
        for identifier, n in values.items():
            if n is None:
                sent.append(await producer.publish(identifier, None))
            else:
                vector = rng.normal(size=DIM).astype(np.float32)
                sent.append(await producer.enqueue(identifier, vector, {"n": n}))
        await asyncio.gather(*sent)
        known.update(values)
        await asyncio.sleep(0.05)


async def _quiet(http: httpx.AsyncClient) -> bool:
    """Say whether nothing superseded waits any more."""
    tiers = (await http.get("/v1/tiers")).json()["tiers"]
    return not sum(tier["queued"] for tier in tiers.values())
