"""A node of the harness: born in the nursery, watched by its log, killed in many ways."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Self

import httpx

from tests.chaos.armed import BREAK, CRASH, POINT, REACHED

FATAL = b"isotherm: "


class Nursery:
    """The process that forks nodes (nursery.py). One birth at a time; deaths are told as they come."""

    async def __aenter__(self) -> Self:
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.chaos.nursery", stdin=pipe, stdout=pipe
        )
        assert self._process.stdout
        assert json.loads(await self._process.stdout.readline()) == {"ready": True}
        self._born: asyncio.Queue[tuple[int, asyncio.Future[int]]] = asyncio.Queue()
        self._hearing = asyncio.create_task(self._hear())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        await self._process.wait()
        await self._hearing

    async def _hear(self) -> None:
        assert self._process.stdout
        alive: dict[int, asyncio.Future[int]] = {}  # a process id may come again once its node is dead
        async for line in self._process.stdout:
            said = json.loads(line)
            if "status" in said:
                alive.pop(said["pid"]).set_result(said["status"])
            else:
                alive[said["pid"]] = asyncio.get_running_loop().create_future()
                self._born.put_nowait((said["pid"], alive[said["pid"]]))

    async def bear(
        self, arguments: list[str], environment: dict[str, str], log: Path
    ) -> tuple[int, asyncio.Future[int]]:
        """Return the process id of a new node, and the future of its exit status."""
        assert self._process.stdin
        wanted = {"arguments": arguments, "environment": environment, "log": str(log)}
        self._process.stdin.write(json.dumps(wanted).encode() + b"\n")
        return await self._born.get()


class Node:
    """One life: `status` once it is dead, `address` once it listens, `ready` once it answers."""

    def __init__(self, pid: int, death: asyncio.Future[int], log: Path, at: int, began: float) -> None:
        self.pid, self.death, self._log, self._at, self.began = pid, death, log, at, began
        self.address = ""
        self.ready_s: float | None = None  # when it first answered, on the monotonic clock

    @classmethod
    async def start(
        cls, nursery: Nursery, settings: dict[str, Any], log: Path, *, point: str = "", rule: str = "", crash: str = ""
    ) -> Node:
        """Bear a node with these settings; armed with `point` ("name hit deed") if given."""
        given = [part for key, value in settings.items() for part in ("-s", f"{key}={value}")]
        environment = {name: text for name, text in ((POINT, point), (BREAK, rule), (CRASH, crash)) if text}
        at = _size(log)
        pid, death = await nursery.bear(["run", *given], environment, log)
        return cls(pid, death, log, at, time.monotonic())

    @property
    def dead(self) -> bool:
        """Whether it has ended."""
        return self.death.done()

    def said(self) -> bytes:
        """Return its log."""
        if not self._log.exists():  # it has not been born yet
            return b""
        with self._log.open("rb") as file:
            file.seek(self._at)
            return file.read()

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the log's lines of an event."""
        mark = f'"{name}"'.encode()
        found = [line for line in self.said().splitlines() if mark in line]
        return [said for line in found if (said := _parsed(line)).get("event") == name]

    @property
    def reached(self) -> bool:
        """Whether the armed point was reached."""
        return bool(self.events(REACHED))

    def reason(self) -> str:
        """Return why it ended, as its log says: the command line's last line, or a service's where that is missing."""
        lines = [line for line in self.said().splitlines() if line.startswith(FATAL)]
        if lines:
            return lines[-1].removeprefix(FATAL).decode(errors="replace")
        return " ".join(f"{each['service']}: {each['error']}" for each in self.events("service.failed"))

    async def ready(self, timeout_s: float) -> bool:
        """Wait until it answers; False when it died before, or the time is over."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self.dead and not self.address:
                    listening = self.events("gateway.listening")
                    self.address = listening[0]["address"] if listening else ""
                    await asyncio.sleep(0 if self.address else 0.05)
                async with httpx.AsyncClient(timeout=5) as http:
                    while not self.dead:
                        try:
                            if (await http.get(f"{self.address}/readyz")).status_code == 200:
                                self.ready_s = time.monotonic()
                                return True
                        except httpx.TransportError:
                            pass
                        await asyncio.sleep(0.05)
        except TimeoutError:
            pass
        return False

    async def dies(self, timeout_s: float) -> bool:
        """Wait until it is dead; says whether it is."""
        await asyncio.wait({self.death}, timeout=timeout_s)
        return self.dead

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        if not self.dead:
            os.kill(self.pid, number)

    async def kill(self) -> None:
        """SIGKILL it, stopped or not."""
        self.signal(signal.SIGKILL)
        await self.death

    def replayed(self) -> tuple[int, float] | None:
        """Return the offsets between the committed ones and the end of the log at the start, and the seconds taken."""
        opened = self.events("node.opened")
        if not opened or self.ready_s is None:
            return None
        rows = sum(opened[0]["end"].values()) - sum(opened[0]["start"].values())
        return rows, sum(line["took_ms"] for line in self.events("batch.ingested")) / 1000


def _size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        said: dict[str, Any] = json.loads(line)
    except ValueError:
        return {}
    return said
