"""The gateway's verbs as calls: what each sends and how its answer is read. Pure; both clients are made of these."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypedDict
from urllib.parse import quote

import msgspec
import numpy as np
import pyarrow as pa

from pipeline import client_results as results
from pipeline.client_exchange import Answer, Call
from pipeline.client_results import ARROW, Memory, Result, SqlResult
from producers import columns
from tiers.errors import InvalidRecord
from tiers.record import Floats

JSON = "application/json"


class Criteria(TypedDict, total=False):
    """Which memories: a SQL condition, tiers by name, event times [from, to); and what of them to show."""

    filter: str | None
    tiers: Sequence[str] | None
    time_from: datetime | None
    time_to: datetime | None
    include: Sequence[str] | None


class Reading(Criteria, total=False):
    """A question with a deadline of the gateway's (ms) and the token of a write that it has to see."""

    deadline_ms: float | None
    at_least: str | None


class Searching(Reading, total=False):
    """The `k` nearest to exactly one of a vector, words, or the memory `id`."""

    vector: Floats | Sequence[float] | None
    text: str | None
    id: str | None
    k: int
    exact: bool
    explain: bool


class Retrieving(Reading, total=False):
    """Memories by `ids`, or a page of at most `limit` of those that meet the criteria; `cursor` goes on after one."""

    ids: Sequence[str] | None
    limit: int
    cursor: str | None


class Publishing(TypedDict, total=False):
    """What a memory carries beside id and vector (or text); `payload` anything that JSON can say."""

    text: str | None
    payload: Any
    attributes: Mapping[str, Any] | None
    event_time: datetime | None
    ttl_s: float | None


def vector_b64(vector: Floats | Sequence[float]) -> str:
    """Return a vector as base64 of little-endian float32; InvalidRecord for what is no row of numbers."""
    try:
        floats = np.asarray(vector, "<f4")
    except (ValueError, TypeError) as error:
        raise InvalidRecord("vector", f"a vector is a row of numbers: {error}") from error
    if floats.ndim != 1:
        raise InvalidRecord("vector", f"a vector is a row of numbers; this has the shape {floats.shape}")
    return base64.b64encode(floats.tobytes()).decode()


# -- writing -----------------------------------------------------------------------------------------------------------


def store(memories: pa.RecordBatch | pa.Table | Iterable[Mapping[str, Any]]) -> Call[str]:
    """Return the call that publishes memories, all or none; a mapping has id, vector (or text), and Publishing."""
    if isinstance(memories, pa.Table):
        batches = memories.combine_chunks().to_batches()
        memories = batches[0] if batches else pa.RecordBatch.from_pylist([], schema=memories.schema)
    if isinstance(memories, pa.RecordBatch):
        return publish_body(columns.encode(memories), ARROW)
    return publish_body(_encode([_sent(memory) for memory in memories]), JSON)


def _sent(memory: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in memory.items() if value is not None}
    if "vector" in given:
        given["vector_b64"] = vector_b64(given.pop("vector"))
    return given


def publish_body(body: bytes, kind: str) -> Call[str]:
    """Return the call that publishes an encoded body (JSON, NDJSON, msgpack or Arrow)."""
    return Call(
        method="POST",
        path="/v1/memories",
        parse=_token,
        safe=False,
        headers={"content-type": kind},
        content=body,
    )


def delete(identifier: str) -> Call[str]:
    """Return the call that publishes a delete."""
    return Call(method="DELETE", path=_memory(identifier), parse=_token, safe=False)


def hint(identifier: str, verb: str) -> Call[dict[str, Any]]:
    """Return the call that hints at a promotion or demotion."""
    return Call(method="POST", path=f"{_memory(identifier)}:{verb}", parse=_plain, safe=False)


def clear(tier: str) -> Call[int]:
    """Return the call that clears a tier; its answer is how many memories went."""
    path = f"/v1/tiers/{quote(tier, safe='')}:clear"
    return Call(method="POST", path=path, parse=lambda answer: int(_plain(answer)["cleared"]), safe=False)


# -- reading -----------------------------------------------------------------------------------------------------------


def get(identifier: str, asked: Reading) -> Call[Memory | None]:
    """Return the call for the newest version of one memory."""
    params = _params(asked)
    return Call(method="GET", path=_memory(identifier), parse=results.memory, safe=True, params=params, absent=True)


def search(asked: Searching, *, arrow: bool) -> Call[Result]:
    """Return the call for the nearest."""
    return _asking("/v1/search", _question(asked), results.result, arrow=arrow)


def search_many(asked: Iterable[Searching]) -> Call[list[Result]]:
    """Return the call for several searches, answered in their order."""
    return _asking("/v1/search", {"queries": [_question(each) for each in asked]}, results.results)


def retrieve(asked: Retrieving, *, arrow: bool) -> Call[Result]:
    """Return the call for memories by ids, or a page."""
    return _asking("/v1/retrieve", _question(asked), results.result, arrow=arrow)


def sql(query: str) -> Call[SqlResult]:
    """Return the call for one read-only statement."""
    return _asking("/v1/sql", {"query": query}, results.sql)


def everything(asked: Criteria, *, arrow: bool) -> Call[Any]:
    """Return the call for every memory that meets the criteria, as a stream."""
    accept = {"accept": ARROW if arrow else "application/x-ndjson"}
    return Call(
        method="GET",
        path="/v1/memories",
        parse=_stream,
        safe=True,
        params=_params(asked),
        headers=accept,
        streams=True,
    )


def changes(params: Mapping[str, str], headers: Mapping[str, str]) -> Call[Any]:
    """Return the call for the change feed."""
    return Call(
        method="GET", path="/v1/changes", parse=_stream, safe=True, params=params, headers=headers, streams=True
    )


def tiers() -> Call[dict[str, Any]]:
    """Return the call for what each tier holds."""
    return Call(method="GET", path="/v1/tiers", parse=_plain, safe=True)


def why(identifier: str) -> Call[dict[str, Any] | None]:
    """Return the call for where a memory is and why."""
    return Call(
        method="GET",
        path=f"/v1/why/{_quoted(identifier)}",
        parse=lambda answer: None if answer.status == 404 else _plain(answer),
        safe=True,
        absent=True,
    )


# -- inside ------------------------------------------------------------------------------------------------------------

_encode = msgspec.json.Encoder().encode
_NAMES = {"time_from": "from", "time_to": "to"}


def _asking(path: str, body: object, parse: Any, *, arrow: bool = False) -> Call[Any]:
    headers = {"content-type": JSON, "accept": ARROW if arrow else JSON}
    return Call(method="POST", path=path, parse=parse, safe=True, headers=headers, content=_encode(body))


def _question(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return a question as the gateway takes it; what is None was not asked."""
    given = {_NAMES.get(name, name): value for name, value in asked.items() if value is not None}
    if "vector" in given:
        given["vector_b64"] = vector_b64(given.pop("vector"))
    for name, value in given.items():
        if isinstance(value, datetime) and value.tzinfo is None:
            raise InvalidRecord(name, f"{name} needs a time zone, such as datetime.UTC")
    return given


def _params(asked: Mapping[str, Any]) -> dict[str, str]:
    """Return criteria as a query string's parameters."""
    return {name: _text(value) for name, value in _question(asked).items()}


def _text(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    return value if isinstance(value, str) else ",".join(value) if isinstance(value, Iterable) else str(value)


def _memory(identifier: str) -> str:
    return f"/v1/memories/{_quoted(identifier)}"


def _quoted(identifier: str) -> str:
    """Return an id as one path segment; ids that are dots would be taken for directions."""
    if not identifier:
        raise InvalidRecord("id", "an id has at least one character")
    quoted = quote(identifier, safe="")
    return quoted.replace(".", "%2E") if set(quoted) == {"."} else quoted


def _plain(answer: Answer) -> dict[str, Any]:
    return msgspec.json.decode(answer.body, type=dict[str, Any])


def _token(answer: Answer) -> str:
    return str(_plain(answer)["token"])


def _stream(answer: Answer) -> Any:
    return answer.stream
