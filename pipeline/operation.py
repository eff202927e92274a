"""What an operation of the gateway is, and the parameters and problems that several of them share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from msgspec import Meta

from pipeline.questions import AtLeast, DeadlineMs, Filter, From, Id, To
from pipeline.shapes import Tier

SSE_TYPE = "text/event-stream"
TEXT_TYPE = "text/plain"
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
HTML_TYPE = "text/html"
SCRIPT_TYPE = "text/javascript"
STYLE_TYPE = "text/css"
SVG_TYPE = "image/svg+xml"

OPEN, READ, WRITE, OPERATE = "open", "read", "write", "operate"
SCOPES = (OPEN, READ, WRITE, OPERATE)

# -- problems that many operations have in common; `pipeline.problems.PROBLEMS` says what each is ----------------------

EVERY = ("invalid", "uri-too-long", "unsupported", "headers-too-large", "internal", "stopping", "busy")
SCOPED = (*EVERY, "unauthorized", "forbidden", "rate-limited", "keys-unreadable")
BODY = ("too-large", "request-timeout")
ASKS = ("replaying", "not-yet", "tier-unavailable")
LOG = ("log-unavailable",)


class Parameter(NamedTuple):
    """One value of a path, a query string or a header. `several`: a list, joined by commas."""

    name: str
    where: Literal["path", "query", "header"]
    kind: Any
    text: str
    example: Any
    several: bool = False


class Answer(NamedTuple):
    """One good answer: status, what it is, and what its media types hold (None: no JSON; several: one of them)."""

    status: int
    text: str
    media: Mapping[str, Any]


class Operation(NamedTuple):
    """One operation; `route` is Starlette's path, `body` media types and what they hold."""

    id: str
    method: str
    route: str
    scope: str
    tag: str
    summary: str
    answers: tuple[Answer, ...]
    problems: tuple[str, ...]
    parameters: tuple[Parameter, ...] = ()
    body: Mapping[str, Any] | None = None
    whole: bool = False

    @property
    def path(self) -> str:
        """The path as OpenAPI writes it."""
        return self.route.replace(":path}", "}")

    @property
    def queries(self) -> frozenset[str]:
        """The query parameters that there are."""
        return frozenset(each.name for each in self.parameters if each.where == "query")


ID = Parameter("id", "path", Id, "The memory's id, percent-encoded (`/` too)", "id-1")
TIER = Parameter("tier", "path", Tier, "One of the four", "glacier")
FILTER = Parameter(
    "filter", "query", Filter, "A SQL condition over id, event_time and the declared attributes", "id = 'x'"
)
FROM = Parameter("from", "query", From, "Event time, inclusive, with a time zone", "2026-01-01T00:00:00Z")
TO = Parameter("to", "query", To, "Event time, exclusive, with a time zone", "2036-01-01T00:00:00Z")
TIERS = Parameter("tiers", "query", list[Tier], "Where to look; everywhere if absent", ["hot", "warm"], several=True)
SHOWN = list[Literal["payload", "attributes", "vector"]]
INCLUDE = Parameter(
    "include", "query", SHOWN, "What to show: payload and attributes if absent", ["payload"], several=True
)
AT_LEAST = Parameter("at_least", "query", AtLeast, "A token: wait until that write is applied", "eyJlIjowLCJwIjp7fX0")
DEADLINE = Parameter("deadline_ms", "query", DeadlineMs, "ms that the answer may take", 500)

NAMES = list[Annotated[str, Meta(min_length=1)]]
SINCE = Parameter(
    "from", "query", str, "`beginning`, `end` or the id of an event; Last-Event-ID goes first", "beginning"
)
LAST = Parameter("Last-Event-ID", "header", str, "The id of the last event that was seen", "0:12,1:7")
KINDS = Parameter(
    "kinds", "query", list[Literal["home", "copy"]], "Only changes of these kinds", ["home"], several=True
)
TOUCHED = Parameter("tiers", "query", list[Tier], "Only changes from or to one of these", ["cold"], several=True)
REASONS = Parameter("reasons", "query", NAMES, "Only changes for one of these reasons", ["age"], several=True)
FILE = Parameter("file", "path", str, "A file that the page names", "app.js")
LETTERS_MAX = 100
NEWEST = Parameter("limit", "query", Annotated[int, Meta(ge=1, le=LETTERS_MAX)], "The newest so many; 20 if absent", 20)
REASON = Parameter("reason", "query", str, "Only letters with this reason", "vector_dim")
SPACES = Parameter("namespaces", "query", NAMES, "Only ids of these namespaces", ["default"], several=True)
