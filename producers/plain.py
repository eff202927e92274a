"""Columns out of lists of plain values, and which rows are not plain: no call of Python for a row. Pure.

What is *suspect* here has no value in its column; `singles` lets `EventDecoder` look at it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import repeat
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from producers.decoder import ATTRIBUTE_BYTES_MAX, FUTURE_MS_MAX, PAST_MS_MAX
from tiers import record
from tiers.ids import Bools
from tiers.record import Int64s

_TYPES: Mapping[str, frozenset[type]] = {
    "string": frozenset({str}),
    "int": frozenset({int}),
    "float": frozenset({float, int}),
    "bool": frozenset({bool}),
    "timestamp": frozenset({str, datetime}),
}
_TIMES = list[datetime | None]


def lengths(parts: Sequence[bytes]) -> Int64s:
    """Return the length of each."""
    return np.fromiter(map(len, parts), np.int64, len(parts))


def given(values: Sequence[object]) -> Bools:
    """Return which are not None."""
    count = len(values)
    if values.count(None) == count:
        return np.zeros(count, bool)
    return np.array([value is not None for value in values], bool)


def instead(values: Sequence[Any], bad: Bools, neutral: Any) -> Sequence[Any]:
    """Return the values with a neutral one in place of the bad."""
    if not bad.any():
        return values
    return [neutral if wrong else value for value, wrong in zip(values, bad.tolist(), strict=True)]


def binary(parts: Sequence[bytes]) -> pa.Array:
    """Return bytes as a column; one copy."""
    ends = np.zeros(len(parts) + 1, np.int32)
    np.cumsum(lengths(parts), out=ends[1:])
    return pa.Array.from_buffers(pa.binary(), len(parts), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(parts))])


def text(parts: Sequence[bytes], suspect: Bools) -> pa.Array:
    """Return bytes as a column of strings; marks what is not UTF-8."""
    column = binary(parts)
    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid:
        bad = np.fromiter(map(_is_no_text, parts), bool, len(parts))
        suspect |= bad
        return binary(instead(parts, bad, b"")).cast(pa.string())


def _is_no_text(part: bytes) -> bool:
    try:
        part.decode()
    except UnicodeDecodeError:
        return True
    return False


# -- times -----------------------------------------------------------------------------------------------------------


def event_times(values: Sequence[datetime | None], sent_ms: Int64s, suspect: Bools) -> Int64s:
    """Return when each event was, in ms; the message's time where it does not say."""
    said = given(values)
    if not said.any():
        return sent_ms
    naive = np.array([value is not None and value.tzinfo is None for value in values], bool)
    suspect |= naive
    said &= ~naive
    seconds = [0.0 if value is None else value.timestamp() for value in instead(values, naive, None)]
    found = np.where(said, np.floor(np.array(seconds) * 1000).astype(np.int64), sent_ms)
    suspect |= (found < sent_ms - PAST_MS_MAX) | (found > sent_ms + FUTURE_MS_MAX)
    return found


def expiries(values: Sequence[float | None], sent_ms: Int64s, suspect: Bools) -> pa.Array:
    """Return when each expires, null where it does not say."""
    kind = pa.timestamp("ms", "UTC")
    said = given(values)
    if not said.any():
        return pa.nulls(len(values), kind)
    seconds = np.array(instead(values, ~said, 0.0), np.float64)
    right = (seconds > 0) & (seconds < PAST_MS_MAX / 1000)
    suspect |= said & ~right
    right &= said
    ends = sent_ms + (np.where(right, seconds, 0.0) * 1000).astype(np.int64)
    return pa.array(ends, mask=~right).cast(kind)


# -- attributes ------------------------------------------------------------------------------------------------------


class Attributes(NamedTuple):
    """The column; how many keys each row gave, and how many of them as text."""

    column: pa.StructArray
    keys: Int64s
    texts: Int64s


def attributes(declared: Mapping[str, str], rows: Sequence[dict[str, Any]], suspect: Bools) -> Attributes:
    """Return the declared attributes of each row; marks those with a key or a value that is not plain."""
    count = len(rows)
    kind = pa.struct([(name, record.ATTRIBUTE_TYPES[word]) for name, word in declared.items()])
    keys = np.fromiter(map(len, rows), np.int64, count)
    if not declared or not keys.any():
        suspect |= keys > 0
        return Attributes(without(kind, count), keys, np.zeros(count, np.int64))
    found, texts = np.zeros(count, np.int64), np.zeros(count, np.int64)
    children = []
    for name, word in declared.items():
        values = [row.get(name) for row in rows]
        said = ~np.zeros(count, bool) if None not in values else given(values)
        found += said
        if not set(map(type, values)) <= _TYPES[word] | {type(None)}:
            wrong = np.array([type(value) not in _TYPES[word] for value in values], bool) & said
            suspect |= wrong
            values = list(instead(values, wrong, None))
        if word in ("string", "timestamp"):
            texts += np.fromiter(map(isinstance, values, repeat(str)), bool, count)
        children.append(_COLUMNS[word](values, suspect))
    suspect |= found != keys  # a key that is not declared, or has no value
    return Attributes(pa.StructArray.from_arrays(children, fields=list(kind)), keys, texts)


def without(kind: pa.StructType, count: int) -> pa.StructArray:
    """Return the column of so many rows without attributes."""
    if kind.num_fields == 0:
        return record.attribute_array([{}] * count, kind)
    return pa.StructArray.from_arrays([pa.nulls(count, field.type) for field in kind], fields=list(kind))


def _strings(values: Sequence[str | None], suspect: Bools) -> pa.Array:
    column = pa.array(values, pa.string())
    data = column.buffers()[2]
    sizes = pc.binary_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    suspect |= sizes > ATTRIBUTE_BYTES_MAX
    if data is not None and b'"' in data.to_pybytes():  # as \" or as \u0022 in JSON: `singles` counts its marks
        suspect |= pc.match_substring(column, '"').fill_null(False).to_numpy(zero_copy_only=False)  # noqa: FBT003
    return column


def _ints(values: Sequence[int | None], suspect: Bools) -> pa.Array:
    try:
        return pa.array(values, pa.int64())
    except (OverflowError, pa.ArrowInvalid):
        wrong = np.array([value is not None and not -(2**63) <= value < 2**63 for value in values], bool)
        suspect |= wrong
        return pa.array(instead(values, wrong, None), pa.int64())


def _floats(values: Sequence[float | None], suspect: Bools) -> pa.Array:
    try:
        numbers = [None if value is None else float(value) for value in values]
    except OverflowError:  # an int beyond any float
        wrong = np.array([type(value) is int for value in values], bool)
        suspect |= wrong
        return _floats(instead(values, wrong, None), suspect)
    column = pa.array(numbers, pa.float64())
    suspect |= ~pc.is_finite(column).fill_null(True).to_numpy(zero_copy_only=False)  # noqa: FBT003
    return column


def _bools(values: Sequence[bool | None], suspect: Bools) -> pa.Array:  # noqa: ARG001 - one shape for all kinds
    return pa.array(values, pa.bool_())


def _timestamps(values: Sequence[str | datetime | None], suspect: Bools) -> pa.Array:
    said, kind = given(values), record.ATTRIBUTE_TYPES["timestamp"]
    try:
        times: Sequence[datetime | None] = msgspec.convert(values, _TIMES)
    except msgspec.ValidationError:
        suspect |= said
        return pa.nulls(len(values), kind)
    naive = np.array([time is not None and time.tzinfo is None for time in times], bool)
    if any('"' in value for value in values if isinstance(value, str)):  # never in a time; and then no mark is missed
        suspect |= said
    suspect |= naive
    return pa.array(instead(times, naive, None), kind)


_COLUMNS: Mapping[str, Callable[[Sequence[Any], Bools], pa.Array]] = {
    "string": _strings,
    "int": _ints,
    "float": _floats,
    "bool": _bools,
    "timestamp": _timestamps,
}
