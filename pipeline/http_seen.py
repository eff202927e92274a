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
from collections.abc import Iterable, Mapping
from typing import Any

import structlog
from opentelemetry.trace import Status, StatusCode
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.read_counts import HttpCounts
from producers.tracing import SERVER, Tracing, asked_in

log = structlog.get_logger()

REQUEST_ID = b"x-request-id"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_STARTED = secrets.token_hex(8).encode()  # this process
_numbers = itertools.count(1)
_PLAIN = re.compile(rb"[A-Za-z0-9._:-]{1,128}").fullmatch


class Seen:
    """The middleware; `routes` are asked for the template of what was called.

    Unless `verbose`, only requests that fail with 500 or more are logged: even a line that the level leaves out costs
    structlog as much as all the rest here.
    """

    def __init__(
        self, app: ASGIApp, counts: HttpCounts, tracing: Tracing, routes: Iterable[BaseRoute], *, verbose: bool = False
    ) -> None:
        self._app, self._counts, self._tracing, self._verbose = app, counts, tracing, verbose
        self._templates = {route.endpoint: route.path for route in routes if isinstance(route, Route)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See one request through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        given = next((value for name, value in headers if name == REQUEST_ID), b"")
        request_id = given if _PLAIN(given) else b"%s%016x" % (_STARTED, next(_numbers))
        structlog.contextvars.bind_contextvars(request_id=request_id.decode())  # a request has a context of its own
        request = _Request(scope, send, request_id)
        if not self._tracing.on:
            await self._answer(request, receive)
            return
        with self._tracing.work(request.method, kind=SERVER, context=asked_in(headers)) as work:
            try:
                await self._answer(request, receive)
            finally:
                if work.span is not None:
                    route = self._route(scope)
                    work.span.update_name(f"{request.method} {route}")
                    work.span.set_attributes(
                        {
                            "http.request.method": request.method,
                            "http.route": route,
                            "http.response.status_code": request.status,
                        }
                    )
                    if request.status >= 500:
                        work.span.set_status(Status(StatusCode.ERROR))

    async def _answer(self, request: _Request, receive: Receive) -> None:
        try:
            await self._app(request.scope, receive, request.send)
        finally:
            took_s = (request.answered or time.perf_counter()) - request.began
            route = self._route(request.scope)
            self._counts.answered(request.method, route, request.status, took_s)
            if self._verbose or request.status >= 500:
                say = log.error if request.status >= 500 else log.debug
                took_ms = round(took_s * 1000, 3)
                say("request.answered", method=request.method, route=route, status=request.status, took_ms=took_ms)

    def _route(self, scope: Mapping[str, Any]) -> str:
        endpoint = scope.get("endpoint")
        return "unmatched" if endpoint is None else self._templates.get(endpoint, "other")


class _Request:
    """One request on its way; its status is 500 until an answer begins."""

    def __init__(self, scope: Scope, send: Send, request_id: bytes) -> None:
        self.scope, self._send, self._id = scope, send, request_id
        self.method = scope["method"] if scope["method"] in METHODS else "other"
        self.status, self.began, self.answered = 500, time.perf_counter(), 0.0

    async def send(self, message: Message) -> None:
        """Pass an answer on, with the request's id."""
        if message["type"] == "http.response.start":
            self.status, self.answered = message["status"], time.perf_counter()
            headers = message.setdefault("headers", [])
            if all(name.lower() != REQUEST_ID for name, _ in headers):
                message["headers"] = [*headers, (REQUEST_ID, self._id)]
        await self._send(message)
