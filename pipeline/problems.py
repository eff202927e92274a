"""Errors as RFC 9457 problem objects with a stable `type`; never a stack trace."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec
import structlog
from starlette.responses import Response

from pipeline.sql_process import SqlFailed
from tiers.errors import (
    InvalidRecord,
    IsothermError,
    LogUnavailable,
    NotYet,
    Replaying,
    ServiceMissing,
    TierError,
)

log = structlog.get_logger()


class TooLarge(InvalidRecord):
    """A body has more bytes than are taken."""


class Unsupported(InvalidRecord):
    """A body is of a type or encoding that is not read."""


class TooMany(IsothermError):
    """As many change streams are open as may be."""

    retriable = True


class TooSlow(InvalidRecord):
    """A body did not arrive in time."""


MEDIA_TYPE = "application/problem+json"
PREFIX = "urn:isotherm:"

#: Every `type` (after its prefix) that a problem of the gateway may have: status, and what it means.
PROBLEMS: dict[str, tuple[int, str]] = {
    "invalid": (400, "the request is wrong; `field` names what is"),
    "unauthorized": (401, "a key is needed, or this one is not (any more) good"),
    "forbidden": (403, "the key is good, but not for this"),
    "not-found": (404, "no such memory, or it is deleted"),
    "no-such-path": (404, "there is no such path"),
    "method-not-allowed": (405, "the path has other methods; `Allow` lists them"),
    "request-timeout": (408, "the body did not arrive in time"),
    "sql-disabled": (403, "SQL is switched off on this node"),
    "lowest-tier": (409, "there is no tier below"),
    "no-codebook": (409, "no codebook has been trained yet"),
    "sql-memory": (413, "the statement needed more memory than one may have"),
    "too-large": (413, "the body has more bytes than are taken"),
    "uri-too-long": (414, "path and query have more bytes than are taken"),
    "unsupported": (415, "the body is of a type that is not read, or is encoded"),
    "rate-limited": (429, "the key has used up its rate; Retry-After says when to ask again"),
    "sql-busy": (429, "as many statements run as may"),
    "too-many-streams": (429, "as many change streams are open as may be"),
    "headers-too-large": (431, "the headers are more, or have more bytes, than are taken"),
    "internal": (500, "an unexpected error; the node's log says more"),
    "sql-failed": (500, "the statement's process failed; the node's log says more"),
    "keys-unreadable": (503, "the file of keys cannot be read, so nobody is let in"),
    "sql-snapshot": (503, "no snapshot could be made"),
    "sql-snapshot-too-large": (503, "a snapshot would be larger than sql.snapshot_bytes_max"),
    "replaying": (503, "the log is being replayed: ask again soon"),
    "tier-unavailable": (503, "a tier does not answer, or has no room"),
    "log-unavailable": (503, "Kafka does not answer; what was sent may be in the log all the same"),
    "stopping": (503, "the node is stopping"),
    "busy": (503, "as many connections are open as may be"),
    "sql-deadline": (504, "the statement took longer than it may"),
    "not-yet": (504, "what `at_least` names was not applied in time"),
}
_HEADERS = {429: {"Retry-After": "1"}, 503: {"Retry-After": "1"}, 408: {"Connection": "close"}}
_STATUS: tuple[tuple[type[IsothermError], int, str], ...] = (
    (TooLarge, 413, "too-large"),
    (Unsupported, 415, "unsupported"),
    (TooSlow, 408, "request-timeout"),
    (InvalidRecord, 400, "invalid"),
    (TooMany, 429, "too-many-streams"),
    (Replaying, 503, "replaying"),
    (NotYet, 504, "not-yet"),
    (LogUnavailable, 503, "log-unavailable"),
    (ServiceMissing, 503, "log-unavailable"),
    (TierError, 503, "tier-unavailable"),
)


def problem(status: int, kind: str, detail: str, headers: Mapping[str, str] | None = None, **more: Any) -> Response:
    """Return a problem response; `kind` ends its `type`."""
    answered = dict(headers if headers is not None else _HEADERS.get(status, {}))
    request_id = structlog.contextvars.get_contextvars().get("request_id")
    if request_id is not None:  # what to search the log for
        more["request_id"] = answered["X-Request-Id"] = request_id
    return Response(encoded(status, kind, detail, **more), status, answered, MEDIA_TYPE)


def encoded(status: int, kind: str, detail: str, **more: Any) -> bytes:
    """Return a problem object as JSON."""
    title = kind.replace("-", " ")
    return msgspec.json.encode({"type": PREFIX + kind, "title": title, "status": status, "detail": detail, **more})


def unreadable(error: Exception) -> InvalidRecord:
    """Return the error for a body or parameters that are not what a route takes; it names the field if it can."""
    reason, _, path = str(error).partition(" - at `$")
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", reason)
    field = path.rstrip("`").lstrip(".") or "body"
    if unknown:
        field = unknown[1] if field == "body" else f"{field}.{unknown[1]}"
    return InvalidRecord(field, f"{field}: {reason[:1].lower()}{reason[1:]}")


def on_error(error: Exception) -> Response:
    """Return the problem object of an error that a route raised."""
    if isinstance(error, SqlFailed):
        return problem(error.status, error.kind, str(error))
    for kind, status, name in _STATUS:
        if isinstance(error, kind):
            more: dict[str, Any] = {"field": error.reason} if isinstance(error, InvalidRecord) else {}
            return problem(status, name, str(error), **more)
    log.error("request.failed", error=repr(error))
    return problem(500, "internal", "an unexpected error; the node's log says more")
