"""The gateway: HTTP over one MemoryManager. Plain Starlette routes; bodies are parsed by msgspec structs.

Bodies are bounded before they are read, and a content encoding is refused, so that a small request cannot become a
large one. Questions have their own module, `routes_read`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing

import msgspec
import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from consumers.subscribe import decode_cursor, subscribe_changes
from pipeline.answers import answer_json
from pipeline.manager import MemoryManager
from pipeline.metrics import Metrics
from pipeline.problems import on_error, problem
from pipeline.routes_read import Reads
from producers import events
from producers.decoder import EventDecoder
from producers.events import Event
from tiers import record
from tiers.errors import InvalidRecord, IsothermError

_encode = msgspec.json.Encoder().encode


class NewMemory(Event, kw_only=True):
    """One record to publish: an event with its id."""

    id: str


class Gateway:
    """The routes; `app` is the ASGI application."""

    def __init__(self, manager: MemoryManager) -> None:
        self._manager = manager
        self._settings = manager.node.settings
        self._metrics = Metrics(manager)
        self._streams = 0
        self._decoder = EventDecoder(self._settings.dim, self._settings.attributes, manager.node.embed)
        errors = (IsothermError, Exception)
        self.app = Starlette(
            routes=[
                Route("/v1/memories", self.publish, methods=["POST"]),
                Route("/v1/memories/{id:path}", self.delete, methods=["DELETE"]),
                *Reads(manager, self._metrics, self._decoder, self._body).routes,
                Route("/v1/tiers", self.tiers, methods=["GET"]),
                Route("/v1/changes", self.changes, methods=["GET"]),
                Route("/healthz", self.healthz, methods=["GET"]),
                Route("/readyz", self.readyz, methods=["GET"]),
                Route("/metrics", self.metrics, methods=["GET"]),
            ],
            exception_handlers=dict.fromkeys(errors, on_error),
        )

    # -- writing -----------------------------------------------------------------------------------------------------

    async def publish(self, request: Request) -> Response:
        """POST /v1/memories: one object or a list of them; answers 202 with the token."""
        body = await self._body(request)
        try:
            listed = msgspec.json.decode(body, type=NewMemory | list[NewMemory])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidRecord("body", f"the body is not a memory or a list of memories: {error}") from error
        memories = listed if isinstance(listed, list) else [listed]
        if not 1 <= len(memories) <= self._settings.gateway.records_max:
            raise InvalidRecord("body", f"publish 1 to {self._settings.gateway.records_max} memories at once")
        token = await self._manager.publish([self._event(at, memory) for at, memory in enumerate(memories)])
        return answer_json({"token": token, "published": len(memories)}, 202)

    def _event(self, at: int, memory: NewMemory) -> tuple[str, bytes]:
        """Check a memory as ingest will, so that the client hears of it, and return what to put on the log."""
        try:
            row = self._decoder.row(record.check_id(memory.id), 0, memory, time.time_ns() // 1_000_000)
        except InvalidRecord as error:
            raise InvalidRecord(error.reason, f"memory {at}: {error}") from error
        event = Event(
            vector_b64=np.ascontiguousarray(row.vector, "<f4").tobytes(),
            payload=memory.payload,
            attributes=memory.attributes,
            event_time=memory.event_time,
            ttl_s=memory.ttl_s,
        )
        return memory.id, _encode(event)

    async def delete(self, request: Request) -> Response:
        """DELETE /v1/memories/{id}: publish a tombstone; answers 202 with the token."""
        return answer_json({"token": await self._manager.delete(record.check_id(request.path_params["id"]))}, 202)

    # -- looking -----------------------------------------------------------------------------------------------------

    async def tiers(self, _: Request) -> Response:
        """GET /v1/tiers: occupancy, limits and flow."""
        return answer_json(await self._manager.tiers())

    async def changes(self, request: Request) -> Response:
        """GET /v1/changes: tier changes as server-sent events; resume with Last-Event-ID, or ?from=beginning."""
        start = request.headers.get("last-event-id") or request.query_params.get("from", "end")
        if start not in ("beginning", "end"):
            decode_cursor(start)
        if self._streams >= self._settings.gateway.streams_max:
            return problem(429, "too-many-streams", f"at most {self._settings.gateway.streams_max} streams at once")
        return StreamingResponse(self._change_stream(start), media_type="text/event-stream")

    async def _change_stream(self, start: str) -> AsyncIterator[bytes]:
        """One Kafka consumer a client: a slow client slows only itself, and Kafka is the buffer."""
        self._streams += 1
        try:
            yield b"retry: 1000\n\n"
            async with aclosing(subscribe_changes(self._settings.kafka, start=start)) as feed:
                async for announced in feed:
                    body = events.encode_change(announced.change)
                    yield b"id: %s\nevent: change\ndata: %s\n\n" % (announced.cursor.encode(), body)
        finally:
            self._streams -= 1

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
        return Response(self._metrics.render(), media_type="text/plain; version=0.0.4")

    async def _body(self, request: Request) -> bytes:
        if request.headers.get("content-encoding", "identity") != "identity":
            raise InvalidRecord("content-encoding", "send the body as it is: content encodings are refused")
        limit = self._settings.gateway.body_bytes_max
        parts: list[bytes] = []
        size = 0
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise InvalidRecord("body", f"a body has at most {limit} bytes")
            parts.append(part)
        return b"".join(parts)
