"""A request's body: bounded before it is read, never unpacked, and of a media type that says what it is."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from pipeline.bounds import DIRECT
from pipeline.problems import TooLarge, TooSlow, Unsupported
from producers.events import ARROW_TYPE, JSON_TYPE, MSGPACK_TYPE
from tiers.errors import InvalidRecord

NDJSON_TYPE = "application/x-ndjson"
#: What curl -d says of any body; it is read as JSON, as if nothing had been said.
FORM_TYPE = "application/x-www-form-urlencoded"

_KINDS = {kind: kind for kind in (JSON_TYPE, NDJSON_TYPE, MSGPACK_TYPE, ARROW_TYPE)}
_KINDS |= {"": JSON_TYPE, FORM_TYPE: JSON_TYPE, "application/ndjson": NDJSON_TYPE, "application/jsonl": NDJSON_TYPE}


async def read_body(request: Request, limit: int, limit_s: float) -> bytes:
    """Return the body; TooLarge past `limit` bytes, TooSlow past `limit_s`; `edge` refuses an encoded one."""
    for name, value in request.scope["headers"]:
        if name == b"content-length":
            _check_size(int(value), limit)  # the server has seen to it that it is a number
    direct = request.scope.get("extensions", {}).get(DIRECT)
    body: bytes | None = direct.body() if direct is not None else None
    if body is not None:
        _check_size(len(body), limit)
        return body
    try:
        async with asyncio.timeout(limit_s):
            return await _read(request, limit)
    except TimeoutError as error:
        raise TooSlow("body", f"a body takes at most {limit_s:g} s") from error


async def _read(request: Request, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise InvalidRecord("body", "the connection ended before the body did; nothing was taken")
        part, more = message.get("body", b""), message.get("more_body", False)
        size += len(part)
        _check_size(size, limit)
        parts.append(part)
    return b"".join(parts)


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise TooLarge("body", f"a body has at most {limit} bytes")


def media_type(request: Request) -> str:
    """Return which of the four a body is; Unsupported when it says that it is something else."""
    said = request.headers.get("content-type", "")
    kind = _KINDS.get(said.partition(";")[0].strip().lower())
    if kind is None:
        known = f"{JSON_TYPE}, {NDJSON_TYPE}, {MSGPACK_TYPE} and {ARROW_TYPE}"
        raise Unsupported("content-type", f"content-type {said[:100]!r} is not known; use {known}")
    return kind
