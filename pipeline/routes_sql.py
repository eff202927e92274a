"""The gateway's SQL: POST /v1/sql, one SELECT over a snapshot of all tiers.

An answer is held until it is whole (bounded by sql.bytes_max), so that every error is a problem object and never a
stream that breaks off. The bytes are made by the child that ran the statement: this process looks at none of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from pipeline.answers import ARROW, JSON, NDJSON
from pipeline.auth import principal_of
from pipeline.manager import MemoryManager
from pipeline.paths import Handler
from pipeline.questions import SqlAsked
from pipeline.routes_read import decoded
from pipeline.sql import Answer

ARROW_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
MEDIA = {"json": JSON, "ndjson": NDJSON, "arrow": ARROW}


def sql_handlers(manager: MemoryManager, body: Callable[[Request], Awaitable[bytes]]) -> dict[str, Handler]:
    """Return the handlers by operation; `body` reads a request's body within its bounds."""

    async def sql(request: Request) -> Response:
        """POST /v1/sql: rows as JSON, or NDJSON or an Arrow stream where the client accepts them."""
        asked = decoded(await body(request), SqlAsked)
        manager.check_ready()
        form = form_of(request)
        namespaces = principal_of(request).namespaces
        answer = await manager.node.sql.query(asked.query, form, namespaces=namespaces, deadline_ms=asked.deadline_ms)
        headers = {
            "Isotherm-Snapshot-Age-Ms": str(answer.snapshot_age_ms),
            "Isotherm-Truncated": str(answer.truncated).lower(),
        }
        return Response(whole(answer, form), headers=headers, media_type=MEDIA[form])

    return {"sql": sql}


def form_of(request: Request) -> str:
    """Return the form that a client accepts; JSON where it does not say."""
    accepted = {kind.partition(";")[0].strip().lower() for kind in request.headers.get("accept", "").split(",")}
    return "arrow" if ARROW in accepted else "ndjson" if NDJSON in accepted else "json"


def whole(answer: Answer, form: str) -> bytes:
    """Return the body of an answer."""
    if form == "ndjson":
        return b"".join(answer.parts)
    if form == "arrow":
        return b"".join([*answer.parts, ARROW_END])
    around = {
        "row_count": answer.rows,
        "truncated": answer.truncated,
        "snapshot_age_ms": answer.snapshot_age_ms,
    }
    names, types = ([column[part] for column in answer.columns] for part in ("name", "type"))
    head = b'{"columns":%s,"types":%s,"rows":[' % (msgspec.json.encode(names), msgspec.json.encode(types))
    return b"".join([head, *answer.parts, b"],", msgspec.json.encode(around)[1:]])
