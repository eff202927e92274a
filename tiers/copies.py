"""Promoted copies: rows whose home is a lower tier, held in hot as well, to be found and read there (R3).

They lie in slabs of their own, shared by all partitions and reused slot by slot. Among dirty rows they would keep
slabs alive that are freed whole only: a few popular records could take all of hot's room. Here a copy pins nothing:
dirty rows take a slab back at once, evicting what it holds, and copies take one only while enough stay free.

Evicting a copy costs nothing and loses nothing, and is one loop step, in which the index learns of it too. Each copy
put in or evicted is noted in `told` until its partition's lane has announced it.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, cast

import numpy as np

from tiers.columns import Columns
from tiers.index import Index
from tiers.record import Floats, Row
from tiers.segment import NEVER
from tiers.slab import Scans, Slab
from tiers.tier import Location, TierName

Jobs = list[tuple[int, int, int]]  # (first slot, first vector, count) of each run of slots to upload


class Told(NamedTuple):
    """A copy that came from `source` into hot, or went from it (`target` None), and why."""

    id: str
    version: int
    source: TierName
    target: TierName | None
    reason: str


class Copies:
    """`lend` gives a free slab or None, `give_back` takes an empty one, `upload` copies vectors to their slots."""

    def __init__(
        self,
        index: Index,
        columns: Columns,
        scans: Scans,
        *,
        slab_rows: int,
        slabs_max: int,
        lend: Callable[[], tuple[int, Slab] | None],
        lendable: Callable[[], int],
        give_back: Callable[[int], None],
        upload: Callable[[Jobs, Floats], Awaitable[None]],
    ) -> None:
        self._index, self._columns, self._scans = index, columns, scans
        self._rows, self._slabs_max = slab_rows, slabs_max
        self._lend, self._lendable, self._give_back, self._upload = lend, lendable, give_back, upload
        self._slabs: dict[int, Slab] = {}
        self._free: list[int] = []  # slots, lowest first, so that later slabs run empty
        self._limbo: list[tuple[int, int]] = []  # (scans begun when freed, slot)
        self._reserved: dict[int, Row] = {}
        self._held: dict[str, Location] = {}
        self.told: defaultdict[int, list[Told]] = defaultdict(list)
        self.promoted = 0
        self.evicted: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def rows_max(self) -> int:
        """How many copies there may be."""
        return self._slabs_max * self._rows

    def room(self) -> int:
        """Return how many copies could be reserved now without evicting any."""
        slabs = min(self._slabs_max - len(self._slabs), self._lendable())
        return len(self._free) + max(0, slabs) * self._rows

    def has(self, identifier: str) -> bool:
        """Say whether there is a copy of this id."""
        return identifier in self._held

    def holds(self, where: Location) -> bool:
        """Say whether exactly this row is a copy."""
        return self._held.get(where.id) == where

    def get(self, where: Location) -> Row | None:
        """Return the row of a copy, None when it is not (any more) there."""
        return self._slab(where.slot).rows[where.slot % self._rows] if self.holds(where) else None

    def all(self) -> Iterator[tuple[int, Row]]:
        """Yield (slot, row) of every copy."""
        for where in list(self._held.values()):
            row = self.get(where)
            if row is not None:  # evicted while the caller waited
                yield where.slot, row

    # -- up ----------------------------------------------------------------------------------------------------------

    async def reserve(self, rows: Sequence[Row]) -> list[tuple[int, Row]]:
        """Copy the vectors of rows into slots, as many as there is room for; not visible before `publish`."""
        taken: list[tuple[int, Row]] = []
        for row in rows:
            slot = self._take()
            if slot is None:
                break
            # Rows share memory with what they were read from (a packed buffer, a decoded row group).
            held = replace(row, vector=np.array(row.vector, np.float32))
            self._reserved[slot] = held
            taken.append((slot, held))
        if not taken:
            return []
        slots = np.array([slot for slot, _ in taken], np.int64)
        first = np.flatnonzero(np.diff(slots, prepend=slots[0] - 2) != 1)
        runs = zip(first.tolist(), np.diff(first, append=len(slots)).tolist(), strict=True)
        jobs = [(int(slots[at]), at, count) for at, count in runs]
        try:
            await self._upload(jobs, np.stack([cast(Floats, row.vector) for _, row in taken]))
        except BaseException:  # cancelled: the upload may still land, before any other of these slots
            self.withhold(taken)
            raise
        return taken

    def _take(self) -> int | None:
        """Return a free slot, from a new slab when there is none in those it has."""
        if not self._free and len(self._slabs) < self._slabs_max and (lent := self._lend()):
            number, self._slabs[number] = lent
            self._free = list(range(number * self._rows, (number + 1) * self._rows))
        if not self._free:
            return None
        slot = heapq.heappop(self._free)
        slab = self._slab(slot)
        slab.live += 1
        slab.fill = max(slab.fill, slot % self._rows + 1)
        return slot

    def publish(self, reserved: Sequence[tuple[int, Row]], partition: int, reason: str) -> int:
        """Make rows visible that are still the newest of their id, below hot and without a copy. One loop step (R3)."""
        refused: list[tuple[int, Row]] = []
        shown: list[int] = []
        for slot, row in reserved:
            if self._reserved.get(slot) is not row:
                continue  # the slab was taken back meanwhile
            entry = self._index.place_copy(row.id, row.version, slot)
            if entry is None:
                refused.append((slot, row))
                continue
            del self._reserved[slot]
            columns = self._columns
            columns.deleted[slot], columns.coded[slot], columns.version[slot] = False, False, row.version
            columns.expires_at[slot] = NEVER if row.expires_at is None else row.expires_at
            shown.append(slot)
            self._slab(slot).rows[slot % self._rows] = row
            self._held[row.id] = Location(row.id, row.version, partition, slot)
            self.told[partition].append(Told(row.id, row.version, TierName(entry.home), TierName.HOT, reason))
        self._columns.appear(np.array(shown, np.int64))
        self.promoted += len(shown)
        self.withhold(refused)
        return len(shown)

    def withhold(self, reserved: Iterable[tuple[int, Row]]) -> None:
        """Give up slots that were reserved."""
        for slot, row in reserved:
            if self._reserved.get(slot) is row:
                del self._reserved[slot]
                self._leave(slot)
        self.reclaim()

    # -- down --------------------------------------------------------------------------------------------------------

    def evict(self, ids: Iterable[str], reason: str) -> int:
        """Drop the copies of these ids, in this loop step; an id without one is skipped."""
        evicted = 0
        for identifier in ids:
            where = self._held.pop(identifier, None)
            if where is None:
                continue
            self._columns.vanish(where.slot)
            self._index.forget_copy(identifier, where.slot)
            self.told[where.partition].append(Told(identifier, where.version, TierName.HOT, None, reason))
            self._leave(where.slot)
            evicted += 1
        if evicted:
            self.evicted[reason] += evicted
            self.reclaim()
        return evicted

    def of(self, partition: int) -> list[str]:
        """Return the ids of a partition that have a copy."""
        return [where.id for where in self._held.values() if where.partition == partition]

    def take_back(self, slabs: int) -> None:
        """Evict what the emptiest slabs hold, to free this many for dirty rows."""
        for number in sorted(self._slabs, key=lambda number: self._slabs[number].live)[: max(0, slabs)]:
            inside = range(number * self._rows, (number + 1) * self._rows)
            self.withhold([(slot, row) for slot, row in self._reserved.items() if slot in inside])
            self.evict([where.id for where in self._held.values() if where.slot in inside], "pressure")

    @property
    def slabs(self) -> int:
        """How many slabs hold copies."""
        return len(self._slabs)

    def reclaim(self) -> None:
        """Let slots be used again that no running scan can read any more."""
        if not self._limbo:
            return
        oldest = self._scans.oldest
        for begun, slot in self._limbo:
            if begun < oldest:
                heapq.heappush(self._free, slot)
                self._slab(slot).rows.pop(slot % self._rows, None)
        self._limbo = [(begun, slot) for begun, slot in self._limbo if begun >= oldest]

    def _leave(self, slot: int) -> None:
        """Take a slot's row away; an empty slab goes back to hot, which waits for the scans that may still read it."""
        slab, number = self._slab(slot), slot // self._rows
        slab.live -= 1
        self._limbo.append((self._scans.begun, slot))
        if slab.live == 0:
            del self._slabs[number]
            self._free = [free for free in self._free if free // self._rows != number]
            self._limbo = [(begun, free) for begun, free in self._limbo if free // self._rows != number]
            heapq.heapify(self._free)
            self._give_back(number)

    def _slab(self, slot: int) -> Slab:
        return self._slabs[slot // self._rows]
