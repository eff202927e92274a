"""What filters read of a segment's rows: ids and attributes, as Arrow chunks in arrival order.

Appending costs nothing: chunks are joined when a filter asks, or once enough wait, because a slice would keep alive the
whole message it came in. Joined chunks are merged by size up to CHUNK_ROWS, so that a row is copied a few times and a
table has about a dozen chunks.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

WAITING_MAX = 64  # chunks
WAITING_ROWS_MAX = 4_096
CHUNK_ROWS = 8_192  # a chunk of so many is not copied again


class Facts:
    """Rows are appended, never changed: a table that was handed out stays what it was."""

    def __init__(self, attributes: pa.StructType) -> None:
        self.schema = pa.schema([pa.field("id", pa.string()), *attributes])
        self._joined: list[pa.RecordBatch] = []
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = 0

    def append(self, chunk: pa.RecordBatch) -> None:
        """Add rows of `schema`."""
        self._waiting.append(chunk)
        self._waiting_rows += chunk.num_rows
        if len(self._waiting) >= WAITING_MAX or self._waiting_rows >= WAITING_ROWS_MAX:
            self._join()

    def table(self) -> pa.Table:
        """Return all rows so far."""
        if self._waiting:
            self._join()
        return pa.Table.from_batches(self._joined, self.schema)

    def take(self, rows: npt.NDArray[np.intp]) -> pa.RecordBatch:
        """Return copies of these rows."""
        taken = self.table().take(pa.array(rows)).combine_chunks().to_batches()
        return taken[0] if taken else pa.RecordBatch.from_pylist([], schema=self.schema)

    def _join(self) -> None:
        empty = self._waiting[0].slice(0, 0)  # with a second array Arrow copies, even where there is one chunk only
        self._joined.append(pa.concat_batches([*self._waiting, empty]))
        self._waiting, self._waiting_rows = [], 0
        while len(self._joined) > 1 and self._joined[-2].num_rows < min(2 * self._joined[-1].num_rows, CHUNK_ROWS):
            last = self._joined.pop()
            self._joined[-1] = pa.concat_batches([self._joined[-1], last])


def facts_of(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return what filters read of a batch of records, without a copy."""
    columns = [batch["id"]]
    if len(schema) > 1:
        columns += batch["attributes"].flatten()
    return pa.RecordBatch.from_arrays(columns, schema=schema)
