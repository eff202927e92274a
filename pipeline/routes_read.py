"""The gateway's questions: one memory, the nearest, those that meet criteria, everything.

Answers are JSON, or Arrow streams where the client accepts them. A read by id from hot or warm never leaves the loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Scope

from pipeline.answers import (
    ARROW,
    NDJSON,
    Allowance,
    ArrowAnswer,
    answer_json,
    check_include,
    envelope,
    lines,
    listed,
    shown,
    shown_row,
    wants_arrow,
)
from pipeline.auth import PRINCIPAL, Principal, narrowed, principal_of
from pipeline.manager import MemoryManager
from pipeline.metrics import Metrics
from pipeline.problems import problem, unreadable
from pipeline.questions import Asked, Retrieve, Search, Searches
from pipeline.read_counts import HOT
from pipeline.visible import visible_result
from producers.decoder import EventDecoder
from producers.events import Event
from tiers import record
from tiers.errors import InvalidRecord
from tiers.record import Floats
from tiers.tier import Hit, Query, Result, TierName

T = TypeVar("T")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
EVERY_TIER = frozenset(TierName)
NOTHING = Asked()  # what a request without a query string asks
DEFAULT = frozenset(NOTHING.include)


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
        self.handlers = {
            "listMemories": self.everything,
            "getMemory": self.one,
            "search": self.search,
            "retrieve": self.retrieve,
        }

    def peek(self, scope: Scope) -> Response | None:
        """Answer what `one` does, in this loop step: as JSON, for a record that lies in hot, and a bare URL."""
        if scope["query_string"] or wants_arrow(scope):
            return None
        began, identifier = time.perf_counter(), record.check_id(scope["path_params"]["id"])
        row = self._manager.peek(identifier, scope[PRINCIPAL].namespaces)
        if row is None:
            return None
        self._metrics.reads.took("get", HOT, time.perf_counter() - began)
        return answer_json(shown_row(row, TierName.HOT, DEFAULT))

    async def one(self, request: Request) -> Response:
        """GET /v1/memories/{id}: the newest version, its tier, or 404."""
        identifier, principal = record.check_id(request.path_params["id"]), principal_of(request)
        asked = _parameters(request)
        include = check_include(asked.include)
        query = query_of(asked, ids=[identifier], include=include)
        result = await self._ask("get", query, principal)
        if result.hits:
            if wants_arrow(request.scope):
                return self._arrow([result], include, envelope(result), [1])
            return answer_json(shown(result.hits[0], include))
        if not result.complete:
            return problem(503, "tier-unavailable", f"tiers {result.missed} did not answer", missed=result.missed)
        return problem(404, "not-found", f"no memory {identifier!r}")

    async def search(self, request: Request) -> Response:
        """POST /v1/search: the k nearest memories, and how complete the answer is; several questions at once too."""
        asked, principal = decoded(await self._body(request), Searches), principal_of(request)
        if asked.queries is None:
            query = await self._nearest(asked, principal)
            result = await self._ask("search", query, principal)
            return self._searched(request, [result], [query.include])
        several = self._several(asked, asked.queries)
        queries = [await self._numbered(at, self._nearest(each, principal)) for at, each in enumerate(several)]
        if wants_arrow(request.scope):  # one table has the same columns for all
            every = frozenset().union(*(query.include for query in queries))
            queries = [msgspec.structs.replace(query, include=every) for query in queries]
        results = await asyncio.gather(
            *(self._numbered(at, self._ask("search", query, principal)) for at, query in enumerate(queries))
        )
        return self._searched(request, results, [query.include for query in queries], several=True)

    async def retrieve(self, request: Request) -> Response:
        """POST /v1/retrieve: memories by ids, or a page of those that meet filter and times."""
        asked = decoded(await self._body(request), Retrieve)
        include = check_include(asked.include)
        if asked.ids is not None and asked.cursor is not None:
            raise InvalidRecord("cursor", "ids are answered whole: there is no cursor")
        query = query_of(asked, ids=asked.ids, limit=asked.limit, cursor=asked.cursor)
        result = await self._ask("retrieve", query, principal_of(request))
        whole = self._allowance().take(result.hits, include)
        around = {**envelope(result, whole), "cursor": result.cursor}
        if wants_arrow(request.scope):
            return self._arrow([result], include, around, [whole])
        return answer_json({"hits": listed(result.hits, include, whole), **around})

    async def everything(self, request: Request) -> Response:
        """GET /v1/memories: every memory that meets ?filter=, ?from=, ?to=, ?tiers=, by id, as NDJSON or Arrow.

        What fails before the first record is a problem object; later it breaks the stream, which then has no end.
        """
        asked = _parameters(request)
        include = check_include(asked.include)
        pages = self._manager.pages(narrowed(query_of(asked), principal_of(request)))
        first: Sequence[Hit] = await anext(pages, [])
        arrow = ArrowAnswer(self._shape, include) if wants_arrow(request.scope) else None

        async def stream() -> AsyncIterator[bytes]:
            yield arrow.bytes_of(first) if arrow else lines(first, include)
            async for hits in pages:
                yield arrow.bytes_of(hits) if arrow else lines(hits, include)
            if arrow:
                yield arrow.end()

        return StreamingResponse(stream(), media_type=ARROW if arrow else NDJSON)

    # -- inside ------------------------------------------------------------------------------------------------------

    async def _ask(self, route: str, query: Query, principal: Principal) -> Result:
        """Answer with what the principal may see, and nothing else (R12)."""
        result = visible_result(await self._manager.retrieve(narrowed(query, principal)), principal)
        self._metrics.reads.answered(route, result)
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

    async def _nearest(self, asked: Search, principal: Principal) -> Query:
        include = check_include(asked.include)
        vector = await self._vector(asked, principal)
        return query_of(asked, vector=vector, k=asked.k, exact=asked.exact, include=include, explain=asked.explain)

    async def _vector(self, asked: Search, principal: Principal) -> Floats:
        given = [name for name in ("vector", "vector_b64", "text", "id") if getattr(asked, name) is not None]
        if len(given) != 1:
            raise InvalidRecord("vector", f"give exactly one of vector, vector_b64, text and id, not {given}")
        if asked.id is not None:
            query = Query(ids=[record.check_id(asked.id)], at_least=asked.at_least)
            found = await self._manager.retrieve(narrowed(query, principal))
            if not found.hits or found.hits[0].row.vector is None:
                raise InvalidRecord("id", f"no memory {asked.id!r} to search from")
            return found.hits[0].row.vector
        return self._decoder.vector(Event(vector=asked.vector, vector_b64=asked.vector_b64, text=asked.text))

    def _searched(
        self,
        request: Request,
        results: Sequence[Result],
        includes: Sequence[frozenset[str]],
        *,
        several: bool = False,
    ) -> Response:
        """Answer one search, or several; together they carry no more than one answer may."""
        allowance = self._allowance()
        wholes = [allowance.take(result.hits, include) for result, include in zip(results, includes, strict=True)]
        around = [envelope(result, whole) for result, whole in zip(results, wholes, strict=True)]
        if wants_arrow(request.scope):
            shape: object = {"results": around} if several else around[0]
            return self._arrow(results, frozenset().union(*includes), shape, wholes, scored=True)
        asked = zip(results, includes, wholes, around, strict=True)
        answers = [{"hits": listed(result.hits, include, whole), **says} for result, include, whole, says in asked]
        return answer_json({"results": answers} if several else answers[0])

    def _allowance(self) -> Allowance:
        return Allowance(self._settings.gateway.answer_bytes_max)

    def _arrow(
        self,
        results: Sequence[Result],
        include: Iterable[str],
        around: object,
        wholes: Sequence[int],
        *,
        scored: bool = False,
    ) -> Response:
        stream = ArrowAnswer(self._shape, include, around, scored=scored)
        asked = zip(results, wholes, strict=True)
        parts = [stream.bytes_of(result.hits, at, whole) for at, (result, whole) in enumerate(asked)]
        return Response(b"".join([*parts, stream.end()]), media_type=ARROW)


def decoded(body: bytes, kind: type[T]) -> T:
    """Return a JSON body as `kind`; InvalidRecord names the field that is wrong."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise unreadable(error) from error


def _parameters(request: Request) -> Asked:
    """Return what a query string asks; InvalidRecord names a parameter that is wrong."""
    if not request.scope["query_string"]:
        return NOTHING
    given: dict[str, Any] = dict(request.query_params)
    for name in {"include", "tiers"} & given.keys():
        given[name] = [word for word in given[name].split(",") if word]
    try:
        if (text := given.get("deadline_ms")) is not None:  # the only one that is no text; else "4" would be a date
            given["deadline_ms"] = msgspec.convert({"deadline_ms": text}, Asked, strict=False).deadline_ms
            if given["deadline_ms"] is None:
                raise InvalidRecord("deadline_ms", f"deadline_ms: {text!r} is no number")
        return msgspec.convert(given, Asked)
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
        return EVERY_TIER
    known = {tier.word: tier for tier in TierName}
    for name in names:
        if name not in known:
            raise InvalidRecord("tiers", f"{name!r} is no tier; they are {', '.join(known)}")
    return frozenset(known[name] for name in names)
