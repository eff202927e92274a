"""What is seen of every request, once: its id, its span, its log line, its count. Pure ASGI, so that streams stream.

`X-Request-Id` is taken from the client where it is plain, else made; it goes back with the answer, into problem
objects, and into every log line of the request. A route is known by its template, never by its path, which may hold an
id.
"""

from __future__ import annotations

import itertools
import re
import secrets
import time
from collections.abc import Mapping
from typing import Any, Protocol

import structlog
from opentelemetry.trace import Status, StatusCode
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from pipeline.bounds import DIRECT
from pipeline.read_counts import HttpCounts
from producers.tracing import SERVER, Tracing, asked_in

log = structlog.get_logger()

REQUEST_ID = b"x-request-id"
ROUTE = "isotherm.route"  # where the template of what was called is left in the ASGI scope
NONE: Mapping[str, Any] = {}
UNMATCHED = "unmatched"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_STARTED = secrets.token_hex(8).encode()  # this process
_numbers = itertools.count(1)
_PLAIN = re.compile(rb"[A-Za-z0-9._:-]{1,128}").fullmatch


class Answering(Protocol):
    """What is seen."""

    def at_once(self, scope: Scope) -> Response | None:
        """Return an answer that can be given in this loop step, or None."""

    async def answer(self, exchange: Exchange) -> None:
        """Answer."""


class Seen:
    """What stands around the gateway.

    Unless `verbose`, only requests that fail with 500 or more are logged: even a line that the level leaves out costs
    structlog as much as all the rest here.
    """

    def __init__(self, edge: Answering, counts: HttpCounts, tracing: Tracing, *, verbose: bool = False) -> None:
        self._edge, self._counts, self._tracing, self._verbose = edge, counts, tracing, verbose

    def at_once(self, scope: Scope) -> Response | None:
        """Return an answer that can be given in this loop step; None, with nothing seen: `__call__` answers."""
        if scope["method"] != "GET" or self._tracing.on or self._verbose:
            return None
        began = time.perf_counter()
        response = self._edge.at_once(scope)
        if response is not None:
            self._counts.answered(scope["method"], scope[ROUTE], response.status_code, time.perf_counter() - began)
            response.raw_headers.append((REQUEST_ID, _request_id(scope)))
        return response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See one request through."""
        assert scope["type"] == "http", "the server is told of neither a lifespan nor WebSockets"
        request_id = _request_id(scope)
        structlog.contextvars.bind_contextvars(request_id=request_id.decode())  # a request has a context of its own
        exchange = Exchange(scope, receive, send, request_id)
        if not self._tracing.on:
            await self._answer(exchange)
            return
        with self._tracing.work(exchange.method, kind=SERVER, context=asked_in(scope["headers"])) as work:
            try:
                await self._answer(exchange)
            finally:
                if work.span is not None:
                    route = scope.get(ROUTE, UNMATCHED)
                    work.span.update_name(f"{exchange.method} {route}")
                    work.span.set_attributes(
                        {
                            "http.request.method": exchange.method,
                            "http.route": route,
                            "http.response.status_code": exchange.status,
                        }
                    )
                    if exchange.status >= 500:
                        work.span.set_status(Status(StatusCode.ERROR))

    async def _answer(self, exchange: Exchange) -> None:
        try:
            await self._edge.answer(exchange)
        finally:
            method, status = exchange.method, exchange.status
            took_s = (exchange.answered or time.perf_counter()) - exchange.began
            route = exchange.scope.get(ROUTE, UNMATCHED)
            self._counts.answered(method, route, status, took_s)
            if self._verbose or status >= 500:
                say = log.error if status >= 500 else log.debug
                say("request.answered", method=method, route=route, status=status, took_ms=round(took_s * 1000, 3))


def _request_id(scope: Scope) -> bytes:
    """Return the client's own id of the request if it is plain, else a new one."""
    for name, value in scope["headers"]:
        if name == REQUEST_ID and _PLAIN(value):
            return bytes(value)
    return b"%s%016x" % (_STARTED, next(_numbers))


class Exchange:
    """One request on its way; its status is 500 until an answer begins."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: bytes) -> None:
        self.scope, self.receive, self._send, self._id = scope, receive, send, request_id
        self.method = scope["method"] if scope["method"] in METHODS else "other"
        self.status, self.began, self.answered = 500, time.perf_counter(), 0.0

    async def reply(self, response: Response) -> None:
        """Answer with a whole response: one write where the server offers that."""
        self._begin(response.status_code, response.raw_headers)
        direct = self.scope.get("extensions", NONE).get(DIRECT)
        if direct is None or self.scope["method"] == "HEAD" or not direct.reply(response):
            await response(self.scope, self.receive, self._send)

    async def send(self, message: Message) -> None:
        """Send a part of an answer."""
        if message["type"] == "http.response.start":
            message["headers"] = list(message.get("headers", ()))
            self._begin(message["status"], message["headers"])
        await self._send(message)

    def _begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Note that the answer begins, and give it the request's id."""
        self.status, self.answered = status, time.perf_counter()
        for name, _ in headers:
            if name.lower() == REQUEST_ID:
                return
        headers.append((REQUEST_ID, self._id))
