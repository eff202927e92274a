"""One segment of the index: the columns of up to 65,536 entries in arrival order.

Rows are appended and marked dead, never reused: a scan that still reads the arrays of an old segment sees what it
saw. Back of the envelope, per row at 256 dimensions: 99 bytes of columns, and once it has left hot a code of 72 bytes,
until which its vector of 1,024.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tiers.codes import Packed
from tiers.facts import Facts
from tiers.record import Floats, Int64s
from tiers.rest import Chunk, Rest
from tiers.tier import TierName

Bools = npt.NDArray[np.bool_]

SEGMENT_ROWS = 65_536
NO_COPY = -1
NEVER = np.iinfo(np.int64).max

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
    "moved_at": np.int64,  # ms, when the home was last rewritten in this life, 0 = not since the start
    "reason": np.int8,  # why: a place in policy.REASONS
    "deleted": np.bool_,  # a tombstone
    "alive": np.bool_,  # the newest version of its id; cleared when masked
    "coded": np.bool_,  # a search finds the row by its code, or by its vector in `rest`
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


class View(NamedTuple):
    """One segment as a reader sees it at one moment: copied bitmap and places, and arrays that only grow beyond it.

    `place` is where a record is read: in hot if it has a copy there and hot was asked, else at its home. `mask` are the
    live records in the tiers and namespaces asked for, `live` their number by place. `below` are those of them that a
    scan of codes sees outside hot, and `sealed` those at home in hot that have a code, which hot leaves out of its own
    scan unless that is to be exact; `blind` are those that no scan sees. `hot` are the rows
    of them in hot, and `hot_slots` where; both only when facts were asked for. Shared between readers: nobody writes to
    it.
    """

    ids: list[str]
    version: Int64s
    mask: Bools
    place: npt.NDArray[np.int8]
    live: Int64s
    below: Bools
    sealed: Bools | None
    blind: Bools | None
    packed: Packed | None
    rest: tuple[Chunk, ...]
    event_time: Int64s
    facts: pa.Table | None
    hot: npt.NDArray[np.intp]
    hot_slots: Int64s

    def seen(self, mask: Bools) -> Int64s:
        """Return how many rows a search that wants `mask` has looked at here, by place: all but the wanted uncoded."""
        return self.live if self.blind is None else self.live - by_tier(self.place, mask & self.blind)


def by_tier(place: npt.NDArray[np.int8], mask: Bools) -> Int64s:
    """Return int64[tiers]: how many of the rows where `mask` are in each."""
    return np.array([np.count_nonzero(mask & (place == tier)) for tier in TierName], np.int64)


class Segment:
    """Columns as attributes (see COLUMNS), `ids`, `facts`, and what a search reads: `packed` codes, `rest` vectors."""

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
    moved_at: Int64s
    reason: npt.NDArray[np.int8]
    deleted: npt.NDArray[np.bool_]
    alive: npt.NDArray[np.bool_]
    coded: npt.NDArray[np.bool_]

    def __init__(self, dim: int, attributes: pa.StructType) -> None:
        self.dim = dim
        self.facts = Facts(attributes)
        self.count = 0
        self.ids: list[str] = []
        self.packed: Packed | None = None
        self.rest = Rest()
        self.soonest = NEVER  # no row of the segment expires before
        self._changes = 0
        self._viewed: tuple[object, View | None] | None = None
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
        expiring = self.expires_at[start:end]
        self.soonest = min(self.soonest, int(expiring[expiring > 0].min(initial=NEVER)))
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
            int(self.expires_at[row]),
        )

    def entries(self, rows: npt.NDArray[np.intp]) -> Iterator[Entry]:
        """Yield rows as plain values, read column by column."""
        columns = (getattr(self, name)[rows].tolist() for name in Entry._fields[1:])
        ids = self.ids
        return (Entry(ids[row], *values) for row, *values in zip(rows.tolist(), *columns, strict=True))

    def encode(self, rows: npt.NDArray[np.intp], vectors: Floats) -> None:
        """Let searches find these rows by their scaled vectors; codes are made later, in the background."""
        self.rest.append(rows, vectors)
        self.coded[rows] = True
        self.changed()

    @property
    def code_bytes(self) -> int:
        """Bytes of codes and of vectors that have none yet."""
        return self.rest.rows * 4 * self.dim + (self.packed.bytes if self.packed is not None else 0)

    def forget_codes(self) -> None:
        """Let no search find any row."""
        self.coded[:] = False
        self.packed = None
        self.rest.clear()
        self.changed()

    def coded_vectors(self) -> Iterator[tuple[npt.NDArray[np.intp], Floats]]:
        """Yield (rows, scaled vectors) of all live coded rows; what a code stands for where only that is known."""
        live = self.coded[: self.count] & self.alive[: self.count]
        for chunk in self.rest.chunks():
            keep = live[chunk.rows]
            live[chunk.rows] = False
            yield chunk.rows[keep], chunk.vectors[keep]
        rows = np.flatnonzero(live)
        if self.packed is not None and len(rows):
            yield rows, self.packed.vectors(rows)

    def due(self, now_ms: int) -> Bools | None:
        """Return which rows have expired by `now_ms`, dead ones too; None when none has."""
        if self.soonest > now_ms:
            return None
        expires_at = self.expires_at[: self.count]
        due: Bools = (expires_at > 0) & (expires_at <= now_ms)
        return due

    def view(
        self,
        tiers: frozenset[TierName],
        namespaces: npt.NDArray[np.int32] | None,
        *,
        facts: bool = False,
        now_ms: int = 0,
    ) -> View | None:
        """Return what is to be read here of `tiers`, or None; `facts` for a filter.

        The last one is kept for the next reader that asks the same while nothing has changed.
        """
        moment = now_ms if self.soonest <= now_ms else None  # the time matters only where something has expired
        names = None if namespaces is None else namespaces.tobytes()
        key = (self._changes, self.count, tiers, names, facts, moment)
        if self._viewed is None or self._viewed[0] != key:
            self._viewed = (key, self._view(tiers, namespaces, facts=facts, now_ms=now_ms))
        return self._viewed[1]

    def changed(self) -> None:
        """Say that a column that views show was written to."""
        self._changes += 1

    def _view(
        self, tiers: frozenset[TierName], namespaces: npt.NDArray[np.int32] | None, *, facts: bool, now_ms: int
    ) -> View | None:
        n = self.count
        copied = (self.copy[:n] != NO_COPY) & (TierName.HOT in tiers)
        place = np.where(copied, np.int8(TierName.HOT), self.home[:n])
        wanted = np.zeros(len(TierName), bool)
        wanted[list(tiers)] = True
        mask = self.alive[:n] & ~self.deleted[:n] & wanted[place]
        if namespaces is not None:
            mask &= np.isin(self.namespace[:n], namespaces)
        due = self.due(now_ms)
        if due is not None:
            mask &= ~due
        if not mask.any():
            return None
        below, outside = mask & self.coded[:n], place != TierName.HOT
        blind = mask & outside & ~below
        sealed = below & ~outside & ~copied
        hot = np.flatnonzero(mask & ~outside) if facts else np.zeros(0, np.intp)
        return View(
            ids=self.ids,
            version=self.version[:n],
            mask=mask,
            place=place,
            live=by_tier(place, mask),
            below=below & outside,
            sealed=sealed if sealed.any() else None,
            blind=blind if blind.any() else None,
            packed=self.packed,
            rest=self.rest.chunks(),
            event_time=self.event_time[:n],
            facts=self.facts.table() if facts else None,
            hot=hot,
            hot_slots=np.where(copied[hot], self.copy[hot], self.slot[hot]),
        )
