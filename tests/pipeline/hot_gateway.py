"""A gateway over records in hot, and nothing else: no log, no server, no loop. For what it costs, and what it answers.

`Wire` is a connection as uvicorn makes one, over a transport and a loop that only note what they are told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import uvicorn
from uvicorn.server import ServerState

from pipeline.app import Node
from pipeline.bounds import bounded
from pipeline.manager import MemoryManager
from pipeline.routes import Gateway
from pipeline.settings import Settings, load
from producers.access import Access
from producers.tracing import OFF
from tests.tiers.rows import NOW_MS
from tiers import record
from tiers.hot import HotMemory, HotSettings
from tiers.index import Index
from tiers.record import Row
from tiers.tier import TierName

DIM, ROWS = 8, 64
PAYLOAD = b'{"text": "' + b"x" * 178 + b'"}'
LATER_MS = 10_000_000_000_000


def settings_of(folder: Path, **given: Any) -> Settings:
    """Return settings; dots as double underscores."""
    more = {name.replace("__", "."): value for name, value in given.items()}
    return load(None, {}, {"data": str(folder), "dim": DIM, "attributes": {"user": "string", "rank": "int"}, **more})


def rows_of() -> list[Row]:
    """Return records of every kind: with and without attributes and payload, with JSON and without, that expire."""
    kinds: list[tuple[bytes, dict[str, Any], int | None]] = [
        (PAYLOAD, {"user": "u", "rank": 1}, None),
        (b"", {}, None),
        (b"\xff no JSON", {"user": "é"}, LATER_MS),
        (b"[1, 2]", {"rank": -7}, None),
    ]
    return [
        Row(f"id-{n}", record.pack_version(0, n), NOW_MS + n, expires, np.full(DIM, n + 1, np.float32), payload, some)
        for n, (payload, some, expires) in enumerate(kinds * (ROWS // len(kinds)))
    ]


async def hot_gateway(settings: Settings) -> Gateway:
    """Return a gateway over `rows_of` in hot, each poll of some rows a batch of its own."""
    shape = record.schema(settings.dim, settings.attributes)
    index = Index.of(shape)
    hot = HotMemory(HotSettings(device="cpu", capacity_rows=16_384), shape, partitions=1, index=index)
    rows = rows_of()
    for start in range(0, len(rows), 24):
        batch = record.to_batch(rows[start : start + 24], shape)
        slots = await hot.reserve(batch, 0)
        hot.publish(slots)
        index.put(batch, np.zeros(batch.num_rows, np.int32), TierName.HOT, slots, NOW_MS)
    access = Access(settings.access, cast("Any", None), "access", 1, lambda: NOW_MS)
    node = SimpleNamespace(
        settings=settings,
        index=index,
        hot=hot,
        copies=hot.copies,
        tiers={TierName.HOT: hot},
        tracing=OFF,
        embed=None,
        access=access,
        scanner=None,
        lanes={},
        ingest=None,
        replaying=list,
    )
    return Gateway(MemoryManager(cast("Node", node)))


def scope_of(path: str, method: str = "GET", query: bytes = b"", **headers: str) -> dict[str, Any]:
    """Return what the server makes of a request; underscores in names of headers are hyphens."""
    given = {"host": "127.0.0.1", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "scheme": "http",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }


async def asked(gateway: Gateway, scope: dict[str, Any], body: bytes = b"") -> tuple[int, dict[bytes, bytes], bytes]:
    """Return status, headers and body of an answer by the ASGI application."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await gateway.app(scope, receive, send)
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(message["body"] for message in sent[1:])


class Begun:
    """A task that was begun, and never ends."""

    def add_done_callback(self, _: object) -> None:
        """Do nothing."""


class Quiet:
    """A loop that does nothing by itself: `soon` is what it was told to do next, `tasks` what was begun."""

    def __init__(self) -> None:
        self.soon: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        self.tasks: list[Any] = []

    def call_soon(self, what: Callable[..., Any], *given: Any) -> None:
        """Note it."""
        self.soon.append((what, given))

    def call_later(self, *_: Any) -> Any:
        """Return a timer that never ends."""
        return SimpleNamespace(cancel=lambda: None)

    def create_task(self, work: Any, **_: Any) -> Any:
        """Note it."""
        self.tasks.append(work)
        return Begun()

    def turn(self) -> None:
        """Do what it was told."""
        soon, self.soon = self.soon, []
        for what, given in soon:
            what(*given)

    def close(self) -> None:
        """Forget what was begun."""
        for work in self.tasks:
            work.close()


class Noted(asyncio.Transport):
    """A transport that notes what is written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        """Note it."""
        self.written.append(bytes(data))

    def close(self) -> None:
        """Note it."""
        self.closed = True

    def is_closing(self) -> bool:
        """Say whether it was closed."""
        return self.closed

    def pause_reading(self) -> None:
        """Do nothing."""

    def resume_reading(self) -> None:
        """Do nothing."""


class Wire:
    """One connection to a gateway."""

    def __init__(self, gateway: Gateway) -> None:
        limits = gateway._settings.gateway
        config = uvicorn.Config(
            gateway.app, http=bounded(limits, gateway.app.at_once), ws="none", log_config=None, lifespan="off"
        )
        config.load()
        self.loop, self.transport = Quiet(), Noted()
        self.protocol: Any = config.http_protocol_class(config, ServerState(), {}, cast("Any", self.loop))
        self.protocol.connection_made(self.transport)

    def get(self, path: str, more: str = "", version: str = "1.1") -> bytes:
        """Return what a request is answered in its loop step; nothing where it becomes a task."""
        self.protocol.data_received(f"GET {path} HTTP/{version}\r\nHost: 127.0.0.1\r\n{more}\r\n".encode())
        before = len(self.transport.written)
        self.loop.turn()
        return b"".join(self.transport.written[before:])
