"""What every request meets before its route: whether there is such a path, method and parameter, or the node stops.

Routes are made from the table of operations, so each one is checked against what the OpenAPI document says of it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from urllib.parse import unquote_to_bytes

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from pipeline.guard import Guard
from pipeline.operation import Operation
from pipeline.operations import OPERATIONS
from pipeline.problems import Unsupported, on_error, problem
from tiers.errors import DeviceLost, Fenced, InvalidRecord, IsothermError, OutcomeUnknown

log = structlog.get_logger()

#: What ends the process, whoever was waiting for an answer: the next start heals (R4, R9).
ENDS = (OutcomeUnknown, Fenced, DeviceLost)
_control = re.compile("[\x00-\x1f\x7f-\x9f]").search
Handler = Callable[[Request], Awaitable[Response]]


class Edge:
    """`handlers`, one for each operation by its id, behind the guard; `stopping` refuses all but /healthz."""

    def __init__(self, handlers: Mapping[str, Handler], guard: Guard) -> None:
        assert {each.id for each in OPERATIONS} == handlers.keys(), "an operation without a handler, or the reverse"
        self.stopping = False
        self.routes = [self._route(operation, handlers[operation.id]) for operation in OPERATIONS]
        guard.wrap(self.routes)

    def app(self, middleware: Sequence[Middleware]) -> Starlette:
        """Return the ASGI application."""
        errors = dict.fromkeys((IsothermError, Exception), on_error)
        made = Starlette(
            routes=self.routes, middleware=middleware, exception_handlers={**errors, HTTPException: self._missed}
        )
        made.router.redirect_slashes = False  # a path is what the document says, or is not there
        return made

    def _route(self, operation: Operation, handler: Handler) -> Route:
        answering = _Answering(self, operation, handler)
        return Route(operation.route, answering, methods=[operation.method], name=operation.id)

    async def _missed(self, request: Request, error: Exception) -> Response:
        """Answer what no route took: OPTIONS, another method, another path."""
        assert isinstance(error, HTTPException)
        if _control(request.scope["path"]):
            return problem(400, "invalid", "a path has no control characters", field="path")
        allowed: set[str] = set()
        for route in self.routes:
            if route.matches(request.scope)[0] is not Match.NONE:
                allowed |= route.methods or set()
        if error.status_code not in (404, 405) or not allowed:
            return problem(404, "no-such-path", f"there is nothing at {request.url.path[:200]!r}; /docs has every path")
        allow = ", ".join(sorted({*allowed, "OPTIONS"}))
        if request.method == "OPTIONS":
            return Response(None, 204, {"Allow": allow})
        refusal = problem(405, "method-not-allowed", f"{request.method[:20]} is not allowed here; allowed: {allow}")
        refusal.headers["Allow"] = allow
        return refusal


class _Answering:
    """One operation as an ASGI application; its errors are the application's to answer, once for all routes.

    Except those of a node that ends: the request may be right, and is to be asked again in a moment (503).
    """

    def __init__(self, edge: Edge, operation: Operation, handler: Handler) -> None:
        self._edge, self._operation, self._handler = edge, operation, handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check what came, and answer."""
        request = Request(scope, receive, send)
        try:
            response = await self._answer(request)
        except asyncio.CancelledError:
            if self._edge.stopping:  # the loop ends, and the server would call it an internal error
                await _stopping()(scope, receive, send)
            raise
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        if self._edge.stopping and self._operation.id != "healthz":
            return _stopping()
        check(self._operation, request)
        try:
            response = await self._handler(request)
        except Exception as error:
            if not (isinstance(error, ENDS) or (self._edge.stopping and _unexpected(error))):
                raise
            log.warning("request.abandoned", error=repr(error))
            return _stopping()
        return await _headed(response) if request.method == "HEAD" else response


def check(operation: Operation, request: Request) -> None:
    """Raise InvalidRecord for what the operation does not take, Unsupported for an encoded body."""
    scope = request.scope
    if any(name == b"content-encoding" and value.lower() != b"identity" for name, value in scope["headers"]):
        raise Unsupported("content-encoding", "send the body as it is: content encodings are refused")
    _check_path(request)
    if not scope["query_string"]:  # most requests: this runs for each
        return
    queries = operation.queries
    seen: set[str] = set()
    for name, _ in request.query_params.multi_items():
        if name not in queries:
            known = f"there are {', '.join(sorted(queries))}" if queries else "there are none here"
            raise InvalidRecord(name[:100], f"there is no parameter {name[:100]!r}; {known}")
        if name in seen:
            raise InvalidRecord(name, f"parameter {name!r} is given more than once; lists are joined by commas")
        seen.add(name)


def _check_path(request: Request) -> None:
    """Refuse a path or query that is not UTF-8, or a path with control characters: it would name something else.

    (Decoded with replacements, or matched without its last line end.)
    """
    if _control(request.scope["path"]):
        raise InvalidRecord("path", "a path has no control characters")
    for name in ("raw_path", "query_string"):
        raw: bytes = request.scope.get(name, b"")
        if b"%" in raw:
            try:
                unquote_to_bytes(raw).decode()
            except UnicodeDecodeError as error:
                raise InvalidRecord("path" if name == "raw_path" else "query", f"not UTF-8: {error.reason}") from error


async def _headed(response: Response) -> Response:
    """Return the headers of an answer; a stream is not begun."""
    if not isinstance(response, StreamingResponse):
        return response  # the server leaves the body out
    close = getattr(response.body_iterator, "aclose", None)
    if close is not None:
        await close()
    headed = Response(None, response.status_code, dict(response.headers))
    del headed.headers["content-length"]
    return headed


def _unexpected(error: Exception) -> bool:
    """Say whether an error says nothing of the request: of a node that is closing, what it needs may be closed."""
    return not isinstance(error, IsothermError | HTTPException)


def _stopping() -> Response:
    refusal = problem(503, "stopping", "the node is stopping; ask another, or again in a moment")
    refusal.headers["Connection"] = "close"
    return refusal
