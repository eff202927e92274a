"""The gateway's questions: one memory, the nearest, those that meet criteria, everything.

Answers are JSON, or Arrow streams where the client accepts them. A read by id from hot or warm never leaves the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from pipeline.answers import (
    ARROW,
    DEFAULT_FIELDS,
    NDJSON,
    ArrowAnswer,
    answer_json,
    check_include,
    envelope,
    lines,
    shown,
    wants_arrow,
)
from pipeline.manager import MemoryManager
from pipeline.metrics import Metrics
from pipeline.problems import problem, unreadable
from producers.decoder import EventDecoder
from producers.events import Event
from tiers import record
from tiers.errors import InvalidRecord
from tiers.record import Floats
from tiers.tier import Hit, Query, Result, TierName

T = TypeVar("T")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Asked(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What every question may say: which records, from which tiers, by when, and what of them to show."""

    filter: str | None = None
    time_from: datetime | None = msgspec.field(default=None, name="from")
    time_to: datetime | None = msgspec.field(default=None, name="to")
    tiers: list[str] | None = None
    deadline_ms: float | None = None
    at_least: str | None = None
    include: tuple[str, ...] = DEFAULT_FIELDS


class Search(Asked, kw_only=True, forbid_unknown_fields=True):
    """The k nearest to exactly one of `vector`, `vector_b64`, `text` or the record `id`."""

    vector: list[float] | None = None
    vector_b64: bytes | None = None
    text: str | None = None
    id: str | None = None
    k: int = 10
    exact: bool = False
    explain: bool = False


class Searches(Search, kw_only=True, forbid_unknown_fields=True):
    """One search, or several as `queries`."""

    queries: list[Search] | None = None


class Retrieve(Asked, kw_only=True, forbid_unknown_fields=True):
    """Records by `ids`, or a page of those that meet the criteria; `cursor` goes on after the last page."""

    ids: list[str] | None = None
    limit: int = 100
    cursor: str | None = None


class Reads:
    """The routes that read; `body` reads a request's body within its bounds."""

    def __init__(
        self,
        manager: MemoryManager,
        metrics: Metrics,
        decoder: EventDecoder,
        body: Callable[[Request], Awaitable[bytes]],
    ) -> None:
        self._manager, self._metrics, self._decoder, self._body = manager, metrics, decoder, body
        self._settings = manager.node.settings
        self._shape = record.schema(self._settings.dim, self._settings.attributes)
        self.routes = [
            Route("/v1/memories", self.everything, methods=["GET"]),
            Route("/v1/memories/{id:path}", self.one, methods=["GET"]),
            Route("/v1/search", self.search, methods=["POST"]),
            Route("/v1/retrieve", self.retrieve, methods=["POST"]),
        ]

    async def one(self, request: Request) -> Response:
        """GET /v1/memories/{id}: the newest version, its tier, or 404."""
        identifier = record.check_id(request.path_params["id"])
        asked = _parameters(request, "include", "tiers", "at_least", "deadline_ms")
        include = check_include(asked.include)
        result = await self._ask("get", query_of(asked, ids=[identifier]))
        if result.hits:
            if wants_arrow(request):
                return self._arrow([result], include, envelope(result))
            return answer_json(shown(result.hits[0], include))
        if not result.complete:
            return problem(503, "tier-unavailable", f"tiers {result.missed} did not answer", missed=result.missed)
        return problem(404, "not-found", f"no memory {identifier!r}")

    async def search(self, request: Request) -> Response:
        """POST /v1/search: the k nearest memories, and how complete the answer is; several questions at once too."""
        asked = decoded(await self._body(request), Searches)
        if asked.queries is None:
            query = await self._nearest(asked)
            result = await self._ask("search", query)
            if wants_arrow(request):
                return self._arrow([result], query.include, envelope(result), scored=True)
            return answer_json(_searched(result, query.include))
        several = self._several(asked, asked.queries)
        queries = [await self._numbered(at, self._nearest(each)) for at, each in enumerate(several)]
        if wants_arrow(request):  # one table has the same columns for all
            every = frozenset().union(*(query.include for query in queries))
            queries = [replace(query, include=every) for query in queries]
        results = await asyncio.gather(
            *(self._numbered(at, self._ask("search", query)) for at, query in enumerate(queries))
        )
        if wants_arrow(request):
            around = {"results": [envelope(result) for result in results]}
            return self._arrow(results, every, around, scored=True)
        asked_and_found = zip(results, queries, strict=True)
        return answer_json({"results": [_searched(result, query.include) for result, query in asked_and_found]})

    async def retrieve(self, request: Request) -> Response:
        """POST /v1/retrieve: memories by ids, or a page of those that meet filter and times."""
        asked = decoded(await self._body(request), Retrieve)
        include = check_include(asked.include)
        if asked.ids is not None and asked.cursor is not None:
            raise InvalidRecord("cursor", "ids are answered whole: there is no cursor")
        query = query_of(asked, ids=asked.ids, limit=asked.limit, cursor=asked.cursor)
        result = await self._ask("retrieve", query)
        around = {**envelope(result), "cursor": result.cursor}
        if wants_arrow(request):
            return self._arrow([result], include, around)
        return answer_json({"hits": [shown(hit, include) for hit in result.hits], **around})

    async def everything(self, request: Request) -> Response:
        """GET /v1/memories: every memory that meets ?filter=, ?from=, ?to=, ?tiers=, by id, as NDJSON or Arrow.

        What fails before the first record is a problem object; later it breaks the stream, which then has no end.
        """
        asked = _parameters(request, "include", "tiers", "filter", "from", "to")
        include = check_include(asked.include)
        pages = self._manager.pages(query_of(asked))
        first: Sequence[Hit] = await anext(pages, [])
        arrow = ArrowAnswer(self._shape, include) if wants_arrow(request) else None

        async def stream() -> AsyncIterator[bytes]:
            yield arrow.bytes_of(first) if arrow else lines(first, include)
            async for hits in pages:
                yield arrow.bytes_of(hits) if arrow else lines(hits, include)
            if arrow:
                yield arrow.end()

        return StreamingResponse(stream(), media_type=ARROW if arrow else NDJSON)

    # -- inside ------------------------------------------------------------------------------------------------------

    async def _ask(self, route: str, query: Query) -> Result:
        result = await self._manager.retrieve(query)
        self._metrics.query_seconds.labels(route).observe(result.took_ms / 1000)
        return result

    def _several(self, around: Searches, queries: list[Search]) -> list[Search]:
        most = self._settings.gateway.queries_max
        if not 1 <= len(queries) <= most:
            raise InvalidRecord("queries", f"ask 1 to {most} questions at once")
        if around != Searches(queries=queries):
            raise InvalidRecord("queries", "beside `queries` nothing else: each question says what it asks")
        return queries

    @staticmethod
    async def _numbered(at: int, work: Awaitable[T]) -> T:
        """Say which of several questions an error is about."""
        try:
            return await work
        except InvalidRecord as error:
            raise InvalidRecord(f"queries[{at}].{error.reason}", f"query {at}: {error}") from error

    async def _nearest(self, asked: Search) -> Query:
        include = check_include(asked.include)
        return query_of(
            asked,
            vector=await self._vector(asked),
            k=asked.k,
            exact=asked.exact,
            include=include,
            explain=asked.explain,
        )

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

    def _arrow(
        self, results: list[Result], include: Iterable[str], around: object, *, scored: bool = False
    ) -> Response:
        stream = ArrowAnswer(self._shape, include, around, scored=scored)
        parts = [stream.bytes_of(result.hits, at) for at, result in enumerate(results)]
        return Response(b"".join([*parts, stream.end()]), media_type=ARROW)


def decoded(body: bytes, kind: type[T]) -> T:
    """Return a JSON body as `kind`; InvalidRecord names the field that is wrong."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise unreadable(error) from error


def _parameters(request: Request, *known: str) -> Asked:
    """Return what a query string asks; InvalidRecord names a parameter that is unknown or wrong."""
    given: dict[str, Any] = dict(request.query_params)
    for name in given:
        if name not in known:
            raise InvalidRecord(name, f"there is no parameter {name!r}; there are {', '.join(known)}")
    for name in {"include", "tiers"} & given.keys():
        given[name] = [word for word in given[name].split(",") if word]
    try:
        return msgspec.convert(given, Asked, strict=False)
    except msgspec.ValidationError as error:
        raise unreadable(error) from error


def query_of(asked: Asked, **more: Any) -> Query:
    """Return the query that a request asks."""
    return Query(
        filter=asked.filter,
        time_from_ms=_milliseconds("from", asked.time_from),
        time_to_ms=_milliseconds("to", asked.time_to),
        tiers=_tiers(asked.tiers),
        deadline_ms=asked.deadline_ms,
        at_least=asked.at_least,
        **more,
    )


def _milliseconds(name: str, moment: datetime | None) -> int | None:
    if moment is None:
        return None
    if moment.tzinfo is None:
        raise InvalidRecord(name, f"{name} needs a time zone, such as a final Z")
    return (moment - EPOCH) // timedelta(milliseconds=1)


def _tiers(names: list[str] | None) -> frozenset[TierName]:
    if names is None:
        return frozenset(TierName)
    known = {tier.word: tier for tier in TierName}
    for name in names:
        if name not in known:
            raise InvalidRecord("tiers", f"{name!r} is no tier; they are {', '.join(known)}")
    return frozenset(known[name] for name in names)


def _searched(result: Result, include: Iterable[str]) -> dict[str, Any]:
    return {"hits": [shown(hit, include) for hit in result.hits], **envelope(result)}
