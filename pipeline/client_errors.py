"""What a client of the gateway can meet, by what its caller should do. Each says on its class whether it is retriable.

    GatewayError            the gateway answered with a problem object (RFC 9457), in `problem`
    ├ Refused               400, 405, 413, 415: what was sent can never be taken; `field`, `reason`, `position` say what
    ├ Unauthorized          401: no key, or one that is not known, not yet valid, expired or revoked
    ├ Forbidden             403: the key may not do this
    ├ NotFound              404
    ├ Conflict              409
    ├ TooManyRequests       429: retriable, after `retry_after_s`
    ├ Unavailable           502, 503: retriable; of these Replaying: the node has just started
    ├ DeadlineExceeded      504, or our own deadline: retriable
    └ Failed                500 and whatever else: the node's log says more
    ServiceMissing          no gateway answers (tiers.errors); of these
    └ NoAnswer              a write was sent and its answer never came: it may have been published

`Replaying` and `Refused` are also what the same trouble is in-process (tiers.errors), so that code can move.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from tiers import errors
from tiers.errors import InvalidRecord, IsothermError, ServiceMissing

PREFIX = "urn:isotherm:"


class GatewayError(IsothermError):
    """The gateway answered with a problem object; `problem` holds it, `type` its stable end ("not-found").

    `position` is that of the memory in the body that it is about, None where it is about the whole; `field` names what
    is wrong, "" where nothing in particular is.
    """

    def __init__(self, problem: Mapping[str, Any], retry_after_s: float | None = None) -> None:
        Exception.__init__(self, f"{problem.get('title')}: {problem.get('detail')}")
        self.problem = dict(problem)
        self.type = str(problem.get("type", "")).removeprefix(PREFIX)
        self.status = int(problem.get("status", 0))
        self.retry_after_s = retry_after_s
        self.field = str(problem.get("field", ""))
        self.reason = str(problem.get("reason") or self.field or "invalid")
        self.position: int | None = problem.get("position")


class Refused(GatewayError, InvalidRecord):
    """What was sent can never be taken."""

    def __init__(self, problem: Mapping[str, Any], retry_after_s: float | None = None) -> None:
        GatewayError.__init__(self, problem, retry_after_s)
        detail = str(problem.get("detail"))
        self.args = (detail if self.position is not None or self.field in detail else f"{self.field}: {detail}",)


class Unauthorized(GatewayError):
    """The gateway wants a key that it knows: `key=`, or ISOTHERM_KEY."""


class Forbidden(GatewayError):
    """The key may not do this: its scopes or namespaces do not reach so far."""


class NotFound(GatewayError):
    """There is no such memory."""


class Conflict(GatewayError):
    """It cannot be done as things are."""


class TooManyRequests(GatewayError):
    """Over a limit; ask again after `retry_after_s`."""

    retriable = True


class Unavailable(GatewayError):
    """The node or a part of it cannot answer now."""

    retriable = True


class Replaying(Unavailable, errors.Replaying):
    """The node has just started and replays the log; ask again soon."""


class DeadlineExceeded(GatewayError):
    """Nothing came within the deadline, the gateway's or the caller's."""

    retriable = True


class Failed(GatewayError):
    """The gateway failed in a way that nobody foresaw; the node's log says more."""


class NoAnswer(ServiceMissing):
    """A write was sent and its answer never came: it may have been published. To publish it again does no harm."""


_BY_TYPE: dict[str, type[GatewayError]] = {"replaying": Replaying, "not-yet": DeadlineExceeded}
_BY_STATUS: dict[int, type[GatewayError]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    429: TooManyRequests,
    502: Unavailable,
    503: Unavailable,
    504: DeadlineExceeded,
}
_REFUSALS = range(400, 500)


def error_of(status: int, headers: Mapping[str, str], body: bytes) -> GatewayError | None:
    """Return the error that an answer means, None when it is no problem object and so from no gateway. Pure."""
    try:
        problem = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if "title" not in problem and "detail" not in problem:
        return None
    named = str(problem.get("type", "")).removeprefix(PREFIX)
    found = _BY_TYPE.get(named) or _BY_STATUS.get(status) or (Refused if status in _REFUSALS else Failed)
    return found({"status": status, **problem}, retry_after(headers))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a Retry-After header asks for; None without one, or where it names a date."""
    text = headers.get("retry-after", "")
    return float(text) if text.isdecimal() else None


def too_late(url: str, deadline_s: float) -> DeadlineExceeded:
    """Return the error for a deadline of the caller's own."""
    detail = f"{url} did not answer within {deadline_s:g} s"
    return DeadlineExceeded(
        {"type": f"{PREFIX}deadline", "title": "deadline exceeded", "status": 504, "detail": detail}
    )
