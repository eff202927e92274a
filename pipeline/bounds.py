"""The HTTP server's own bounds: what a request's head may hold, how long it may take, how many connections there are.

uvicorn bounds bodies by back-pressure, but a head it keeps whole, whatever its size. Here a head is counted as it
comes, before it is kept: at the bound the connection gets a problem object and is closed.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from asyncio.events import TimerHandle
from collections.abc import Callable
from typing import Any, ClassVar

from starlette.responses import Response
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from pipeline.problems import MEDIA_TYPE, PROBLEMS, encoded
from pipeline.settings import GatewaySettings

AtOnce = Callable[[Any], Response | None]  # given the scope

LINGER_S = 1.0  # a refused client gets so long to stop sending and read why
DIRECT = "isotherm.direct"  # there too: a `Direct`
ABORT = "isotherm.abort"  # in the scope's extensions: ends the connection at once, unsent bytes and all


class _TooMuch(Exception):
    """The head is past a bound; `kind` is the problem's."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


class Direct:
    """What is faster than by ASGI's messages for a request: all of its body, all of its answer."""

    __slots__ = ("_cycle", "_protocol")

    def __init__(self, protocol: BoundedProtocol, cycle: RequestResponseCycle) -> None:
        self._protocol, self._cycle = protocol, cycle

    def body(self) -> bytes | None:
        """Return the body if all of it has come; to be asked once."""
        return None if self._cycle.more_body or self._cycle.disconnected else bytes(self._cycle.body)

    def reply(self, answer: Response) -> bool:
        """Write an answer, unless what was written before it waits to be read; returns whether it did."""
        if self._protocol.flow.write_paused:
            return False
        self._protocol.write(self._cycle, answer)
        return True


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with bounds. Make a class for a gateway with `bounded`."""

    limits: ClassVar[GatewaySettings]
    at_once: AtOnce

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._in_head = True
        self._head_bytes = 0
        self._refusal: _TooMuch | None = None
        self._refused = False
        self._head_timer: TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or refuse it where there are enough."""
        if len(self.connections) >= self.limits.connections_max:
            self.transport = transport
            self.flow = FlowControl(transport)
            self._refuse("busy", f"at most {self.limits.connections_max} connections at once")
            return
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer with the connection."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what belongs to a head, then parse."""
        if self._refused:
            return
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if not self._in_head or not self._head_bytes or self._refusal is not None:
            return
        if self._head_bytes > self._head_bytes_max:
            self._refuse("headers-too-large", f"path and headers have at most {self._head_bytes_max} bytes together")
        elif self._head_timer is None:  # most heads come in one piece
            self._await_head()

    def send_400_response(self, msg: str) -> None:
        """Refuse what the parser gave up on: our own bounds, or what is no HTTP."""
        refusal = self._refusal
        if refusal is not None:
            self._refuse(refusal.kind, str(refusal))
        else:
            self._refuse("invalid", msg)

    # -- the parser's callbacks ----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin a head."""
        super().on_message_begin()
        self._header_bytes = 0
        self.scope["extensions"] = {ABORT: self.abort}  # type: ignore[dict-item]

    def on_url(self, url: bytes) -> None:
        """Take a part of path and query."""
        if len(self.url) + len(url) > self.limits.url_bytes_max:
            self._stop("uri-too-long", f"path and query have at most {self.limits.url_bytes_max} bytes")
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self._header_bytes += len(name) + len(value)
        limits = self.limits
        if len(self.headers) >= limits.headers_max or self._header_bytes > limits.header_bytes_max:
            most = f"at most {limits.headers_max} headers with {limits.header_bytes_max} bytes together"
            self._stop("headers-too-large", most)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """End the head: what follows is the body, which its reader bounds."""
        self._in_head = False
        self._stop_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End the request: what follows is the next head."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Answer at once what can be, without a task and with one write, unless what was written before is not read.

        Of requests that came together each waits for the one before, and so takes turns with everyone else's.
        """
        answer = None if self.flow.write_paused else self.at_once(cycle.scope)
        if answer is None:
            cycle.scope["extensions"][DIRECT] = Direct(self, cycle)  # type: ignore[assignment]
            super()._start_asgi_task(cycle, app)
        else:  # once all that came in this loop step is read: one answer alone wakes its reader alone, which costs more
            self.loop.call_soon(self.write, cycle, answer)

    def write(self, cycle: RequestResponseCycle, answer: Response) -> None:
        """Write a whole answer in one piece; what the cycle's `send` does with two messages."""
        if cycle.disconnected:
            return
        parts = [STATUS_LINE[answer.status_code]]
        named = False
        for name, value in (*cycle.default_headers, *answer.raw_headers):
            parts += (name, b": ", value, b"\r\n")
            named = named or name == b"connection"  # no answer of ours says anything there but "close"
        if not (named or cycle.keep_alive):
            parts.append(b"connection: close\r\n")
        cycle.keep_alive = cycle.keep_alive and not named
        parts += (b"\r\n", bytes(answer.body))
        self.transport.write(b"".join(parts))
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response, done = _nothing, cycle.on_response  # as uvicorn does: no cycle of references is left
        done()

    def abort(self) -> None:
        """End the connection at once; the kernel does not keep what was not taken either."""
        kernel = self.transport.get_extra_info("socket")
        kernel.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    # -- inside --------------------------------------------------------------------------------------------------------

    @property
    def _head_bytes_max(self) -> int:
        return self.limits.url_bytes_max + self.limits.header_bytes_max + 1024  # method, version, colons, line ends

    def _stop(self, kind: str, detail: str) -> None:
        self._refusal = _TooMuch(kind, detail)
        raise self._refusal  # the parser gives up, and uvicorn calls send_400_response

    def _refuse(self, kind: str, detail: str) -> None:
        """Write a problem object and close; what still comes is thrown away.

        To close at once would reset a connection that is still being written to, and the answer would be lost with it.
        """
        self._refused = True
        self._stop_timer()
        status = PROBLEMS[kind][0]
        body = encoded(status, kind, detail)
        head = f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n"
        head += "retry-after: 1\r\n" if status == 503 else ""
        self.transport.write(STATUS_LINE[status] + head.encode() + b"\r\n" + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._head_timer = self.loop.call_later(LINGER_S, self.transport.close)

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self.limits.request_s, self._late)

    def _late(self) -> None:
        """Close an idle connection; tell a request whose head did not come in time."""
        busy = self.cycle is not None and not self.cycle.response_complete  # a pipelined request may wait its turn
        if self.transport.is_closing() or busy:
            return
        if self._head_bytes:
            self._refuse("request-timeout", f"a request's head takes at most {self.limits.request_s:g} s")
        else:
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def _nothing() -> None:
    """Do nothing."""


def bounded(settings: GatewaySettings, at_once: AtOnce = lambda _: None) -> type[BoundedProtocol]:
    """Return the protocol class for these settings; `at_once` answers what needs no task (`Edge.at_once`)."""
    return type("Bounded", (BoundedProtocol,), {"limits": settings, "at_once": staticmethod(at_once)})
