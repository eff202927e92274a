"""`isotherm export`: every memory that meets some criteria into a file that `isotherm publish` reads again.

Arrow batches come from the gateway as they are and are written one by one, so that size does not matter. The file has
its name only once it is whole. Parquet and Arrow keep every byte; JSON lines are for people: they leave out when a
memory expires, and a payload that is no JSON becomes base64 text.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.client import Client
from pipeline.client_questions import Criteria
from pipeline.looks import progress
from tiers.errors import InvalidRecord

LINES = (".jsonl", ".ndjson")
COLUMNS = ("id", "version", "event_time", "expires_at", "vector", "payload", "attributes")  # what publish takes
WHOLE = ("vector", "payload", "attributes")


class Writer(Protocol):
    """Writes batches of one schema."""

    def write_batch(self, batch: pa.RecordBatch) -> None:
        """Write one."""

    def close(self) -> None:
        """End the file."""


def export(client: Client, name: str, asked: Criteria, *, quiet: bool) -> int:
    """Write memories to a file (.parquet, .arrow, .jsonl, or "-": JSON lines to standard output); returns how many."""
    asked = {**asked, "include": asked.get("include") or WHOLE}
    suffix = Path(name).suffix.lower()
    if name != "-" and suffix not in (".parquet", ".arrow", *LINES):
        raise InvalidRecord("file", f"{name}: end it in .parquet, .arrow or .jsonl, or write - for standard output")
    with progress("exporting", None, quiet=quiet or name == "-") as shown:
        if name == "-":
            return _lines(client, asked, sys.stdout.buffer, shown)
        try:
            with _whole(Path(name)) as out:
                if suffix in LINES:
                    return _lines(client, asked, out, shown)
                return _batches(client, asked, _parquet if suffix == ".parquet" else _arrow, out, shown)
        except OSError as error:
            raise InvalidRecord("file", f"{name}: {error.strerror or error}") from error


@contextmanager
def _whole(file: Path) -> Iterator[IO[bytes]]:
    """Open a file that gets its name once it is whole; nothing is left of it otherwise."""
    part = file.with_name(f"{file.name}.part-{os.getpid()}")
    try:
        with part.open("wb") as out:
            yield out
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def _lines(client: Client, asked: Criteria, out: IO[bytes], shown: Callable[[int], None]) -> int:
    count = 0
    for memory in client.retrieve_all(**asked):
        fields: dict[str, Any] = msgspec.to_builtins(memory)
        for name in ("tier", "version", "expires_at"):
            fields.pop(name, None)
        out.write(msgspec.json.encode(fields) + b"\n")
        count += 1
        shown(1)
    out.flush()
    return count


def _batches(
    client: Client,
    asked: Criteria,
    opened: Callable[[IO[bytes], pa.Schema], Writer],
    out: IO[bytes],
    shown: Callable[[int], None],
) -> int:
    writer: Writer | None = None
    count = 0
    try:
        for each in client.retrieve_batches(**asked):
            batch = each.select([name for name in each.schema.names if name in COLUMNS])
            writer = writer or opened(out, batch.schema)
            writer.write_batch(batch)
            count += batch.num_rows
            shown(batch.num_rows)
    finally:
        if writer is not None:
            writer.close()
    return count


def _parquet(out: IO[bytes], schema: pa.Schema) -> Writer:
    writer: Writer = pq.ParquetWriter(out, schema, compression="zstd")
    return writer


def _arrow(out: IO[bytes], schema: pa.Schema) -> Writer:
    writer: Writer = pa.ipc.new_file(out, schema)
    return writer
