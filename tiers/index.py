"""The index: where every id is, and every physical row that must still go.

One entry a live id (tombstones too). Changed only on the event-loop thread and only between awaits, so that a reader
that looks sees one moment. Derived: `rebuild.load` makes it anew from the tiers. `queue` holds every physical row of an
id that is neither home nor copy, from before the request that may create it until its eviction is answered (R3, R4).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tiers import packing, record, score
from tiers.codes import Codebook
from tiers.facts import facts_of
from tiers.placed import Placed
from tiers.policy import REASONS
from tiers.queue import Queue
from tiers.record import Floats, Int64s
from tiers.segment import COLUMNS, NO_COPY, SEGMENT_ROWS, Entry, Segment, View
from tiers.tier import NO_SLOT, Location, TierName

COLUMNAR_IDS = 16  # from here on reading whole columns costs less than row by row
REWRITE_BELOW = 0.25  # a full segment with fewer live rows than this is rewritten to the tail


class Index:
    """Id to (version, home, slot, times, heat, code). `metric` is "cosine" or "dot"; `dim` floats a vector.

    `attributes` are those that filters may name.
    """

    def __init__(
        self, dim: int, metric: str = "cosine", *, attributes: pa.StructType | None = None, bytes_limit: int = 0
    ) -> None:
        self.dim, self.metric, self.bytes_limit = dim, metric, bytes_limit
        self.attributes: pa.StructType = attributes if attributes is not None else pa.struct([])
        self.queue = Queue()
        self.codebook: Codebook | None = None
        self._segments: dict[int, Segment] = {0: Segment(dim, self.attributes)}
        self._tail = 0
        self._entry: dict[str, int] = {}
        self._namespaces: dict[str, int] = {}
        self._rows = np.zeros(len(TierName), np.int64)

    @classmethod
    def of(cls, shape: pa.Schema, metric: str = "cosine", *, bytes_limit: int = 0) -> Index:
        """Return an empty index for batches of schema `shape`."""
        dim, attributes = shape.field("vector").type.list_size, shape.field("attributes").type
        return cls(dim, metric, attributes=attributes, bytes_limit=bytes_limit)

    def __len__(self) -> int:
        return len(self._entry)

    def __repr__(self) -> str:
        held = ", ".join(f"{tier.word} {self.rows(tier)}" for tier in TierName)
        return f"<Index {len(self)} ids: {held}; {len(self.queue)} queued>"

    # -- looking -----------------------------------------------------------------------------------------------------

    def find(self, identifier: str) -> Entry | None:
        """Return the entry of an id; a tombstone is an entry too."""
        number = self._entry.get(identifier)
        if number is None:
            return None
        segment, row = self._at(number)
        return segment.entry(row)

    def entries(self, ids: Sequence[str]) -> list[Entry | None]:
        """Return the entry of each id, None where there is none; many of them column by column (1.5 against 3 µs)."""
        if len(ids) < COLUMNAR_IDS:
            return [self.find(identifier) for identifier in ids]
        found: list[Entry | None] = [None] * len(ids)
        numbers = self._numbers(ids)
        for segment, at, rows in self._by_segment(numbers, numbers >= 0):
            for position, entry in zip(at.tolist(), segment.entries(rows), strict=True):
                found[position] = entry
        return found

    def placed(self, ids: Sequence[str]) -> Placed:
        """Return what is known of these ids, column by column."""
        return Placed.of(ids, self._numbers(ids), self._segments, SEGMENT_ROWS)

    def homes(
        self, ids: Sequence[str], versions: Int64s, tier: TierName, slots: Int64s
    ) -> Iterator[tuple[Segment, npt.NDArray[np.intp], Int64s]]:
        """Yield (segment, rows there, their slots) of the ids that are at home in exactly these slots of a tier."""
        numbers = self._numbers(ids)
        for segment, at, rows in self._by_segment(numbers, numbers >= 0):
            same = (segment.version[rows] == versions[at]) & (segment.home[rows] == tier)
            same &= segment.slot[rows] == slots[at]
            yield segment, rows[same], slots[at][same]

    def row_of(self, identifier: str) -> tuple[Segment, int] | None:
        """Return the segment of an id's entry and its row there, for readers of its columns in this loop step."""
        number = self._entry.get(identifier)
        return None if number is None else self._at(number)

    def newer(self, ids: Sequence[str], versions: Int64s) -> npt.NDArray[np.bool_]:
        """Return which rows are newer than what is known of their id."""
        fresh: npt.NDArray[np.bool_] = versions > self._known(ids)
        return fresh

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
        numbers = self._numbers(ids)
        heat, heat_at = np.zeros(len(ids), np.float32), np.zeros(len(ids), np.int64)
        for segment, at, rows in self._by_segment(numbers, numbers >= 0):
            heat[at], heat_at[at] = segment.heat[rows], segment.heat_at[rows]
        return heat, heat_at

    def rows(self, tier: TierName) -> int:
        """Return how many ids have their home in the tier, tombstones included."""
        return int(self._rows[tier])

    def census(self) -> npt.NDArray[np.int64]:
        """Return int64[tiers, 2]: live records and tombstones by home."""
        out = np.zeros((len(TierName), 2), np.int64)
        for segment in self._segments.values():
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
        known = None
        if namespaces is not None:
            known = np.array(sorted(self._namespaces[n] for n in namespaces if n in self._namespaces), np.int32)
        found = (segment.view(wanted, known, facts=facts, now_ms=now_ms) for segment in self._segments.values())
        return [view for view in found if view is not None]

    @property
    def code_bytes(self) -> int:
        """Bytes of codes and of vectors that have none yet."""
        return packing.code_bytes(self.segments())

    def segments(self) -> list[Segment]:
        """Return the segments in arrival order, for columnar readers on the loop (age, listing)."""
        return list(self._segments.values())

    # -- changing ----------------------------------------------------------------------------------------------------

    def put(
        self,
        batch: pa.RecordBatch,
        partition: npt.NDArray[np.int32],
        tier: TierName,
        slots: Int64s,
        now_ms: int,
    ) -> list[tuple[TierName, Location]]:
        """Make each row the newest of its id, at home in `tier`; every row must be `newer` and unique in the batch.

        Returns the physical rows that this masks; the caller queues or evicts them. Rows outside hot are encoded.
        """
        ids, versions = batch["id"].to_pylist(), record.versions_of(batch)
        masked = [row for number in map(self._entry.get, ids) if number is not None for row in self._mask(number)]
        deleted = record.deleted_of(batch)
        event_time = record.times_of(batch, "event_time")
        born = np.minimum(event_time, now_ms)
        columns: dict[str, npt.NDArray[Any]] = {
            "version": versions,
            "partition": np.asarray(partition),
            "namespace": self._namespaces_of(ids),
            "home": np.full(len(ids), tier),
            "slot": slots,
            "copy": np.full(len(ids), NO_COPY),
            "event_time": event_time,
            "expires_at": record.times_of(batch, "expires_at"),
            "born": born,
            "used": born,
            "heat": (~deleted).astype(np.float32),
            "heat_at": born,
            "deleted": deleted,
        }
        numbers = self._append(ids, columns, facts_of(batch, self._segments[self._tail].facts.schema))
        self._entry.update(zip(ids, numbers.tolist(), strict=True))
        self._rows[tier] += len(ids)
        if tier != TierName.HOT:
            self._encode(numbers, record.vectors_of(batch), ~deleted)
        return masked

    def relocate(
        self,
        tier: TierName,
        ids: Sequence[str],
        versions: Int64s,
        slots: Int64s,
        vectors: Floats,
        reason: str = "",
        at_ms: int = 0,
    ) -> npt.NDArray[np.bool_]:
        """Rewrite the home of each id whose version is unchanged; returns which were. `vectors` become codes.

        `reason` and `at_ms` are kept for whoever asks why a record is where it is.
        """
        why = REASONS.index(reason) if reason in REASONS else 0
        numbers = self._numbers(ids)
        same: npt.NDArray[np.bool_] = (numbers >= 0) & (self._known(ids) == versions)
        deleted = np.zeros(len(ids), bool)
        for segment, at, rows in self._by_segment(numbers, same):
            self._rows -= np.bincount(segment.home[rows], minlength=len(TierName))
            segment.home[rows], segment.slot[rows], segment.asked[rows] = tier, slots[at], 0
            segment.moved_at[rows], segment.reason[rows] = at_ms, why
            deleted[at] = segment.deleted[rows]
            segment.changed()
        self._rows[tier] += int(same.sum())
        if tier != TierName.HOT:
            self._encode(numbers[same], vectors[same], ~deleted[same])
        return same

    def relocate_slots(
        self, tier: TierName, ids: Sequence[str], versions: Int64s, old_slots: Int64s, new_slots: Int64s
    ) -> None:
        """Follow rows that their own tier has moved (a rewritten file): homes and queued rows alike."""
        for at, (identifier, version) in enumerate(zip(ids, versions.tolist(), strict=True)):
            old, new = int(old_slots[at]), int(new_slots[at])
            number = self._entry.get(identifier)
            if number is not None:
                segment, row = self._at(number)
                if (segment.version[row], segment.home[row], segment.slot[row]) == (version, tier, old):
                    segment.slot[row] = new
                    continue
            self.queue.follow(tier, identifier, version, old, new)

    def place_copy(self, identifier: str, version: int, slot: int) -> Entry | None:
        """Note a copy in hot of a record whose home is below, and return its entry.

        None, with nothing changed, when that is not the id's newest version, or a tombstone, or in hot already (R3).
        """
        entry = self.find(identifier)
        if entry is None or entry.version != version or entry.deleted:
            return None
        if entry.home == TierName.HOT or entry.copy != NO_COPY:
            return None
        segment, row = self._at(self._entry[identifier])
        segment.copy[row] = slot
        segment.changed()
        return entry

    def forget_copy(self, identifier: str, slot: int) -> None:
        """Take note that the copy in this slot of hot is gone; another one stays."""
        number = self._entry.get(identifier)
        if number is not None:
            segment, row = self._at(number)
            if segment.copy[row] == slot:
                segment.copy[row] = NO_COPY
                segment.changed()

    def drop(self, keys: Iterable[tuple[str, int]]) -> int:
        """Forget ids whose entry has exactly this version (a dropped tombstone, a cleared tier)."""
        dropped = 0
        for identifier, version in keys:
            number = self._entry.get(identifier)
            if number is None:
                continue
            segment, row = self._at(number)
            if segment.version[row] == version:
                self._mask(number)
                del self._entry[identifier]
                dropped += 1
        return dropped

    def touch(self, ids: Sequence[str], counts: Sequence[int], last_ms: Sequence[int], half_life_ms: float) -> None:
        """Add accesses to the heat of ids that are still known (advice: late or lost does no harm)."""
        for identifier, count, last in zip(ids, counts, last_ms, strict=True):
            number = self._entry.get(identifier)
            if number is None:
                continue
            segment, row = self._at(number)
            elapsed = max(0, last - int(segment.heat_at[row]))
            segment.heat[row] = float(segment.heat[row]) * 2.0 ** (-elapsed / half_life_ms) + count
            segment.heat_at[row] = max(last, int(segment.heat_at[row]))
            segment.used[row] = max(last, int(segment.used[row]))

    # -- inside ------------------------------------------------------------------------------------------------------

    def _at(self, number: int) -> tuple[Segment, int]:
        return self._segments[number // SEGMENT_ROWS], number % SEGMENT_ROWS

    def _numbers(self, ids: Sequence[str]) -> Int64s:
        """Return the entry number of each id, -1 where there is none."""
        get = self._entry.get
        return np.array([get(identifier, -1) for identifier in ids], np.int64)

    def _by_segment(
        self, numbers: Int64s, chosen: npt.NDArray[np.bool_]
    ) -> Iterator[tuple[Segment, npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
        """Yield (segment, positions in `numbers`, rows in the segment) of the chosen entries."""
        of = numbers // SEGMENT_ROWS
        for number in np.unique(of[chosen]).tolist():
            at = np.flatnonzero(chosen & (of == number))
            yield self._segments[number], at, (numbers[at] % SEGMENT_ROWS).astype(np.intp)

    def _known(self, ids: Sequence[str]) -> Int64s:
        """Return the known version of each id, -1 where there is none."""
        numbers = self._numbers(ids)
        known = np.full(len(ids), -1, np.int64)
        for segment, at, rows in self._by_segment(numbers, numbers >= 0):
            known[at] = segment.version[rows]
        return known

    def _mask(self, number: int) -> list[tuple[TierName, Location]]:
        """Mark an entry dead; returns its physical rows (home, and copy in hot)."""
        segment, row = self._at(number)
        entry = segment.entry(row)
        segment.alive[row] = False
        segment.changed()
        self._rows[entry.home] -= 1
        rows = [(TierName(entry.home), Location(entry.id, entry.version, entry.partition, entry.slot))]
        if entry.copy != NO_COPY:
            rows.append((TierName.HOT, Location(entry.id, entry.version, entry.partition, entry.copy)))
        return rows

    def _namespaces_of(self, ids: list[str]) -> npt.NDArray[np.int32]:
        """Return the number of each id's namespace; a new one gets the next."""
        known = self._namespaces
        return np.array([known.setdefault(record.namespace(i), len(known)) for i in ids], np.int32)

    def _append(self, ids: list[str], columns: dict[str, npt.NDArray[Any]], facts: pa.RecordBatch) -> Int64s:
        numbers = np.empty(len(ids), np.int64)
        done = 0
        while done < len(ids):
            segment = self._segments[self._tail]
            if not segment.room:
                self._tail += 1
                segment = self._segments[self._tail] = Segment(self.dim, self.attributes)
            step = min(segment.room, len(ids) - done)
            part = {name: values[done : done + step] for name, values in columns.items()}
            first = segment.append(ids[done : done + step], part, facts.slice(done, step))
            numbers[done : done + step] = self._tail * SEGMENT_ROWS + first + np.arange(step)
            done += step
        return numbers

    def _keep(self, numbers: Int64s, scaled: Floats) -> None:
        """Let searches find these entries by their scaled vectors."""
        for segment, at, rows in self._by_segment(numbers, np.ones(len(numbers), bool)):
            fresh = ~segment.coded[rows]
            if fresh.any():
                segment.encode(rows[fresh], scaled[at[fresh]])

    def _encode(self, numbers: Int64s, vectors: Floats, live: npt.NDArray[np.bool_]) -> None:
        numbers, vectors = numbers[live], vectors[live]
        self._keep(numbers, vectors * score.scales(vectors, self.metric)[:, None])
        if self.bytes_limit:
            packing.shed(self.segments(), self.bytes_limit)

    def compact(self) -> int:
        """Rewrite one mostly dead segment to the tail; returns the rows moved, 0 when there is nothing to do."""
        for number, old in list(self._segments.items()):
            live = np.flatnonzero(old.alive[: old.count])
            if number == self._tail or len(live) > REWRITE_BELOW * SEGMENT_ROWS:
                continue
            columns = {name: getattr(old, name)[live] for name in COLUMNS if name not in ("alive", "coded")}
            ids = [old.ids[row] for row in live.tolist()]
            numbers = self._append(ids, columns, old.facts.take(live))
            to = np.zeros(SEGMENT_ROWS, np.int64)
            to[live] = numbers
            for rows, vectors in old.coded_vectors():
                self._keep(to[rows], vectors)
            self._entry.update(zip(ids, numbers.tolist(), strict=True))
            del self._segments[number]
            return max(1, len(live))
        return 0


__all__ = ["NO_SLOT", "Entry", "Index", "View"]
