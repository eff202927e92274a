"""What must hold between any two steps, and when all is quiet.

Always: the newest version of every id is durable in a tier or above the committed offset (R1, R2), and a tombstone
stays while anything older lies anywhere (R5). While a process is up: every home is where the index says, every other
row below is queued, every other row in hot is a copy (R3), nothing below the watermark depends on the log. While it
answers: the index shows the newest version of each id, and a read returns what was the newest at some moment of it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache

import numpy as np

from tests.simulation.life import BELOW, Life
from tests.simulation.log import Log
from tests.simulation.model import Model, State
from tests.tiers import rows
from tests.tiers.fake import Store
from tiers.segment import NO_COPY, Entry
from tiers.tier import NO_SLOT, Hit, Location, TierName

vector_of = cache(rows.vector_of)


class Violation(AssertionError):
    """A rule is broken."""


Physical = list[tuple[TierName, str, int, int]]
Entries = Mapping[str, Entry | None]


class Checker:
    """Looks at the stores, the log, and the life that is up, if any."""

    def __init__(self, model: Model, log: Log, stores: Mapping[TierName, Store]) -> None:
        self._model, self._log, self._stores = model, log, stores
        self._seen: tuple[object, ...] = ()
        self._landed = 0  # writes that stores have taken

    def changed(self) -> None:
        """Take note that a store has taken a write."""
        self._landed += 1

    def step(self, life: Life | None) -> None:
        """Check what holds between any two steps; for nothing if nothing has changed since the last look."""
        up = life if life is not None and life.rebuilt else None
        moment = self._moment(up)
        if moment == self._seen:
            return
        self._seen = moment
        physical = self._physical()
        newest, oldest = {}, {}
        for _, name, version, _ in physical:
            newest[name] = max(newest.get(name, -1), version)
            oldest[name] = min(oldest.get(name, version), version)
        if up is not None:
            for partition, mark in up.marks.items():
                self._model.reached[partition] = max(self._model.reached[partition], mark.end)
        self._durable(newest, oldest, up)
        if up is not None:
            entries = {name: up.index.find(name) for name in self._model.history}
            self._placed(up, physical, entries)
            if up.ready():
                self._shown(up, entries)

    def _moment(self, up: Life | None) -> tuple[object, ...]:
        """Return what differs whenever something that is checked may."""
        outside = self._landed, tuple(self._log.committed.values()), len(self._model.may_be_cleared)
        if up is None:
            return outside
        marks = [(mark.value, mark.end) for mark in up.marks.values()]
        segments = [(each._changes, each.count, each.living) for each in up.index.segments()]
        return outside, up.epoch, up.serving, marks, segments, len(up.index.queue), len(up.hot.copies)

    # -- always ------------------------------------------------------------------------------------------------------

    def _physical(self) -> Physical:
        return [
            (tier, row.id, row.version, key if isinstance(key, int) else NO_SLOT)
            for tier in BELOW
            for key, row in self._stores[tier].rows.items()
        ]

    def _durable(self, newest: dict[str, int], oldest: dict[str, int], up: Life | None) -> None:
        """R1, R2, R5, by the offset that is committed and by the watermark that may be."""
        model = self._model
        for name, partition in model.partition.items():
            state = model.newest(name, model.reached[partition])
            if state is None or newest.get(name, -1) >= state.version:
                continue
            safe = self._log.committed.get(partition, 0)
            if up is not None:
                safe = max(safe, up.marks[partition].value)
            if state.offset >= safe or (name, state.version) in model.may_be_cleared:
                continue
            if not state.deleted:
                raise Violation(f"R1: {name} at offset {state.offset} is in no tier, and {safe} is committed")
            if name in oldest:
                raise Violation(f"R5: the tombstone of {name} at {state.offset} is gone, and an older row lies below")

    # -- while a process is up ---------------------------------------------------------------------------------------

    def _placed(self, life: Life, physical: Physical, entries: Entries) -> None:
        """R3: homes are there, what is none is queued, and hot holds nothing that nobody knows."""
        homes: dict[tuple[TierName, str, int, int], Entry] = {}
        in_hot = 0
        for name, entry in entries.items():
            if entry is None:
                continue
            if entry.home == TierName.HOT:
                in_hot += 1
                if not life.hot._holds(Location(name, entry.version, entry.partition, entry.slot)):
                    raise Violation(f"R3: the home of {name} is not in hot")
            else:
                homes[TierName(entry.home), name, entry.version, self._now(life, entry)] = entry
            if entry.copy != NO_COPY:
                in_hot += 1
                where = Location(entry.id, entry.version, entry.partition, entry.copy)
                if entry.home == TierName.HOT or entry.deleted or not life.hot.copies.holds(where):
                    raise Violation(f"R3: the copy of {entry.id} that the index shows is none")
        for (tier, name, _, slot), entry in homes.items():
            if (tier, name, entry.version, slot) not in physical and not (entry.deleted and slot == DROPPED):
                raise Violation(f"R3: the index shows {name} in {tier.word}, and it is not there")
        for row in physical:
            if row not in homes and not self._queued(life, *row):
                raise Violation(f"R3: nobody knows of {row[1]} version {row[2]} in {row[0].word}")
        if in_hot != int(np.count_nonzero(life.hot.columns.alive)):
            raise Violation("R3: hot holds a row that the index does not show")

    def _now(self, life: Life, entry: Entry) -> int:
        """Follow a slot through a rewrite of which the index has not been told yet: readers still find the old one."""
        if entry.home != TierName.GLACIER:
            return entry.slot
        now = life.below[TierName.GLACIER].now(entry.slot)
        return DROPPED if now is None else now

    def _queued(self, life: Life, tier: TierName, name: str, version: int, slot: int) -> bool:
        for key in life.index.queue.of(name):
            if (key.tier, key.version) == (tier, version):
                now = life.below[tier].now(key.slot) if tier is TierName.GLACIER else key.slot
                if slot in (now, NO_SLOT) or key.slot == NO_SLOT:
                    return True
        return False

    # -- while it answers --------------------------------------------------------------------------------------------

    def _shown(self, life: Life, entries: Entries) -> None:
        """The index shows the newest version of each id, and nothing that was cleared comes back."""
        model = self._model
        for name, partition in model.partition.items():
            state = model.newest(name, life.marks[partition].end)
            if state is None:
                continue
            entry, key = entries.get(name), (name, state.version)
            if entry is None:
                if key in model.may_be_cleared:
                    model.gone.add(key)
                elif not state.deleted:
                    raise Violation(f"R6: {name} is not shown, and was not deleted")
            elif entry.version != state.version:
                raise Violation(f"R6: {name} is shown at {entry.version}, and {state.version} is the newest")
            elif key in model.gone:
                raise Violation(f"R6: {name} was cleared, and is back")

    def window(self, life: Life) -> dict[str, int]:
        """Return, for each id, how many versions it has now: the beginning of a read."""
        model = self._model
        return {name: model.at(name, life.marks[p].end) for name, p in model.partition.items()}

    def read(
        self,
        life: Life,
        began: Mapping[str, int],
        began_ms: int,
        hits: Collection[Hit],
        asked: Collection[str] | None,
        complete: bool,
    ) -> None:
        """Check what a read returned that is over now (R6). `asked` are ids, or None for all."""
        model = self._model
        found = {hit.row.id: hit.row for hit in hits}
        if len(found) != len(hits):
            raise Violation("R6: a read returned an id twice")
        for name, row in found.items():
            possible = self._possible(life, began, name)
            if row.version not in {s.version for s in possible if s is not None and not s.deleted}:
                raise Violation(f"R6: a read returned {name} at {row.version}, which was not the newest meanwhile")
            if row.vector is not None and not np.array_equal(row.vector, vector_of(name, row.version)):
                raise Violation(f"R6: a read returned {name} with the vector of another")
            if row.expires_at and row.expires_at <= began_ms:
                raise Violation(f"R6: a read returned {name}, which had expired")
        for name in model.history if asked is None else asked:
            if name in found or not complete or name not in model.history:
                continue
            if not any(self._absent(state, name) for state in self._possible(life, began, name)):
                raise Violation(f"R6: a read left out {name}, which was there all the time")

    def _possible(self, life: Life, began: Mapping[str, int], name: str) -> list[State | None]:
        """Return the states that an id had during a read; None before its first version."""
        past = self._model.history[name]
        start, end = began.get(name, 0), self._model.at(name, life.marks[self._model.partition[name]].end)
        return [past[at - 1] if at else None for at in range(start, end + 1)]

    def _absent(self, state: State | None, name: str) -> bool:
        return (
            state is None
            or state.deleted
            or 0 < state.expires_at <= self._log.now_ms()
            or (name, state.version) in self._model.may_be_cleared
        )

    # -- when all is quiet -------------------------------------------------------------------------------------------

    def quiet(self, life: Life) -> None:
        """One place an id, nothing queued, nothing dirty behind the watermark, and the changes tell it all."""
        self._seen = ()
        self.step(life)
        if len(life.index.queue):
            raise Violation(f"quiet: {len(life.index.queue)} rows are still queued")
        names = [name for _, name, _, _ in self._physical()]
        if len(set(names)) < len(names):
            raise Violation("quiet: an id lies in two places")
        for partition, mark in life.marks.items():
            if mark.value != mark.end:
                raise Violation(f"R2: nothing is dirty, and the watermark of {partition} stands at {mark.value}")


DROPPED = -2  # in place of the slot of a row that a rewrite has dropped
