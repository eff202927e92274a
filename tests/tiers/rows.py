"""Rows and batches for tests: few lines each, everything that matters in the arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from tiers import record
from tiers.record import Row

DIM = 4
ATTRIBUTES = {"user": "string", "rank": "int", "score": "float", "seen": "bool", "at": "timestamp"}
SHAPE = record.schema(DIM, ATTRIBUTES)
NOW_MS = 1_700_000_000_000


def vector_of(identifier: str, version: int, dim: int = DIM) -> np.ndarray[Any, Any]:
    """Return a vector that only this (id, version) has."""
    seed = int.from_bytes(f"{identifier}@{version}".encode().ljust(1, b"0"), "big") % (1 << 63)
    return np.random.default_rng(seed).normal(size=dim).astype(np.float32)


def row(
    identifier: str,
    version: int,
    vector: Sequence[float] | None = None,
    *,
    deleted: bool = False,
    attributes: Mapping[str, Any] | None = None,
    event_time: int = NOW_MS,
) -> Row:
    """Return a record whose vector and payload tell its id and version."""
    if deleted:
        return Row(identifier, version, event_time, None, None, b"", {}, deleted=True)
    given = vector_of(identifier, version) if vector is None else np.array(vector, np.float32)
    return Row(identifier, version, event_time, None, given, f"{identifier}@{version}".encode(), dict(attributes or {}))


def batch(*rows: Row, shape: pa.Schema = SHAPE) -> pa.RecordBatch:
    """Return the rows as one batch."""
    return record.to_batch(rows, shape)


def same(left: Row, right: Row) -> bool:
    """Say whether two rows are equal, vectors bit for bit."""
    vectors = [None if one.vector is None else np.asarray(one.vector, np.float32).tobytes() for one in (left, right)]
    return vectors[0] == vectors[1] and _plain(left) == _plain(right)


def _plain(one: Row) -> tuple[Any, ...]:
    return (one.id, one.version, one.event_time, one.expires_at, one.payload, one.attributes, one.deleted)


#: Any text that may be an id: letters of all scripts, no control characters and no surrogates.
IDS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=24).filter(
    lambda text: len(text.encode()) <= record.ID_BYTES_MAX
)
