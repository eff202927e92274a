"""What the gateway's answers become: memories, results, tables of SQL; from JSON or from Arrow, alike."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
import pyarrow as pa

from pipeline.client_exchange import Answer
from tiers import record

ARROW = "application/vnd.apache.arrow.stream"
META = b"isotherm"  # in an Arrow answer's metadata: what JSON has around the hits


class Memory(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A memory as the gateway shows it; `vector` and others are None where `include` did not name them.

    `version` is "epoch.offset.row"; `score` is there in searches only; `payload` is any JSON value
    (bytes that are no JSON come as base64 text).
    """

    id: str
    tier: str
    version: str
    event_time: datetime
    expires_at: datetime | None = None
    attributes: dict[str, Any] | None = None
    payload: Any = None
    vector: list[float] | None = None
    score: float | None = None


class Result(msgspec.Struct, kw_only=True, omit_defaults=True):
    """An answer and how complete it is (`missed` names tiers of which something was not looked at).

    `cursor` goes on after a page of `retrieve`; None on the last one. `arrow` is the answer as it came, where
    it was asked for with `arrow=True`.
    """

    hits: list[Memory]
    complete: bool = True
    searched: dict[str, Any] = {}
    missed: list[str] = []
    scanned: int = 0
    of: int = 0
    freshness: dict[str, Any] = {}
    took_ms: float = 0.0
    explain: dict[str, Any] | None = None
    cursor: str | None = None
    arrow: bytes | None = None

    def to_arrow(self) -> pa.Table:
        """Return the hits as a table; of an answer in Arrow the very one, with exact types and bytes."""
        return table_of(self.hits) if self.arrow is None else read(self.arrow)


class SqlResult(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A table, and how old the snapshot is that it comes from; `truncated` when a bound of rows or bytes cut it."""

    columns: list[str]
    types: list[str]
    rows: list[list[Any]]
    row_count: int = 0
    snapshot_age_ms: float = 0.0
    truncated: bool = False
    arrow: bytes | None = None

    def to_arrow(self) -> pa.Table:
        """Return the rows as a table; with exact types where the answer came in Arrow, else they are inferred."""
        if self.arrow is not None:
            return read(self.arrow)
        values = zip(*self.rows, strict=True) if self.rows else ([] for _ in self.columns)
        return pa.table([pa.array(list(column)) for column in values], names=self.columns)


def result(answer: Answer) -> Result:
    """Return an answer of search or retrieve."""
    if not is_arrow(answer):
        return msgspec.json.decode(answer.body, type=Result)
    table = read(answer.body)
    around = msgspec.json.decode((table.schema.metadata or {}).get(META, b"{}"))
    hits = [_from_row(row) for row in table.to_pylist()]
    return msgspec.structs.replace(msgspec.convert({"hits": [], **around}, Result), hits=hits, arrow=answer.body)


def results(answer: Answer) -> list[Result]:
    """Return the answers of several searches."""
    return msgspec.json.decode(answer.body, type=dict[str, list[Result]])["results"]


def memory(answer: Answer) -> Memory | None:
    """Return one memory, None for a 404."""
    return None if answer.status == 404 else msgspec.json.decode(answer.body, type=Memory)


def sql(answer: Answer) -> SqlResult:
    """Return a table of SQL."""
    if not is_arrow(answer):
        return msgspec.json.decode(answer.body, type=SqlResult)
    table = read(answer.body)
    return SqlResult(
        columns=table.schema.names,
        types=[str(field.type) for field in table.schema],
        rows=[list(row) for row in zip(*(column.to_pylist() for column in table.columns), strict=True)],
        row_count=table.num_rows,
        snapshot_age_ms=float(answer.headers.get("isotherm-snapshot-age-ms", 0)),
        truncated=answer.headers.get("isotherm-truncated") == "true",
        arrow=answer.body,
    )


def is_arrow(answer: Answer) -> bool:
    """Say whether an answer is an Arrow stream."""
    return answer.headers.get("content-type", "").startswith(ARROW)


def read(body: bytes) -> pa.Table:
    """Return an Arrow answer whole, what is around its hits in the metadata."""
    with pa.ipc.open_stream(body) as reader:
        return reader.read_all()


def _from_row(row: dict[str, Any]) -> Memory:
    """Return a row of an Arrow answer as JSON would have shown it."""
    row.pop("query", None)
    payload = row.pop("payload", None)
    try:
        row["payload"] = msgspec.json.decode(payload) if payload else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        row["payload"] = base64.b64encode(payload or b"").decode()
    if row.get("attributes") is not None:
        row["attributes"] = {name: value for name, value in row["attributes"].items() if value is not None}
    row["version"] = record.version_text(row["version"])
    return Memory(**row)


def table_of(memories: Sequence[Memory]) -> pa.Table:
    """Return memories as a table: id, version (int64), times, what was included, tier, score."""
    time, count = pa.timestamp("ms", "UTC"), len(memories)
    columns: dict[str, pa.Array] = {
        "id": pa.array([each.id for each in memories], pa.string()),
        "version": pa.array([record.parse_version(each.version) for each in memories], pa.int64()),
        "event_time": pa.array([each.event_time for each in memories], time),
        "expires_at": pa.array([each.expires_at for each in memories], time),
        "tier": pa.array([each.tier for each in memories], pa.string()),
    }
    if any(each.vector is not None for each in memories):
        columns["vector"] = pa.array([each.vector for each in memories], pa.list_(pa.float32()))
    if any(each.payload is not None for each in memories):
        payloads = [None if each.payload is None else msgspec.json.encode(each.payload) for each in memories]
        columns["payload"] = pa.array(payloads, pa.binary())
    if any(each.attributes for each in memories):
        columns["attributes"] = pa.array([each.attributes for each in memories])
    if count and all(each.score is not None for each in memories):
        columns["score"] = pa.array([each.score for each in memories], pa.float32())
    return pa.table(columns)
