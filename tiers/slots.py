"""Where each slot's packed row lies in the side file: sorted arrays and a binary search, 24 bytes a row.

An array indexed by slot would grow with every slot ever given while one old row stays; this grows with the live rows.
One thread changes it, any thread may look. A look holds the lock for its search (microseconds for hundreds of slots);
a change builds new arrays outside the lock and holds it only to put them in place.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from tiers.record import Int64s

#: Where one row lies: segment number (or GONE, ABSENT), bytes, and offset of its first byte in the segment.
PLACE = np.dtype([("segment", "<i4"), ("length", "<u4"), ("offset", "<i8")])
GONE = -2  # no such row
ABSENT = -1  # the row exists, but not in the side file

Places = npt.NDArray[Any]

SWEEP_AFTER = 4096  # dead entries are swept out once there are this many and they are the majority


def nowhere(count: int, segment: int = GONE) -> Places:
    """Return `count` places that hold nothing."""
    places = np.zeros(count, PLACE)
    places["segment"] = segment
    return places


class Slots:
    """Slot to place. `len()` counts the rows that exist, ABSENT ones too."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slot = np.empty(0, np.int64)
        self._place = np.empty(0, PLACE)
        self._count = 0
        self._dead = 0

    def __len__(self) -> int:
        return self._count - self._dead

    # -- any thread --------------------------------------------------------------------------------------------------

    def find(self, slots: Int64s) -> Places:
        """Return where each slot's row lies."""
        with self._lock:
            at, known = self._at(slots)
            places = nowhere(len(slots))
            places[known] = self._place[at[known]]
            return places

    def live(self) -> Int64s:
        """Return the slots of all rows, in growing order."""
        with self._lock:
            slot, place = self._slot[: self._count], self._place[: self._count]
        live: Int64s = slot[place["segment"] != GONE]
        return live

    def _at(self, slots: Int64s) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
        """Return the position of each slot, and which are there at all."""
        known = self._slot[: self._count]
        at = np.searchsorted(known, slots)
        inside = at < self._count
        at[~inside] = 0
        inside[inside] = known[at[inside]] == slots[inside]
        return at, inside

    # -- the writer's thread -----------------------------------------------------------------------------------------

    def put(self, slots: Int64s, places: Places) -> Places:
        """Set the places of distinct slots; returns where each lay before."""
        at, known = self._at(slots)
        before = nowhere(len(slots))
        before[known] = self._place[at[known]]
        self._dead -= int((before["segment"][known] == GONE).sum())
        with self._lock:
            self._place[at[known]] = places[known]
        if not known.all():
            self._add(slots[~known], places[~known])
        return before

    def drop(self, slots: Int64s) -> Places:
        """Forget slots; returns where those that existed lay."""
        at, known = self._at(np.unique(slots))
        at = at[known]
        before: Places = self._place[at]
        gone = before["segment"] == GONE
        with self._lock:
            self._place["segment"][at] = GONE
        self._dead += int((~gone).sum())
        if self._dead > SWEEP_AFTER and self._dead > len(self):
            keep = self._place["segment"][: self._count] != GONE
            self._swap(self._slot[: self._count][keep], self._place[: self._count][keep], len(self))
            self._dead = 0
        dropped: Places = before[~gone]
        return dropped

    def of(self, segment: int) -> tuple[Int64s, Places]:
        """Return the slots and places of the rows in one segment."""
        here = self._place["segment"][: self._count] == segment
        return self._slot[: self._count][here], self._place[: self._count][here]

    def _add(self, slots: Int64s, places: Places) -> None:
        count = self._count + len(slots)
        if (np.diff(slots) <= 0).any() or (self._count and slots[0] <= self._slot[self._count - 1]):
            slot = np.concatenate([self._slot[: self._count], slots])
            order = np.argsort(slot, kind="stable")
            self._swap(slot[order], np.concatenate([self._place[: self._count], places])[order], count)
            return
        slot, place = self._slot, self._place
        if count > len(slot):
            spare = np.empty(max(count, 2 * len(slot)) - self._count, np.int64)
            slot = np.concatenate([slot[: self._count], spare])
            place = np.concatenate([place[: self._count], np.empty(len(spare), PLACE)])
        slot[self._count : count], place[self._count : count] = slots, places
        self._swap(slot, place, count)

    def _swap(self, slot: Int64s, place: Places, count: int) -> None:
        with self._lock:
            self._slot, self._place, self._count = slot, place, count
