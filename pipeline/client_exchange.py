"""One call of the gateway, from request to result, without I/O: what to send, when to send it again, what it means.

`exchange` is a generator. It yields an `Attempt` and is sent what became of it (`Answer` or `Fault`), or yields a
`Pause`; it returns the result or raises an error of `client_errors`. The two clients differ only in how they drive it.

A read may be sent again after anything: a lost connection, 429, 502, 503. A write is sent again only where no
connection was made, which proves that nothing was sent: publishing twice makes two versions. Tries are bounded in
number and by the deadline of the call, with jitter; a Retry-After is waited for, unless that is too late.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import httpx

from pipeline.client_errors import GatewayError, NoAnswer, error_of, too_late
from tiers.errors import IsothermError, ServiceMissing

T = TypeVar("T")

BASE_S = 0.1  # the first pause; each further one is twice as long
PAUSE_S_MAX = 2.0
PATIENCE_S = 86_400.0
AGAIN = (429, 502, 503)  # answers after which a read is asked again
#: Failures before a connection was there: nothing can have been sent.
UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)


class Answer(NamedTuple):
    """What came back; `stream` is the open response of a call that streams, whose `body` is then empty."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    stream: Any = None


class Fault(NamedTuple):
    """No answer came; `sent` says whether the request may have reached the gateway."""

    error: Exception
    sent: bool
    late: bool = False


class Pause(NamedTuple):
    """Wait so long."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """A verb of the gateway: the request, and how its answer is read. `safe`: it changes nothing."""

    method: str
    path: str
    parse: Callable[[Answer], T]
    safe: bool
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    streams: bool = False
    absent: bool = False  # 404 is an answer: parse is given it
    patient: bool = False  # it takes as long as it takes


class Attempt(NamedTuple):
    """Send the call now; `left_s` bounds it."""

    call: Call[Any]
    left_s: float


class Limits(NamedTuple):
    """How often and how long: `deadline_s` bounds the call with all its tries and pauses."""

    retries: int
    deadline_s: float

    def of(self, call: Call[Any]) -> Limits:
        """Return the limits of a call: a patient one may take a day."""
        return self._replace(deadline_s=PATIENCE_S) if call.patient else self


def fault_of(error: Exception) -> Fault:
    """Return what a failure of the transport (or a timeout of ours) proves."""
    return Fault(error, not isinstance(error, UNSENT), isinstance(error, (httpx.TimeoutException, TimeoutError)))


def exchange(
    call: Call[T], url: str, limits: Limits, clock: Callable[[], float], jitter: Callable[[], float]
) -> Generator[Attempt | Pause, Answer | Fault | None, T]:
    """Drive one call to its result; see the module. `jitter` returns numbers of [0, 1)."""
    until = clock() + limits.deadline_s
    for tried in range(limits.retries + 1):
        outcome = yield Attempt(call, max(0.001, until - clock()))
        assert outcome is not None, "an attempt is answered with what became of it"
        if isinstance(outcome, Answer) and (outcome.status < 300 or (call.absent and outcome.status == 404)):
            return _parsed(call, outcome, url)
        error = _error(call, outcome, url, limits.deadline_s)
        pause = _pause(tried, error, jitter())
        if tried == limits.retries or not _again(call, outcome) or clock() + pause >= until:
            raise error
        yield Pause(pause)
    raise AssertionError("the last try raises or returns")


def _again(call: Call[Any], outcome: Answer | Fault) -> bool:
    if isinstance(outcome, Fault):
        return call.safe or not outcome.sent
    return call.safe and outcome.status in AGAIN


def _pause(tried: int, error: IsothermError, jitter: float) -> float:
    pause = min(PAUSE_S_MAX, BASE_S * 2**tried) * (0.5 + jitter / 2)
    asked = error.retry_after_s if isinstance(error, GatewayError) else None
    return float(max(pause, asked or 0.0))


def _parsed(call: Call[T], answer: Answer, url: str) -> T:
    if call.absent and answer.status == 404 and error_of(404, answer.headers, answer.body) is None:
        raise _stranger(answer, url)
    try:
        return call.parse(answer)
    except (ValueError, KeyError, TypeError) as error:  # msgspec's and Arrow's errors are ValueErrors
        raise _stranger(answer, url) from error


def _error(call: Call[Any], outcome: Answer | Fault, url: str, deadline_s: float) -> IsothermError:
    if isinstance(outcome, Answer):
        return error_of(outcome.status, outcome.headers, outcome.body) or _stranger(outcome, url)
    if outcome.sent and not call.safe:
        error: IsothermError = NoAnswer(
            f"{call.method} {call.path} was sent to {url}, and no answer came ({_text(outcome.error)}): it may have "
            "been published; publish it again, the newest version wins"
        )
    elif outcome.late and outcome.sent:
        error = too_late(url, deadline_s)
    else:
        error = missing(url, _text(outcome.error))
    error.__cause__ = outcome.error
    return error


def missing(url: str, why: str) -> ServiceMissing:
    """Return the error for a gateway that does not answer."""
    return ServiceMissing(
        f"the gateway does not answer at {url} ({why}); start one with `isotherm up`, or name it with --url "
        "(ISOTHERM_URL)"
    )


def _stranger(answer: Answer, url: str) -> ServiceMissing:
    return missing(url, f"it says {answer.status}, and not as a gateway does")


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
