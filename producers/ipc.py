"""What an Arrow IPC stream says it holds, read from its metadata before anything is allocated. Pure.

A body may be compressed (zstd, lz4): 1 KB can say that it becomes 1 GB, and the library allocates what it is told. So
the lengths are added up first, from the few flatbuffer fields that hold them (format: arrow/format/Message.fbs), and a
stream that says too much is refused unread. Dictionaries are refused too: a small one could stand for large values.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np

from tiers.errors import InvalidRecord

SCHEMA, RECORD_BATCH = 1, 3  # MessageHeader
CONTINUATION = 0xFFFFFFFF
BEGIN = b"\xff\xff\xff\xff"  # the first bytes of every stream
SCHEMA_BYTES_MAX = 65_536  # of the schema's metadata; 64 attributes need about 8 KB
BATCHES_MAX = 64  # of one stream; each costs about 20 µs, however few rows it has


class Contents(NamedTuple):
    """What a stream holds: rows, and bytes of its buffers once they are decompressed."""

    rows: int
    size: int


def inspect(value: bytes, rows_max: int, bytes_max: int) -> Contents:
    """Return what a stream holds; InvalidRecord("arrow") when it is none, ("arrow_size") beyond the limits."""
    try:
        return _inspect(value, rows_max, bytes_max)
    except (struct.error, IndexError, ValueError, OverflowError) as error:
        raise InvalidRecord("arrow", f"not an Arrow IPC stream: {error}") from error


def _inspect(value: bytes, rows_max: int, bytes_max: int) -> Contents:
    rows = size = batches = at = 0
    while at < len(value):
        marker, length = struct.unpack_from("<Ii", value, at)
        if marker != CONTINUATION or length < 0:
            raise ValueError(f"no message begins at byte {at}")
        if length == 0:
            break
        metadata, body = value[at + 8 : at + 8 + length], at + 8 + length
        message = _Table.root(metadata)
        kind, body_size = message.scalar(1, "<B"), message.scalar(3, "<q")
        if body_size < 0 or body + body_size > len(value):
            raise ValueError(f"the stream is cut short at byte {len(value)}")
        if (at == 0) != (kind == SCHEMA) or kind not in (SCHEMA, RECORD_BATCH):
            raise ValueError("a stream is one schema and record batches, without dictionaries")
        if kind == SCHEMA and length > SCHEMA_BYTES_MAX:
            raise InvalidRecord("arrow_size", f"a schema has at most {SCHEMA_BYTES_MAX} bytes, this one {length}")
        if kind == RECORD_BATCH:
            batches += 1
            batch = message.table(2)
            rows += _positive(batch.scalar(0, "<q"))
            size += _decompressed(batch, value, body, body_size)
        if rows > rows_max or size > bytes_max or batches > BATCHES_MAX:
            raise InvalidRecord(
                "arrow_size",
                f"a message has at most {rows_max} rows, {bytes_max} bytes when decompressed and {BATCHES_MAX} "
                f"batches; this one says {rows}, {size} and {batches}: send more and smaller messages",
            )
        at = body + body_size
    if at == 0:
        raise ValueError("there is no schema")
    return Contents(rows, size)


def _positive(number: int) -> int:
    if number < 0:
        raise ValueError("a length is negative")
    return number


def _decompressed(batch: _Table, value: bytes, body: int, body_size: int) -> int:
    """Return the bytes of a batch's buffers after decompression, as they say themselves."""
    if not batch.has(3):  # not compressed: the buffers lie in the body as they are
        return body_size
    total = 0
    for offset, length in batch.pairs(2).tolist():
        if length:
            if offset < 0 or length < 8 or offset + length > body_size:
                raise ValueError("a buffer lies outside of the message")
            said = struct.unpack_from("<q", value, body + offset)[0]
            total += length - 8 if said == -1 else _positive(said)
    return total


class _Table:
    """A flatbuffer table: a signed offset to its vtable, which holds the place of each field."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        self._vtable = at - int(self._read("<i", at))
        self._size = int(self._read("<H", self._vtable))

    @classmethod
    def root(cls, data: bytes) -> _Table:
        """Return the table that a flatbuffer begins with."""
        return cls(data, struct.unpack_from("<I", data, 0)[0])

    def _read(self, form: str, at: int) -> int:
        if at < 0:  # struct would count from the end
            raise ValueError("an offset is negative")
        return int(struct.unpack_from(form, self._data, at)[0])

    def _field(self, number: int) -> int | None:
        """Return where a field lies; None when it has its default."""
        slot = 4 + 2 * number
        offset = self._read("<H", self._vtable + slot) if slot + 2 <= self._size else 0
        return self._at + offset if offset else None

    def has(self, number: int) -> bool:
        """Say whether a field is given."""
        return self._field(number) is not None

    def scalar(self, number: int, form: str) -> int:
        """Return a number; 0 when it is not given."""
        at = self._field(number)
        return 0 if at is None else self._read(form, at)

    def _reference(self, number: int) -> int:
        at = self._field(number)
        if at is None:
            raise ValueError(f"field {number} is missing")
        return at + self._read("<I", at)

    def table(self, number: int) -> _Table:
        """Return a table that a field refers to."""
        return _Table(self._data, self._reference(number))

    def pairs(self, number: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
        """Return a vector of (int64, int64) structs as int64[n, 2]."""
        at = self._reference(number)
        count = self._read("<I", at)
        return np.frombuffer(self._data, "<i8", 2 * count, at + 4).reshape(count, 2)


def message_bytes(head: bytes) -> int | None:
    """Return how many bytes the message takes that begins here; 0 at the end of a stream, None when too few to tell.

    InvalidRecord("arrow") when no message begins here.
    """
    if len(head) < 8:
        return None
    marker, length = struct.unpack_from("<Ii", head)
    if marker != CONTINUATION or length < 0:
        raise InvalidRecord("arrow", "not an Arrow IPC stream: no message begins here")
    if length == 0:
        return 0
    if len(head) < 8 + length:
        return None
    try:
        return int(8 + length + _positive(_Table.root(head[8 : 8 + length]).scalar(3, "<q")))
    except (struct.error, ValueError) as error:
        raise InvalidRecord("arrow", f"not an Arrow IPC stream: {error}") from error
