"""Dead letters: what could not be applied, whole, with its place and reason, so that it can be read and sent again.

The value is a value of the memories topic: the message as it came, or of an Arrow message the one bad row as a stream
of its own. Beyond 1 MB the letter says hash and place only. A *note* says that a letter was sent again: no value, and
the letter's place in `isotherm-replayed`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from producers import columns
from producers.events import Message
from tiers.errors import InvalidRecord

LETTER_BYTES_MAX = 1_000_000
HEADER_BYTES = 19  # what a letter adds to a header: "original-" and two lengths
ORIGINAL = "original-"
WHOLE = "-"  # the row of a letter that is a whole Arrow message
REPLAYED = "isotherm-replayed"
NULL = "isotherm-null"  # the value was null, and so was the key: the client library sends no message without both

Encoded = tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]


@dataclass(frozen=True, slots=True)
class Letter:
    """An input that cannot be applied, and why; `rows` is the Arrow batch (`columns.read`) that row `row` lies in.

    `row` is None for an Arrow message that is bad as a whole.
    """

    message: Message
    error: InvalidRecord
    row: int | None = 0
    rows: pa.RecordBatch | None = None

    def value(self) -> bytes | None:
        """Return what is kept: the message's value, or the row as an Arrow stream."""
        if self.rows is None or self.row is None:
            return self.message.value
        return columns.encode(self.rows.slice(self.row, 1))


def encode(topic: str, partition: int, letter: Letter) -> Encoded:
    """Return (key, value, headers) of the letter for an input of a topic's partition."""
    message, error, value = letter.message, letter.error, letter.value()
    headers = [
        ("isotherm-topic", topic.encode()),
        ("isotherm-partition", str(partition).encode()),
        ("isotherm-offset", str(message.offset).encode()),
        ("isotherm-row", (WHOLE if letter.row is None else str(letter.row)).encode()),
        ("isotherm-reason", error.reason.encode()),
        ("isotherm-message", str(error).encode("utf-8", "backslashreplace")[:500]),
    ]
    size = len(value or b"") + len(message.key or b"")
    size += sum(HEADER_BYTES + len(name.encode()) + len(item or b"") for name, item in message.headers)
    if size > LETTER_BYTES_MAX:
        headers.append(("isotherm-sha256", hashlib.sha256(value or b"").hexdigest().encode()))
        return None, b"", headers
    headers += [(f"{ORIGINAL}{name}", item) for name, item in message.headers]
    if message.key is None and value is None:
        return None, b"", [*headers, (NULL, b"1")]
    return message.key, value, headers


@dataclass(frozen=True, slots=True)
class Found:
    """A letter as the dead-letter topic holds it; `headers` are the message's own, `row` as in `Letter`."""

    topic: str
    partition: int
    offset: int
    row: int | None
    reason: str
    error: str
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]
    sha256: str | None


def decode(key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]]) -> Found:
    """Return the letter; InvalidRecord("letter") for a message that `encode` did not write."""
    said = {name: item for name, item in headers if name.startswith("isotherm-")}
    try:
        row = said["isotherm-row"].decode()
        return Found(
            topic=said["isotherm-topic"].decode(),
            partition=int(said["isotherm-partition"]),
            offset=int(said["isotherm-offset"]),
            row=None if row == WHOLE else int(row),
            reason=said["isotherm-reason"].decode(),
            error=said["isotherm-message"].decode("utf-8", "replace"),
            key=key,
            value=None if NULL in said or "isotherm-sha256" in said else value,
            headers=[(name.removeprefix(ORIGINAL), item) for name, item in headers if name.startswith(ORIGINAL)],
            sha256=said["isotherm-sha256"].decode() if "isotherm-sha256" in said else None,
        )
    except (KeyError, ValueError, AttributeError) as error:
        raise InvalidRecord("letter", f"this message is no dead letter of ours: {error!r}") from error


def note(position: str) -> Encoded:
    """Return (key, value, headers) of the note that the letter at "partition:offset" was sent again."""
    return None, b"", [(REPLAYED, position.encode())]


def noted(headers: Sequence[tuple[str, bytes]]) -> str | None:
    """Return the position that a note names; None for a letter."""
    return next((item.decode("utf-8", "replace") for name, item in headers if name == REPLAYED), None)
