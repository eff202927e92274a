"""The child that runs one statement over a snapshot, and nothing else: a process of its own, so that it can be killed.

It reads a job (JSON) from standard input and writes frames to standard output: a letter, four bytes of length, and that
many bytes.

    H  {"columns": [{"name", "type"}, …], "confined": {…}}, first
    D  a part of the answer: rows as JSON (comma between them), as NDJSON, or a part of an Arrow stream
    E  {"rows", "truncated", "peak_bytes"}, last
    X  {"kind", "detail"}, instead of what would come: nothing that was sent before it counts

What it is given is the whole of what it can reach: its directory is the snapshot, its environment is empty, and the
database is read-only and locked before the statement is looked at (reliability: DuckDB alone is no sandbox).
"""

from __future__ import annotations

import base64
import io
import json
import os
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import duckdb
import msgspec
import pyarrow as pa

from pipeline import sql_sandbox
from pipeline.sql_vet import Refused, vet

FRAME = struct.Struct("<cI")
FRAME_BYTES = 1 << 18
BATCH_ROWS = 1_024
Write = Callable[[bytes, bytes], None]

#: In this order; the last one makes the others final.
LOCK = (
    "SET TimeZone = 'UTC'",
    "SET allow_persistent_secrets = false",
    "SET max_temp_directory_size = '0B'",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)


def main(parent: int) -> None:
    """Run the job on standard input; exits 0 when an answer or an error was written."""
    sql_sandbox.bind(parent)
    no_network = sql_sandbox.cut_network()
    job = json.load(sys.stdin)
    _warm_up()
    no_files = sql_sandbox.confine(job["memory_bytes"], job["cpu_s"])
    try:
        answer(job, write, {"no_network": no_network, "no_files": no_files})
    except Exception as error:  # noqa: BLE001 - the edge of this process: every error goes to the parent as data
        write(b"X", json.dumps(told(error)).encode())
    os._exit(0)  # a destructor may need memory that is not to be had


def _warm_up() -> None:
    """Load what DuckDB and Arrow load when they are first used: after `confine` there is no file to load it from."""
    connection = duckdb.connect(":memory:", config={"threads": 1})
    connection.sql("SELECT now() AS a, [1] AS b, 1.5::DECIMAL(9, 2) AS c").to_arrow_table().to_pylist()
    connection.close()


def write(kind: bytes, body: bytes) -> None:
    """Write one frame."""
    left = memoryview(FRAME.pack(kind, len(body)) + body)
    while left:
        left = left[os.write(1, left) :]


def connect(job: Mapping[str, Any]) -> duckdb.DuckDBPyConnection:
    """Open the snapshot, make its views, and lock everything."""
    connection = duckdb.connect(
        job["database"],
        read_only=True,
        config={
            "threads": job["threads"],
            "memory_limit": f"{job['memory_bytes'] * 3 // 4 >> 20}MiB",
            "temp_directory": "",
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "allow_community_extensions": False,
            "python_enable_replacements": False,
        },
    )
    for statement in job["setup"]:
        connection.execute(statement)
    if job["files"]:
        connection.execute("SET allowed_directories = ['glacier']")
    connection.execute(f"SET max_execution_time = {int(job['deadline_ms'])}")
    for statement in LOCK:
        connection.execute(statement)
    return connection


def answer(job: Mapping[str, Any], out: Write, confined: Mapping[str, bool]) -> None:
    """Run the job's statement and write its frames; `confined` is what the kernel has granted."""
    connection = connect(job)
    if not job.get("unvetted"):  # only a test looks at the second wall alone
        vet(connection, job["statement"])
    relation = connection.sql(job["statement"])
    if relation is None:
        raise Refused("the statement has no rows to answer with")
    types = [str(kind) for kind in relation.types]
    columns = [{"name": name, "type": kind} for name, kind in zip(relation.columns, types, strict=True)]
    out(b"H", json.dumps({"columns": columns, "confined": confined}).encode())
    reader = relation.to_arrow_reader(BATCH_ROWS)
    parts = FORMS[job["form"]](reader.schema, _batches(reader, job["rows_max"]), types)
    end = _send(parts, job["rows_max"], job["bytes_max"], out)
    out(b"E", json.dumps({**end, "peak_bytes": sql_sandbox.peak_bytes()}).encode())


def _send(parts: Iterator[tuple[bytes, int]], rows_max: int, bytes_max: int, out: Write) -> dict[str, Any]:
    """Write parts (bytes, rows) until one would pass a bound; returns how many rows went, and whether that was all."""
    rows = sent = 0
    for part, count in parts:
        if rows + count > rows_max:
            return {"rows": rows, "truncated": True}
        if sent + len(part) > bytes_max:
            if not rows:
                raise Refused(f"the first row is larger than the {bytes_max:,} bytes of an answer (sql.bytes_max)")
            return {"rows": rows, "truncated": True}
        for start in range(0, len(part), FRAME_BYTES):
            out(b"D", part[start : start + FRAME_BYTES])
        rows, sent = rows + count, sent + len(part)
    return {"rows": rows, "truncated": False}


def _batches(reader: pa.RecordBatchReader, rows_max: int) -> Iterator[pa.RecordBatch]:
    """Yield the first `rows_max` rows in batches, and then one more row, if there is one."""
    left = rows_max
    for batch in reader:
        yield batch.slice(0, left)
        if batch.num_rows > left:
            yield batch.slice(left, 1)
            return
        left -= batch.num_rows


# -- forms -------------------------------------------------------------------------------------------------------------


def _json(_: pa.Schema, batches: Iterator[pa.RecordBatch], types: list[str]) -> Iterator[tuple[bytes, int]]:
    """Yield each row as a list, with a comma before all but the first."""
    comma = b""
    for batch in batches:
        for row in zip(*_values(batch, types), strict=True):
            yield comma + _ENCODER.encode(row), 1
            comma = b","


def _ndjson(schema: pa.Schema, batches: Iterator[pa.RecordBatch], types: list[str]) -> Iterator[tuple[bytes, int]]:
    """Yield each row as an object on a line."""
    for batch in batches:
        for row in zip(*_values(batch, types), strict=True):
            yield _ENCODER.encode(dict(zip(schema.names, row, strict=True))) + b"\n", 1


class _Parts(io.RawIOBase):
    """A file that is written, and taken away bit by bit."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.parts.append(bytes(data))
        return len(self.parts[-1])

    def take(self) -> bytes:
        parts, self.parts = self.parts, []
        return b"".join(parts)


def _arrow(schema: pa.Schema, batches: Iterator[pa.RecordBatch], _: list[str]) -> Iterator[tuple[bytes, int]]:
    """Yield an Arrow stream in parts; its end, eight fixed bytes, is the parent's to add."""
    sink = _Parts()
    writer = pa.ipc.new_stream(sink, schema)
    for batch in batches:
        step = max(1, batch.num_rows * FRAME_BYTES // max(1, batch.nbytes))
        for start in range(0, batch.num_rows, step):
            part = batch.slice(start, step)
            writer.write_batch(part)
            yield sink.take(), part.num_rows
    yield sink.take(), 0  # an answer without rows has its schema


FORMS = {"json": _json, "ndjson": _ndjson, "arrow": _arrow}


def _values(batch: Any, types: list[str]) -> list[list[Any]]:
    """Return the columns as values that JSON can hold."""
    columns = []
    for column, kind in zip(batch.columns, types, strict=True):
        if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
            values = column.cast(pa.timestamp("us", column.type.tz), safe=False).to_pylist()
        else:
            values = column.to_pylist()
        shown = SHOWN.get(kind)
        columns.append(values if shown is None else [value if value is None else shown(value) for value in values])
    return columns


def _document(text: str) -> msgspec.Raw:
    """Return a JSON value as it stands; on one line."""
    return msgspec.Raw(msgspec.json.format(text.encode(), indent=-1) if "\n" in text else text.encode())


def _interval(value: tuple[int, int, int]) -> str:
    """Return (months, days, ns) as an ISO 8601 duration."""
    months, days, nanoseconds = value
    return f"P{months}M{days}DT{nanoseconds / 1e9:g}S"


def _plain(value: Any) -> Any:
    """Return what JSON has no form for, as text."""
    if isinstance(value, bytes | memoryview):
        return base64.b64encode(value).decode()
    return str(value)


SHOWN: Mapping[str, Callable[[Any], Any]] = {"JSON": _document, "INTERVAL": _interval}
_ENCODER = msgspec.json.Encoder(enc_hook=_plain, decimal_format="number")


# -- errors ------------------------------------------------------------------------------------------------------------


def told(error: Exception) -> dict[str, str]:
    """Return an error as the parent passes it on; of what may show paths only that it happened."""
    text = str(error).partition("\n")[0]
    if isinstance(error, Refused):
        return {"kind": "refused", "detail": text}
    if isinstance(error, RecursionError):
        return {"kind": "refused", "detail": "the statement is nested too deeply"}
    if isinstance(error, MemoryError | duckdb.OutOfMemoryException):
        return {"kind": "memory", "detail": "the statement needs more memory than sql.memory_bytes allows"}
    if isinstance(error, duckdb.InterruptException):
        return {"kind": "deadline", "detail": "the statement took longer than its deadline"}
    if isinstance(error, duckdb.PermissionException | duckdb.IOException):
        return {"kind": "refused", "detail": "the statement asks for something outside the snapshot"}
    if isinstance(error, duckdb.InternalException | duckdb.FatalException):
        return {"kind": "failed", "detail": f"DuckDB failed at it ({type(error).__name__})"}
    if isinstance(error, duckdb.Error):
        return {"kind": "statement", "detail": text}
    return {"kind": "failed", "detail": f"the answer could not be made ({type(error).__name__})"}
