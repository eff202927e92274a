"""What arrives bit by bit, taken apart without I/O: server-sent events, JSON lines, Arrow batches.

Each `take`s the bytes that came and returns what they complete; `end` raises ValueError where a stream was cut short.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import httpx
import msgspec
import pyarrow as pa

from pipeline.client_errors import GatewayError
from pipeline.client_exchange import missing
from pipeline.client_results import Memory
from producers import events, ipc
from producers.events import Change
from tiers.errors import InvalidRecord, IsothermError, ServiceMissing

T = TypeVar("T")

MESSAGE_BYTES_MAX = 1 << 28  # of one Arrow message: a page is far smaller
CURSOR = re.compile(r"[!-~]{1,4096}")  # what a header can carry
AGAIN_MAX = 1000  # tries to reach a gateway that was lost; the time is what ends them
LINE_BYTES_MAX = 1 << 25  # of one JSON line or one server-sent event


class Taking(Protocol[T]):
    """Takes a stream apart."""

    def take(self, part: bytes) -> list[T]:
        """Return what these bytes complete."""

    def end(self) -> None:
        """Raise ValueError unless the stream may end here."""


class Announced(msgspec.Struct, frozen=True):
    """One change of the feed; `cursor` goes on after it."""

    change: Change
    cursor: str


class Lines:
    """NDJSON of memories."""

    def __init__(self) -> None:
        self._rest = b""
        self._decode = msgspec.json.Decoder(Memory).decode

    def take(self, part: bytes) -> list[Memory]:
        """See Taking."""
        *lines, self._rest = (self._rest + part).split(b"\n")
        _bounded(len(self._rest), LINE_BYTES_MAX)
        return [self._decode(line) for line in lines if line]

    def end(self) -> None:
        """See Taking."""
        if self._rest:
            raise ValueError("the last line is cut short")


class Batches:
    """An Arrow stream of record batches."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._ended = False
        self.schema: pa.Schema | None = None

    def take(self, part: bytes) -> list[pa.RecordBatch]:
        """See Taking."""
        self._rest += part
        found: list[pa.RecordBatch] = []
        while not self._ended and (size := _size(self._rest)) is not None:
            self._ended = size == 0
            if len(self._rest) < size or self._ended:
                break
            message = pa.ipc.read_message(bytes(self._rest[:size]))
            del self._rest[:size]
            if self.schema is None:
                self.schema = pa.ipc.read_schema(message)
            else:
                found.append(pa.ipc.read_record_batch(message, self.schema))
        return found

    def end(self) -> None:
        """See Taking."""
        if not self._ended:
            raise ValueError("the stream is cut short")


def _size(head: bytearray) -> int | None:
    try:
        size = ipc.message_bytes(bytes(head[: 8 + ipc.SCHEMA_BYTES_MAX]))
    except InvalidRecord as error:
        raise ValueError(str(error)) from error
    _bounded(size or 0, MESSAGE_BYTES_MAX)
    return size


def _bounded(size: int, limit: int) -> None:
    if size > limit:
        raise ValueError(f"a part of the stream has {size} bytes; at most {limit} are taken")


@dataclass
class Feed:
    """The change feed across connections: where it stands, and when it is given up.

    `cursor` is where the next connection goes on; a feed that began at the end and has shown nothing yet begins at the
    end again, and may miss what was announced in between.
    """

    cursor: str
    url: str
    pause_s: float = 1.0
    _rest: bytes = b""
    _event: dict[str, list[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what no gateway gave."""
        if not CURSOR.fullmatch(self.cursor):
            raise InvalidRecord("cursor", f"{self.cursor!r} is no cursor; use beginning, end, or one that a change had")

    def headers(self) -> dict[str, str]:
        """Return what a connection asks with."""
        accept = {"accept": "text/event-stream"}
        return accept if self.cursor in ("beginning", "end") else {**accept, "last-event-id": self.cursor}

    def params(self) -> dict[str, str]:
        """Return where a feed begins that has no cursor yet."""
        return {"from": self.cursor} if self.cursor in ("beginning", "end") else {}

    def connected(self) -> None:
        """Begin anew: what the last connection left half is told again."""
        self._rest, self._event = b"", {}

    def take(self, part: bytes) -> list[Announced]:
        """Return the changes that these bytes complete; ServiceMissing for what no gateway sends."""
        try:
            return self._taken(part)
        except (ValueError, InvalidRecord) as error:
            raise missing(self.url, f"its change feed cannot be read: {error}") from error

    def _taken(self, part: bytes) -> list[Announced]:
        *lines, self._rest = (self._rest + part).split(b"\n")
        _bounded(len(self._rest), LINE_BYTES_MAX)
        told: list[Announced] = []
        for line in lines:
            name, _, value = line.rstrip(b"\r").partition(b":")
            if name:
                self._event.setdefault(name.decode(), []).append(value.removeprefix(b" "))
            elif not line.rstrip(b"\r"):
                told += self._dispatched()
        return told

    def _dispatched(self) -> list[Announced]:
        event, self._event = self._event, {}
        if "retry" in event and event["retry"][-1].isdigit():
            self.pause_s = min(60.0, int(event["retry"][-1]) / 1000)
        if "id" in event:
            self.cursor = event["id"][-1].decode()
        if "data" not in event or event.get("event", [b"change"])[-1] != b"change":
            return []
        return [Announced(events.decode_change(b"\n".join(event["data"])), self.cursor)]

    def given_up(self, error: IsothermError) -> IsothermError:
        """Return the error for a feed that ends here, with the cursor to go on from where that may help."""
        if isinstance(error, GatewayError) and not error.retriable:
            return error
        return ServiceMissing(f"{error}; go on with --from {self.cursor}")


@contextmanager
def cut_short(url: str) -> Iterator[None]:
    """Say of a stream that did not come to its end that it did not."""
    try:
        yield
    except (httpx.TransportError, ValueError) as error:  # msgspec's and Arrow's errors are ValueErrors
        raise missing(url, f"the stream broke off: {error}") from error
