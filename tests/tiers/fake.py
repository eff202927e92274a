"""Warm, cold and glacier in memory, for tests that stop, fail or interleave a request at each of its moments.

Every request has three: before it is sent, on its way (its effect has not happened) and answered (it has). How it gets
there is a `Carry`. By hand, each moment is a bare suspension, so that a test may drive the coroutine, and `trace` tells
the moments passed; the simulation carries requests that may be refused, late, or never answered. They pass the same
contract as the real tiers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import coroutine
from typing import Any

import numpy as np
import pyarrow as pa

from tiers import record
from tiers.alone import find, open_alone, settle
from tiers.errors import Fenced, OutcomeUnknown, TierFull, TierUnavailable
from tiers.index import Index
from tiers.record import Int64s, Row
from tiers.tier import NO_SLOT, Location, Places, Query, Receipt, Result, TierName, Usage, Vectors

PAGE_ROWS = 3

#: (tier, what is asked, its effect) -> what the effect returned, once the answer is there.
Carry = Callable[["TierName", str, Callable[[], Any]], Awaitable[Any]]


_partition = cache(record.partition)


@coroutine
def moment() -> Generator[None, None, None]:
    """Suspend once."""
    yield


@dataclass
class Store:
    """What survives the process: rows by slot (warm: by id), the next slot, and the epochs of the partitions."""

    rows: dict[int | str, Row] = field(default_factory=dict)
    next_slot: int = 0
    epochs: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Rewritten:
    """See consumers.mover.Rewrite."""

    dropped: int
    ids: Sequence[str]
    versions: Int64s
    old_slots: Int64s
    new_slots: Int64s


class FakeTier:
    """One value an id for warm, one slot a row for cold and glacier.

    Once a partition's epoch was raised, writes carry it, and where they land an older one is refused (R4a). A store is
    cut into requests of `call_rows` rows.
    """

    def __init__(
        self,
        name: TierName,
        shape: pa.Schema,
        *,
        partitions: int,
        index: Index | None = None,
        store: Store | None = None,
        trace: list[str] | None = None,
        carry: Carry | None = None,
        call_rows: int = 1 << 30,
    ) -> None:
        self.name, self.shape, self.partitions = name, shape, partitions
        self.held = store if store is not None else Store()
        self.trace = trace if trace is not None else []
        self._carry = carry if carry is not None else self._by_hand
        self._call_rows = call_rows
        self.epochs: dict[int, int] = {}  # with which this process writes
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

    async def _by_hand(self, tier: TierName, request: str, effect: Callable[[], Any]) -> Any:
        self.trace.append(f"{tier.word}.{request}.sent")
        await moment()
        result = effect()
        self.trace.append(f"{tier.word}.{request}.answered")
        await moment()
        return result

    # -- epochs ------------------------------------------------------------------------------------------------------

    async def raise_epoch(self, partition: int, epoch: int) -> None:
        """Let only writes of `epoch` pass from now on; Fenced if a higher one is there already."""

        def effect() -> None:
            if self.held.epochs.get(partition, 0) > epoch:
                raise Fenced(f"partition {partition} has a higher epoch than {epoch}")
            self.held.epochs[partition] = epoch

        await self._carry(self.name, "raise_epoch", effect)
        self.epochs[partition] = epoch

    def _fence(self, partitions: set[int], epochs: Mapping[int, int]) -> None:
        for partition in partitions:
            if epochs.get(partition, 0) != self.held.epochs.get(partition, 0):
                raise Fenced(f"partition {partition} has another epoch than the write")

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
        rows, places = [record.row_at(unique, at) for at in range(unique.num_rows)], []
        for start in range(0, max(1, len(rows)), self._call_rows):
            try:
                places += await self._carry(self.name, "store", self._storing(rows[start : start + self._call_rows]))
            except (TierFull, TierUnavailable) as error:
                if not start:
                    raise
                raise OutcomeUnknown(f"only a part of a batch was stored: {error}") from error
        slots, held = (np.array([place[i] for place in places], np.int64) for i in (0, 1))
        receipt = Receipt(self.name, unique["id"].to_pylist(), record.versions_of(unique), slots, held, "in memory")
        if self._alone:
            await settle(self, self.index, self.partitions, receipt, batch)
        return receipt

    def _storing(self, rows: Sequence[Row]) -> Callable[[], list[tuple[int, int]]]:
        epochs = dict(self.epochs)

        def effect() -> list[tuple[int, int]]:
            self._fence({_partition(row.id, self.partitions) for row in rows}, epochs)
            return [self._put(row) for row in rows]

        return effect

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
        keys = list(self.held.rows)
        for start in range(0, len(keys), PAGE_ROWS):
            part = await self._carry(self.name, "retrieve_all", self._listing(keys[start : start + PAGE_ROWS]))
            slots = pa.array([key if isinstance(key, int) else NO_SLOT for key, _ in part], pa.int64())
            yield record.to_batch([row for _, row in part], self.shape).append_column("slot", slots)

    def _listing(self, keys: Sequence[int | str]) -> Callable[[], list[tuple[int | str, Row]]]:
        return lambda: [(key, self.held.rows[key]) for key in keys if key in self.held.rows]

    async def get(self, locations: Sequence[Location]) -> list[Row | None]:
        """See Tier."""

        def effect() -> list[Row | None]:
            readable = self._former | self.held.rows
            return [readable[self._key(where)] if self._matches(where, readable) else None for where in locations]

        found: list[Row | None] = await self._carry(self.name, "get", effect)
        return found

    async def sizes(self, places: Places) -> np.ndarray[Any, Any]:
        """See Tier."""
        rows = [self.held.rows.get(self._key(where)) for where in places]
        return np.array([0 if row is None else 100 + len(row.payload) for row in rows], np.int64)

    async def gather(self, places: Places) -> tuple[pa.RecordBatch, np.ndarray[Any, Any]]:
        """See Tier."""
        return record.present(await self.get(places), self.shape)

    async def vectors(self, places: Places, *, spent: int | None = 0) -> Vectors:
        """See Tier."""
        rows = await self.get(places)
        return Vectors([None if row is None else row.vector for row in rows])

    def vectors_at_once(self, places: Places) -> None:
        """See Tier: everything takes its time here."""

    async def evict(self, keys: Sequence[Location], receipt: Receipt | None) -> int:
        """See Tier."""
        epochs = dict(self.epochs)

        def effect() -> int:
            self._fence({where.partition for where in keys}, epochs)
            gone = {self._key(where): None for where in keys if self._matches(where)}
            for key in gone:
                del self.held.rows[key]
            return len(gone)

        dropped: int = await self._carry(self.name, "evict", effect)
        return dropped

    async def rewrite(self, partition: int, drop: Sequence[Location]) -> Rewritten:
        """See consumers.mover.Rewrites: every other row of the partition gets a new slot."""
        epochs = dict(self.epochs)

        def effect() -> Rewritten:
            self._fence({partition}, epochs)
            return self._rewritten(partition, drop)

        done: Rewritten = await self._carry(self.name, "rewrite", effect)
        return done

    def _rewritten(self, partition: int, drop: Sequence[Location]) -> Rewritten:
        gone = {self._key(where): None for where in drop if self._matches(where)}
        kept = [
            (int(key), row)
            for key, row in self.held.rows.items()
            if key not in gone and _partition(row.id, self.partitions) == partition
        ]
        new = [self.held.next_slot + at for at in range(len(kept))]
        self.held.next_slot += len(kept)
        for key in [*gone, *(key for key, _ in kept)]:
            self._former[key] = self.held.rows.pop(key)
        self.rewritten |= dict.fromkeys(map(int, gone)) | dict(zip((key for key, _ in kept), new, strict=True))
        self.held.rows |= dict(zip(new, (row for _, row in kept), strict=True))
        numbers = [np.array(values, np.int64) for values in ([r.version for _, r in kept], [k for k, _ in kept], new)]
        return Rewritten(len(gone), [row.id for _, row in kept], *numbers)

    async def clear(self) -> None:
        """See Tier."""
        await self._carry(self.name, "clear", self.held.rows.clear)
        if self._alone:
            self.index = Index.of(self.shape)

    async def cleanup(self) -> None:
        """See Tier."""

    async def usage(self) -> Usage:
        """See Tier."""
        return Usage(len(self.held.rows), sum(100 + len(row.payload) for row in self.held.rows.values()))
