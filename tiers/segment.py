"""One segment of the index: the columns of up to 65,536 entries in arrival order.

Rows are appended and marked dead, never reused: a scan that still reads the arrays of an old segment sees what it
saw. Back of the envelope, per row: 86 bytes of columns, and `4 * dim` bytes of code once the row has left hot.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tiers.facts import Facts
from tiers.record import Floats, Int64s
from tiers.tier import TierName

SEGMENT_ROWS = 65_536
NO_COPY = -1

#: Column name to dtype; all are indexed by the row's number in the segment.
COLUMNS: dict[str, npt.DTypeLike] = {
    "version": np.int64,
    "partition": np.int32,
    "namespace": np.int32,  # its number in the index
    "home": np.int8,  # TierName
    "slot": np.int64,  # in the home tier
    "copy": np.int64,  # slot of the promoted copy in hot, or NO_COPY
    "event_time": np.int64,  # ms
    "expires_at": np.int64,  # ms, 0 = never
    "born": np.int64,  # ms, where age counts from: the earlier of event time and arrival
    "used": np.int64,  # ms, last access (else born)
    "heat": np.float32,  # decayed count of accesses as of `heat_at`
    "heat_at": np.int64,  # ms
    "asked": np.int64,  # ms, when the age monitor last proposed the row
    "deleted": np.bool_,  # a tombstone
    "alive": np.bool_,  # the newest version of its id; cleared when masked
    "coded": np.bool_,  # `codes` holds this row's vector
    "scale": np.float32,  # 1 / norm of the vector under cosine, 1 under dot
}


class Entry(NamedTuple):
    """What the index knows of one id, as plain values."""

    id: str
    version: int
    partition: int
    home: int
    slot: int
    copy: int
    deleted: bool


class View(NamedTuple):
    """One segment as a reader sees it at one moment: copied bitmap and homes, and arrays that only grow beyond it.

    `mask` are the live records in the tiers and namespaces asked for. `hot` are the rows of them at home in hot, and
    `hot_slots` where; both only when facts were asked for.
    """

    ids: list[str]
    mask: npt.NDArray[np.bool_]
    home: npt.NDArray[np.int8]
    coded: npt.NDArray[np.bool_]
    codes: Floats | None
    scale: Floats
    event_time: Int64s
    facts: pa.Table | None
    hot: npt.NDArray[np.intp]
    hot_slots: Int64s

    def below(self, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Return which of these rows a scan of codes sees: outside hot (which scans its own), and with a code."""
        return np.asarray(mask & self.coded & (self.home != TierName.HOT))

    def blind(self, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Return which of these rows no scan sees: outside hot, their codes dropped at the index's limit."""
        return np.asarray(mask & ~self.coded & (self.home != TierName.HOT))


class Segment:
    """Columns as attributes (see COLUMNS), `ids`, and lazily `codes`: float32[SEGMENT_ROWS, dim]."""

    version: Int64s
    partition: npt.NDArray[np.int32]
    namespace: npt.NDArray[np.int32]
    home: npt.NDArray[np.int8]
    slot: Int64s
    copy: Int64s
    event_time: Int64s
    expires_at: Int64s
    born: Int64s
    used: Int64s
    heat: Floats
    heat_at: Int64s
    asked: Int64s
    deleted: npt.NDArray[np.bool_]
    alive: npt.NDArray[np.bool_]
    coded: npt.NDArray[np.bool_]
    scale: Floats

    def __init__(self, dim: int, attributes: pa.StructType) -> None:
        self.dim = dim
        self.facts = Facts(attributes)
        self.count = 0
        self.ids: list[str] = []
        self.codes: Floats | None = None
        for name, dtype in COLUMNS.items():
            setattr(self, name, np.zeros(SEGMENT_ROWS, dtype))

    @property
    def room(self) -> int:
        """Rows that still fit."""
        return SEGMENT_ROWS - self.count

    def append(self, ids: list[str], columns: dict[str, npt.NDArray[np.generic]], facts: pa.RecordBatch) -> int:
        """Append rows; a column not given is zero. Returns the number of the first."""
        assert len(ids) <= self.room
        start, end = self.count, self.count + len(ids)
        for name, values in columns.items():
            getattr(self, name)[start:end] = values
        self.ids.extend(ids)
        self.facts.append(facts)
        self.alive[start:end] = True
        self.count = end
        return start

    def entry(self, row: int) -> Entry:
        """Return one row as plain values."""
        return Entry(
            self.ids[row],
            int(self.version[row]),
            int(self.partition[row]),
            int(self.home[row]),
            int(self.slot[row]),
            int(self.copy[row]),
            bool(self.deleted[row]),
        )

    def encode(self, rows: npt.NDArray[np.intp], vectors: Floats, scale: Floats) -> None:
        """Keep the vectors of these rows for scans: exact until a codebook is trained (design §5, index)."""
        if self.codes is None:
            # Zeros, not empty: a scan computes over rows without a code too, and what lies there must be finite. The
            # system hands out zero pages only as they are written.
            self.codes = np.zeros((SEGMENT_ROWS, self.dim), np.float32)
        self.codes[rows] = vectors
        self.scale[rows] = scale
        self.coded[rows] = True

    def view(
        self, tiers: npt.NDArray[np.bool_], namespaces: npt.NDArray[np.int32] | None, *, facts: bool
    ) -> View | None:
        """Return what is to be read here of homes flagged in `tiers` (bool[4]), or None; `facts` for a filter."""
        n = self.count
        home = self.home[:n].copy()
        mask = self.alive[:n] & ~self.deleted[:n] & tiers[home]
        if namespaces is not None:
            mask &= np.isin(self.namespace[:n], namespaces)
        if not mask.any():
            return None
        hot = np.flatnonzero(mask & (home == TierName.HOT)) if facts else np.zeros(0, np.intp)
        return View(
            ids=self.ids,
            mask=mask,
            home=home,
            coded=self.coded[:n].copy(),
            codes=self.codes,
            scale=self.scale,
            event_time=self.event_time[:n],
            facts=self.facts.table() if facts else None,
            hot=hot,
            hot_slots=self.slot[hot],
        )
