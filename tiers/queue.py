"""Physical rows waiting for eviction: those that are neither the home nor the copy of their id (R3).

A key is (tier, id, version, slot). A row about to be created by a move is queued first, with NO_SLOT, and gets its
slot from the receipt. In memory only: the rebuild at start finds every such row again.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from tiers.tier import NO_SLOT, Location, TierName


class Key(NamedTuple):
    """One queued physical row."""

    tier: TierName
    id: str
    version: int
    slot: int


class Queue:
    """Queued rows by partition, and by id for the questions that R4 and R5 ask."""

    def __init__(self) -> None:
        self._by_partition: defaultdict[int, dict[Key, Location]] = defaultdict(dict)
        self._by_id: defaultdict[str, dict[Key, None]] = defaultdict(dict)

    def __len__(self) -> int:
        return sum(map(len, self._by_partition.values()))

    def add(self, tier: TierName, where: Location) -> bool:
        """Queue a row; says whether it was not queued before."""
        key = Key(tier, where.id, where.version, where.slot)
        if key in self._by_partition[where.partition]:
            return False
        self._by_partition[where.partition][key] = where
        self._by_id[where.id][key] = None
        return True

    def remove(self, tier: TierName, where: Location) -> None:
        """Take a row out: its eviction is answered, or it has become the home."""
        key = Key(tier, where.id, where.version, where.slot)
        self._by_partition[where.partition].pop(key, None)
        if where.id in self._by_id:
            self._by_id[where.id].pop(key, None)
            if not self._by_id[where.id]:
                del self._by_id[where.id]

    def of(self, identifier: str) -> list[Key]:
        """Return what is queued of an id."""
        return list(self._by_id.get(identifier, ()))

    def list(self, partition: int, tier: TierName, limit: int) -> list[Location]:
        """Return up to `limit` queued rows of a partition in a tier, oldest first; rows without a slot wait."""
        found: list[Location] = []
        for key, where in self._by_partition[partition].items():
            if key.tier == tier and (where.slot != NO_SLOT or tier == TierName.WARM):
                found.append(where)
                if len(found) == limit:
                    break
        return found

    def count(self, partition: int, tier: TierName) -> int:
        """Return how many rows of a partition are queued in a tier."""
        return sum(1 for key in self._by_partition[partition] if key.tier == tier)

    def follow(self, tier: TierName, identifier: str, version: int, old_slot: int, new_slot: int) -> None:
        """Take note that a queued row has another slot now: its file was rewritten."""
        key = Key(tier, identifier, version, old_slot)
        if key not in self._by_id.get(identifier, ()):
            return
        where = next(rows[key] for rows in self._by_partition.values() if key in rows)
        self.remove(tier, where)
        self.add(tier, Location(identifier, version, where.partition, new_slot))
