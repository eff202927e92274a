"""One segment of the index: the columns of up to 65,536 entries in arrival order.

Rows are appended and marked dead, never reused: a scan that still reads the arrays of an old segment sees what it
saw. Per row at 256 dimensions, counted by a test: 83 bytes of columns, a code of 72 with its number (until it has one,
a vector of 1,024), and 3 of the last view: 158, beside the id and the attributes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tiers.blocks import Bytes
from tiers.codes import Codebook, Packed
from tiers.facts import Facts
from tiers.record import Floats, Int64s
from tiers.rest import Rest
from tiers.tier import TierName
from tiers.view import View, by_tier

Bools = npt.NDArray[np.bool_]

SEGMENT_ROWS = 65_536
NO_COPY = -1
NEVER = np.iinfo(np.int64).max

#: Column name to dtype; all are indexed by the row's number in the segment.
COLUMNS: dict[str, npt.DTypeLike] = {
    "version": np.int64,
    "partition": np.int16,
    "namespace": np.int32,  # its number in the index
    "home": np.int8,  # TierName
    "slot": np.int64,  # in the home tier
    "copy": np.int32,  # slot of the promoted copy in hot, or NO_COPY
    "event_time": np.int64,  # ms
    "expires_at": np.int64,  # ms, 0 = never
    "born": np.int64,  # ms, where age counts from: the earlier of event time and arrival
    "used": np.int64,  # ms, last access (else born)
    "heat": np.float32,  # decayed count of accesses as of `used`
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


class Adopted(NamedTuple):
    """Codes of rows, as a file kept them."""

    rows: npt.NDArray[np.intp]
    codes: Bytes


class Segment:
    """Columns as attributes (see COLUMNS), `ids`, `facts`, and what a search reads: `packed` codes, `rest` vectors."""

    version: Int64s
    partition: npt.NDArray[np.int16]
    namespace: npt.NDArray[np.int32]
    home: npt.NDArray[np.int8]
    slot: Int64s
    copy: npt.NDArray[np.int32]
    event_time: Int64s
    expires_at: Int64s
    born: Int64s
    used: Int64s
    heat: Floats
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
        self.living = 0  # rows alive
        self.ids: list[str] = []
        self.packed: Packed | None = None
        self.rest = Rest()
        self.adopted: list[Adopted] = []  # codes that are to be packed
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
        self.living += len(ids)
        return start

    def bury(self, rows: int | npt.NDArray[np.intp]) -> None:
        """Mark live rows dead: they are not, or not here, the newest of their id any more."""
        self.alive[rows] = False
        self.living -= np.size(rows)
        self.changed()

    def entry(self, row: int) -> Entry:
        """Return one row as plain values."""
        return Entry(
            self.ids[row],
            self.version.item(row),
            self.partition.item(row),
            self.home.item(row),
            self.slot.item(row),
            self.copy.item(row),
            self.deleted.item(row),
            self.expires_at.item(row),
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
        adopted = sum(codes.nbytes for _, codes in self.adopted)
        return self.rest.rows * 4 * self.dim + adopted + (self.packed.bytes if self.packed is not None else 0)

    def adopt(self, rows: npt.NDArray[np.intp], codes: Bytes) -> None:
        """Take codes that were kept from a former life; searches find the rows after `install`."""
        self.adopted.append(Adopted(rows, codes))
        self.coded[rows] = True

    def pack(self, adopted: Sequence[Adopted], codebook: Codebook) -> Packed:
        """Return the segment's codes with these, which are of `codebook`. Any thread."""
        packed = self.packed if self.packed is not None else codebook.empty()
        return packed.plus_codes(*(np.concatenate(column) for column in zip(*adopted, strict=True)))

    def install(self, adopted: Sequence[Adopted], packed: Packed) -> None:
        """Let searches read these codes, unless some of what was `adopted` has been given up meanwhile."""
        if self.adopted is adopted:
            self.packed, self.adopted = packed, []
            self.changed()

    def keep_codes(self, keep: Bools) -> None:
        """Let searches find only those coded rows where `keep`; the codes of all others are given back.

        A job that is coding meanwhile finds nothing to install. Up to 30 ms where half of a segment stays.
        """
        self.coded[: self.count] &= keep
        self.coded[self.count :] = False
        self.rest.keep(keep)
        self.adopted = [Adopted(rows[keep[rows]], codes[keep[rows]]) for rows, codes in self.adopted]
        if self.packed is not None:
            rows = self.packed.numbers[keep[self.packed.numbers]].astype(np.intp)
            self.packed = self.packed.only(rows) if len(rows) else None
        self.changed()

    def coded_vectors(self, rows: npt.NDArray[np.intp]) -> Iterator[tuple[npt.NDArray[np.intp], Floats]]:
        """Yield (rows, scaled vectors) of those rows that are coded; what a code stands for where that is all."""
        wanted = np.zeros(self.count, bool)
        wanted[rows] = self.coded[rows]
        for chunk in self.rest.chunks():
            keep = wanted[chunk.rows]
            wanted[chunk.rows] = False
            if keep.any():
                yield chunk.rows[keep], chunk.vectors[keep]
        rows = np.flatnonzero(wanted)
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


__all__ = ["COLUMNS", "NO_COPY", "SEGMENT_ROWS", "Adopted", "Entry", "Segment", "View"]
