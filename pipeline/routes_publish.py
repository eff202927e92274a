"""The writing half of the gateway: POST and DELETE on /v1/memories.

A body is one memory or a list of them (JSON or msgpack), one a line (NDJSON), or an Arrow stream. All are checked as
ingest will check them before any is sent, so that an error names the position and the field and nothing was published.
Once sending has begun a log that fails leaves some of them in the log: the answer is then 503, and to publish again is
safe, since the newest version of an id wins.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from pipeline.auth import ForeignNamespace, Principal, check_write, principal_of
from pipeline.body import NDJSON_TYPE, media_type, read_body
from pipeline.manager import MemoryManager
from pipeline.problems import problem
from pipeline.questions import NewMemory
from producers import columns, duplicates, judge
from producers.decoder import EventDecoder, unpack
from producers.events import ARROW_TYPE, JSON_TYPE, MSGPACK_TYPE, Event
from tiers import record
from tiers.errors import InvalidRecord
from tiers.record import Row

_encode = msgspec.json.Encoder().encode
_BAD_BODY = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


_memory = msgspec.json.Decoder(NewMemory)
_many = msgspec.json.Decoder(list[msgspec.Raw])
_packed_map = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])
_packed_list = msgspec.msgpack.Decoder(list[msgspec.Raw])
_packed_text = msgspec.msgpack.Decoder(str)


class BadMemory(InvalidRecord):
    """A memory of a body that cannot be published; `position` counts from 0."""

    def __init__(self, position: int, error: InvalidRecord) -> None:
        super().__init__(error.reason, f"memory {position}: {error}")
        self.position = position


class Publishing:
    """The routes; `decoder` is that of the node."""

    def __init__(self, manager: MemoryManager, decoder: EventDecoder) -> None:
        self._manager, self._decoder = manager, decoder
        self._settings = manager.node.settings.gateway

    async def publish(self, request: Request) -> Response:
        """POST /v1/memories: publish one memory or many, all or (when one is bad) none; answers 202 with the token."""
        kind = media_type(request)
        body = await read_body(request, self._settings.body_bytes_max, self._settings.request_s)
        try:
            who = principal_of(request)
            count, token = await (self._rows(body, who) if kind == ARROW_TYPE else self._events(kind, body, who))
        except BadMemory as error:
            more: dict[str, Any] = {"field": field_of(error), "reason": error.reason, "position": error.position}
            if error.reason == "namespace":
                return problem(403, "forbidden", str(error), **more)
            return problem(400, "invalid", str(error), **more)
        return Response(_encode({"token": token, "published": count}), 202, media_type=JSON_TYPE)

    async def delete(self, request: Request) -> Response:
        """DELETE /v1/memories/{id}: publish a tombstone; answers 202 with the token."""
        identifier = record.check_id(request.path_params["id"])
        if not principal_of(request).sees(identifier):
            return problem(403, "forbidden", str(ForeignNamespace(identifier)), field="id", reason="namespace")
        token = await self._manager.delete(identifier)
        return Response(_encode({"token": token}), 202, media_type=JSON_TYPE)

    async def _rows(self, body: bytes, principal: Principal) -> tuple[int, str]:
        """Publish an Arrow stream."""
        limit = min(self._settings.records_max, columns.rows_max(self._decoder.dim))
        rows = columns.read(body, limit, max(columns.BYTES_MAX, self._settings.body_bytes_max))
        self._check_count(rows.num_rows)
        now_ms = time.time_ns() // 1_000_000
        _, faults = judge.judge(rows, self._decoder.dim, self._decoder.attributes, now_ms)
        for at, fault in faults.items():
            raise BadMemory(at, fault)
        for at, identifier in enumerate(rows["id"].to_pylist() if principal.namespaces is not None else ()):
            _check_write(at, identifier.decode(), principal)
        return rows.num_rows, await self._manager.node.producer.send_rows(rows)

    async def _events(self, kind: str, body: bytes, principal: Principal) -> tuple[int, str]:
        """Publish what came one by one, in the form in which it came."""
        values = _split(kind, body)
        self._check_count(len(values))
        read = _read_packed if kind == MSGPACK_TYPE else _read
        ready: list[tuple[str, bytes | None]] = []
        for at, value in enumerate(values):
            try:
                identifier, event = read(value)
                row = self._decoder.row(record.check_id(identifier), 0, event, time.time_ns() // 1_000_000)
            except InvalidRecord as error:
                raise BadMemory(at, error) from error
            _check_write(at, identifier, principal)
            ready.append((identifier, _packed(row, event) if kind == MSGPACK_TYPE else _json(row, event)))
        token = await self._manager.publish(ready, MSGPACK_TYPE if kind == MSGPACK_TYPE else JSON_TYPE)
        return len(ready), token

    def _check_count(self, count: int) -> None:
        if not 1 <= count <= self._settings.records_max:
            raise InvalidRecord("body", f"publish 1 to {self._settings.records_max} memories at once, not {count}")


def _check_write(at: int, identifier: str, principal: Principal) -> None:
    try:
        check_write(principal, [identifier])
    except ForeignNamespace as error:
        raise BadMemory(at, error) from error


def field_of(error: InvalidRecord) -> str:
    """Return the field that an error is about: what the parser names, else what the reason begins with."""
    named = re.search(r"`\$\.(\w+)", str(error))
    if named:
        return named[1]
    whole = {
        "namespace": "id",
        "event_time": "event_time",
        "ttl": "ttl_s",
        "attribute": "attributes",
        "tombstone": "deleted",
    }
    return whole.get(error.reason) or whole.get(word := error.reason.partition("_")[0], word)


def _split(kind: str, body: bytes) -> Sequence[bytes]:
    """Return the bytes of each memory in a body."""
    if kind == NDJSON_TYPE:
        return [line for line in body.split(b"\n") if line.strip()]
    try:
        if kind == MSGPACK_TYPE:
            many = body[:1] >= b"\x90" and body[:1] not in (b"\xde", b"\xdf")  # a map is one memory, else it is a list
            return _bytes(_packed_list.decode(body)) if many else [body]
        return _bytes(_many.decode(body)) if body.lstrip()[:1] == b"[" else [body]
    except _BAD_BODY as error:
        raise InvalidRecord("body", f"the body is not a memory or a list of memories: {error}") from error


def _bytes(parts: Iterable[msgspec.Raw]) -> list[bytes]:
    return [bytes(part) for part in parts]


def _read(value: bytes) -> tuple[str, Event]:
    try:
        memory = _memory.decode(value)
    except _BAD_BODY as error:
        raise InvalidRecord("json", f"not a memory: {error}") from error
    duplicates.refuse(value, memory, memory.id)
    return memory.id, memory


def _read_packed(value: bytes) -> tuple[str, Event]:
    """Return id and event of a msgpack map."""
    try:
        pairs = _packed_map.decode(value)
        duplicates.refuse_packed(value, len(pairs))
        identifier = _packed_text.decode(pairs.pop("id", b""))
    except _BAD_BODY as error:
        raise InvalidRecord("msgpack", f"not a memory with an id: {error}") from error
    return identifier, unpack(msgspec.msgpack.encode(pairs))


def _json(row: Row, event: Event) -> bytes:
    """Return a checked memory as the JSON event that goes to the log, its payload as it came."""
    return _encode(
        Event(
            vector_b64=np.ascontiguousarray(row.vector, "<f4").tobytes(),
            payload=event.payload,
            attributes=event.attributes,
            event_time=event.event_time,
            ttl_s=event.ttl_s,
        )
    )


def _packed(row: Row, event: Event) -> bytes:
    """Return a checked memory as msgpack: its payload may be any bytes."""
    fields: dict[str, Any] = {"vector": np.ascontiguousarray(row.vector, "<f4").tobytes(), "payload": row.payload}
    given = {"attributes": event.attributes, "event_time": event.event_time, "ttl_s": event.ttl_s}
    return msgspec.msgpack.encode(fields | {name: value for name, value in given.items() if value is not None})
