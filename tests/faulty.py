"""A proxy in front of an S3 server that answers 503, never answers, or answers and loses the answer, as a test asks.

It counts what passes, by method and path: what the product says of its own requests is compared with that.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Self

HEAD_BYTES_MAX = 1 << 16
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


@dataclass
class Fault:
    """What to do to the next `times` requests of a method whose path fits.

    "503": refuse. "cut": end the connection and pass nothing on. "lost": pass it on, then end the connection without
    the answer. "late": end the connection, and pass it on when the test says so (`Proxy.deliver`). "hang": pass nothing
    on and never answer. "502": pass it on, then answer as a gateway whose server did not.
    """

    kind: str
    method: str
    path: str
    times: int = 1
    seen: int = 0

    def fits(self, method: str, path: str) -> bool:
        return self.seen < self.times and method == self.method and re.search(self.path, path) is not None


@dataclass
class Request:
    method: str
    path: str
    head: bytes
    body: bytes = b""


@dataclass
class Proxy:
    """Use as a context manager; `address` is its URL. Everything but `faults` and the counts is on its own thread."""

    upstream: str
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    bodies: Counter[str] = field(default_factory=Counter)
    late: list[Request] = field(default_factory=list)
    _serving: set[asyncio.Task[None]] = field(default_factory=set)

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def inject(self, kind: str, method: str, path: str, times: int = 1) -> Fault:
        """Ask for a fault; the first that fits counts."""
        self.faults.append(fault := Fault(kind, method, path, times))
        return fault

    def deliver(self) -> list[int]:
        """Pass on what was kept back, and return the statuses that the server answers with."""
        kept, self.late = self.late, []
        return [int(self._do(self._ask(request)).split(b" ", 2)[1]) for request in kept]

    def count(self, method: str, path: str = "") -> int:
        """Return how many such requests came."""
        return sum(m == method and re.search(path, p) is not None for m, p in self.requests)

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _close(self) -> None:
        self._server.close()
        await self._server.wait_closed()
        while self._serving:  # a connection that was just accepted begins to be served after this
            for task in self._serving:
                task.cancel()
            await asyncio.wait(self._serving)
        await asyncio.sleep(0)  # transports close at the loop's next step

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)  # a server's tasks are held by nobody else
        try:
            request = await self._read(reader)
            self.requests.append((request.method, request.path))
            self.bodies[request.method] += len(request.body)
            answer = await self._answer(request)
            if answer:
                writer.write(answer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._serving.discard(task)

    async def _answer(self, request: Request) -> bytes:
        fault = next((each for each in self.faults if each.fits(request.method, request.path)), None)
        if fault is None:
            return await self._ask(request)
        fault.seen += 1
        if fault.kind == "503":
            return _response(b"503 Slow Down", SLOW_DOWN)
        if fault.kind == "hang":
            await asyncio.Event().wait()
        if fault.kind == "late":
            self.late.append(request)
        if fault.kind in ("lost", "502"):
            await self._ask(request)
        return _response(b"502 Bad Gateway", b"") if fault.kind == "502" else b""

    async def _ask(self, request: Request) -> bytes:
        """Pass a request on, on a connection of its own, and return the whole answer."""
        host, _, port = self.upstream.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(request.head + request.body)
            await writer.drain()
            return await reader.read()
        finally:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> Request:
        """Read one request whole; one a connection, which is closed after the answer."""
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head[:-4].split(b"\r\n")
        method, path, _ = first.decode().split(" ")
        fields = {name.strip().lower(): value.strip() for name, _, value in (each.partition(b":") for each in lines)}
        kept = [each for each in lines if not each.lower().startswith((b"connection:", b"expect:"))]
        passed = b"\r\n".join([first, *kept, b"Connection: close", b"", b""])
        return Request(method, path, passed, await reader.readexactly(int(fields.get(b"content-length", b"0"))))


def _response(status: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (status, len(body), body)
