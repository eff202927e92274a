"""Rows read through views of their batch are what `record.row_at` reads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from tiers import record
from tiers.cells import Cells
from tiers.record import Row

pytestmark = pytest.mark.unit

SHAPE = record.schema(2, {"user": "string", "rank": "int", "seen": "timestamp", "never": "bool"})
ROWS = [
    Row("plain", 1, 5, None, np.array([1, 2], np.float32), b"x", {"user": "u", "rank": 1}),
    Row("é/of a namespace", 2, -5, 77, np.array([3, 4], np.float32), b"", {}),
    Row("gone", 3, 6, None, None, b"", {}, deleted=True),
    Row("large", record.pack_version(3, 2**40, 9), 2**50, 2**51, np.array([5, 6], np.float32), b"y" * 99, {"rank": -1}),
]


@pytest.mark.parametrize(("first", "count"), [(0, 4), (1, 3), (2, 1), (3, 1), (0, 1)])
@pytest.mark.parametrize("named", [SHAPE, record.schema(2, {})])
def test_they_are_the_same(first: int, count: int, named: pa.Schema) -> None:
    """Of a whole batch and of any part of one, tombstones and what is not set included; a vector only if wanted."""
    rows = [
        replace(row, attributes=row.attributes if named.field("attributes").type.num_fields else {}) for row in ROWS
    ]
    batch = record.to_batch(rows, named).slice(first, count)
    cells = Cells(batch)
    for at in range(count):
        one, other = cells.row(at, vector=True), record.row_at(batch, at)

        assert replace(one, vector=None) == replace(other, vector=None) == cells.row(at, vector=False)
        assert (one.vector is None) == (other.vector is None)
        assert one.vector is None or one.vector.tolist() == other.vector.tolist()
