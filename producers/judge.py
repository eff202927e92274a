"""Which rows of an Arrow event are bad, and the columns of the good ones: a few passes over columns, no row in Python.

The same rules as `decoder` holds for one record, with the same reasons; a row that breaks several is given the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from producers.columns import TIMES, struct_of
from producers.decoder import ATTRIBUTE_BYTES_MAX, FUTURE_MS_MAX, NOT_FINITE, PAST_MS_MAX, ZERO, squares
from tiers import record
from tiers.errors import InvalidRecord
from tiers.ids import Bools, ascii_only, controlled
from tiers.record import Floats, Int64s


class Faults:
    """Which rows are bad, and the first reason of each."""

    def __init__(self, rows: int) -> None:
        self._code = np.zeros(rows, np.int16)
        self._errors: list[InvalidRecord] = []

    def mark(self, mask: Bools, reason: str, text: str) -> None:
        """Say that the rows in `mask` are bad, unless something else was said of them before."""
        if not mask.any():
            return
        fresh = mask & (self._code == 0)
        if fresh.any():
            self._errors.append(InvalidRecord(reason, text))
            self._code[fresh] = len(self._errors)

    @property
    def any(self) -> bool:
        """Whether a row is bad."""
        return bool(self._errors)

    @property
    def good(self) -> Bools:
        """bool[rows]: the rows of which nothing was said."""
        good: Bools = self._code == 0
        return good

    def items(self) -> Iterable[tuple[int, InvalidRecord]]:
        """Yield (row, error) of each bad row, in order."""
        for at in np.flatnonzero(self._code).tolist():
            yield at, self._errors[self._code[at] - 1]


def judge(
    rows: pa.RecordBatch, dim: int, declared: Mapping[str, str] | None, timestamp_ms: int
) -> tuple[dict[str, pa.Array], Faults]:
    """Return the columns of the record schema but `version`, and which rows are bad (their values mean nothing).

    `rows` is as `read` or `plain` return it. `declared` None: attributes are not looked at. InvalidRecord
    "attribute_unknown" or "attribute_type" when the attributes' columns themselves are wrong.
    """
    faults = Faults(rows.num_rows)
    deleted = _flags(_column(rows, "deleted"))
    out = {
        "id": ids(rows["id"], faults),
        "vector": vectors(_column(rows, "vector"), dim, deleted, faults),
        "payload": _payload(_column(rows, "payload"), deleted, faults),
        "deleted": pa.array(deleted),
    }
    out |= dict(zip(TIMES, _times_of(rows, deleted, timestamp_ms, faults), strict=True))
    if declared is not None:
        out["attributes"] = attributes(_column(rows, "attributes"), declared, deleted, faults)
    return out, faults


def _column(rows: pa.RecordBatch, name: str) -> pa.Array:
    return rows[name] if name in rows.schema.names else pa.nulls(rows.num_rows)


def _null(column: pa.Array) -> Bools:
    if not column.null_count:
        return np.zeros(len(column), bool)
    mask: Bools = column.is_null().to_numpy(zero_copy_only=False)
    return mask


def _flags(column: pa.Array) -> Bools:
    if column.null_count == len(column):
        return np.zeros(len(column), bool)
    flags: Bools = column.cast(pa.bool_()).fill_null(False).to_numpy(zero_copy_only=False)  # noqa: FBT003
    return flags


def ids(column: pa.Array, faults: Faults) -> pa.Array:
    """Return ids as strings, "" where they are bad (see record.check_id)."""
    if column.null_count:
        faults.mark(_null(column), "id_missing", "the row has no id")
    sizes = _sizes(column, 1)
    faults.mark((sizes < 1) | (sizes > record.ID_BYTES_MAX), "id_size", f"an id has 1 to {record.ID_BYTES_MAX} bytes")
    found, broken = text(column)
    faults.mark(broken, "id_not_utf8", "the id is not UTF-8 text")
    unnamed = pc.starts_with(found, "/").to_numpy(zero_copy_only=False)
    faults.mark(unnamed, "id_namespace", "an id does not begin with a slash: its namespace would have no name")
    faults.mark(controlled(found), "id_control", "an id has no control characters")
    return found


def _sizes(column: pa.Array, of_null: int = 0) -> npt.NDArray[np.int32]:
    """Return the bytes of each value of a binary column."""
    if column.null_count or not len(column):
        nulls: npt.NDArray[np.int32] = pc.binary_length(column).fill_null(of_null).to_numpy(zero_copy_only=False)
        return nulls
    return np.diff(np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1])


def text(column: pa.Array) -> tuple[pa.Array, Bools]:
    """Return bytes as strings ("" for null and what is not UTF-8), and which were not UTF-8."""
    broken = np.zeros(len(column), bool)
    if pa.types.is_binary(column.type) and not column.null_count and ascii_only(column):
        return column.view(pa.string()), broken
    try:
        found = column.cast(pa.string())
        return found.fill_null("") if found.null_count else found, broken
    except pa.ArrowInvalid:  # some row is not UTF-8: look at each
        values = column.to_pylist()
        for at, value in enumerate(values):
            try:
                values[at] = (value or b"").decode()
            except UnicodeDecodeError:
                values[at], broken[at] = "", True
        return pa.array(values, pa.string()), broken


def vectors(column: pa.Array, dim: int, deleted: Bools, faults: Faults) -> pa.Array:
    """Return fixed_size_list<float32>[dim], null where deleted; without a copy where every row has a vector."""
    null, kind = _null(column), column.type
    if column.null_count or deleted.any():
        faults.mark(deleted & ~null, "tombstone", "a deleted row has no vector")
        faults.mark(~deleted & null, "vector_missing", "the row has no vector and is not deleted")
    if pa.types.is_null(kind):
        return record.vector_array(np.zeros((len(column), dim), np.float32), np.ones(len(column), bool))
    fixed = pa.types.is_fixed_size_list(kind)
    sizes = (
        np.full(len(column), kind.list_size)
        if fixed
        else pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    )
    right = ~null & (sizes == dim)
    faults.mark(~null & ~right, "vector_dim", f"the vector does not have {dim} floats")
    whole = bool(right.all())
    flat = (column if whole else column.filter(pa.array(right))).flatten()
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        given: Floats = flat.to_numpy(zero_copy_only=False).astype(np.float32, copy=False).reshape(-1, dim)
    lengths = squares(given)
    _mark_among(faults, right, ~np.isfinite(lengths), *NOT_FINITE)
    _mark_among(faults, right, lengths == 0.0, *ZERO)
    if whole:
        return record.vector_array(given)
    spread = np.zeros((len(column), dim), np.float32)
    spread[right] = given
    return record.vector_array(spread, ~right)


def _mark_among(faults: Faults, among: Bools, bad: Bools, reason: str, words: str) -> None:
    """Mark rows of which only those in `among` were looked at."""
    if bad.any():
        mask = np.zeros(len(among), bool)
        mask[np.flatnonzero(among)[bad]] = True
        faults.mark(mask, reason, words)


def _payload(column: pa.Array, deleted: Bools, faults: Faults) -> pa.Array:
    column = column.cast(pa.binary())
    limit = record.PAYLOAD_BYTES_MAX
    faults.mark(~deleted & (_sizes(column) > limit), "payload_size", f"a payload has at most {limit} bytes")
    kept = _unless(deleted, column)
    return kept.fill_null(b"") if kept.null_count else kept


def _unless(deleted: Bools, column: pa.Array) -> pa.Array:
    """Return the column with nulls in deleted rows: a tombstone carries nothing."""
    return pc.if_else(pa.array(deleted), pa.scalar(None, column.type), column) if deleted.any() else column


def _times_of(rows: pa.RecordBatch, deleted: Bools, timestamp_ms: int, faults: Faults) -> Iterable[pa.Array]:
    kind = pa.timestamp("ms", "UTC")
    given, ends = (_column(rows, name) for name in TIMES)
    event = np.full(len(given), timestamp_ms, np.int64)
    if given.null_count < len(given):
        said, unsaid = _milliseconds(given)
        event = np.where(unsaid, event, said)
        past, future = timestamp_ms - PAST_MS_MAX, timestamp_ms + FUTURE_MS_MAX
        text_ = "event_time lies more than ten years back or a day ahead"
        faults.mark((event < past) | (event > future), "event_time", text_)
    times = pa.array(event).view(kind)
    if ends.null_count == len(ends):
        return times, pa.nulls(len(ends), kind)
    expires, never = _milliseconds(ends)
    never = never | deleted
    far = timestamp_ms + PAST_MS_MAX
    text_ = "expires_at lies before event_time or more than ten years ahead"
    faults.mark(~never & ((expires <= event) | (expires > far)), "ttl", text_)
    return times, pa.array(expires, mask=never).cast(kind)


def _milliseconds(column: pa.Array) -> tuple[Int64s, Bools]:
    """Return a timestamp column as ms since 1970, and where it is null; what does not fit stays out of bounds."""
    null = _null(column)
    if pa.types.is_null(column.type):
        return np.zeros(len(column), np.int64), null
    values: Int64s = column.cast(pa.int64()).fill_null(0).to_numpy()
    if column.type.unit == "s":
        return np.clip(values, -(2**52), 2**52) * 1000, null
    return values // {"ms": 1, "us": 1_000, "ns": 1_000_000}[column.type.unit], null


# -- attributes ------------------------------------------------------------------------------------------------------


def attributes(column: pa.Array, declared: Mapping[str, str], deleted: Bools, faults: Faults) -> pa.Array:
    """Return the struct of the declared attributes, each null where it is not given."""
    kind = pa.struct([(name, record.ATTRIBUTE_TYPES[word]) for name, word in declared.items()])
    given = {} if pa.types.is_null(column.type) else dict(zip(_names(column.type), column.flatten(), strict=True))
    for name in given:
        if name not in declared:
            raise InvalidRecord("attribute_unknown", f"attribute {name[:64]!r} is not declared; see [attributes]")
    children = [
        _unless(deleted, _attribute(name, word, given[name], faults))
        if name in given
        else pa.nulls(len(column), record.ATTRIBUTE_TYPES[word])
        for name, word in declared.items()
    ]
    if not children:
        return struct_of([], [], len(column))
    return pa.StructArray.from_arrays(children, fields=list(kind))


def _names(kind: pa.StructType) -> list[str]:
    return [field.name for field in kind]


def _attribute(name: str, word: str, column: pa.Array, faults: Faults) -> pa.Array:
    kind, types = column.type, pa.types
    if types.is_null(kind):
        return column.cast(record.ATTRIBUTE_TYPES[word])
    fits = {
        "string": types.is_binary(kind),  # `read` has made bytes of text
        "int": types.is_integer(kind) and kind != pa.uint64(),
        "float": types.is_floating(kind) or (types.is_integer(kind) and kind != pa.uint64()),
        "bool": types.is_boolean(kind),
        "timestamp": types.is_timestamp(kind) and bool(kind.tz),
    }
    if not fits[word]:
        raise InvalidRecord("attribute_type", f"attribute {name!r} is declared {word}, the column is {kind}")
    if word == "string":
        limit = ATTRIBUTE_BYTES_MAX
        faults.mark(_sizes(column) > limit, "attribute_size", f"attribute {name!r} has more than {limit} bytes")
        found, broken = text(column)
        faults.mark(broken, "attribute_type", f"attribute {name!r} is not UTF-8 text")
        return pc.if_else(column.is_null(), pa.scalar(None, pa.string()), found) if column.null_count else found
    if word == "timestamp":
        values, null = _milliseconds(column)
        return pa.array(values, mask=null).cast(record.ATTRIBUTE_TYPES[word])
    if word == "float":
        column = column.cast(pa.float64(), safe=False)
        finite = pc.is_finite(column).fill_null(True).to_numpy(zero_copy_only=False)  # noqa: FBT003
        faults.mark(~finite, "attribute_not_finite", f"attribute {name!r} is not a finite number")
    return column.cast(record.ATTRIBUTE_TYPES[word])
