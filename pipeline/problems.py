"""Errors as RFC 9457 problem objects with a stable `type`; never a stack trace."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response

from pipeline.sql_process import SqlFailed
from tiers.errors import (
    InvalidRecord,
    IsothermError,
    LogUnavailable,
    NotYet,
    Replaying,
    TierError,
)

log = structlog.get_logger()


class TooLarge(InvalidRecord):
    """A body has more bytes than are taken."""


class Unsupported(InvalidRecord):
    """A body is of a type or encoding that is not read."""


MEDIA_TYPE = "application/problem+json"
_STATUS: tuple[tuple[type[IsothermError], int, str], ...] = (
    (TooLarge, 413, "too-large"),
    (Unsupported, 415, "unsupported"),
    (InvalidRecord, 400, "invalid"),
    (Replaying, 503, "replaying"),
    (NotYet, 504, "not-yet"),
    (LogUnavailable, 503, "log-unavailable"),
    (TierError, 503, "tier-unavailable"),
)


def problem(status: int, kind: str, detail: str, headers: Mapping[str, str] | None = None, **more: Any) -> Response:
    """Return a problem response; `kind` ends its `type`."""
    body = {"type": f"urn:isotherm:{kind}", "title": kind.replace("-", " "), "status": status, "detail": detail, **more}
    answered = dict(headers if headers is not None else {"Retry-After": "1"} if status in (429, 503) else {})
    request_id = structlog.contextvars.get_contextvars().get("request_id")
    if request_id is not None:  # what to search the log for
        body["request_id"] = answered["X-Request-Id"] = request_id
    return Response(msgspec.json.encode(body), status, answered, MEDIA_TYPE)


def unreadable(error: Exception) -> InvalidRecord:
    """Return the error for a body or parameters that are not what a route takes; it names the field if it can."""
    reason, _, path = str(error).partition(" - at `$")
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", reason)
    field = path.rstrip("`").lstrip(".") or "body"
    if unknown:
        field = unknown[1] if field == "body" else f"{field}.{unknown[1]}"
    return InvalidRecord(field, f"{field}: {reason[:1].lower()}{reason[1:]}")


async def on_error(_: Request, error: Exception) -> Response:
    """Turn an error that a route raised into its problem object."""
    if isinstance(error, SqlFailed):
        return problem(error.status, error.kind, str(error))
    for kind, status, name in _STATUS:
        if isinstance(error, kind):
            more: dict[str, Any] = {"field": error.reason} if isinstance(error, InvalidRecord) else {}
            return problem(status, name, str(error), **more)
    log.error("request.failed", error=repr(error))
    return problem(500, "internal", "an unexpected error; the node's log says more")
