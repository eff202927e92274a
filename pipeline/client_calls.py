"""The gateway's verbs as calls: what each sends and how its answer is read. Pure; both clients are made of these."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

import msgspec
import pyarrow as pa

from pipeline import client_results as results
from pipeline.client_exchange import Answer, Call
from pipeline.client_questions import Criteria, Reading, Retrieving, Searching, params_of, question, vector_b64
from pipeline.client_results import ARROW, Memory, Result, SqlResult
from producers import columns
from tiers.errors import InvalidRecord

JSON = "application/json"


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
    params = params_of(asked)
    return Call(method="GET", path=_memory(identifier), parse=results.memory, safe=True, params=params, absent=True)


def search(asked: Searching, *, arrow: bool) -> Call[Result]:
    """Return the call for the nearest."""
    return _asking("/v1/search", question(asked), results.result, arrow=arrow)


def search_many(asked: Iterable[Searching]) -> Call[list[Result]]:
    """Return the call for several searches, answered in their order."""
    return _asking("/v1/search", {"queries": [question(each) for each in asked]}, results.results)


def retrieve(asked: Retrieving, *, arrow: bool) -> Call[Result]:
    """Return the call for memories by ids, or a page."""
    return _asking("/v1/retrieve", question(asked), results.result, arrow=arrow)


def sql(query: str, deadline_ms: float | None, *, arrow: bool) -> Call[SqlResult]:
    """Return the call for one read-only statement."""
    return _asking("/v1/sql", question({"query": query, "deadline_ms": deadline_ms}), results.sql, arrow=arrow)


def operate(what: str, body: Mapping[str, Any]) -> Call[dict[str, Any]]:
    """Return the call for an operator's work that takes as long as it takes (snapshots, verify)."""
    headers = {"content-type": JSON}
    content = _encode(body)
    return Call(
        method="POST", path=f"/v1/{what}", parse=_plain, safe=False, headers=headers, content=content, patient=True
    )


def everything(asked: Criteria, *, arrow: bool) -> Call[Any]:
    """Return the call for every memory that meets the criteria, as a stream."""
    accept = {"accept": ARROW if arrow else "application/x-ndjson"}
    return Call(
        method="GET",
        path="/v1/memories",
        parse=_stream,
        safe=True,
        params=params_of(asked),
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


def _asking(path: str, body: object, parse: Any, *, arrow: bool = False) -> Call[Any]:
    headers = {"content-type": JSON, "accept": ARROW if arrow else JSON}
    return Call(method="POST", path=path, parse=parse, safe=True, headers=headers, content=_encode(body))


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
