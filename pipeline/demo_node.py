"""A node as a child process, for the demo and for tests that kill one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from pipeline.stack import Stack
from tiers.errors import IsothermError

#: Fast ageing, so that everything happens within a minute; everything else is as it is by default.
SETTINGS = {
    "embedder": "wordllama",
    "attributes": '{"module": "string", "kind": "string", "length": "int"}',
    "hot.capacity_rows": 65_536,
    "hot.slab_rows": 1_024,
    "policy.hot_age_s": 4.0,
    "policy.warm_idle_s": 9.0,
    "policy.cold_idle_s": 15.0,
    "policy.heat_half_life_s": 6.0,
    "age.interval_ms": 500,
    "age.ask_again_s": 2.0,
    "age.glacier_flush_s": 4.0,
    "access.flush_ms": 250,
    "move.upkeep_ms": 250,
    "move.compact_s": 2.0,
    "gateway.port": 0,
    "log.format": "json",
}
PARTITIONS = 8


class NodeProcess:
    """`isotherm run` as a child, its log in a file."""

    def __init__(
        self,
        directory: Path,
        stack: Stack,
        more: dict[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.log, self._environment = directory / "node.log", os.environ | dict(environment or {})
        self._settings = {
            **SETTINGS,
            "data": directory / "node",
            "kafka.bootstrap": stack.kafka,
            "kafka.partitions": PARTITIONS,
            "warm.url": stack.redis,
            **(more or {}),
        }
        self._child: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """The process id of the running node."""
        assert self._child is not None, "it was started"
        return self._child.pid

    async def start(self) -> str:
        """Start it and wait until it is ready; returns the gateway's address."""
        given = [part for key, value in self._settings.items() for part in ("-s", f"{key}={value}")]
        position = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as out:
            self._child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "pipeline.cli", "run", *given, stdout=out, stderr=out, env=self._environment
            )
        while self._child.returncode is None:
            lines = self.log.read_bytes()[position:].splitlines()
            for line in lines:
                if b'"gateway.listening"' in line:
                    address = str(json.loads(line)["address"])
                    await self._ready(address)
                    return address
            await asyncio.sleep(0.05)
        raise IsothermError(f"the node did not start; its log ends: {self.log.read_text()[-1500:]}")

    @staticmethod
    async def _ready(address: str) -> None:
        async with httpx.AsyncClient(base_url=address) as http:
            while (await http.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.05)

    async def stop(self) -> dict[str, int]:
        """SIGTERM it; returns the records by tier that it reported at the end. IsothermError unless it exits 0."""
        assert self._child is not None, "it was started"
        self._child.send_signal(signal.SIGTERM)
        code = await self._child.wait()
        last = [line for line in self.log.read_bytes().splitlines() if b'"node.stopped"' in line]
        if code or not last:
            raise IsothermError(f"the node exited with {code}; its log ends: {self.log.read_text()[-1500:]}")
        return dict(json.loads(last[-1])["records"])

    async def kill(self) -> None:
        """SIGKILL it, as a crash would."""
        assert self._child is not None, "it was started"
        self._child.kill()
        await self._child.wait()

    @property
    def code(self) -> int | None:
        """The status that it ended with, None while it runs."""
        assert self._child is not None, "it was started"
        return self._child.returncode

    async def cleanup(self) -> None:
        """Leave nothing running."""
        if self._child is not None and self._child.returncode is None:
            await self.kill()
