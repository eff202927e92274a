"""What the index knows of many ids at one moment, column by column: a search asks for a hundred at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tiers.record import Floats, Int64s
from tiers.segment import NO_COPY, Segment
from tiers.tier import Places, TierName

COLUMNS = ("version", "partition", "home", "slot", "copy", "event_time", "expires_at", "deleted")


class Placed(NamedTuple):
    """Columns of the entries of `ids`; where `known` is not set they mean nothing. Times in ms, 0 = never expires."""

    ids: Sequence[str]
    known: npt.NDArray[np.bool_]
    version: Int64s
    partition: npt.NDArray[np.int32]
    home: npt.NDArray[np.int8]
    slot: Int64s
    copy: Int64s
    event_time: Int64s
    expires_at: Int64s
    deleted: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, ids: Sequence[str], numbers: Int64s, segments: Any, rows: int) -> Placed:
        """Read the entries of these numbers (-1: none) from segments of so many `rows`."""
        known = numbers >= 0
        of = np.where(known, numbers // rows, -1)
        columns: dict[str, npt.NDArray[Any]] = {}
        for number in np.unique(of[known]).tolist():
            segment: Segment = segments[number]
            at = np.flatnonzero(of == number)
            row = numbers[at] % rows
            for name in COLUMNS:
                column = getattr(segment, name)
                if name not in columns:
                    columns[name] = np.zeros(len(ids), column.dtype)
                columns[name][at] = column[row]
        return cls(ids, known, *(columns.get(name, np.zeros(len(ids), np.int64)) for name in COLUMNS))

    def by_tier(
        self, tiers: frozenset[TierName], now_ms: int
    ) -> Iterator[tuple[TierName, npt.NDArray[np.intp], Places]]:
        """Yield (tier, positions in `ids`, places) of what is there to read in these tiers; a copy in hot goes first.

        Deleted and expired records are not there.
        """
        there = self.known & (self.deleted == 0) & ((self.expires_at == 0) | (self.expires_at > now_ms))
        copied = (self.copy != NO_COPY) & (TierName.HOT in tiers)
        place = np.where(copied, np.int8(TierName.HOT), self.home)
        slot = np.where(copied, self.copy, self.slot)
        for name in sorted(tiers):
            at = np.flatnonzero(there & (place == name))
            if len(at):
                ids = [self.ids[position] for position in at.tolist()]
                yield name, at, Places(ids, self.version[at], self.partition[at], slot[at])


class Located(NamedTuple):
    """A record's vector, float32[dim], and what the index knew of it when it said where to fetch it. Times in ms."""

    id: str
    version: int
    event_time: int
    expires_at: int
    tier: TierName
    vector: Floats
