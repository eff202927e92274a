"""Rows on their way to and from warm's server: script calls packed by the thousand, and replies read as columns. Pure.

Everything but `flat` runs on any thread.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tiers import packed, record
from tiers.codec import ATTRIBUTES_AT
from tiers.errors import TierCorrupt
from tiers.record import Bools, Int64s
from tiers.tier import NO_SLOT, Places
from tiers.valkey import Bulk, Packed
from tiers.warm_keys import Call, Keys
from tiers.warm_scripts import EVICT, STORE, STORE_ON

SIZES_OF = struct.Struct("<II")  # of a header: bytes of attributes and of payload


async def flat(groups: AsyncIterator[list[Packed]]) -> AsyncIterator[Packed]:
    """Yield the calls of each list."""
    async for calls in groups:
        for call in calls:
            yield call


def commands(unique: pa.RecordBatch, calls: Sequence[Call], epochs: Mapping[int, int], *, first: bool) -> list[Packed]:
    """Return calls that store these rows, as they are sent; the `first` of a batch may be refused."""
    rows = packed.bulk(packed.pack(unique.take(pa.array(np.concatenate([call.rows for call in calls])))))
    ends = np.cumsum([0, *(len(call.rows) for call in calls)])
    return [
        (STORE if first and not at else STORE_ON).command(
            [call.epoch, call.keys],
            epochs[call.partition],
            Bulk(len(call.rows), packed.content(rows.slice(ends[at], len(call.rows)))),
        )
        for at, call in enumerate(calls)
    ]


def evictions(calls: Sequence[Call], versions: Int64s, epochs: Mapping[int, int]) -> list[Packed]:
    """Return calls that drop these rows where they have these versions."""
    held = versions.astype("<i8")
    return [EVICT.command([call.epoch, call.keys], epochs[call.partition], held[call.rows].tobytes()) for call in calls]


def largest(rows: pa.RecordBatch) -> int:
    """Return the most bytes that payload and texts of a row may have together."""
    texts = [column for column in rows["attributes"].flatten() if pa.types.is_string(column.type)]
    return sum(pc.max(pc.binary_length(column)).as_py() or 0 for column in (rows["payload"], *texts))


def largest_of(heads: Sequence[bytes]) -> int:
    """Return the same of rows by the replies of the script LIST."""
    at = slice(ATTRIBUTES_AT, ATTRIBUTES_AT + 8)
    return max((sum(SIZES_OF.unpack(head[at])) for head in heads if head), default=0)


def gathered(values: list[bytes | None], places: Places, shape: pa.Schema) -> tuple[pa.RecordBatch, Bools]:
    """Return the rows that these values are, where they are of the version asked for."""
    there = np.array([value is not None for value in values], bool)
    found = packed.unpack([value for value in values if value is not None], shape)
    asked = places.those(there)
    if found["id"].to_pylist() != list(asked.ids):
        raise TierCorrupt("a key holds the row of another id")
    same = record.versions_of(found) == asked.versions
    there[there] = same
    return (found if same.all() else found.filter(pa.array(same))), there


def listed(keys: list[bytes], values: list[bytes | None], names: Keys, shape: pa.Schema) -> pa.RecordBatch:
    """Return the rows under these keys."""
    found = packed.unpack([value for value in values if value is not None], shape)
    there = [key for key, value in zip(keys, values, strict=True) if value is not None]
    if found["id"].cast(pa.binary()).to_pylist() != [names.id_of(key) for key in there]:
        raise TierCorrupt("a key holds the row of another id")
    return found


def entries(keys: list[bytes], heads: list[bytes], names: Keys, shape: pa.Schema) -> pa.RecordBatch:
    """Return the rows under these keys as `record.entries` has them, by the replies of the script LIST."""
    there = [(key, head) for key, head in zip(keys, heads, strict=True) if head]
    found = packed.entries([head for _, head in there], [names.id_of(key) for key, _ in there], shape) if there else {}
    return _placed(found, [key for key, _ in there], names, record.entries(shape))


def with_vectors(keys: list[bytes], values: list[bytes | None], names: Keys, shape: pa.Schema) -> pa.RecordBatch:
    """Return the same with vectors, by the values."""
    found = listed(keys, values, names, shape)
    there = [key for key, value in zip(keys, values, strict=True) if value is not None]
    columns = dict(zip(found.schema.names, found.columns, strict=True))
    return _placed(columns, there, names, record.entries(shape).append(shape.field("vector")))


def _placed(found: Mapping[str, pa.Array], keys: Sequence[bytes], names: Keys, shape: pa.Schema) -> pa.RecordBatch:
    """Return columns of rows with slot and partition, which their keys say."""
    partitions = np.array([names.partition_of(key) for key in keys], np.int32)
    said = {"slot": pa.array(np.full(len(keys), NO_SLOT, np.int64)), "partition": pa.array(partitions)}
    if not keys:
        return pa.RecordBatch.from_pylist([], schema=shape)
    return pa.RecordBatch.from_arrays([{**found, **said}[field.name] for field in shape], schema=shape)
