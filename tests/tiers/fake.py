"""Warm, cold and glacier in memory, for tests that stop, fail or interleave a request at each of its moments.

Every request has three: before it is sent, on its way (its effect has not happened) and answered (it has). Each is a
bare suspension, so that a test may drive the coroutine by hand; `trace` tells the moments passed. They pass the same
contract as the real tiers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from types import coroutine
from typing import Any

import numpy as np
import pyarrow as pa

from tiers import record
from tiers.alone import find, open_alone, settle
from tiers.index import Index
from tiers.record import Int64s, Row
from tiers.tier import NO_SLOT, Location, Places, Query, Receipt, Result, TierName, Usage, Vectors

PAGE_ROWS = 3


@coroutine
def moment() -> Generator[None, None, None]:
    """Suspend once."""
    yield


@dataclass
class Store:
    """What survives the process: rows by slot (warm: by id), and the next slot."""

    rows: dict[int | str, Row] = field(default_factory=dict)
    next_slot: int = 0


@dataclass(frozen=True)
class Rewritten:
    """See consumers.mover.Rewrite."""

    dropped: int
    ids: Sequence[str]
    versions: Int64s
    old_slots: Int64s
    new_slots: Int64s


class FakeTier:
    """One value an id for warm, one slot a row for cold and glacier."""

    def __init__(
        self,
        name: TierName,
        shape: pa.Schema,
        *,
        partitions: int,
        index: Index | None = None,
        store: Store | None = None,
        trace: list[str] | None = None,
    ) -> None:
        self.name, self.shape, self.partitions = name, shape, partitions
        self.held = store if store is not None else Store()
        self.trace = trace if trace is not None else []
        self.file_slots = 1 << 30  # slots beside each other that one rewrite takes
        self.rewritten: dict[int, int | None] = {}  # slot before a rewrite -> slot after it, None for a dropped row
        self._former: dict[int | str, Row] = {}  # what the replaced files hold: readable until they are vacuumed
        self._alone = index is None
        self.index = index if index is not None else Index.of(shape)

    @classmethod
    async def open(cls, name: TierName, store: Store, shape: pa.Schema, *, partitions: int) -> FakeTier:
        """Return the tier used alone."""
        tier = cls(name, shape, partitions=partitions, store=store)
        await open_alone(tier, tier.index, partitions)
        return tier

    async def _at(self, request: str, when: str) -> None:
        self.trace.append(f"{self.name.word}.{request}.{when}")
        await moment()

    # -- looking past the requests -----------------------------------------------------------------------------------

    def physical(self) -> set[tuple[str, int, int]]:
        """Return (id, version, slot) of every row."""
        return {(row.id, row.version, key if isinstance(key, int) else NO_SLOT) for key, row in self.held.rows.items()}

    def now(self, slot: int) -> int | None:
        """Return where the row of a slot lies after all rewrites; None when one dropped it."""
        while slot in self.rewritten:
            after = self.rewritten[slot]
            if after is None:
                return None
            slot = after
        return slot

    def _key(self, where: Location) -> int | str:
        return where.id if self.name is TierName.WARM else where.slot

    def _matches(self, where: Location, rows: Mapping[int | str, Row] | None = None) -> bool:
        row = (self.held.rows if rows is None else rows).get(self._key(where))
        return row is not None and (row.id, row.version) == (where.id, where.version)

    # -- the tier ----------------------------------------------------------------------------------------------------

    async def store(self, batch: pa.RecordBatch) -> Receipt:
        """See Tier."""
        unique = record.newest(batch)
        await self._at("store", "sent")
        places = [self._put(record.row_at(unique, at)) for at in range(unique.num_rows)]
        await self._at("store", "answered")
        slots, held = (np.array([place[i] for place in places], np.int64) for i in (0, 1))
        receipt = Receipt(self.name, unique["id"].to_pylist(), record.versions_of(unique), slots, held, "in memory")
        if self._alone:
            await settle(self, self.index, self.partitions, receipt, batch)
        return receipt

    def _put(self, row: Row) -> tuple[int, int]:
        """Return (slot, version held) after putting the row if it is newer."""
        same = [(r.version, key) for key, r in self.held.rows.items() if r.id == row.id]
        highest, key = max(same, default=(-1, NO_SLOT))
        if highest < row.version:
            key = row.id if self.name is TierName.WARM else self.held.next_slot
            self.held.next_slot += 1
            self.held.rows[key] = row
        return (key if isinstance(key, int) else NO_SLOT), max(highest, row.version)

    def together(self, keys: Sequence[Location]) -> list[Location]:
        """Return those that one rewrite should drop: the lowest, and those in what would be the same file."""
        first = min((where.slot for where in keys), default=0) // self.file_slots
        return [where for where in keys if where.slot // self.file_slots == first]

    async def retrieve(self, query: Query) -> Result:
        """See Tier."""
        return await find(self, self.index, query)

    async def retrieve_all(self) -> AsyncIterator[pa.RecordBatch]:
        """See Tier."""
        rows = list(self.held.rows.items())
        for start in range(0, len(rows), PAGE_ROWS):
            await self._at("retrieve_all", "sent")
            part = rows[start : start + PAGE_ROWS]
            slots = pa.array([key if isinstance(key, int) else NO_SLOT for key, _ in part], pa.int64())
            yield record.to_batch([row for _, row in part], self.shape).append_column("slot", slots)

    async def get(self, locations: Sequence[Location]) -> list[Row | None]:
        """See Tier."""
        await self._at("get", "sent")
        readable = self._former | self.held.rows
        found = [readable[self._key(where)] if self._matches(where, readable) else None for where in locations]
        await self._at("get", "answered")
        return found

    async def gather(self, places: Places) -> tuple[pa.RecordBatch, np.ndarray[Any, Any]]:
        """See Tier."""
        return record.present(await self.get(places), self.shape)

    async def vectors(self, places: Places, *, spent: int | None = 0) -> Vectors:
        """See Tier."""
        rows = await self.get(places)
        return Vectors([None if row is None else row.vector for row in rows])

    async def evict(self, keys: Sequence[Location], receipt: Receipt | None) -> int:
        """See Tier."""
        await self._at("evict", "sent")
        gone = {self._key(where) for where in keys if self._matches(where)}
        for key in gone:
            del self.held.rows[key]
        await self._at("evict", "answered")
        return len(gone)

    async def rewrite(self, partition: int, drop: Sequence[Location]) -> Rewritten:
        """See consumers.mover.Rewrites: every other row of the partition gets a new slot."""
        await self._at("rewrite", "sent")
        gone = {self._key(where) for where in drop if self._matches(where)}
        kept = [
            (int(key), row)
            for key, row in self.held.rows.items()
            if key not in gone and record.partition(row.id, self.partitions) == partition
        ]
        new = [self.held.next_slot + at for at in range(len(kept))]
        self.held.next_slot += len(kept)
        for key in [*gone, *(key for key, _ in kept)]:
            self._former[key] = self.held.rows.pop(key)
        self.rewritten |= dict.fromkeys(map(int, gone)) | dict(zip((key for key, _ in kept), new, strict=True))
        self.held.rows |= dict(zip(new, (row for _, row in kept), strict=True))
        await self._at("rewrite", "answered")
        numbers = [np.array(values, np.int64) for values in ([r.version for _, r in kept], [k for k, _ in kept], new)]
        return Rewritten(len(gone), [row.id for _, row in kept], *numbers)

    async def clear(self) -> None:
        """See Tier."""
        await self._at("clear", "sent")
        self.held.rows.clear()
        if self._alone:
            self.index = Index.of(self.shape)

    async def cleanup(self) -> None:
        """See Tier."""

    async def usage(self) -> Usage:
        """See Tier."""
        return Usage(len(self.held.rows), sum(100 + len(row.payload) for row in self.held.rows.values()))
