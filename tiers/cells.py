"""Rows of a batch read one by one, through views of its buffers that are made once.

A row read by `record.row_at` costs 20 µs, most of it Arrow's objects for columns and values; here 4, with its vector
6. The views take about 2 KB a batch.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from tiers import record
from tiers.record import Row


class Cells:
    """The rows of one batch of records."""

    __slots__ = ("_attributes", "_deleted", "_event_time", "_expires_at", "_ids", "_payloads", "_vectors", "_version")

    def __init__(self, batch: pa.RecordBatch) -> None:
        self._ids, self._payloads = Bytes(batch["id"]), Bytes(batch["payload"])
        self._version, self._event_time = _int64s(batch["version"]), _int64s(batch["event_time"])
        self._expires_at = _unless_all_null(batch["expires_at"])
        self._vectors = batch["vector"]
        self._deleted = batch["deleted"] if record.deleted_of(batch).any() else None
        attributes = batch["attributes"]
        names = [field.name for field in attributes.type]
        given = ((name, _unless_all_null(values)) for name, values in zip(names, attributes.flatten(), strict=True))
        self._attributes = [(name, values) for name, values in given if values is not None]

    def row(self, at: int, *, vector: bool) -> Row:
        """Return a row as a light view; without its vector where that is not wanted."""
        attributes: dict[str, Any] = {}
        for name, values in self._attributes:
            value = values[at].as_py()
            if value is not None:
                attributes[name] = value
        given = self._vectors[at] if vector else None
        expires = self._expires_at[at] if self._expires_at is not None else None
        return Row(
            self._ids.at(at).decode(),
            self._version[at],
            self._event_time[at],
            expires.value if expires is not None and expires.is_valid else None,
            given.values.to_numpy() if given is not None and given.is_valid else None,
            self._payloads.at(at),
            attributes,
            self._deleted is not None and self._deleted[at].as_py(),
        )


class Bytes:
    """The values of a string or binary column without nulls."""

    __slots__ = ("_data", "_ends")

    def __init__(self, column: pa.Array) -> None:
        _, ends, data = column.buffers()
        self._ends = memoryview(ends).cast("i")[column.offset :]
        self._data = memoryview(data if data is not None else b"")

    def at(self, at: int) -> bytes:
        """Return one value."""
        return bytes(self._data[self._ends[at] : self._ends[at + 1]])


def _int64s(column: pa.Array) -> memoryview:
    """Return a column of 64-bit integers, or of times, without nulls."""
    return memoryview(column.buffers()[1]).cast("q")[column.offset :]


def _unless_all_null(column: pa.Array) -> pa.Array | None:
    return None if column.null_count == len(column) else column
