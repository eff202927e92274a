"""Moves rows down, in the one order that loses nothing and shows nothing twice (R4).

    queue the target rows -> read source -> store target -> receipt -> publish the change
    -> rewrite the home (superseded meanwhile: the target row stays queued) -> evict the source

What the loop does for thousands of rows it does in steps: others have their turn between two.
Every method runs in its partition's lane, and a lane goes on only when every request was answered. What is physically
somewhere without being a home is in the index's queue until its eviction is answered.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import numpy as np
import pyarrow as pa
import structlog
from opentelemetry.trace import SpanContext

from consumers.counts import MoveCounts, move_facts
from consumers.watermark import Watermark
from producers.changes import Changes
from producers.tracing import OFF, Tracing, Work
from tiers import failpoint, record
from tiers.errors import TierCorrupt, TierFull, TierUnavailable
from tiers.index import Index
from tiers.queue import Group, Queue
from tiers.record import Floats, Int64s
from tiers.steps import looks, steps, turn
from tiers.tier import Location, Places, Receipt, Tier, TierName

log = structlog.get_logger()

BYTES_MAX = 128 << 20  # of the rows that move together: as many as a file of glacier takes
ROW_BYTES_MAX = record.PAYLOAD_BYTES_MAX + (1 << 16)  # a record of the largest payload, more or less


class Rewrite(Protocol):
    """What a rewritten archive says: how many rows went, and where the others lie now."""

    dropped: int
    ids: Sequence[str]
    versions: Int64s
    old_slots: Int64s
    new_slots: Int64s


class Rewrites(Protocol):
    """Glacier's own ability: drop rows by rewriting the files that hold them."""

    def together(self, keys: Sequence[Location]) -> list[Location]:
        """Return those of the rows that one rewrite should drop, so that it is not too long for the lane."""

    async def rewrite(self, partition: int, drop: Sequence[Location]) -> Rewrite:
        """Drop exactly these rows, durably, in one commit."""


class Mover:
    """Effects of R3, R4 and R5. `watermarks` are by partition; so is `committed`, the version that no replay is below.

    `keep` is given the rows that have left hot: those that are read may stay there as copies.
    """

    def __init__(
        self,
        index: Index,
        tiers: Mapping[TierName, Tier],
        changes: Changes,
        shape: pa.Schema,
        watermarks: Mapping[int, Watermark],
        committed: Callable[[int], int],
        keep: Callable[[int, pa.RecordBatch], Awaitable[object]],
        tracing: Tracing = OFF,
        bytes_max: int = BYTES_MAX,
    ) -> None:
        self._bytes_max = bytes_max
        self._index, self._tiers, self._changes, self._shape = index, tiers, changes, shape
        self._watermarks, self._committed, self._keep = watermarks, committed, keep
        self.moved: dict[tuple[str, str], int] = {}
        self.counts, self._tracing = MoveCounts(), tracing

    async def move(
        self, partition: int, source: TierName, target: TierName, reason: str, keys: Sequence[tuple[str, int]]
    ) -> int:
        """Demote these (id, version) if they are still at home in `source`; returns how many moved."""
        moved = 0
        facts = move_facts(partition, source.word, target.word, reason)
        for sources in await self._parts(source, await self._at_home(source, keys)):
            parents = self._traced(partition, sources) if self._tracing.on else ()
            with self._tracing.work("move", parents, facts=facts) as work:
                moved += await self._move(partition, source, target, reason, sources, work)
        return moved

    async def _parts(self, source: TierName, sources: Places) -> list[Places]:
        """Cut a move so that no part of it has more than `bytes_max`, or it is one row."""
        if len(sources) * ROW_BYTES_MAX <= self._bytes_max:
            return [sources] if len(sources) else []
        ends = np.cumsum(await self._tiers[source].sizes(sources))
        parts, first = [], 0
        while first < len(sources):
            taken = int(ends[first - 1]) if first else 0
            end = max(first + 1, int(np.searchsorted(ends, taken + self._bytes_max, "right")))
            parts.append(sources[first:end])
            first = end
        return parts

    async def _move(
        self, partition: int, source: TierName, target: TierName, reason: str, sources: Places, work: Work
    ) -> int:
        began, step, queue = time.perf_counter(), self._tracing.step, self._index.queue
        pending = queue.enter(target, partition, sources.without_slots())
        failpoint.reach("move.queued", source.word, target.word)
        try:
            with step("read", tier=source.word, rows=len(sources)):
                batch, sources = await self._read(source, sources)
            if not len(sources):
                queue.leave(pending)
                return 0
            failpoint.reach("move.read", source.word, target.word)
            with step("store", tier=target.word, rows=batch.num_rows, bytes=batch.nbytes):
                receipt = await self._tiers[target].store(batch)
        except (TierFull, TierUnavailable) as error:  # by their contract nothing was stored
            queue.leave(pending)
            self.counts.refused[source.word, target.word, type(error).__name__] += 1
            raise
        except BaseException:
            queue.part(pending)
            raise
        failpoint.reach("move.stored", source.word, target.word)
        assert np.array_equal(receipt.versions, receipt.held), "a tier below held a newer version than the index knew"
        landed = self._landed(pending, receipt)
        with _kept(queue, landed), step("announce", rows=len(landed.places)):
            at_ms = await self._changes.publish(partition, source, target, reason, receipt.ids, receipt.versions)
        failpoint.reach("move.announced", source.word, target.word)
        leaving = queue.enter(source, partition, sources, rows=0)
        with _kept(queue, landed), _kept(queue, leaving):
            moved, evicted = await self._rewrite_homes(
                landed, leaving, receipt, record.vectors_of(batch), reason, at_ms
            )
        queue.leave(landed)
        with _kept(queue, leaving), step("evict", tier=source.word, rows=len(sources)):
            if source != TierName.HOT:  # none of them is a home: each was rewritten or superseded in this job
                evicted = await self._tiers[source].evict(sources, receipt)
        failpoint.reach("move.evicted", source.word, target.word)
        queue.leave(leaving)
        queue.remove_all(source, partition, sources)
        work.note(rows=moved, bytes=batch.nbytes)
        self.moved[source.word, target.word] = self.moved.get((source.word, target.word), 0) + moved
        took_s = time.perf_counter() - began
        self.counts.moved(source.word, target.word, reason, moved, batch.nbytes, took_s)
        self.counts.aged(target.word, record.times_of(batch, "event_time"), at_ms)
        log.info(
            "batch.moved", partition=partition, source=source.word, target=target.word, rows=moved, evicted=evicted
        )
        if source == TierName.HOT:
            await self._keep(partition, batch)
        return moved

    def _traced(self, partition: int, sources: Places) -> list[SpanContext]:
        """Return the traces in which these rows were applied, as far as they are remembered."""
        return self._tracing.remembered.of(partition, record.offsets(sources.versions).tolist())

    async def _at_home(self, tier: TierName, keys: Sequence[tuple[str, int]]) -> Places:
        """Return where those of these rows lie that are at home in a tier now; each once."""
        found: list[Places] = []
        seen: set[tuple[str, int]] = set()
        for at in looks(len(keys)):
            if at.start:
                await turn()
            fresh = [key for key in dict.fromkeys(keys[at]) if key not in seen]
            seen.update(fresh)
            ids, versions = zip(*fresh, strict=True) if fresh else ((), ())
            found.append(self._index.homes_of(tier, ids, np.array(versions, np.int64)))
        return Places.joined(found)

    async def _read(self, source: TierName, sources: Places) -> tuple[pa.RecordBatch, Places]:
        """Return the rows as a batch; one that was superseded since (hot drops it at once) is left out.

        TierCorrupt when the index says that a row is at home and the tier does not have it.
        """
        batch, there = await self._tiers[source].gather(sources)
        if not there.all():
            gone = sources.those(~there)
            lost = gone.those(self._index.at_home(source, gone))
            if len(lost):
                raise TierCorrupt(
                    f"{source.word} has lost {len(lost)} rows that are at home there, {lost.ids[0]!r} first"
                )
        return batch, sources.those(there)

    def _landed(self, pending: Group, receipt: Receipt) -> Group:
        """One loop step: the target rows that were queued before they had a slot are queued where they lie."""
        queue, tier, partition = self._index.queue, pending.tier, pending.partition
        partitions = np.full(len(receipt.ids), partition)
        stored = Places(receipt.ids, receipt.versions, partitions, receipt.slots)
        queue.leave(pending)
        if tier != TierName.WARM:  # warm's rows have no slot: what a former try of this move left has the same key
            queue.remove_all(tier, partition, stored.without_slots())
        return queue.enter(tier, partition, stored)

    async def _rewrite_homes(
        self, landed: Group, leaving: Group, receipt: Receipt, vectors: Floats, reason: str, at_ms: int
    ) -> tuple[int, int]:
        """Make the target rows homes, a step of the loop at a time, and queue the source rows in the same step.

        Those of hot are evicted in it. Returns how many moved, and how many were evicted.
        """
        source, target = leaving.tier, landed.tier
        moved = evicted = 0
        for at in steps(len(landed)):
            if at.start:
                await turn()
            moved += self._rewrite_home(source, landed, vectors[at], at.stop, reason, at_ms)
            if source == TierName.HOT:
                failpoint.reach("move.relocated", source.word, target.word)
                evicted += await self._tiers[source].evict(leaving.whole[at], receipt)
            else:
                self._index.queue.admit(leaving, at.stop)
                failpoint.reach("move.relocated", source.word, target.word)
        return moved, evicted

    def _rewrite_home(self, source: TierName, landed: Group, vectors: Floats, end: int, reason: str, at_ms: int) -> int:
        """One loop step: target rows up to `end` become homes, but for those superseded meanwhile: they stay queued."""
        queue, target, stored = self._index.queue, landed.tier, landed.whole[landed.first : end]
        same = self._index.relocate(target, stored.ids, stored.versions, stored.slots, vectors, reason, at_ms)
        queue.shed(landed, end)
        queue.remove_single(target, stored.those(same))
        for where in stored.those(~same):
            queue.add(target, where)
        if source == TierName.HOT:
            self._watermarks[landed.partition].settle(record.offsets(stored.versions[same]))
        return int(same.sum())

    async def _evict(self, tier: TierName, keys: Sequence[Location], receipt: Receipt | None) -> int:
        """Evict rows that are no home, and take them out of the queue once answered."""
        evicted = await self._evict_dead(tier, keys, receipt)
        await self._unqueue(tier, keys)
        return evicted

    async def _evict_dead(self, tier: TierName, keys: Sequence[Location], receipt: Receipt | None) -> int:
        """Evict rows that are no home; looked at here, in the lane: one may have become the home meanwhile (R3)."""
        places = Places.of(keys)
        gone = places.those(~self._index.at_home(tier, places))
        return await self._tiers[tier].evict(gone, receipt) if len(gone) else 0

    def _is_home(self, tier: TierName, where: Location) -> bool:
        entry = self._index.find(where.id)
        return entry is not None and (entry.version, entry.home, entry.slot) == (where.version, tier, where.slot)

    async def _unqueue(self, tier: TierName, keys: Sequence[Location]) -> None:
        for at in steps(len(keys)):
            if at.start:
                await turn()
            for where in keys[at]:
                self._index.queue.remove(tier, where)

    async def _without(self, listed: Sequence[Location], needed: Callable[[Location], bool]) -> list[Location]:
        """Return the rows that are not needed; what is asked of each is a step's work for some."""
        found: list[Location] = []
        for at in steps(len(listed)):
            if at.start:
                await turn()
            found += [where for where in listed[at] if not needed(where)]
        return found

    async def evict_queued(self, partition: int, tier: TierName, limit: int) -> int:
        """Evict up to `limit` superseded rows of a partition from warm or cold (glacier's go by `compact`)."""
        waiting = await self._without(self._index.queue.list(partition, tier, limit), self._decides)
        if not waiting:
            return 0
        failpoint.reach("superseded.listed", tier.word)
        evicted = await self._evict(tier, waiting, None)
        failpoint.reach("superseded.evicted", tier.word)
        return evicted

    async def discard(self, partition: int, tier: TierName, keys: Sequence[Location]) -> None:
        """Evict exactly these rows, which are queued and no homes, and take them out of the queue once answered."""
        if tier is not TierName.GLACIER:
            await self._evict(tier, keys, None)
        elif keys:
            await self.rewrite_glacier(partition, keys)
            await self._unqueue(tier, keys)

    @property
    def _glacier(self) -> Rewrites:
        return self._tiers[TierName.GLACIER]  # type: ignore[return-value]

    async def rewrite_glacier(self, partition: int, drop: Sequence[Location]) -> int:
        """Drop rows from glacier and follow the others to where the new files hold them."""
        done = await self._glacier.rewrite(partition, drop)
        for at in steps(len(done.ids)):  # what was not followed yet is read where it lay
            if at.start:
                await turn()
            columns = (done.versions[at], done.old_slots[at], done.new_slots[at])
            self._index.relocate_slots(TierName.GLACIER, done.ids[at], *columns)
        return done.dropped

    async def compact(self, partition: int, limit: int) -> int:
        """Drop superseded rows and finished tombstones of a partition from glacier, in one commit (R5)."""
        listed = self._glacier.together(self._index.queue.list(partition, TierName.GLACIER, limit))
        waiting = await self._without(listed, lambda where: self._covers_above(where) or self._decides(where))
        drop = await self._without(waiting, partial(self._is_home, TierName.GLACIER))
        tombstones = self._glacier.together(self._finished_tombstones(partition, drop, limit))
        everything = [*drop, *tombstones]
        if not everything:
            await self._unqueue(TierName.GLACIER, waiting)
            return await self.rewrite_glacier(partition, [])  # merges small files once there are many
        if tombstones:
            versions = np.array([where.version for where in tombstones], np.int64)
            ids = [where.id for where in tombstones]
            await self._changes.publish(partition, TierName.GLACIER, None, "tombstone", ids, versions)
            failpoint.reach("tombstone.announced")
        dropped = await self.rewrite_glacier(partition, everything)
        failpoint.reach("tombstone.dropped" if tombstones else "compact.rewritten")
        self._index.drop((where.id, where.version) for where in tombstones)
        await self._unqueue(TierName.GLACIER, waiting)
        log.info("archive.compacted", partition=partition, dropped=dropped, tombstones=len(tombstones))
        return dropped

    def _covers_above(self, where: Location) -> bool:
        """Say whether an older row of the id is queued in warm or cold: a superseded tombstone still covers it (R5)."""
        others = self._index.queue.of(where.id)
        return any(key.tier != TierName.GLACIER and key.version < where.version for key in others)

    def _decides(self, where: Location) -> bool:
        """Say whether a replay may still need the row, to decide as before whether its id was deleted.

        That is so while a conditional delete of the id is dirty: without the row its condition would not be met, and an
        older row, not evicted yet, would be the newest.
        """
        entry = self._index.find(where.id)
        if entry is None or not entry.deleted or entry.home != TierName.HOT:
            return False
        return self._watermarks[where.partition].holds(record.unpack_version(entry.version)[1])

    def _finished_tombstones(self, partition: int, dropping: Sequence[Location], limit: int) -> list[Location]:
        """Return tombstones at home in glacier of which nothing else is anywhere, and which no replay can meet (R5)."""
        dropped_too = {(where.id, where.version) for where in dropping}
        committed = self._committed(partition)
        found: list[Location] = []
        for segment in self._index.segments():
            n = segment.count
            rows = segment.alive[:n] & segment.deleted[:n] & (segment.home[:n] == TierName.GLACIER)
            rows &= (segment.partition[:n] == partition) & (segment.version[:n] < committed)
            for row in np.flatnonzero(rows).tolist()[: limit - len(found)]:
                entry = segment.entry(row)
                others = self._index.queue.of(entry.id)
                if all(key.tier == TierName.GLACIER and (key.id, key.version) in dropped_too for key in others):
                    found.append(Location(entry.id, entry.version, partition, entry.slot))
        return found


@contextmanager
def _kept(queue: Queue, group: Group) -> Iterator[None]:
    """Leave the rows of a group to whoever evicts what is queued, if the block does not end well."""
    try:
        yield
    except BaseException:
        queue.part(group)
        raise
