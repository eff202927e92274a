"""The gateway: HTTP over one MemoryManager. Plain Starlette routes; bodies are parsed by msgspec structs.

Bodies are bounded before they are read, and a content encoding is refused, so that a small request cannot become a
large one. Questions and publishing have their own modules: `routes_read`, `routes_publish`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from consumers.subscribe import decode_cursor, subscribe_changes
from pipeline.answers import answer_json
from pipeline.app import now_ms
from pipeline.auth import Principal, principal_of
from pipeline.body import read_body
from pipeline.guard import Guard, keyring_of
from pipeline.http_seen import Seen
from pipeline.manager import MemoryManager
from pipeline.metrics import Metrics
from pipeline.problems import on_error, problem
from pipeline.routes_operate import Operator
from pipeline.routes_publish import Publishing
from pipeline.routes_read import Reads
from pipeline.routes_snapshot import keeping_routes
from pipeline.routes_sql import sql_routes
from pipeline.visible import visible_change, visible_tiers
from producers import events
from producers.decoder import EventDecoder
from tiers.errors import IsothermError


class Gateway:
    """The routes; `app` is the ASGI application."""

    def __init__(self, manager: MemoryManager) -> None:
        self._manager = manager
        self._settings = manager.node.settings
        self._metrics = Metrics(manager)
        self._decoder = EventDecoder(self._settings.dim, self._settings.attributes, manager.node.embed)
        publishing = Publishing(manager, self._decoder)
        errors = (IsothermError, Exception)
        self.keyring = keyring_of(self._settings)
        routes = [
            Route("/v1/memories", publishing.publish, methods=["POST"]),
            Route("/v1/memories/{id:path}", publishing.delete, methods=["DELETE"]),
            *Reads(manager, self._metrics, self._decoder, self._body).routes,
            *sql_routes(manager, self._body),
            Route("/v1/tiers", self.tiers, methods=["GET"]),
            Route("/v1/changes", self.changes, methods=["GET"]),
            *Operator(manager).routes(),
            *keeping_routes(manager, self._body),
            Route("/healthz", self.healthz, methods=["GET"]),
            Route("/readyz", self.readyz, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
        ]
        guarded = Guard(self._settings.gateway, self.keyring).wrap(routes)
        verbose = self._settings.log.level == "debug"
        seen = Middleware(Seen, counts=self._metrics.http, tracing=manager.node.tracing, routes=routes, verbose=verbose)
        self.app = Starlette(
            routes=guarded,
            middleware=[seen],
            exception_handlers=dict.fromkeys(errors, on_error),
        )

    # -- looking -----------------------------------------------------------------------------------------------------

    async def tiers(self, request: Request) -> Response:
        """GET /v1/tiers: occupancy, limits and flow; of a key with some namespaces, what these have where."""
        return answer_json(await visible_tiers(self._manager, principal_of(request), now_ms()))

    async def changes(self, request: Request) -> Response:
        """GET /v1/changes: tier changes as server-sent events; resume with Last-Event-ID, or ?from=beginning."""
        start = request.headers.get("last-event-id") or request.query_params.get("from", "end")
        if start not in ("beginning", "end"):
            decode_cursor(start)
        if self._metrics.http.streams >= self._settings.gateway.streams_max:
            self._metrics.http.streams_dropped += 1
            return problem(429, "too-many-streams", f"at most {self._settings.gateway.streams_max} streams at once")
        stream = self._change_stream(start, principal_of(request))
        return StreamingResponse(stream, media_type="text/event-stream")

    async def _change_stream(self, start: str, principal: Principal) -> AsyncIterator[bytes]:
        """One Kafka consumer a client: a slow client slows only itself, and Kafka is the buffer."""
        counts = self._metrics.http
        counts.streams += 1
        try:
            yield b"retry: 1000\n\n"
            async with aclosing(subscribe_changes(self._settings.kafka, start=start)) as feed:
                async for announced in feed:
                    change = visible_change(announced.change, principal.namespaces)
                    if change is not None:
                        body = events.encode_change(change)
                        yield b"id: %s\nevent: change\ndata: %s\n\n" % (announced.cursor.encode(), body)
        except Exception:
            counts.streams_dropped += 1
            raise
        finally:
            counts.streams -= 1

    # -- the process -------------------------------------------------------------------------------------------------

    async def healthz(self, _: Request) -> Response:
        """GET /healthz: the process runs its loop."""
        return PlainTextResponse("ok\n")

    async def readyz(self, _: Request) -> Response:
        """GET /readyz: 200 once every partition has replayed its log."""
        replaying = self._manager.node.replaying()
        if replaying:
            return problem(503, "replaying", f"partitions {replaying} are replaying the log", partitions=replaying)
        return PlainTextResponse("ready\n")

    async def metrics(self, _: Request) -> Response:
        """GET /metrics: Prometheus text."""
        return Response(await self._metrics.render(), media_type="text/plain; version=0.0.4")

    async def _body(self, request: Request) -> bytes:
        return await read_body(request, self._settings.gateway.body_bytes_max)
