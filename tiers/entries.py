"""The index's entries: segments in arrival order, and the map from id to the number of its entry.

An entry's number is its segment's times SEGMENT_ROWS plus its row there. Changed only on the event-loop thread.

Back of the envelope, a row: 31 bytes of the map, 28 of the number in it, 8 of the segment's list, and the id's text,
which list and map share (49 bytes and its own).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tiers import record
from tiers import segment as segments
from tiers.ids import SLASH, content
from tiers.placed import Placed
from tiers.record import Int64s
from tiers.segment import COLUMNS, NO_COPY, Segment
from tiers.tier import TierName

REWRITE_BELOW = 0.5  # a full segment with fewer live rows is rewritten to the tail: memory is twice what lives at most
DEFAULT = "default"  # the namespace of an id without one


class Entries:
    """Where the columns of each id are. `schema` of `facts`: what filters read of a row."""

    def __init__(self, dim: int, attributes: pa.StructType) -> None:
        self._dim, self._attributes = dim, attributes
        self._segments: dict[int, Segment] = {0: Segment(dim, attributes)}
        self._tail = 0
        self._entry: dict[str, int] = {}
        self._namespaces: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._entry)

    @property
    def schema(self) -> pa.Schema:
        """Columns of facts."""
        return self._segments[self._tail].facts.schema

    # -- looking -----------------------------------------------------------------------------------------------------

    def segments(self) -> list[Segment]:
        """Return the segments in arrival order."""
        return list(self._segments.values())

    def find(self, identifier: str) -> tuple[Segment, int] | None:
        """Return the segment of an id's entry and its row there."""
        number = self._entry.get(identifier)
        if number is None:
            return None
        return self._segments[number // segments.SEGMENT_ROWS], number % segments.SEGMENT_ROWS

    def at(self, number: int) -> tuple[Segment, int]:
        """Return the segment of an entry and its row there."""
        return self._segments[number // segments.SEGMENT_ROWS], number % segments.SEGMENT_ROWS

    def numbers(self, ids: Sequence[str]) -> Int64s:
        """Return the entry number of each id, -1 where there is none."""
        return np.fromiter(map(self._entry.get, ids, repeat(-1)), np.int64, len(ids))

    def by_segment(
        self, numbers: Int64s, chosen: npt.NDArray[np.bool_] | None = None
    ) -> Iterator[tuple[Segment, npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
        """Yield (segment, positions in `numbers`, rows in the segment) of the chosen entries; None: of all."""
        of = numbers // segments.SEGMENT_ROWS
        for number in np.unique(of if chosen is None else of[chosen]).tolist():
            at = np.flatnonzero(of == number if chosen is None else chosen & (of == number))
            yield self._segments[number], at, (numbers[at] % segments.SEGMENT_ROWS).astype(np.intp)

    def placed(self, ids: Sequence[str]) -> Placed:
        """Return what is known of these ids, column by column."""
        return Placed.of(ids, self.numbers(ids), self._segments, segments.SEGMENT_ROWS)

    def versions(self, numbers: Int64s) -> Int64s:
        """Return the version of each entry, -1 where the number is."""
        known = np.full(len(numbers), -1, np.int64)
        for segment, at, rows in self.by_segment(numbers, numbers >= 0):
            known[at] = segment.version[rows]
        return known

    # -- namespaces --------------------------------------------------------------------------------------------------

    def namespaces_of(self, ids: pa.Array) -> npt.NDArray[np.int32]:
        """Return the number of each id's namespace; a new one gets the next."""
        known = self._namespaces
        if not (content(ids)[1] == SLASH).any():
            return np.full(len(ids), known.setdefault(DEFAULT, len(known)) if len(ids) else 0, np.int32)
        without = pc.less(pc.find_substring(ids, "/"), 0)
        heads = pc.list_element(pc.split_pattern(ids, "/", max_splits=1), 0)
        found = pc.if_else(without, DEFAULT, heads).dictionary_encode()
        numbers = np.array([known.setdefault(name, len(known)) for name in found.dictionary.to_pylist()], np.int32)
        of_rows: npt.NDArray[np.int32] = numbers[found.indices.to_numpy()]
        return of_rows

    def namespaces(self, names: Iterable[str]) -> npt.NDArray[np.int32]:
        """Return the numbers of those of these namespaces that are known, in order."""
        return np.array(sorted(self._namespaces[name] for name in names if name in self._namespaces), np.int32)

    # -- changing ----------------------------------------------------------------------------------------------------

    def unknown(self, ids: list[str]) -> bool:
        """Say whether no id has an entry and none comes twice."""
        distinct = set(ids)
        return len(distinct) == len(ids) and self._entry.keys().isdisjoint(distinct)

    def claim(self, ids: list[str]) -> Int64s | None:
        """Give unknown ids the numbers that `append` will give; None, with nothing changed, where one is not or twice.

        One look at the map a row, where asking first and entering then are two, each a cache miss.
        """
        first = self._tail * segments.SEGMENT_ROWS + self._segments[self._tail].count
        numbers = range(first, first + len(ids))
        given = list(map(self._entry.setdefault, ids, numbers))
        if given == list(numbers):
            return np.arange(first, first + len(ids))
        for identifier, number, wanted in zip(ids, given, numbers, strict=True):
            if number == wanted:
                del self._entry[identifier]
        return None

    def append(
        self,
        ids: list[str],
        columns: Mapping[str, npt.NDArray[Any]],
        facts: pa.RecordBatch,
        claimed: Int64s | None = None,
    ) -> Int64s:
        """Append entries, each the newest of its id from now on; returns their numbers."""
        numbers = np.empty(len(ids), np.int64)
        done = 0
        while done < len(ids):
            segment = self._segments[self._tail]
            if not segment.room:
                self._tail += 1
                segment = self._segments[self._tail] = Segment(self._dim, self._attributes)
            step = min(segment.room, len(ids) - done)
            part = {name: values[done : done + step] for name, values in columns.items()}
            whole = step == len(ids)
            first = segment.append(
                ids if whole else ids[done : done + step], part, facts if whole else facts.slice(done, step)
            )
            numbers[done : done + step] = self._tail * segments.SEGMENT_ROWS + first + np.arange(step)
            done += step
        if claimed is None:
            self._entry.update(zip(ids, numbers.tolist(), strict=True))
        assert claimed is None or np.array_equal(numbers, claimed), "nothing was appended between claim and append"
        return numbers

    def forget(self, identifier: str) -> None:
        """Let an id have no entry; the row is the caller's to mark dead."""
        del self._entry[identifier]

    def compact(self, rows_max: int) -> tuple[int, Segment | None, npt.NDArray[np.intp], Int64s]:
        """Append up to `rows_max` live rows of a mostly dead segment anew, and drop the segment once it has none.

        Returns (rows moved, segment, rows, their new numbers): its codes are the caller's to carry over. In pieces,
        because a whole segment's rows hold the loop for tens of milliseconds.
        """
        for number, old in self._segments.items():
            if number == self._tail or old.living > REWRITE_BELOW * segments.SEGMENT_ROWS:
                continue
            live = np.flatnonzero(old.alive[: old.count])[:rows_max]
            if not len(live):
                del self._segments[number]
                return 1, None, live, np.zeros(0, np.int64)
            columns = {name: getattr(old, name)[live] for name in COLUMNS if name not in ("alive", "coded")}
            numbers = self.append([old.ids[row] for row in live.tolist()], columns, old.facts.take(live))
            old.bury(live)
            return len(live), old, live, numbers
        return 0, None, np.zeros(0, np.intp), np.zeros(0, np.int64)


def columns_of(batch: pa.RecordBatch, tier: TierName, now_ms: int) -> dict[str, npt.NDArray[Any]]:
    """Return what a batch of records that come to be at home in `tier` says of the columns."""
    deleted, event_time = record.deleted_of(batch), record.times_of(batch, "event_time")
    born = np.minimum(event_time, now_ms)
    return {
        "version": record.versions_of(batch),
        "home": np.full(batch.num_rows, tier),
        "copy": np.full(batch.num_rows, NO_COPY),
        "event_time": event_time,
        "expires_at": record.times_of(batch, "expires_at"),
        "born": born,
        "used": born,
        "heat": (~deleted).astype(np.float32),
        "deleted": deleted,
    }
