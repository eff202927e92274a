"""Physical rows waiting for eviction: those that are neither the home nor the copy of their id (R3).

A key is (tier, id, version, slot). A row about to be created by a move is queued first, with NO_SLOT, and gets its
slot from the receipt. In memory only: the rebuild at start finds every such row again.

The rows of a move under way are queued together, as a group: two dictionaries a row would cost more than the move. A
group becomes single rows where one of them is treated on its own, and where its move does not end well.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tiers.tier import NO_SLOT, Location, Places, TierName


class Key(NamedTuple):
    """One queued physical row."""

    tier: TierName
    id: str
    version: int
    slot: int


class Group:
    """Rows of one tier and partition, of distinct ids: those of `whole` from `first` to `end`.

    A move treats its rows some at a time, so they leave from the front (`shed`) or come in at the end (`admit`).
    """

    def __init__(self, tier: TierName, partition: int, whole: Places, end: int) -> None:
        self.tier, self.partition = tier, partition
        self.whole, self.first, self.end = whole, 0, end
        self.lies = bool((whole.slots != NO_SLOT).any())

    def __len__(self) -> int:
        return self.end - self.first

    @property
    def places(self) -> Places:
        """The rows that are queued now."""
        found: Places = self.whole[self.first : self.end]
        return found

    @cached_property
    def _at(self) -> dict[str, int]:  # made when somebody asks: of most moves nobody does
        return dict(zip(self.whole.ids, range(len(self.whole)), strict=True))

    def overlaps(self, ids: Iterable[str]) -> bool:
        """Say whether a row of one of these ids may be here; those that have left count too."""
        return not self._at.keys().isdisjoint(ids)

    def key(self, identifier: str) -> Key | None:
        """Return the row of this id."""
        at = self._at.get(identifier)
        if at is None or not self.first <= at < self.end:
            return None
        return Key(self.tier, identifier, int(self.whole.versions[at]), int(self.whole.slots[at]))


class Queue:
    """Queued rows by partition, and by id for the questions that R4 and R5 ask."""

    def __init__(self) -> None:
        self._by_partition: defaultdict[int, dict[Key, Location]] = defaultdict(dict)
        self._by_id: defaultdict[str, dict[Key, None]] = defaultdict(dict)
        self._of_tier: Counter[TierName] = Counter()  # rows that are in no group
        self._groups: list[Group] = []  # at most two a lane: what a move writes, and what it leaves

    def __len__(self) -> int:
        return sum(map(len, self._by_partition.values())) + sum(map(len, self._groups))

    # -- row by row --------------------------------------------------------------------------------------------------

    def add(self, tier: TierName, where: Location) -> bool:
        """Queue a row; says whether it was not queued before."""
        key = Key(tier, where.id, where.version, where.slot)
        if key in self._by_partition[where.partition] or any(g.key(where.id) == key for g in self._groups):
            return False
        self._add(key, where)
        return True

    def _add(self, key: Key, where: Location) -> None:
        self._by_partition[where.partition][key] = where
        self._by_id[where.id][key] = None
        self._of_tier[key.tier] += 1

    def remove(self, tier: TierName, where: Location) -> None:
        """Take a row out: its eviction is answered, or it has become the home."""
        key = Key(tier, where.id, where.version, where.slot)
        for group in [group for group in self._groups if group.key(where.id) == key]:
            self.part(group)
        if self._by_partition[where.partition].pop(key, None) is None:
            return
        self._of_tier[tier] -= 1
        del self._by_id[where.id][key]
        if not self._by_id[where.id]:
            del self._by_id[where.id]

    def of(self, identifier: str) -> list[Key]:
        """Return what is queued of an id."""
        grouped = (group.key(identifier) for group in self._groups)
        return list(dict.fromkeys([*self._by_id.get(identifier, ()), *(key for key in grouped if key is not None)]))

    def list(self, partition: int, tier: TierName, limit: int) -> list[Location]:
        """Return up to `limit` queued rows of a partition in a tier, oldest first; rows without a slot wait.

        Those of a move under way are its own to evict.
        """
        found: list[Location] = []
        for key, where in self._by_partition[partition].items():
            if key.tier == tier and (where.slot != NO_SLOT or tier == TierName.WARM):
                found.append(where)
                if len(found) == limit:
                    break
        return found

    def count(self, partition: int, tier: TierName) -> int:
        """Return how many rows of a partition are queued in a tier."""
        grouped = sum(map(len, self._of(partition, tier)))
        return grouped + sum(key.tier == tier for key in self._by_partition[partition])

    def follow(self, tier: TierName, identifier: str, version: int, old_slot: int, new_slot: int) -> None:
        """Take note that a queued row has another slot now: its file was rewritten."""
        key = Key(tier, identifier, version, old_slot)
        for group in [group for group in self._groups if group.key(identifier) == key]:
            self.part(group)
        if key not in self._by_id.get(identifier, ()):
            return
        where = next(rows[key] for rows in self._by_partition.values() if key in rows)
        self.remove(tier, where)
        self.add(tier, Location(identifier, version, where.partition, new_slot))

    # -- many together -----------------------------------------------------------------------------------------------

    def enter(self, tier: TierName, partition: int, places: Places, *, rows: int | None = None) -> Group:
        """Queue the rows of a move that is under way, of distinct ids; nothing for each of them.

        The first `rows` of them, if given: the others are admitted later.
        """
        group = Group(tier, partition, places, len(places) if rows is None else rows)
        self._groups.append(group)
        return group

    def admit(self, group: Group, end: int) -> None:
        """Queue the rows of a group up to `end` too."""
        more, group.end = group.whole[group.end : end], end
        if group not in self._groups:
            self._add_all(group.tier, more)

    def shed(self, group: Group, first: int) -> None:
        """Take the rows of a group before `first` out."""
        gone, group.first = group.whole[group.first : first], first
        if group not in self._groups:
            self.remove_all(group.tier, group.partition, gone)

    def leave(self, group: Group) -> None:
        """Take the rows of a group out, even if some were treated one by one meanwhile."""
        if group in self._groups:
            self._groups.remove(group)
        else:
            self.remove_all(group.tier, group.partition, group.places)

    def part(self, group: Group) -> None:
        """Let the rows of a group be rows like others: they wait for whoever evicts what is queued."""
        if group in self._groups:
            self._groups.remove(group)
            self._add_all(group.tier, group.places)

    def _add_all(self, tier: TierName, places: Places) -> None:
        for where in places:
            key = Key(tier, where.id, where.version, where.slot)
            if key not in self._by_partition[where.partition]:
                self._add(key, where)

    def remove_all(self, tier: TierName, partition: int, places: Places) -> None:
        """Take rows of a partition out, where they are queued at all."""
        for group in list(self._of(partition, tier)):
            if group.overlaps(places.ids):
                self.part(group)
        self.remove_single(tier, places)

    def remove_single(self, tier: TierName, places: Places) -> None:
        """Take rows out that are queued one by one; the caller knows of no group that has one of them."""
        if self._of_tier[tier]:
            known = self._by_id
            for at in [at for at, identifier in enumerate(places.ids) if identifier in known]:
                self.remove(tier, places[at])

    def lying(self, tier: TierName, ids: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Return of which ids a row may be queued that lies in a tier; one that has no slot yet does not."""
        found = np.zeros(len(ids), bool)
        known = [group for group in self._groups if group.tier == tier and group.lies and group.overlaps(ids)]
        if known or self._of_tier[tier]:
            of, single = self.of, self._by_id
            found[:] = [identifier in single or (bool(known) and bool(of(identifier))) for identifier in ids]
        return found

    def _of(self, partition: int, tier: TierName) -> Iterator[Group]:
        return (group for group in self._groups if (group.partition, group.tier) == (partition, tier))
