"""Glacier's bounded local cache: what was stored last, as blocks of rows, and single rows that were read.

A stored batch is kept by one copy of its bytes, not by work for each row; a row read from a file is kept alone, since
its neighbours were not asked for. Least recently used goes first. Used on the event loop only, but for `blocks`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tiers import record
from tiers.parquet import matching
from tiers.record import Floats, Int64s, Row
from tiers.tier import Location

BLOCK_BITS = 10  # rows in a block, as a power of two
ROW_OVERHEAD_BYTES = 400  # of a Row with its dictionary, and its place here

Block = tuple[int, int]  # partition, slot >> BLOCK_BITS


class Held(NamedTuple):
    """A block of rows, and what a search reads of it as arrays over the same memory (`vectors`: of no tombstones)."""

    rows: pa.RecordBatch
    versions: Int64s
    vectors: Floats | None

    @classmethod
    def of(cls, rows: pa.RecordBatch) -> Held:
        """Return a batch with its arrays."""
        vectors = None if rows["vector"].null_count else record.vectors_of(rows)
        return cls(rows, rows["version"].to_numpy(), vectors)


def blocks(
    batch: pa.RecordBatch, partition: npt.NDArray[np.int32], slots: Int64s
) -> list[tuple[Block, pa.RecordBatch]]:
    """Cut a stored batch into blocks by slot, each in memory of its own. Pure; some 1 ms for a megabyte."""
    order = np.lexsort((slots, partition))
    if (order[1:] < order[:-1]).any():
        batch, partition, slots = batch.take(pa.array(order)), partition[order], slots[order]
    number = slots >> BLOCK_BITS
    starts = np.flatnonzero(np.append(True, (np.diff(number) != 0) | (np.diff(partition) != 0)))
    ends = np.append(starts[1:], len(slots))
    return [
        ((int(partition[start]), int(number[start])), _copy(batch.slice(start, end - start)))
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    ]


def _copy(batch: pa.RecordBatch) -> pa.RecordBatch:
    return pa.ipc.read_record_batch(batch.serialize(), batch.schema)


class Recent:
    """Rows by location, within `bytes_limit`."""

    def __init__(self, bytes_limit: int) -> None:
        self.bytes_limit, self.bytes = bytes_limit, 0
        self._held: OrderedDict[Block | tuple[str, int], tuple[Held | Row, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def find(self, where: Location) -> Row | None:
        """Return the row if it is here."""
        held = self._look((where.id, where.version))
        if isinstance(held, Row):
            return held
        block = self._look((where.partition, where.slot >> BLOCK_BITS))
        at = where.slot & ((1 << BLOCK_BITS) - 1)
        if not isinstance(block, Held) or at >= block.rows.num_rows:
            return None
        return matching(block.rows, at, where)

    def vector(self, where: Location) -> Floats | None:
        """Return the row's vector if it is here; it shares the block's memory."""
        held = self._look((where.id, where.version))
        if isinstance(held, Row):
            return held.vector
        block = self._look((where.partition, where.slot >> BLOCK_BITS))
        at = where.slot & ((1 << BLOCK_BITS) - 1)
        if not isinstance(block, Held) or at >= len(block.versions) or block.versions[at] != where.version:
            return None
        if block.vectors is None:
            row = matching(block.rows, at, where)
            return None if row is None else row.vector
        return block.vectors[at] if block.rows["id"][at].as_py() == where.id else None

    def keep_rows(self, rows: Iterable[Row]) -> None:
        """Keep rows just read."""
        for row in rows:
            vector = 0 if row.vector is None else row.vector.nbytes
            self._keep((row.id, row.version), row, vector + len(row.payload) + len(row.id) + ROW_OVERHEAD_BYTES)

    def keep_blocks(self, stored: Iterable[tuple[Block, pa.RecordBatch]]) -> None:
        """Keep blocks just stored."""
        for key, block in stored:
            self._keep(key, Held.of(block), block.get_total_buffer_size())

    def forget(self, where: Location) -> None:
        """Forget a row, and the block that it lies in."""
        for key in ((where.id, where.version), (where.partition, where.slot >> BLOCK_BITS)):
            _, size = self._held.pop(key, (None, 0))
            self.bytes -= size

    def clear(self) -> None:
        """Forget everything."""
        self._held.clear()
        self.bytes = 0

    def _look(self, key: Block | tuple[str, int]) -> Held | Row | None:
        held = self._held.get(key)
        if held is None:
            return None
        self._held.move_to_end(key)
        return held[0]

    def _keep(self, key: Block | tuple[str, int], value: Held | Row, size: int) -> None:
        _, before = self._held.pop(key, (None, 0))
        self._held[key] = (value, size)
        self.bytes += size - before
        while self.bytes > self.bytes_limit:
            _, (_, freed) = self._held.popitem(last=False)
            self.bytes -= freed


def same(row: Row, other: Row | None) -> bool:
    """Say whether two rows are equal, vectors bit for bit. Pure."""
    return other is not None and _plain(row) == _plain(other) and same_vector(row.vector, other.vector)


def same_vector(vector: Floats | None, other: Floats | None) -> bool:
    """Say whether two vectors are equal, bit for bit. Pure."""
    if vector is None or other is None:
        return vector is other
    return vector.tobytes() == other.tobytes()


def _plain(row: Row) -> Row:
    return replace(row, vector=None)
