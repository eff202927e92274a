"""Everything of one run: real Kafka and Valkey behind proxies, the nursery, one node at a time, the producer."""

from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

from pipeline.stack import Stack
from tests.chaos.nodes import Node, Nursery
from tests.chaos.producer import DIM
from tests.chaos.proxy import Proxy

PARTITIONS = 4
PREFIX = "chaos"
LEASE_S, DRAIN_S = 8.0, 6.0

#: Everything happens within seconds: records pass through all four tiers, files are compacted, leases run out.
SETTINGS: dict[str, Any] = {
    "dim": DIM,
    "kafka.prefix": PREFIX,
    "kafka.partitions": PARTITIONS,
    "kafka.send_timeout_s": 10.0,
    "warm.prefix": PREFIX,
    "hot.device": "cpu",
    "hot.capacity_rows": 8_192,
    "hot.slab_rows": 64,
    "policy.hot_age_s": 0.5,
    "policy.warm_idle_s": 1.0,
    "policy.cold_idle_s": 1.5,
    "policy.heat_half_life_s": 2.0,
    "policy.warm_heat_min": 0.7,
    "policy.promote_heat_min": 2.0,
    "policy.copy_heat_min": 0.9,
    "age.interval_ms": 100,
    "age.ask_again_s": 1.0,
    "age.glacier_flush_s": 0.3,
    "access.flush_ms": 100,
    "move.upkeep_ms": 100,
    "move.compact_s": 0.5,
    "commit.interval_ms": 100,
    "cold.checkpoint_bytes": 65_536,
    "cold.segment_bytes": 32_768,
    "glacier.vacuum_after_s": 1.0,
    "index.train_rows": 300,
    "index.recall_s": 0.0,
    "node.lease_ttl_s": LEASE_S,
    "node.drain_s": DRAIN_S,
    "gateway.port": 0,
    "gateway.rate_per_s": 0.0,
    "log.format": "json",
}
LISTENERS = """
listeners=PLAINTEXT://{{host}}:{{kafka}},CONTROLLER://{{host}}:{{controller}},PROXIED://{{host}}:{inner}
advertised.listeners=PLAINTEXT://{{host}}:{{kafka}},CONTROLLER://{{host}}:{{controller}},PROXIED://{{host}}:{outer}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT
"""


class World:
    """`node` is the life that is on now. `rule` names a rule of the product that every node of it breaks."""

    def __init__(self, directory: Path, rule: str = "", **settings: Any) -> None:
        self.directory, self._rule = directory, rule
        self._more = {key.replace("__", "."): value for key, value in settings.items()}
        self.log, self.ledger = directory / "node.log", directory / "ledger.jsonl"
        self.kafka, self.valkey = Proxy(), Proxy()
        self.node: Node | None = None
        self._producer: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.kafka)
            await stack.enter_async_context(self.valkey)
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.kafka.target = int(probe.getsockname()[1])
            listeners = LISTENERS.format(inner=self.kafka.target, outer=self.kafka.port)
            self.servers = Stack(self.directory / "stack", kafka_properties=listeners, kafka_heap_mb=512)
            await stack.enter_async_context(self.servers)
            self.valkey.target = self.servers.ports.valkey
            self.nursery = await stack.enter_async_context(Nursery())
            stack.push_async_callback(self._end)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _end(self) -> None:
        if self._producer is not None and self._producer.returncode is None:
            self._producer.kill()
            await self._producer.wait()
        if self.node is not None:
            await self.node.kill()

    def settings(self, through: str = "", **more: Any) -> dict[str, Any]:
        """Return a node's settings; `through` "kafka" or "valkey" puts that proxy in between."""
        kafka = f"127.0.0.1:{self.kafka.port}" if through == "kafka" else self.servers.kafka
        warm = f"redis://127.0.0.1:{self.valkey.port}/0" if through == "valkey" else self.servers.redis
        where = {"data": self.directory / "node", "kafka.bootstrap": kafka, "warm.url": warm}
        return {**SETTINGS, **self._more, **where, **more}

    async def start(self, point: str = "", through: str = "", **more: Any) -> Node:
        """Begin a life; the one before is over."""
        assert self.node is None or self.node.dead, "one node at a time"
        self.node = await Node.start(
            self.nursery, self.settings(through, **more), self.log, point=point, rule=self._rule
        )
        return self.node

    async def produce(self, seed: int, ids: int, rate: float, prefix: str = PREFIX) -> None:
        """Start the producer."""
        arguments = [self.servers.kafka, prefix, str(self.ledger), str(seed), str(ids), str(rate)]
        self._producer = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.chaos.producer", *arguments, stdin=asyncio.subprocess.PIPE
        )

    async def stop_producing(self) -> int:
        """Let the producer end what it has begun; returns its exit status."""
        assert self._producer is not None
        assert self._producer.stdin is not None
        self._producer.stdin.close()
        return await self._producer.wait()
