"""Puts copies of what is read often into hot, and takes them away again (R3: down is the home, up is a copy).

    up:   candidate -> (in the lane) read where it is at home -> the policy again -> reserve a slot
          -> one loop step: still the newest version, below hot, without a copy? then visible -> announce
    down: one loop step, anywhere: out of hot and out of the index -> announce in the lane

A copy settles nothing and delays nothing: it is no proof of durability (R2), takes no part in moves of its home, and
may vanish at any await with its process. Candidates are what access events name and what has just left hot.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import takewhile
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import structlog

from consumers.demote import MoveSettings
from consumers.lane import Lane
from producers.changes import Changes
from producers.ticks import ticks
from tiers import failpoint, policy, record
from tiers.hot import HotMemory
from tiers.index import Entry, Index
from tiers.policy import PolicySettings
from tiers.record import Floats, Int64s, Row
from tiers.segment import NO_COPY, Segment
from tiers.steps import looks, turn
from tiers.tier import Location, Tier, TierName

log = structlog.get_logger()


class Held(NamedTuple):
    """The copies there are, as columns: heat as of now, version, and where the index has them."""

    heat: Floats
    version: Int64s
    segments: Sequence[Segment]
    segment: npt.NDArray[np.intp]
    row: npt.NDArray[np.intp]

    def ids(self, at: npt.NDArray[np.intp]) -> list[str]:
        """Return the ids of these positions."""
        pairs = zip(self.segment[at].tolist(), self.row[at].tolist(), strict=True)
        return [self.segments[segment].ids[row] for segment, row in pairs]


class Promotion:
    """`consider` is told what was read, `keep` what has left hot; `run` lets copies go that have cooled down."""

    name = "promotion"

    def __init__(
        self,
        settings: MoveSettings,
        rules: PolicySettings,
        index: Index,
        hot: HotMemory,
        tiers: Mapping[TierName, Tier],
        changes: Changes,
        lanes: Mapping[int, Lane],
        now_ms: Callable[[], int],
    ) -> None:
        self._settings, self._rules, self._index, self._copies = settings, rules, index, hot.copies
        self._tiers, self._changes, self._lanes, self._now_ms = tiers, changes, lanes, now_ms
        self.dropped = 0

    # -- up ----------------------------------------------------------------------------------------------------------

    def consider(self, partition: int, ids: Sequence[str]) -> int:
        """Offer the lane a promotion of those of these ids that get a copy now; returns how many. Advice: no I/O."""
        chosen, _ = self._admit(self._candidates(partition, ids))
        if chosen and not self._lanes[partition].offer(partial(self.promote, partition, [e.id for e in chosen])):
            self.dropped += len(chosen)  # it comes again with the next read
            return 0
        return len(chosen)

    async def promote(self, partition: int, ids: Sequence[str]) -> int:
        """Read these where they are at home and put them into hot; returns how many got a copy. In the lane."""
        await self._announce(partition)
        by_tier: defaultdict[TierName, list[Location]] = defaultdict(list)
        for entry in self._candidates(partition, ids):
            where = Location(entry.id, entry.version, partition, entry.slot)
            by_tier[TierName(entry.home)].append(where)
        rows: list[Row] = []
        for tier, locations in by_tier.items():
            rows += [row for row in await self._tiers[tier].get(locations) if row is not None]
        failpoint.reach("promote.read")
        count = await self._install(partition, {row.id: row for row in rows}, "heat")
        await self._announce(partition)
        log.info("copies.promoted", partition=partition, rows=count, copies=len(self._copies))
        return count

    async def keep(self, partition: int, batch: pa.RecordBatch) -> int:
        """Let rows that have just left hot, and are read, stay there as copies; returns how many. In the lane."""
        ids, read = batch["id"].to_pylist(), []
        for some in looks(len(ids)):
            await turn()
            hot_enough = self._heat(ids[some]) >= self._rules.promote_heat_min
            read += [ids[some.start + at] for at in np.flatnonzero(hot_enough).tolist()]
        chosen, _ = self._admit(self._candidates(partition, read))
        if not chosen:
            return 0
        at = {identifier: at for at, identifier in enumerate(ids)}
        rows = {entry.id: record.row_at(batch, at[entry.id]) for entry in chosen}
        count = await self._install(partition, rows, "kept")
        await self._announce(partition)
        return count

    async def _install(self, partition: int, rows: Mapping[str, Row], reason: str) -> int:
        """Make copies of these rows while the policy still wants them and they are still the newest."""
        entries = self._candidates(partition, list(rows))
        chosen, victims = self._admit([entry for entry in entries if entry.version == rows[entry.id].version])
        self._copies.evict(victims, "replaced")
        reserved = await self._copies.reserve([rows[entry.id] for entry in chosen])
        failpoint.reach("promote.reserved")
        installed = self._copies.publish(reserved, partition, reason)
        failpoint.reach("promote.installed")
        return installed

    def _candidates(self, partition: int, ids: Sequence[str]) -> list[Entry]:
        """Return the entries of ids that are warm enough for a copy, could have one and have none; the hottest."""
        now, found, ids = self._now_ms(), [], list(dict.fromkeys(ids))
        heat = self._heat(ids)
        order = np.argsort(-heat, kind="stable")[: int((heat >= self._rules.promote_heat_min).sum())]
        for at in order.tolist():
            entry = self._index.find(ids[at])
            if entry is None or entry.deleted or 0 < entry.expires_at <= now or entry.partition != partition:
                continue
            if entry.home != TierName.HOT and entry.copy == NO_COPY:
                found.append(entry)
                if len(found) == self._settings.rows_max:
                    break
        return found

    def _heat(self, ids: Sequence[str]) -> Floats:
        heat, heat_at = self._index.heats(ids)
        return policy.heat_at(heat, self._now_ms() - heat_at, self._rules.heat_half_life_s)

    def _admit(self, entries: Sequence[Entry]) -> tuple[list[Entry], list[str]]:
        """Return which of these get a copy now, and whose copies give way to them."""
        if not entries:
            return [], []
        room = self._copies.room()
        held = self._held() if room < len(entries) else _NOTHING
        version = np.array([entry.version for entry in entries], np.int64)
        heat = self._heat([entry.id for entry in entries])
        come, go = policy.admit(heat, version, room, held.heat, held.version, self._rules)
        return [entries[at] for at in come.tolist()], held.ids(go)

    # -- down --------------------------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Look until stopped."""
        async for _ in ticks(stop, self._settings.upkeep_ms):
            self.step()

    def step(self) -> int:
        """Evict copies that have cooled down, and have announced what was evicted; returns how many went."""
        gone = 0
        if len(self._copies):
            held = self._held()
            cooled = policy.cooled(held.heat, self._rules)
            gone = self._copies.evict(held.ids(cooled), "cooled")
        for partition, lane in self._lanes.items():
            if self._copies.told.get(partition):
                lane.offer(partial(self._announce, partition))  # a full lane is asked again
        return gone

    def _held(self) -> Held:
        """Return the copies there are; one loop step over the index's columns."""
        segments = self._index.segments()
        rows = [np.flatnonzero(s.alive[: s.count] & (s.copy[: s.count] != NO_COPY)) for s in segments]
        columns = {
            name: np.concatenate([getattr(segment, name)[at] for segment, at in zip(segments, rows, strict=True)])
            for name in ("heat", "used", "version")
        }
        since_ms = self._now_ms() - columns["used"]
        return Held(
            policy.heat_at(columns["heat"], since_ms, self._rules.heat_half_life_s),
            columns["version"],
            segments,
            np.repeat(np.arange(len(segments)), [len(at) for at in rows]),
            np.concatenate(rows),
        )

    async def _announce(self, partition: int) -> None:
        """Say on the changes topic what has come and gone, in the order in which it did. In the lane."""
        told = self._copies.told[partition]
        while told:
            key = told[0][2:]
            run = list(takewhile(lambda one: one[2:] == key, told))  # noqa: B023 - used up at once
            versions = np.array([one.version for one in run], np.int64)
            source, target, reason = key
            ids = [one.id for one in run]
            await self._changes.publish(partition, source, target, reason, ids, versions, kind="copy")
            failpoint.reach("promote.announced")
            del told[: len(run)]


_NONE = np.zeros(0, np.intp)
_NOTHING = Held(np.zeros(0, np.float32), np.zeros(0, np.int64), (), _NONE, _NONE)
