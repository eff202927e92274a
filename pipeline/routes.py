"""The gateway: HTTP over one MemoryManager. Plain Starlette routes; bodies are parsed by msgspec structs.

A read by id from hot or warm never leaves the event loop. Bodies are bounded before they are read, and a content
encoding is refused, so that a small request cannot become a large one.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from consumers.subscribe import decode_cursor, subscribe_changes
from pipeline.manager import MemoryManager
from pipeline.metrics import Metrics
from pipeline.problems import on_error, problem
from pipeline.routes_operate import Operator
from producers import events
from producers.decoder import EventDecoder
from producers.events import Event
from tiers import record
from tiers.errors import InvalidRecord, IsothermError
from tiers.record import Floats, Row
from tiers.tier import Hit, Query, TierName

_encode = msgspec.json.Encoder().encode


class NewMemory(Event, kw_only=True):
    """One record to publish: an event with its id."""

    id: str


class Search(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The k nearest to exactly one of `vector`, `vector_b64`, `text` or the record `id`."""

    vector: list[float] | None = None
    vector_b64: bytes | None = None
    text: str | None = None
    id: str | None = None
    k: int = 10
    tiers: list[str] | None = None
    exact: bool = False
    deadline_ms: float | None = None
    at_least: str | None = None
    include: tuple[str, ...] = ("payload", "attributes")


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
                Route("/v1/memories", self.everything, methods=["GET"]),
                Route("/v1/memories/{id:path}", self.one, methods=["GET"]),
                Route("/v1/memories/{id:path}", self.delete, methods=["DELETE"]),
                Route("/v1/search", self.search, methods=["POST"]),
                Route("/v1/tiers", self.tiers, methods=["GET"]),
                Route("/v1/changes", self.changes, methods=["GET"]),
                *Operator(manager).routes(),
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
        return _json({"token": token, "published": len(memories)}, 202)

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
        return _json({"token": await self._manager.delete(record.check_id(request.path_params["id"]))}, 202)

    # -- reading -----------------------------------------------------------------------------------------------------

    async def one(self, request: Request) -> Response:
        """GET /v1/memories/{id}: the newest version, its tier, or 404."""
        identifier = record.check_id(request.path_params["id"])
        include = request.query_params.get("include", "payload,attributes").split(",")
        result = await self._manager.retrieve(Query(ids=[identifier], at_least=request.query_params.get("at_least")))
        self._metrics.query_seconds.labels("get").observe(result.took_ms / 1000)
        if result.hits:
            return _json(shown(result.hits[0], include))
        if not result.complete:
            return problem(503, "tier-unavailable", f"tiers {result.missed} did not answer", missed=result.missed)
        return problem(404, "not-found", f"no memory {identifier!r}")

    async def search(self, request: Request) -> Response:
        """POST /v1/search: the k nearest memories, and how complete the answer is."""
        try:
            asked = msgspec.json.decode(await self._body(request), type=Search)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidRecord("body", f"the body is not a search: {error}") from error
        query = Query(
            vector=await self._vector(asked),
            k=asked.k,
            tiers=_tiers(asked.tiers),
            deadline_ms=asked.deadline_ms,
            at_least=asked.at_least,
        )
        result = await self._manager.retrieve(query)
        self._metrics.query_seconds.labels("search").observe(result.took_ms / 1000)
        answer = {
            "hits": [shown(hit, asked.include) for hit in result.hits],
            "complete": result.complete,
            "searched": result.searched,
            "missed": result.missed,
            "scanned": result.scanned,
            "of": result.of,
            "freshness": result.freshness,
            "took_ms": result.took_ms,
        }
        return _json(answer)

    async def _vector(self, asked: Search) -> Floats:
        given = [name for name in ("vector", "vector_b64", "text", "id") if getattr(asked, name) is not None]
        if len(given) != 1:
            raise InvalidRecord("vector", f"give exactly one of vector, vector_b64, text and id, not {given}")
        if asked.id is not None:
            found = await self._manager.retrieve(Query(ids=[record.check_id(asked.id)], at_least=asked.at_least))
            if not found.hits or found.hits[0].row.vector is None:
                raise InvalidRecord("id", f"no memory {asked.id!r} to search from")
            return found.hits[0].row.vector
        event = Event(vector=asked.vector, vector_b64=asked.vector_b64, text=asked.text)
        vector = self._decoder.row("query", 0, event, 0).vector
        assert vector is not None, "an event always has a vector"
        return vector

    async def everything(self, _: Request) -> Response:
        """GET /v1/memories: every live memory as NDJSON."""
        batches = self._manager.retrieve_all()
        first = await anext(batches, None)

        async def lines() -> AsyncIterator[bytes]:
            if first is None:
                return
            yield _lines(first)
            async for batch in batches:
                yield _lines(batch)

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    async def tiers(self, _: Request) -> Response:
        """GET /v1/tiers: occupancy, limits and flow."""
        return _json(await self._manager.tiers())

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


def shown(hit: Hit, include: Sequence[str]) -> dict[str, Any]:
    """Return a hit as the API shows it."""
    row = hit.row
    out: dict[str, Any] = {"id": row.id, "tier": hit.tier.word, **_fields(row, include)}
    if hit.score is not None:
        out["score"] = hit.score
    return out


def _fields(row: Row, include: Sequence[str]) -> dict[str, Any]:
    out: dict[str, Any] = {"version": record.version_text(row.version), "event_time": _time(row.event_time)}
    if row.expires_at is not None:
        out["expires_at"] = _time(row.expires_at)
    if "attributes" in include:
        out["attributes"] = row.attributes
    if "payload" in include:
        out["payload"] = payload_of(row)
    if "vector" in include and row.vector is not None:
        out["vector"] = row.vector.tolist()
    return out


def payload_of(row: Row) -> Any:
    """Return the payload as JSON if it is JSON, as base64 text if not, None when empty."""
    if not row.payload:
        return None
    try:
        msgspec.json.decode(row.payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return row.payload  # msgspec writes bytes as base64
    return msgspec.Raw(row.payload)


def _time(milliseconds: int) -> str:
    return str(np.datetime64(milliseconds, "ms")) + "Z"


def _lines(batch: Any) -> bytes:
    shown_rows = ({"id": row.id, **_fields(row, ("payload", "attributes"))} for row in record.rows_of(batch))
    return b"".join(_encode(row) + b"\n" for row in shown_rows)


def _json(body: object, status: int = 200) -> Response:
    return Response(_encode(body), status, media_type="application/json")


def _tiers(names: list[str] | None) -> frozenset[TierName]:
    if names is None:
        return frozenset(TierName)
    known = {tier.word: tier for tier in TierName}
    for name in names:
        if name not in known:
            raise InvalidRecord("tiers", f"{name!r} is no tier; they are {', '.join(known)}")
    return frozenset(known[name] for name in names)
