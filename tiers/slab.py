"""What hot's array is cut into, and which scans still read it: freed room is given out again when they have ended."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tiers.cells import Cells
from tiers.record import Row

FREE = -1
Slots = npt.NDArray[np.intp]

COPIES = -2  # in place of a partition: the slab holds promoted copies (tiers/copies.py)


@dataclass(slots=True)
class Slab:
    """Rows [0, fill) hold vectors; `starts[i]` is the first row of `batches[i]`; copies are in `rows` one by one.

    `cells[i]` are those of `batches[i]`, once a row of it was read.
    """

    partition: int = FREE
    fill: int = 0
    live: int = 0
    starts: list[int] = field(default_factory=list)
    batches: list[pa.RecordBatch] = field(default_factory=list)
    rows: dict[int, Row] = field(default_factory=dict)
    cells: dict[int, Cells] = field(default_factory=dict)

    def find(self, row: int) -> tuple[pa.RecordBatch, int]:
        """Return the batch that holds a row of this slab, and the row's place in it."""
        at = self.number(row)
        return self.batches[at], row - self.starts[at]

    def number(self, row: int) -> int:
        """Return which batch holds a row of this slab."""
        return bisect_right(self.starts, row) - 1

    def row(self, row: int, *, vector: bool = True) -> Row:
        """Return a row of a batch of this slab; without its vector where that is not wanted."""
        number = self.number(row)
        cells = self.cells.get(number)
        if cells is None:
            cells = self.cells[number] = Cells(self.batches[number])
        return cells.row(row - self.starts[number], vector=vector)

    def ids(self) -> list[str]:
        """Return the ids of all dirty rows."""
        return [identifier for batch in self.batches for identifier in batch["id"].to_pylist()]

    def id_at(self, row: int) -> str:
        """Return the id of a row, dirty or a copy."""
        if self.partition == COPIES:
            return self.rows[row].id
        batch, at = self.find(row)
        identifier: str = batch["id"][at].as_py()
        return identifier

    def frozen(self) -> Slab:
        """Return the slab as a scan keeps it. `rows` is shared: no slot is reused while a scan may read it."""
        return Slab(self.partition, self.fill, self.live, list(self.starts), list(self.batches), self.rows)


class Ids(Sequence[str]):
    """The ids of rows, by slot; of most candidates nobody asks. Those of copies are read at once: they may go."""

    def __init__(self, slabs: Mapping[int, Slab], slots: Slots, slab_rows: int) -> None:
        self._slabs, self._rows = slabs, slab_rows
        self._slots: list[int] = slots.tolist()
        copied = (at for at, slot in enumerate(self._slots) if slabs[slot // slab_rows].partition == COPIES)
        self._copied = {at: self._read(at) for at in copied}

    def _read(self, at: int) -> str:
        number, row = divmod(self._slots[at], self._rows)
        return self._slabs[number].id_at(row)

    def __len__(self) -> int:
        return len(self._slots)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            return [self[one] for one in range(len(self))[at]]
        return self._copied[at] if at in self._copied else self._read(at)


class Scans:
    """Scans by number. What was freed when `begun` was n may be reused once `oldest` is greater than n."""

    def __init__(self) -> None:
        self.begun = 0
        self._running: set[int] = set()

    def begin(self) -> int:
        """Return the number of a scan that begins now."""
        self.begun += 1
        self._running.add(self.begun)
        return self.begun

    def end(self, number: int) -> None:
        """Say that a scan reads nothing more; again does nothing."""
        self._running.discard(number)

    @property
    def oldest(self) -> int:
        """The number of the oldest scan that still reads."""
        return min(self._running, default=self.begun + 1)
