"""`isotherm publish`: a file of memories to the log through a gateway. JSON lines, Parquet, or Arrow (file or stream).

What a file is, its first bytes say. It is read and sent in chunks, so that its size does not matter. Where the gateway
refuses a memory, it names the position: that one is rejected, with its reason, and the rest of the chunk goes again.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol, Self

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from pipeline.body import NDJSON_TYPE
from pipeline.chunks import conform
from pipeline.client import Client, Forbidden, Refused, TooManyRequests
from pipeline.looks import progress
from producers import columns, events
from producers.events import ARROW_TYPE
from tiers.errors import InvalidRecord

CHUNK = 500  # memories of one request
CHUNK_BYTES = 2 * 1024 * 1024
LINE_BYTES_MAX = 1_500_000  # a memory has at most 1 MB as an event; base64 and spaces beside
ERRORS_SHOWN = 20
BUSY_S_MAX = 60.0  # a gateway over a limit is waited for so long at a time…
BUSY_MAX = 60  # …and so often for one chunk


class Chunk(Protocol):
    """Memories that are sent together; `numbers` are their lines or rows in the file, from 1."""

    numbers: list[int]

    def body(self) -> tuple[bytes, str]:
        """Return what is sent, and its content type."""

    def without(self, at: int) -> Self:
        """Return the chunk without one memory."""

    def shown(self, at: int) -> Any:
        """Return one memory as the rejects file shows it."""


@dataclass
class Lines:
    """A chunk of JSON lines, as they are in the file."""

    numbers: list[int]
    lines: list[bytes]

    def body(self) -> tuple[bytes, str]:
        """See Chunk."""
        return b"\n".join(self.lines), NDJSON_TYPE

    def without(self, at: int) -> Lines:
        """See Chunk."""
        return Lines(self.numbers[:at] + self.numbers[at + 1 :], self.lines[:at] + self.lines[at + 1 :])

    def shown(self, at: int) -> str:
        """See Chunk."""
        return self.lines[at].decode("utf-8", "replace")


@dataclass
class Rows:
    """A chunk of Arrow rows."""

    numbers: list[int]
    rows: pa.RecordBatch

    def body(self) -> tuple[bytes, str]:
        """See Chunk."""
        return columns.encode(self.rows), ARROW_TYPE

    def without(self, at: int) -> Rows:
        """See Chunk."""
        keep = [row for row in range(len(self.numbers)) if row != at]
        return Rows([self.numbers[row] for row in keep], self.rows.take(pa.array(keep, pa.int64())))

    def shown(self, at: int) -> dict[str, Any]:
        """See Chunk."""
        return {"id": (self.rows["id"][at].as_py() or b"").decode("utf-8", "replace")}


@dataclass
class Outcome:
    """What became of a file; `token` covers everything published."""

    published: int = 0
    rejected: int = 0
    errors: list[str] = field(default_factory=list)
    positions: dict[int, int] = field(default_factory=dict)
    epoch: int = 0

    @property
    def token(self) -> str | None:
        """The token for `at_least`; None when nothing was published."""
        return events.encode_token(self.positions, self.epoch) if self.positions else None

    def add(self, count: int, token: str) -> None:
        """Count what was published."""
        self.published += count
        positions, self.epoch = events.decode_token(token)
        for partition, offset in positions.items():
            self.positions[partition] = max(offset, self.positions.get(partition, offset))


def publish_file(client: Client, name: str, rejects: Path | None, *, quiet: bool) -> Outcome:
    """Publish a file ("-" is standard input), with progress on standard error; rejects as JSON lines into `rejects`.

    A gateway that is over a limit (429) has taken nothing: it is waited for, as long as it asks.
    """
    outcome = Outcome()
    console = Console(stderr=True, quiet=quiet)
    with ExitStack() as stack:
        stream = _opened(stack, name)
        shown = stack.enter_context(progress("publishing", None, quiet=quiet))
        refused = stack.enter_context(rejects.open("wb")) if rejects is not None else None
        try:
            for chunk in _chunks(stream, outcome, refused):
                before = outcome.published
                _submit(client, chunk, outcome, refused)
                shown(outcome.published - before)
        except (pa.ArrowException, OSError) as error:
            raise InvalidRecord("file", f"{name}: {error}; {outcome.published} memories were published") from error
    for reason in outcome.errors:
        console.print(reason, style="red", markup=False, highlight=False)
    return outcome


def _opened(stack: ExitStack, name: str) -> IO[bytes]:
    if name == "-":
        return sys.stdin.buffer
    try:
        return stack.enter_context(Path(name).open("rb"))
    except OSError as error:
        raise InvalidRecord("file", f"{name}: {error.strerror}") from error


def _submit(client: Client, chunk: Chunk, outcome: Outcome, rejects: IO[bytes] | None) -> None:
    busy = 0
    while chunk.numbers:
        body, kind = chunk.body()
        try:
            outcome.add(len(chunk.numbers), client.publish_body(body, kind))
        except TooManyRequests as error:
            busy += 1
            if busy > BUSY_MAX:
                raise
            time.sleep(min(BUSY_S_MAX, error.retry_after_s or 1.0))
        except (Refused, Forbidden) as error:  # forbidden: an id outside of the key's namespaces
            if error.position is None and isinstance(error, Forbidden):
                raise
            if error.position is None:  # the whole of it: another kind of file than we can send
                raise InvalidRecord(error.reason, f"{error}; {outcome.published} memories were published") from error
            text = str(error.problem.get("detail")).partition(": ")[2] or str(error)  # "memory 3: why"
            _reject(outcome, rejects, chunk.numbers[error.position], error.reason, text, chunk.shown(error.position))
            chunk = chunk.without(error.position)
        else:
            return


def _reject(outcome: Outcome, rejects: IO[bytes] | None, number: int, reason: str, text: str, shown: Any) -> None:
    outcome.rejected += 1
    if len(outcome.errors) < ERRORS_SHOWN:
        outcome.errors.append(f"{number}: {text}")
    if rejects is not None:
        said = {"position": number, "reason": reason, "error": text, "input": shown}
        rejects.write(msgspec.json.encode(said) + b"\n")


# -- reading ---------------------------------------------------------------------------------------------------------


def _chunks(stream: IO[bytes], outcome: Outcome, rejects: IO[bytes] | None) -> Iterator[Chunk]:
    buffered = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(stream)  # type: ignore[type-var]
    first = buffered.peek(8)[:8]
    if first.startswith((b"PAR1", b"ARROW1")):
        if not buffered.seekable():
            raise InvalidRecord("file", "Parquet and Arrow files are read from their end: name a file, not a pipe")
        parquet = first.startswith(b"PAR1")
        yield from _rows(_parquet(buffered) if parquet else _file(buffered))
    elif first.startswith(b"\xff\xff\xff\xff"):
        with pa.ipc.open_stream(buffered) as reader:
            yield from _rows(iter(reader))
    else:
        yield from _lines(buffered, outcome, rejects)


def _parquet(stream: IO[bytes]) -> Iterator[pa.RecordBatch]:
    yield from pq.ParquetFile(stream).iter_batches(batch_size=CHUNK)


def _file(stream: IO[bytes]) -> Iterator[pa.RecordBatch]:
    with pa.ipc.open_file(stream) as reader:
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


def _lines(stream: IO[bytes], outcome: Outcome, rejects: IO[bytes] | None) -> Iterator[Lines]:
    chunk, size = Lines([], []), 0
    number = 0
    while line := stream.readline(LINE_BYTES_MAX):
        number += 1
        if len(line) == LINE_BYTES_MAX and not line.endswith(b"\n"):
            while (rest := stream.readline(LINE_BYTES_MAX)) and not rest.endswith(b"\n"):
                pass
            text = f"a line has at most {LINE_BYTES_MAX} bytes"
            _reject(outcome, rejects, number, "event_size", text, line[:200].decode("utf-8", "replace"))
        elif line := line.strip():
            chunk.numbers.append(number)
            chunk.lines.append(line)
            size += len(line)
        if len(chunk.lines) >= CHUNK or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = Lines([], []), 0
    yield chunk


def _rows(batches: Iterator[pa.RecordBatch]) -> Iterator[Rows]:
    done = 0
    for batch in batches:
        rows = conform(batch)
        step = max(1, min(CHUNK, int(rows.num_rows * CHUNK_BYTES / max(1, rows.nbytes))))
        for start in range(0, rows.num_rows, step):
            part = rows.slice(start, step)
            yield Rows(list(range(done + start + 1, done + start + 1 + part.num_rows)), part)
        done += rows.num_rows
