"""How answers look: JSON objects, NDJSON lines, or Arrow streams with the record columns."""

from __future__ import annotations

import io
from collections.abc import Container, Iterable, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from starlette.responses import Response
from starlette.types import Scope

from pipeline.questions import FIELDS
from tiers import record
from tiers.errors import InvalidRecord
from tiers.record import Row
from tiers.tier import Hit, Result, TierName

ARROW = "application/vnd.apache.arrow.stream"
JSON = "application/json"
NDJSON = "application/x-ndjson"

FLOAT_BYTES = 22  # of a float as JSON, at most, and a comma

_encode = msgspec.json.Encoder().encode


def wants_arrow(scope: Scope) -> bool:
    """Say whether the client accepts Arrow streams; JSON is the answer to everything else."""
    for name, value in scope["headers"]:
        if name == b"accept":
            kinds = value.decode("latin-1").lower().split(",")
            return any(kind.partition(";")[0].strip() == ARROW for kind in kinds)
    return False


def check_include(include: Iterable[str]) -> frozenset[str]:
    """Return which fields to show; InvalidRecord("include") names what is none."""
    chosen = frozenset(include)
    unknown = sorted(chosen.difference(FIELDS))
    if unknown:
        raise InvalidRecord("include", f"{unknown[0]!r} cannot be included; there are {', '.join(FIELDS)}")
    return chosen


def answer_json(body: object, status: int = 200) -> Response:
    """Return a JSON response."""
    return Response(_encode(body), status, media_type=JSON)


def envelope(result: Result, whole: int | None = None) -> dict[str, Any]:
    """Return how complete an answer is (R7); `whole` hits are shown with their fields, all if not given."""
    around = {
        "complete": result.complete,
        "searched": result.searched,
        "missed": result.missed,
        "scanned": result.scanned,
        "of": result.of,
        "freshness": result.freshness,
        "took_ms": result.took_ms,
    }
    if whole is not None and whole < len(result.hits):
        around["truncated"] = len(result.hits) - whole
    if result.explain is not None:
        around["explain"] = result.explain
    return around


class Allowance:
    """What the hits of one answer may carry: bytes of payloads, attributes and vectors as JSON has them."""

    def __init__(self, bytes_max: int) -> None:
        self._left = bytes_max

    def take(self, hits: Sequence[Hit], include: Iterable[str]) -> int:
        """Return how many hits are shown whole; those after them are shown without their fields."""
        fields = frozenset(include)
        if not fields:
            return len(hits)
        for at, hit in enumerate(hits):
            self._left -= _carried(hit.row, fields)
            if self._left < 0:
                self._left = -1
                return at
        return len(hits)


def _carried(row: Row, fields: frozenset[str]) -> int:
    """Return about how many bytes a row's fields are as JSON: never much less."""
    size = 0
    if "payload" in fields:
        size += len(row.payload) * 4 // 3
    if "vector" in fields and row.vector is not None:
        size += row.vector.size * FLOAT_BYTES
    if "attributes" in fields:
        for each in row.attributes.values():
            size += FLOAT_BYTES + (6 * len(each) if isinstance(each, str) else 0)
    return size


def listed(hits: Sequence[Hit], include: Container[str], whole: int) -> list[dict[str, Any]]:
    """Return hits as the API shows them, those from `whole` on without their fields."""
    bare = [shown(hit, ()) | {"truncated": True} for hit in hits[whole:]]
    return [shown_row(hit.row, hit.tier, include, hit.score) for hit in hits[:whole]] + bare


def shown(hit: Hit, include: Container[str]) -> dict[str, Any]:
    """Return a hit as the API shows it."""
    return shown_row(hit.row, hit.tier, include, hit.score)


def shown_row(row: Row, tier: TierName, include: Container[str], score: float | None = None) -> dict[str, Any]:
    """Return a record as the API shows it."""
    out: dict[str, Any] = {
        "id": row.id,
        "tier": tier.word,
        "version": record.version_text(row.version),
        "event_time": _time(row.event_time),
    }
    if row.expires_at is not None:
        out["expires_at"] = _time(row.expires_at)
    if "attributes" in include:
        out["attributes"] = row.attributes
    if "payload" in include:
        out["payload"] = payload_of(row)
    if "vector" in include and row.vector is not None:
        out["vector"] = row.vector.tolist()
    if score is not None:
        out["score"] = score
    return out


def payload_of(row: Row) -> Any:
    """Return the payload as JSON if it is JSON, as base64 text if not, None when empty."""
    if not row.payload:
        return None
    try:
        msgspec.json.decode(row.payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return row.payload  # msgspec writes bytes as base64
    return msgspec.Raw(row.payload)


def _time(milliseconds: int) -> str:
    return str(np.datetime64(milliseconds, "ms")) + "Z"


def lines(hits: Iterable[Hit], include: Container[str]) -> bytes:
    """Return hits as NDJSON."""
    return b"".join(_encode(shown(hit, include)) + b"\n" for hit in hits)


# -- Arrow -------------------------------------------------------------------------------------------------------------


class _Parts(io.RawIOBase):
    """A file that is written and handed on bit by bit."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] = []
        self._written = 0

    def writable(self) -> bool:
        """Say that it can be written."""
        return True

    def write(self, data: Any) -> int:
        """Keep a copy: the writer uses its buffers again."""
        self._parts.append(bytes(data))
        self._written += len(self._parts[-1])
        return len(self._parts[-1])

    def tell(self) -> int:
        """Return how much was written in all."""
        return self._written

    def take(self) -> bytes:
        """Return what was written since the last time."""
        parts, self._parts = self._parts, []
        return b"".join(parts)


class ArrowAnswer:
    """An Arrow stream written batch by batch; `shape` is the record schema, of which `include` are kept.

    Beside the record columns a row has its `tier`, of a search its `query` (number, from 0) and `score` too. What JSON
    puts around the hits is in the schema's metadata, key `isotherm`.
    """

    def __init__(
        self, shape: pa.Schema, include: Iterable[str], around: object = None, *, scored: bool = False
    ) -> None:
        self._shape = shape
        self._kept = [name for name in shape.names if name not in FIELDS or name in include]
        self._kept.remove("deleted")
        columns = [*(shape.field(name) for name in self._kept), pa.field("tier", pa.string())]
        if scored:
            columns += [pa.field("query", pa.int32()), pa.field("score", pa.float32())]
        self._scored = scored
        metadata = {"isotherm": _encode(around)} if around is not None else None
        self._schema = pa.schema(columns, metadata)
        self._sink = _Parts()
        self._writer = pa.ipc.new_stream(self._sink, self._schema)

    def bytes_of(self, hits: Sequence[Hit], query: int = 0, whole: int | None = None) -> bytes:
        """Return the next part of the stream: one batch (the first part begins with the schema).

        Rows from `whole` on have an empty payload, no attributes and no vector.
        """
        rows = [hit.row for hit in hits]
        if whole is not None:
            rows[whole:] = [replace(row, payload=b"", attributes={}, vector=None) for row in rows[whole:]]
        batch = record.to_batch(rows, self._shape).select(self._kept)
        columns = [*batch.columns, pa.array([hit.tier.word for hit in hits], pa.string())]
        if self._scored:
            columns.append(pa.array(np.full(len(hits), query, np.int32)))
            columns.append(pa.array([hit.score for hit in hits], pa.float32()))
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        return self._sink.take()

    def end(self) -> bytes:
        """Return the last part of the stream."""
        self._writer.close()
        return self._sink.take()
