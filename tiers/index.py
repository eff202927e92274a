"""The index: where every id is, and every physical row that must still go.

One entry a live id (tombstones too). Changed only on the event-loop thread and only between awaits, so that a reader
that looks sees one moment. Derived: `rebuild.load` makes it anew from the tiers. `queue` holds every physical row of an
id that is neither home nor copy, from before the request that may create it until its eviction is answered (R3, R4).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tiers import packing
from tiers.codes import Codebook
from tiers.entries import Entries, columns_of
from tiers.facts import facts_of
from tiers.placed import Placed
from tiers.policy import REASONS
from tiers.queue import Queue
from tiers.record import Floats, Int64s
from tiers.scannable import Coded, Scannable
from tiers.segment import NO_COPY, SEGMENT_ROWS, Entry, Segment, View
from tiers.tier import NO_SLOT, Location, Places, TierName

COLUMNAR_IDS = 16  # from here on reading whole columns costs less than row by row
COMPACT_ROWS = 512  # moved in one loop step: 1.3 ms at 256 dimensions


class Index:
    """Id to (version, home, slot, times, heat, code). `metric` is "cosine" or "dot"; `dim` floats a vector.

    `attributes` are those that filters may name.
    """

    def __init__(
        self, dim: int, metric: str = "cosine", *, attributes: pa.StructType | None = None, bytes_limit: int = 0
    ) -> None:
        self.dim, self.metric = dim, metric
        self.attributes: pa.StructType = attributes if attributes is not None else pa.struct([])
        self.queue = Queue()
        self._entries = Entries(dim, self.attributes)
        self._scannable = Scannable(self._entries, metric, bytes_limit)
        self._rows = np.zeros(len(TierName), np.int64)

    @classmethod
    def of(cls, shape: pa.Schema, metric: str = "cosine", *, bytes_limit: int = 0) -> Index:
        """Return an empty index for batches of schema `shape`."""
        dim, attributes = shape.field("vector").type.list_size, shape.field("attributes").type
        return cls(dim, metric, attributes=attributes, bytes_limit=bytes_limit)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        held = ", ".join(f"{tier.word} {self.rows(tier)}" for tier in TierName)
        return f"<Index {len(self)} ids: {held}; {len(self.queue)} queued>"

    # -- looking -----------------------------------------------------------------------------------------------------

    def find(self, identifier: str) -> Entry | None:
        """Return the entry of an id; a tombstone is an entry too."""
        place = self._entries.find(identifier)
        return None if place is None else place[0].entry(place[1])

    def entries(self, ids: Sequence[str]) -> list[Entry | None]:
        """Return the entry of each id, None where there is none; many of them column by column (1.5 against 3 µs)."""
        if len(ids) < COLUMNAR_IDS:
            return [self.find(identifier) for identifier in ids]
        found: list[Entry | None] = [None] * len(ids)
        numbers = self._entries.numbers(ids)
        for segment, at, rows in self._entries.by_segment(numbers, numbers >= 0):
            for position, entry in zip(at.tolist(), segment.entries(rows), strict=True):
                found[position] = entry
        return found

    def placed(self, ids: Sequence[str]) -> Placed:
        """Return what is known of these ids, column by column."""
        return self._entries.placed(ids)

    def homes(
        self, ids: Sequence[str], versions: Int64s, tier: TierName, slots: Int64s
    ) -> Iterator[tuple[Segment, npt.NDArray[np.intp], Int64s]]:
        """Yield (segment, rows there, their slots) of the ids that are at home in exactly these slots of a tier."""
        numbers = self._entries.numbers(ids)
        for segment, at, rows in self._entries.by_segment(numbers, numbers >= 0):
            same = (segment.version[rows] == versions[at]) & (segment.home[rows] == tier)
            same &= segment.slot[rows] == slots[at]
            yield segment, rows[same], slots[at][same]

    def at_home(self, tier: TierName, places: Places) -> npt.NDArray[np.bool_]:
        """Return which of these physical rows of a tier are the homes of their ids."""
        numbers = self._entries.numbers(places.ids)
        home = np.zeros(len(places), bool)
        for segment, at, rows in self._entries.by_segment(numbers, numbers >= 0):
            same = (segment.version[rows] == places.versions[at]) & (segment.home[rows] == tier)
            home[at] = same & (segment.slot[rows] == places.slots[at])
        return home

    def homes_of(self, tier: TierName, ids: Sequence[str], versions: Int64s) -> Places:
        """Return where those of these ids are at home that are, in these versions, in a tier."""
        placed = self._entries.placed(ids)
        there = placed.known & (placed.version == versions) & (placed.home == tier)
        return Places(ids, placed.version, placed.partition, placed.slot).those(there)

    def row_of(self, identifier: str) -> tuple[Segment, int] | None:
        """Return the segment of an id's entry and its row there, for readers of its columns in this loop step."""
        return self._entries.find(identifier)

    def newer(self, ids: Sequence[str], versions: Int64s) -> npt.NDArray[np.bool_]:
        """Return which rows are newer than what is known of their id."""
        fresh: npt.NDArray[np.bool_] = versions > self._entries.versions(self._entries.numbers(ids))
        return fresh

    def unknown(self, ids: list[str]) -> bool:
        """Say whether no id is known and none comes twice: then each row is the newest of its id."""
        return self._entries.unknown(ids)

    def holding(self, tier: TierName, ids: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Return of which ids the tier may hold a row, so that `held` is worth asking."""
        numbers = self._entries.numbers(ids)
        found = np.zeros(len(ids), bool)
        for segment, at, rows in self._entries.by_segment(numbers, numbers >= 0):
            found[at] = segment.home[rows] == tier
            if tier == TierName.HOT:
                found[at] |= segment.copy[rows] != NO_COPY
        return found | self.queue.lying(tier, ids)

    def held(self, tier: TierName, identifier: str) -> list[tuple[int, int]]:
        """Return (version, slot) of every physical row of the id in the tier: home, copy or queued.

        A row that a move is about to store is queued too, but has no slot yet: it is not held.
        """
        queued = (key for key in self.queue.of(identifier) if key.tier == tier)
        rows = [(key.version, key.slot) for key in queued if key.slot != NO_SLOT or tier == TierName.WARM]
        entry = self.find(identifier)
        if entry is not None and entry.home == tier:
            rows.append((entry.version, entry.slot))
        if entry is not None and tier == TierName.HOT and entry.copy != NO_COPY:
            rows.append((entry.version, entry.copy))
        return rows

    def heats(self, ids: Sequence[str]) -> tuple[Floats, Int64s]:
        """Return the heat of each id and the time in ms that it is as of; zeros where the id is not known."""
        numbers = self._entries.numbers(ids)
        heat, used = np.zeros(len(ids), np.float32), np.zeros(len(ids), np.int64)
        for segment, at, rows in self._entries.by_segment(numbers, numbers >= 0):
            heat[at], used[at] = segment.heat[rows], segment.used[rows]
        return heat, used

    def rows(self, tier: TierName) -> int:
        """Return how many ids have their home in the tier, tombstones included."""
        return int(self._rows[tier])

    def census(self) -> npt.NDArray[np.int64]:
        """Return int64[tiers, 2]: live records and tombstones by home."""
        out = np.zeros((len(TierName), 2), np.int64)
        for segment in self.segments():
            n = segment.count
            alive = segment.alive[:n]
            flat = segment.home[:n][alive] * 2 + segment.deleted[:n][alive]
            out += np.bincount(flat, minlength=out.size).reshape(out.shape)
        return out

    def views(
        self,
        tiers: Iterable[TierName],
        namespaces: Iterable[str] | None = None,
        *,
        facts: bool = False,
        now_ms: int = 0,
    ) -> list[View]:
        """Return what a read of these tiers looks at, all segments in one loop step; `facts` for criteria.

        What has expired by `now_ms` is not there; a record that has a copy in hot is hot's, if hot is asked.
        """
        wanted = frozenset(tiers)
        known = None if namespaces is None else self._entries.namespaces(namespaces)
        found = (segment.view(wanted, known, facts=facts, now_ms=now_ms) for segment in self.segments())
        return [view for view in found if view is not None]

    @property
    def codebook(self) -> Codebook | None:
        """By which new codes are made; None before one is trained."""
        return self._scannable.codebook

    @codebook.setter
    def codebook(self, codebook: Codebook | None) -> None:
        self._scannable.codebook = codebook

    @property
    def bytes_limit(self) -> int:
        """Bound of `code_bytes`, 0 = none."""
        return self._scannable.bytes_limit

    @bytes_limit.setter
    def bytes_limit(self, bytes_limit: int) -> None:
        self._scannable.bytes_limit = bytes_limit

    @property
    def code_bytes(self) -> int:
        """Bytes of codes and of vectors that have none yet."""
        return packing.code_bytes(self.segments())

    def segments(self) -> list[Segment]:
        """Return the segments in arrival order, for columnar readers on the loop (age, listing)."""
        return self._entries.segments()

    def claim(self, ids: list[str]) -> Int64s | None:
        """Take entries for ids that are all unknown and different, to be put at once; None, nothing changed, if not."""
        return self._entries.claim(ids)

    # -- changing ----------------------------------------------------------------------------------------------------

    def put(
        self,
        batch: pa.RecordBatch,
        partition: npt.NDArray[np.int32],
        tier: TierName,
        slots: Int64s,
        now_ms: int,
        coded: Coded | None = None,
        claimed: Int64s | None = None,
        ids: list[str] | None = None,
    ) -> list[tuple[TierName, Location]]:
        """Make each row the newest of its id, at home in `tier`; every row must be `newer` and unique in the batch.

        Returns the physical rows that this masks; the caller queues or evicts them. Rows outside hot are encoded; of
        those `coded` the vectors are not looked at. `claimed`: what `claim` said of the ids, in this loop step. `ids`:
        those of the batch, from a caller who has them.
        """
        ids = batch["id"].to_pylist() if ids is None else ids
        masked: list[tuple[TierName, Location]] = []
        if claimed is None:
            former = self._entries.numbers(ids)
            masked = [row for number in former[former >= 0].tolist() for row in self._mask(*self._entries.at(number))]
        columns = columns_of(batch, tier, now_ms)
        columns |= {
            "partition": np.asarray(partition),
            "namespace": self._entries.namespaces_of(batch["id"]),
            "slot": slots,
        }
        fresh = self._entries.append(ids, columns, facts_of(batch, self._entries.schema), claimed)
        self._rows[tier] += len(ids)
        if tier != TierName.HOT:
            self._scannable.enter(batch, fresh, coded)
        return masked

    def relocate(
        self,
        tier: TierName,
        ids: Sequence[str],
        versions: Int64s,
        slots: Int64s,
        vectors: Floats | None,
        reason: str = "",
        at_ms: int = 0,
    ) -> npt.NDArray[np.bool_]:
        """Rewrite the home of each id whose version is unchanged; returns which were.

        `vectors` become codes (None where the rows have them already). `reason` and `at_ms` are kept for whoever asks
        why a record is where it is.
        """
        why = REASONS.index(reason) if reason in REASONS else 0
        numbers = self._entries.numbers(ids)
        same: npt.NDArray[np.bool_] = (numbers >= 0) & (self._entries.versions(numbers) == versions)
        deleted = np.zeros(len(ids), bool)
        for segment, at, rows in self._entries.by_segment(numbers, same):
            self._rows -= np.bincount(segment.home[rows], minlength=len(TierName))
            segment.home[rows], segment.slot[rows], segment.asked[rows] = tier, slots[at], 0
            segment.moved_at[rows], segment.reason[rows] = at_ms, why
            deleted[at] = segment.deleted[rows]
            segment.changed()
        self._rows[tier] += int(same.sum())
        if tier != TierName.HOT and vectors is not None:
            kept = same & ~deleted
            self._scannable.encode(numbers[kept], vectors[kept])
        return same

    def relocate_slots(
        self, tier: TierName, ids: Sequence[str], versions: Int64s, old_slots: Int64s, new_slots: Int64s
    ) -> None:
        """Follow rows that their own tier has moved (a rewritten file): homes and queued rows alike."""
        numbers = self._entries.numbers(ids)
        moved = np.zeros(len(ids), bool)
        for segment, at, rows in self._entries.by_segment(numbers, numbers >= 0):
            same = (segment.version[rows] == versions[at]) & (segment.home[rows] == tier)
            same &= segment.slot[rows] == old_slots[at]
            segment.slot[rows[same]] = new_slots[at[same]]
            moved[at] = same
        for left in np.flatnonzero(~moved).tolist():
            self.queue.follow(tier, ids[left], int(versions[left]), int(old_slots[left]), int(new_slots[left]))

    def place_copy(self, identifier: str, version: int, slot: int) -> Entry | None:
        """Note a copy in hot of a record whose home is below, and return its entry.

        None, with nothing changed, when that is not the id's newest version, or a tombstone, or in hot already (R3).
        """
        place = self._entries.find(identifier)
        if place is None:
            return None
        segment, row = place
        entry = segment.entry(row)
        if entry.version != version or entry.deleted or entry.home == TierName.HOT or entry.copy != NO_COPY:
            return None
        segment.copy[row] = slot
        segment.changed()
        return entry

    def forget_copy(self, identifier: str, slot: int) -> None:
        """Take note that the copy in this slot of hot is gone; another one stays."""
        place = self._entries.find(identifier)
        if place is not None:
            segment, row = place
            if segment.copy[row] == slot:
                segment.copy[row] = NO_COPY
                segment.changed()

    def drop(self, keys: Iterable[tuple[str, int]]) -> int:
        """Forget ids whose entry has exactly this version (a dropped tombstone, a cleared tier)."""
        dropped = 0
        for identifier, version in keys:
            place = self._entries.find(identifier)
            if place is not None and place[0].version[place[1]] == version:
                self._mask(*place)
                self._entries.forget(identifier)
                dropped += 1
        return dropped

    def touch(self, ids: Sequence[str], counts: Sequence[int], last_ms: Sequence[int], half_life_ms: float) -> None:
        """Add accesses to the heat of ids that are still known (advice: late or lost does no harm)."""
        for identifier, count, last in zip(ids, counts, last_ms, strict=True):
            place = self._entries.find(identifier)
            if place is None:
                continue
            segment, row = place
            elapsed = max(0, last - int(segment.used[row]))
            segment.heat[row] = float(segment.heat[row]) * 2.0 ** (-elapsed / half_life_ms) + count
            segment.used[row] = max(last, int(segment.used[row]))

    def compact(self, rows_max: int = COMPACT_ROWS) -> int:
        """Move some rows of one mostly dead segment to the tail; says how much was done, 0 when nothing is to do."""
        return self._scannable.compact(rows_max)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _mask(self, segment: Segment, row: int) -> list[tuple[TierName, Location]]:
        """Mark an entry dead; returns its physical rows (home, and copy in hot)."""
        entry = segment.entry(row)
        segment.bury(row)
        self._rows[entry.home] -= 1
        rows = [(TierName(entry.home), Location(entry.id, entry.version, entry.partition, entry.slot))]
        if entry.copy != NO_COPY:
            rows.append((TierName.HOT, Location(entry.id, entry.version, entry.partition, entry.copy)))
        return rows


__all__ = ["NO_SLOT", "SEGMENT_ROWS", "Coded", "Entry", "Index", "View"]
