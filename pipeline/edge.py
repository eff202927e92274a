"""What every request meets: which operation is asked, whether it may be, and what comes back.

Routes are made from the table of operations, so each one is checked against what the OpenAPI document says of it. One
look-up, one guard and one place for errors stand before every handler; nothing is wrapped once more for each.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from urllib.parse import unquote_to_bytes

import structlog
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Scope

from pipeline.auth import PRINCIPAL, Principal
from pipeline.ending import until_ended
from pipeline.guard import Guard
from pipeline.http_seen import ROUTE, Exchange
from pipeline.keyring import Grant
from pipeline.operation import Operation
from pipeline.operations import OPERATIONS
from pipeline.paths import Handler, Paths, Peek, Route
from pipeline.problems import Unsupported, on_error, problem
from pipeline.streams import ChangeStream
from tiers.errors import DeviceLost, Fenced, InvalidRecord, IsothermError, OutcomeUnknown

log = structlog.get_logger()

#: What ends the process, whoever was waiting for an answer: the next start heals (R4, R9).
ENDS = (OutcomeUnknown, Fenced, DeviceLost)
LET_IN = "isotherm.let_in"  # in the scope: whom `at_once` has let in, and not answered
STREAMS = (StreamingResponse, ChangeStream)

_control = re.compile("[\x00-\x1f\x7f-\x9f]").search


class Edge:
    """`handlers`, one for each operation by its id, behind the guard; `stopping` refuses all but /healthz."""

    def __init__(self, handlers: Mapping[str, Handler], guard: Guard, peeks: Mapping[str, Peek]) -> None:
        assert {each.id for each in OPERATIONS} == handlers.keys(), "an operation without a handler, or the reverse"
        self.stopping = False
        self._guard = guard
        self.routes = [
            Route(each, handlers[each.id], guard.need(each.method, each.route), peeks.get(each.id))
            for each in OPERATIONS
        ]
        self._paths = Paths(self.routes)

    def at_once(self, scope: Scope) -> Response | None:
        """Return an answer that can be given in this loop step; None: `answer` does, for whatever reason.

        Who was let in is then in the scope, and counts once.
        """
        found = self._paths.find(scope["method"], scope["path"])
        if found is None or (peek := found[0].peek) is None or self.stopping:
            return None
        route, scope["path_params"] = found
        let_in = self._guard.look(scope, route.need)
        if not isinstance(let_in, (Grant, Principal)):
            return None
        scope[PRINCIPAL], scope[ROUTE] = let_in.principal if isinstance(let_in, Grant) else let_in, route.path
        response = None
        try:
            check(route.operation, scope)
            response = peek(scope)
        except Exception:  # noqa: BLE001 - whatever it is, it comes again there, and is answered
            log.debug("request.postponed", route=route.path)
        if response is None:
            scope[LET_IN] = let_in
        elif isinstance(let_in, Grant):
            self._guard.leave(let_in)
        return response

    async def answer(self, exchange: Exchange) -> None:
        """Answer one request."""
        scope = exchange.scope
        found = self._paths.find(scope["method"], scope["path"])
        if found is None:
            await exchange.reply(self._missed(scope))
            return
        route, scope["path_params"] = found
        scope[ROUTE] = route.path
        let_in = scope.pop(LET_IN, None) or self._guard.enter(scope, route.need)
        if isinstance(let_in, Response):
            await exchange.reply(let_in)
        elif isinstance(let_in, Grant):
            scope[PRINCIPAL] = let_in.principal
            try:
                await self._answer(route, exchange, let_in)
            finally:
                self._guard.leave(let_in)
        else:
            if let_in is not None:
                scope[PRINCIPAL] = let_in
            await self._answer(route, exchange)

    async def _answer(self, route: Route, exchange: Exchange, grant: Grant | None = None) -> None:
        """Answer who was let in. A stream to a key ends with it.

        What fails before the answer begins is answered with a problem object; the server logs what is no error of ours,
        and closes the connection of an answer that fails later.
        """
        scope, receive, send = exchange.scope, exchange.receive, exchange.send
        try:
            response = await self._response(route, Request(scope, receive, send))
            if not isinstance(response, STREAMS):
                await exchange.reply(response)
            elif grant is None:
                await response(scope, receive, send)
            elif await until_ended(response, scope, receive, send, lambda: self._guard.still(grant)):
                log.warning("key.ended", key=grant.key.id)
        except asyncio.CancelledError:
            if self.stopping and not exchange.answered:  # the loop ends, and the server would say 500
                await exchange.reply(_stopping())
            raise
        except Exception as error:
            if exchange.answered:
                raise
            await exchange.reply(on_error(error))
            if not isinstance(error, IsothermError):
                raise

    async def _response(self, route: Route, request: Request) -> Response:
        if self.stopping and route.operation.id != "healthz":
            return _stopping()
        check(route.operation, request.scope)
        try:
            response = await route.handler(request)
        except Exception as error:  # of a node that ends the request may be right: it is to be asked again in a moment
            if not (isinstance(error, ENDS) or (self.stopping and not isinstance(error, IsothermError))):
                raise
            log.warning("request.abandoned", error=repr(error))
            return _stopping()
        return await _headed(response) if request.method == "HEAD" else response

    def _missed(self, scope: Scope) -> Response:
        """Return the answer to what no route takes: OPTIONS, another method, another path."""
        path, method = scope["path"], scope["method"]
        if _control(path):
            return problem(400, "invalid", "a path has no control characters", field="path")
        allowed = self._paths.methods(path)
        if not allowed:
            return problem(404, "no-such-path", f"there is nothing at {path[:200]!r}; /docs has every path")
        allow = ", ".join(sorted({*allowed, "OPTIONS"}))
        if method == "OPTIONS":
            return Response(None, 204, {"Allow": allow})
        refusal = problem(405, "method-not-allowed", f"{method[:20]} is not allowed here; allowed: {allow}")
        refusal.headers["Allow"] = allow
        return refusal


def check(operation: Operation, scope: Scope) -> None:
    """Raise InvalidRecord for what the operation does not take, Unsupported for an encoded body."""
    for name, value in scope["headers"]:
        if name == b"content-encoding" and value.lower() != b"identity":
            raise Unsupported("content-encoding", "send the body as it is: content encodings are refused")
    if _control(scope["path"]):
        raise InvalidRecord("path", "a path has no control characters")
    if b"%" in (raw := scope.get("raw_path", b"")):
        _check_text("path", raw)
    if not scope["query_string"]:  # most requests: this runs for each
        return
    _check_text("query", scope["query_string"])
    queries = operation.queries
    seen: set[str] = set()
    for name, _ in QueryParams(scope["query_string"]).multi_items():
        if name not in queries:
            known = f"there are {', '.join(sorted(queries))}" if queries else "there are none here"
            raise InvalidRecord(name[:100], f"there is no parameter {name[:100]!r}; {known}")
        if name in seen:
            raise InvalidRecord(name, f"parameter {name!r} is given more than once; lists are joined by commas")
        seen.add(name)


def _check_text(field: str, raw: bytes) -> None:
    """Refuse what is not UTF-8: decoded with replacements it would name something else."""
    try:
        unquote_to_bytes(raw).decode()
    except UnicodeDecodeError as error:
        raise InvalidRecord(field, f"not UTF-8: {error.reason}") from error


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


def _stopping() -> Response:
    refusal = problem(503, "stopping", "the node is stopping; ask another, or again in a moment")
    refusal.headers["Connection"] = "close"
    return refusal
