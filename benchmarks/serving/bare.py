"""The baseline: an ASGI application that does nothing but answer, on the server that the gateway is served by."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.types import Receive, Scope, Send

from pipeline.bounds import bounded
from pipeline.serve import Server
from pipeline.settings import GatewaySettings


class Bare:
    """Answers every request with the same bytes and headers, at once or after `wait_s`."""

    def __init__(self, headers: list[tuple[bytes, bytes]], body: bytes, wait_s: float = 0.0) -> None:
        self._headers, self._body, self._wait_s = headers, body, wait_s

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Answer."""
        if self._wait_s:
            await asyncio.sleep(self._wait_s)
        await send({"type": "http.response.start", "status": 200, "headers": self._headers})
        await send({"type": "http.response.body", "body": self._body})


@asynccontextmanager
async def served(app: Bare, settings: GatewaySettings) -> AsyncIterator[int]:
    """Serve it in this loop, by the same protocol class and options as the gateway; yields the port."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    config = uvicorn.Config(app, http=bounded(settings), ws="none", log_config=None, access_log=False, lifespan="off")
    server = Server(config)
    async with asyncio.TaskGroup() as group:
        group.create_task(server.serve(sockets=[listening]), name="bare")
        try:
            yield int(listening.getsockname()[1])
        finally:
            server.should_exit = True
