"""HotMemory: the newest records, scanned exactly, in one preallocated array.

The array is cut into slabs. A slab belongs to one partition, fills in log order, keeps the Arrow batches its rows came
from (ids, payloads and attributes are never copied), and is freed whole once every row in it is dead. A dirty row is
never overwritten: without a free slab `reserve` raises TierFull, and the partition is paused. Promoted copies have
slabs of their own (tiers/copies.py), which dirty rows take back when they need them.

Back of the envelope, 256 dimensions: 1 KB a vector, 21 bytes of bookkeeping a row; a scan reads at memory bandwidth,
1 ms for 25,000 rows on one core.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tiers import record
from tiers.alone import choose, find, open_alone, settle
from tiers.best import NO_ROWS, NO_VALUES, NO_VERSIONS, Best
from tiers.columns import Columns
from tiers.copies import Copies
from tiers.device import Device
from tiers.device import choose as choose_device
from tiers.device_watch import DeviceWatch
from tiers.errors import TierFull
from tiers.index import Index
from tiers.part import Ask, Part, Shape
from tiers.record import Bools, Floats, Int64s, Row
from tiers.segment import NEVER
from tiers.slab import COPIES, FREE, Ids, Scans, Slab
from tiers.tier import Location, Places, Query, Receipt, Result, TierName, Usage, Vectors
from tiers.together import Together
from tiers.worker import SerialExecutor

COLUMNAR_ROWS = 8  # from here on turning whole columns into values costs less than row by row
COPIES_LISTED = 1_000  # copies that a listing turns into one batch
SEAL_ROWS = 1_024  # of a slab that still fills get codes together: copying a segment's codes must be worth it
KEPT_FREE = 8  # copies take a slab only while more than one in so many stays free: a burst need not wait for theirs


class HotSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`capacity_rows` is rounded down to whole slabs, and so is the fraction of it that copies may take.

    `device` is auto, cpu or cuda. A GPU stores `dtype` (float32 or float16), and its searches have `scratch_bytes`
    beside the vectors. On a CPU rows get codes once a search would read more than `exact_rows` vectors of hot (0:
    never).
    """

    device: str = "auto"
    dtype: str = "float32"
    scratch_bytes: int = 256 << 20
    capacity_rows: int = 262_144
    slab_rows: int = 8_192
    copy_fraction: float = 0.25
    exact_rows: int = 16_384

    @property
    def slabs(self) -> int:
        """How many slabs the capacity is."""
        return max(1, self.capacity_rows // self.slab_rows)

    def shape(self, dim: int, metric: str) -> Shape:
        """Return what a device is to allocate."""
        return Shape(self.slabs, self.slab_rows, dim, metric, self.dtype, self.scratch_bytes)


class Snapshot(NamedTuple):
    """What one scan reads: slabs as they were, and which rows; no slab freed since is reused before it ends."""

    number: int
    slabs: dict[int, Slab]
    parts: list[Part]

    @property
    def rows(self) -> int:
        """How many rows may be found."""
        return sum(part.size for part in self.parts)


class Sealed(NamedTuple):
    """Rows of a slab that a search reads as vectors; no slab is used again before `snapshot` is released."""

    snapshot: Snapshot
    ids: list[str]
    versions: Int64s
    slots: Int64s


class HotMemory:
    """The hot tier. Rows are volatile: what makes them durable is the log above the committed offset (R1, R2)."""

    name = TierName.HOT

    def __init__(
        self,
        settings: HotSettings,
        shape: pa.Schema,
        *,
        partitions: int,
        index: Index | None = None,
        device: Device | None = None,
    ) -> None:
        self.settings, self.shape, self.partitions = settings, shape, partitions
        self._alone = index is None
        self.index = index if index is not None else Index.of(shape)
        self.device = device if device is not None else choose_device(settings.device)
        count = settings.slabs
        self._rows = settings.slab_rows
        dim = shape.field("vector").type.list_size
        self._arena = self.device.arena(settings.shape(dim, self.index.metric))
        self.columns = Columns(count, self._rows)
        self._slabs = [Slab() for _ in range(count)]
        self._free = list(range(count - 1, -1, -1))
        self._open: dict[int, int] = {}
        self._limbo: list[tuple[int, int]] = []  # (scans begun when freed, slab number)
        self._scans = Scans()
        self.copies = Copies(
            self.index,
            self.columns,
            self._scans,
            slab_rows=self._rows,
            slabs_max=int(count * settings.copy_fraction),
            lend=self._lend,
            lendable=lambda: len(self._free) - 1 - count // KEPT_FREE,
            give_back=self._release,
            upload=self._upload,
        )
        self._thread = SerialExecutor("hot")
        self._together = Together(self._arena, self._thread)
        self.watch = DeviceWatch()

    @classmethod
    async def open(
        cls, settings: HotSettings, shape: pa.Schema, *, partitions: int, index: Index | None = None
    ) -> HotMemory:
        """Return an empty hot tier; raises ServiceMissing when `device = "cuda"` finds no GPU."""
        hot = cls(settings, shape, partitions=partitions, index=index)
        if hot._alone:
            await open_alone(hot, hot.index, partitions)
        return hot

    def __repr__(self) -> str:
        return f"<HotMemory {self.device.name}: {int(self.columns.alive.sum())} rows, {len(self._free)} free slabs>"

    # -- ingest's two steps ------------------------------------------------------------------------------------------

    @property
    def capacity(self) -> int:
        """Rows of all slabs."""
        return len(self._slabs) * self._rows

    def room(self, partition: int) -> int:
        """Return how many rows of a partition could be reserved now, slabs of copies taken back where needed."""
        return self._left(partition) + (len(self._free) + self.copies.slabs) * self._rows

    def _left(self, partition: int) -> int:
        slab = self._open.get(partition)
        return self._rows - self._slabs[slab].fill if slab is not None else 0

    def _slabs_for(self, partition: int, rows: int) -> int:
        """Return how many free slabs it takes to reserve so many rows of a partition."""
        return -(-max(0, rows - self._left(partition)) // self._rows)

    async def reserve(self, batch: pa.RecordBatch, partition: int) -> Int64s:
        """Copy the vectors of one partition's rows into slabs; returns their slots. Not visible before `publish`.

        TierFull, with nothing changed, when there is no room.
        """
        wanted = self._slabs_for(partition, batch.num_rows)
        self.copies.take_back(wanted - len(self._free) - len(self._limbo))
        if wanted > len(self._free):
            raise TierFull(f"hot has no room for {batch.num_rows} rows of partition {partition}")
        slots = np.empty(batch.num_rows, np.int64)
        vectors = record.vectors_of(batch)
        done = 0
        jobs: list[tuple[int, int, int]] = []
        while done < batch.num_rows:
            number = self._open_slab(partition)
            slab = self._slabs[number]
            step = min(self._rows - slab.fill, batch.num_rows - done)
            start = number * self._rows + slab.fill
            slab.starts.append(slab.fill)
            slab.batches.append(batch.slice(done, step))
            slab.fill += step
            slab.live += step
            slots[done : done + step] = np.arange(start, start + step)
            jobs.append((start, done, step))
            done += step
        await self._upload(jobs, vectors)
        columns = self.columns
        versions, deleted = record.versions_of(batch), record.deleted_of(batch)
        expires_at = record.times_of(batch, "expires_at")
        expires_at = np.where(expires_at > 0, expires_at, NEVER)
        for start, done, step in jobs:
            here, there = slice(start, start + step), slice(done, done + step)
            columns.version[here], columns.deleted[here] = versions[there], deleted[there]
            columns.coded[here], columns.expires_at[here] = False, expires_at[there]
        return slots

    async def _upload(self, jobs: list[tuple[int, int, int]], vectors: Floats) -> None:
        """Copy to the device: at once on the host (a hop costs more than the copy), else on the device's thread.

        So much at a time there, that searches come in between.
        """
        step = self._arena.chunk_rows
        for start, done, rows in jobs:
            if step is None:
                self._arena.put(start, vectors[done : done + rows])
                continue
            for at in range(0, rows, step):
                some = vectors[done + at : done + min(at + step, rows)]
                with self.watch.noting():
                    await self._thread.run(self._arena.put, start + at, some)

    def publish(self, slots: Int64s) -> None:
        """Make reserved rows visible to scans; call it in the same loop step as `index.put`."""
        self.columns.appear(slots)

    def _open_slab(self, partition: int) -> int:
        number = self._open.get(partition)
        if number is None or self._slabs[number].fill == self._rows:
            number = self._free.pop()
            self._slabs[number] = Slab(partition)
            self._open[partition] = number
        return number

    def _lend(self) -> tuple[int, Slab] | None:
        """Give a slab to the copies, while enough stay free for dirty rows."""
        if len(self._free) - 1 <= len(self._slabs) // KEPT_FREE:
            return None
        number = self._free.pop()
        self._slabs[number] = Slab(COPIES)
        return number, self._slabs[number]

    def _release(self, number: int) -> None:
        """Free a slab, at once or after the scans that may still read it."""
        self._slabs[number] = Slab()
        self._limbo.append((self._scans.begun, number))
        self._reclaim()

    def _reclaim(self) -> None:
        oldest = self._scans.oldest
        self._free += [number for begun, number in self._limbo if begun < oldest]
        self._limbo = [(begun, number) for begun, number in self._limbo if begun >= oldest]

    # -- scanning ----------------------------------------------------------------------------------------------------

    def snapshot(self, now_ms: int = 0, *, exact: bool = False) -> Snapshot:
        """Copy what a scan needs, in one loop step; rows that have expired by `now_ms` are not in it.

        Nor are those that have codes, unless it is to be `exact`.
        """
        slabs, parts = {}, []
        for number, slab in enumerate(self._slabs):
            if slab.live and (part := self.columns.part(number, slab.fill, now_ms, exact=exact)).size:
                slabs[number] = slab.frozen()
                parts.append(part)
        return Snapshot(self._scans.begin(), slabs, parts)

    def sealed(self) -> Sealed | None:
        """Return the rows of the slab with most that have no code; None when a search need not be spared so much."""
        columns = self.columns
        plain = columns.alive & ~columns.deleted & ~columns.coded
        if self.device.name != "numpy" or not self.settings.exact_rows or plain.sum() <= self.settings.exact_rows:
            return None
        by_slab = plain.reshape(len(self._slabs), self._rows).sum(axis=1)
        least = [NEVER if slab.partition < 0 else 1 if slab.fill == self._rows else SEAL_ROWS for slab in self._slabs]
        number = int(np.argmax(np.where(by_slab >= least, by_slab, 0)))
        if by_slab[number] < least[number]:
            return None
        rows = np.flatnonzero(plain[number * self._rows : (number + 1) * self._rows])
        slab, slots = self._slabs[number].frozen(), rows + number * self._rows
        ids = slab.ids()
        snapshot = Snapshot(self._scans.begin(), {number: slab}, [])
        return Sealed(snapshot, [ids[row] for row in rows.tolist()], columns.version[slots], slots)

    def vectors_at(self, slots: Int64s) -> Floats:
        """Return copies of vectors that the host has in its memory. Any thread, while a snapshot holds their slab."""
        found = self._arena.vectors(slots)
        assert found is not None, "rows of a GPU get no codes"
        return found

    def coded(self, slots: Int64s) -> None:
        """Leave these rows out of scans: the index has their codes from this loop step on."""
        self.columns.code(slots)

    async def scan(self, snapshot: Snapshot, queries: Floats, k: int, only: Int64s | None = None) -> list[Best]:
        """Return the k best for each of float32[queries, dim], best first; `only` these slots if given.

        TierUnavailable where a GPU has no memory for it; DeviceLost where it has failed for good.
        """
        try:
            parts = snapshot.parts if only is None else self._narrowed(snapshot.parts, only)
            if not parts:  # most have codes, or the filter wants none: no need to wait for the thread
                return [Best([], NO_VERSIONS, NO_ROWS, NO_VALUES)] * len(queries)
            with self.watch.noting():
                found = await self._together.best(Ask(parts, queries, k))
            return [self._named(snapshot, *nearest) for nearest in found]
        finally:
            self.release(snapshot)

    def _narrowed(self, parts: Sequence[Part], only: Int64s) -> list[Part]:
        """Return the parts with none but these slots in them."""
        slabs = only // self._rows
        asked = np.bincount(slabs, minlength=len(self._slabs))
        some = [part for part in parts if asked[part.slab]]
        place = np.full(len(self._slabs), len(some))  # of a slab's rows in `wanted`; the last is for those not scanned
        place[[part.slab for part in some]] = np.arange(len(some))
        wanted = np.zeros((len(some) + 1, self._rows), bool)
        wanted[place[slabs], only - slabs * self._rows] = True
        found = []
        for part, mask in zip(some, wanted, strict=False):
            both = mask & part.wanted
            if count := int(np.count_nonzero(both)):
                found.append(Part(part.slab, part.fill, both, count))
        return found

    def _named(self, snapshot: Snapshot, slots: npt.NDArray[np.intp], values: Floats) -> Best:
        ids = Ids(snapshot.slabs, slots, self._rows)
        return Best(ids, self.columns.version[slots], np.arange(len(slots)), values)

    def release(self, snapshot: Snapshot) -> None:
        """Say that no scan of this snapshot begins any more; again does nothing."""
        self._scans.end(snapshot.number)
        self._reclaim()
        self.copies.reclaim()

    # -- the tier ----------------------------------------------------------------------------------------------------

    async def store(self, batch: pa.RecordBatch) -> Receipt:
        """Put if newer. The receipt says "volatile": hot is never the proof of anything's durability."""
        choice = await choose(self.index, self.name, batch)
        partition = record.partitions(choice.winners["id"], self.partitions)
        numbers, counts = np.unique(partition, return_counts=True)
        if sum(map(self._slabs_for, numbers.tolist(), counts.tolist())) > len(self._free):
            raise TierFull(f"hot has no room for {choice.winners.num_rows} rows")
        slots = np.empty(choice.winners.num_rows, np.int64)
        for number in numbers.tolist():
            here = np.flatnonzero(partition == number)
            slots[here] = await self.reserve(choice.winners.take(pa.array(here)), number)
        self.publish(slots)
        receipt = choice.receipt(self.name, slots, "volatile")
        if self._alone:
            await settle(self, self.index, self.partitions, receipt, batch)
        return receipt

    async def retrieve(self, query: Query) -> Result:
        """See Tier."""
        return await find(self, self.index, query)

    async def retrieve_all(self) -> AsyncIterator[pa.RecordBatch]:
        """See Tier; slabs by number, then copies."""
        for number, slab in list(enumerate(self._slabs)):
            for start, batch in zip(list(slab.starts), list(slab.batches), strict=True):
                slots = np.arange(start, start + batch.num_rows) + number * self._rows
                alive = self.columns.alive[slots]
                if alive.any() and self._slabs[number] is slab:  # not freed and used again meanwhile
                    yield batch.append_column("slot", pa.array(slots)).filter(pa.array(alive))
        copies = self.copies.all()
        while part := list(islice(copies, COPIES_LISTED)):
            listed = record.to_batch([row for _, row in part], self.shape)
            yield listed.append_column("slot", pa.array([slot for slot, _ in part], pa.int64()))

    async def get(self, locations: Sequence[Location]) -> list[Row | None]:
        """See Tier."""
        return self._fetch(locations)

    def peek(self, where: Location, *, vector: bool) -> Row | None:
        """Return what `get` does, of one row, in this loop step; its vector only where that is wanted."""
        slab = self._slabs[where.slot // self._rows]
        if slab.partition == COPIES:
            return self.copies.get(where)
        row = slab.row(where.slot % self._rows, vector=vector) if self._holds(where) else None
        return row if row is not None and row.id == where.id else None

    async def vectors(self, places: Places, *, spent: int | None = 0) -> Vectors:  # noqa: ARG002 - all are in memory
        """See Tier."""
        return self.vectors_at_once(places)

    def vectors_at_once(self, places: Places) -> Vectors:
        """See Tier; copied, since a slab may be used again before they are scored."""
        columns, slots = self.columns, places.slots
        held = columns.alive[slots] & ~columns.deleted[slots] & (columns.version[slots] == places.versions)
        at = np.flatnonzero(held)
        taken = self._arena.vectors(slots[at])
        if taken is None:
            return Vectors([None if row is None else row.vector for row in self._fetch(places)])
        found: list[Floats | None] = [None] * len(slots)
        for position, vector in zip(at.tolist(), taken, strict=True):
            owner = self._slabs[slots[position] // self._rows].partition
            if owner == places.partitions[position] or self.copies.holds(places[position]):
                found[position] = vector
        return Vectors(found)

    def _fetch(self, locations: Sequence[Location]) -> list[Row | None]:
        """Return the rows that are held: copies as they are, others column by column from each batch they came in."""
        found: list[Row | None] = [None] * len(locations)
        batches: dict[tuple[int, int], tuple[Slab, list[int]]] = {}
        for position, where in enumerate(locations):
            slab = self._slabs[where.slot // self._rows]
            if slab.partition == COPIES:
                found[position] = self.copies.get(where)
            elif self._holds(where):
                key = where.slot // self._rows, slab.number(where.slot % self._rows)
                batches.setdefault(key, (slab, []))[1].append(position)
        for (_, number), (slab, positions) in batches.items():
            rows = [locations[position].slot % self._rows for position in positions]
            if len(rows) < COLUMNAR_ROWS:
                taken = [slab.row(row) for row in rows]
            else:
                places = pa.array([row - slab.starts[number] for row in rows])
                taken = record.rows_of(slab.batches[number].take(places))
            for position, row in zip(positions, taken, strict=True):
                found[position] = row if row.id == locations[position].id else None
        return found

    async def sizes(self, places: Places) -> Int64s:
        """See Tier."""
        there, parts = self._lying(places)
        found = np.zeros(len(places), np.int64)
        lengths = [pc.binary_length(part["payload"]).to_numpy() for part in parts]
        found[there] = 4 * self.index.dim + np.concatenate([np.zeros(0, np.int64), *lengths])
        return found

    def _lying(self, places: Places) -> tuple[Bools, list[pa.RecordBatch]]:
        """Return at which places there are rows, and these rows in order, in parts of the batches they came in."""
        slots = places.slots
        there = self.columns.alive[slots] & (self.columns.version[slots] == places.versions)
        parts: list[pa.RecordBatch] = []
        at = np.flatnonzero(there)
        for run in np.split(at, np.flatnonzero(np.diff(slots[at]) != 1) + 1) if len(at) else ():
            parts += self._run(int(slots[run[0]]), len(run))
        return there, parts

    async def gather(self, places: Places) -> tuple[pa.RecordBatch, Bools]:
        """See Tier; taken from the batches in which the rows came, a run of them without a copy of its own."""
        there, parts = self._lying(places)
        at = np.flatnonzero(there)
        batch = pa.concat_batches(parts) if parts else record.to_batch([], self.shape)
        same = np.array(pc.equal(batch["id"], pa.array(places.those(there).ids, pa.string())), bool)
        there[at[~same]] = False  # the slot is another id's by now
        return (batch if same.all() else batch.filter(pa.array(same))), there

    def _run(self, slot: int, count: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows of so many slots from one on, as slices of what they came in."""
        while count:
            slab, row = self._slabs[slot // self._rows], slot % self._rows
            if slab.partition == COPIES:
                yield record.to_batch([slab.rows[row]], self.shape)
                step = 1
            else:
                batch, first = slab.find(row)
                step = min(count, batch.num_rows - first)
                yield batch.slice(first, step)
            slot, count = slot + step, count - step

    def _holds(self, where: Location) -> bool:
        columns, slot = self.columns, where.slot
        return bool(columns.alive.item(slot)) and columns.version.item(slot) == where.version

    async def evict(self, keys: Sequence[Location], receipt: Receipt | None) -> int:  # noqa: ARG002 - see Tier
        """See Tier."""
        return self.evict_now(keys)

    def evict_now(self, keys: Sequence[Location]) -> int:
        """Mark these rows dead in this loop step, and free slabs with no live row left; copies count as superseded."""
        places = Places.of(keys)
        number = places.slots // self._rows
        owner = np.fromiter((slab.partition for slab in self._slabs), np.int64, len(self._slabs))[number]
        copied = places.those(owner == COPIES)
        evicted = self.copies.evict([where.id for where in copied if self.copies.holds(where)], "superseded")
        # A slab may be another partition's by now, with its versions.
        held = (owner == places.partitions) & self.columns.alive[places.slots]
        held &= self.columns.version[places.slots] == places.versions
        slots = np.unique(places.slots[held])
        self.columns.vanish(slots)
        for slab, rows in zip(*np.unique(slots // self._rows, return_counts=True), strict=True):
            self._forget(int(slab), int(rows))
        return evicted + len(slots)

    def _forget(self, number: int, rows: int) -> None:
        slab = self._slabs[number]
        slab.live -= rows
        if slab.live == 0 and (slab.fill == self._rows or self._open.get(slab.partition) == number):
            if self._open.get(slab.partition) == number:
                del self._open[slab.partition]
            self._release(number)

    async def clear(self) -> None:
        """See Tier."""
        self.copies.take_back(self.copies.slabs)
        for number, slab in enumerate(self._slabs):
            if slab.partition != FREE:
                self.columns.empty(number)
                self._release(number)
        self._open.clear()
        if self._alone:
            self.index = Index.of(self.shape, self.index.metric)

    async def cleanup(self) -> None:
        """End the device's thread; hot keeps its rows until the process ends."""
        self._thread.close()

    async def device_memory(self) -> dict[str, int]:
        """Return bytes of device memory by kind (Arena.memory); empty on a host."""
        return await self._thread.run(self._arena.memory)

    async def usage(self) -> Usage:
        """See Tier. Bytes are those of slabs in use, dead rows and all: pressure must see what cannot be reserved.

        Copies count for nothing: what they take can be reserved at any time.
        """
        slab_bytes = self._rows * 4 * self.shape.field("vector").type.list_size
        in_use = len(self._slabs) - len(self._free) - self.copies.slabs
        rows = int(self.columns.alive.sum()) - len(self.copies)
        return Usage(rows, in_use * slab_bytes, len(self._slabs) * self._rows, len(self._slabs) * slab_bytes)
