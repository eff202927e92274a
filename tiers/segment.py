"""One segment of the index: the columns of up to 65,536 entries in arrival order.

Rows are appended and marked dead, never reused: a scan that still reads the arrays of an old segment sees what it
saw. Back of the envelope, per row: 86 bytes of columns, and `4 * dim` bytes of code once the row has left hot.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tiers.record import Floats, Int64s
from tiers.tier import TierName

SEGMENT_ROWS = 65_536
NO_COPY = -1
NEVER = np.iinfo(np.int64).max

#: Column name to dtype; all are indexed by the row's number in the segment.
COLUMNS: dict[str, npt.DTypeLike] = {
    "version": np.int64,
    "partition": np.int32,
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
    expires_at: int


class Scan(NamedTuple):
    """What a search reads of one segment: immutable arrays and a copied bitmap."""

    segment: Segment
    mask: npt.NDArray[np.bool_]
    codes: Floats
    scale: Floats


class Segment:
    """Columns as attributes (see COLUMNS), `ids`, and lazily `codes`: float32[SEGMENT_ROWS, dim]."""

    version: Int64s
    partition: npt.NDArray[np.int32]
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

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.count = 0
        self.ids: list[str] = []
        self.codes: Floats | None = None
        self.soonest = NEVER  # no row of the segment expires before
        for name, dtype in COLUMNS.items():
            setattr(self, name, np.zeros(SEGMENT_ROWS, dtype))

    @property
    def room(self) -> int:
        """Rows that still fit."""
        return SEGMENT_ROWS - self.count

    def append(self, ids: list[str], columns: dict[str, npt.NDArray[np.generic]]) -> int:
        """Append rows; a column not given is zero. Returns the number of the first."""
        assert len(ids) <= self.room
        start, end = self.count, self.count + len(ids)
        for name, values in columns.items():
            getattr(self, name)[start:end] = values
        expiring = self.expires_at[start:end]
        self.soonest = min(self.soonest, int(expiring[expiring > 0].min(initial=NEVER)))
        self.ids.extend(ids)
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
            int(self.expires_at[row]),
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

    def due(self, now_ms: int) -> npt.NDArray[np.bool_] | None:
        """Return which rows have expired by `now_ms`, dead ones too; None when none has."""
        if self.soonest > now_ms:
            return None
        expires_at = self.expires_at[: self.count]
        due: npt.NDArray[np.bool_] = (expires_at > 0) & (expires_at <= now_ms)
        return due

    def wanted(self, tiers: npt.NDArray[np.bool_], now_ms: int) -> npt.NDArray[np.bool_]:
        """Return the rows that a search of the homes flagged in `tiers` (bool[4]) looks for here.

        Not what hot scans itself, where it is searched too: its own rows and its copies, so that an id comes once.
        """
        n = self.count
        mask = self.alive[:n] & ~self.deleted[:n] & tiers[self.home[:n]] & (self.home[:n] != TierName.HOT)
        if tiers[TierName.HOT]:
            mask &= self.copy[:n] == NO_COPY
        due = self.due(now_ms)
        if due is not None:
            mask &= ~due
        found: npt.NDArray[np.bool_] = mask
        return found

    def scan(self, tiers: npt.NDArray[np.bool_], now_ms: int = 0) -> Scan | None:
        """Return what a search of the homes flagged in `tiers` reads here, or None."""
        if self.codes is None:
            return None
        n = self.count
        mask = self.wanted(tiers, now_ms) & self.coded[:n]
        return Scan(self, mask, self.codes[:n], self.scale[:n]) if mask.any() else None
