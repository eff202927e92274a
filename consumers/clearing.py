"""Clearing a tier for good: no restart and no replay brings its rows back. Runs in each partition's lane.

Two things could bring a cleared row back, and each is closed before the row goes:

- an older version below. What is queued of the same ids is evicted first, so that no rebuild finds it.
- the log. The manifest remembers below which offset a replay leaves out rows that no tier has: hot's are in the log.
  For a lower tier hot is drained first, the oldest rows first, until the watermark has passed those that will be
  cleared, and that is committed; remembered it is all the same, because a commit of the life before may still land, and
  the start after that reads from there.

    hot:    snapshot -> evict older versions -> remember the offset -> announce -> drop
    below:  snapshot -> drain, commit, remember the offset -> note the clearing -> evict older versions -> announce
            -> drop and queue -> evict -> strike the note

"Note" and "remember" are durable, in the manifest. A crash after the note is finished at the next start (`resume`),
before anything moves; one before it has changed nothing. Between note and strike the lane must not go on: a row moved
into the tier then could not be told from those that were to be cleared. So a tier that refuses the eviction ends the
process (R4), and the start after it finishes the work.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt
import structlog

from consumers.ingest import Ingest
from consumers.lane import Lane
from consumers.mover import Mover
from producers.changes import Changes
from tiers import failpoint, record
from tiers.errors import LogUnavailable, OutcomeUnknown, Replaying, TierError
from tiers.hot import HotMemory
from tiers.index import Index
from tiers.segment import Segment
from tiers.tier import NO_SLOT, Location, TierName

log = structlog.get_logger()

DRAIN_ROWS = 2_000  # rows of hot that leave together
ROWS_MAX = 50_000  # rows cleared together: bounds what is listed and queued at once


class Notes(Protocol):
    """What must survive the process; each call is durable when it returns."""

    def cleared_below(self, partition: int) -> int:
        """Return the offset below which a replay leaves out what is only in the log."""

    def remember(self, partition: int, offset: int) -> None:
        """Set that offset."""

    def begin(self, partition: int, tier: TierName, below: int) -> None:
        """Note that the homes in `tier` whose version is lower than `below` are being cleared."""

    def end(self, partition: int) -> None:
        """Strike that note."""

    def unfinished(self) -> Mapping[int, tuple[TierName, int]]:
        """Return the notes by partition: (tier, below)."""


class Commits(Protocol):
    """What commits watermarks, and knows what was acknowledged."""

    async def step(self) -> int:
        """Commit now."""

    def acknowledged(self, partition: int) -> int:
        """Return the offset below which no replay can start."""


class Clearing:
    """`clear` empties one tier over all partitions; `resume` finishes what the life before had begun."""

    def __init__(
        self,
        index: Index,
        hot: HotMemory,
        mover: Mover,
        changes: Changes,
        ingest: Ingest,
        commit: Commits,
        lanes: Mapping[int, Lane],
        notes: Notes,
    ) -> None:
        self._index, self._hot, self._mover, self._changes = index, hot, mover, changes
        self._ingest, self._commit, self._lanes, self._notes = ingest, commit, lanes, notes

    async def clear(self, tier: TierName) -> int:
        """Delete every record whose home is `tier` now; returns how many went.

        Partition by partition: an error leaves those before it cleared, and asking again goes on. Replaying before the
        log is replayed; TierFull, TierUnavailable, LogUnavailable with nothing of the partition changed.
        """
        behind = [partition for partition in self._lanes if not self._ingest.ready(partition)]
        if behind:
            raise Replaying(f"partitions {behind} are replaying the log; clear when they are done")
        cleared: list[int] = []
        job = self._clear_hot if tier is TierName.HOT else partial(self._clear_below, tier)
        for partition, lane in self._lanes.items():
            await lane.perform(partial(_collect, job, partition, cleared))
        log.warning("tier.cleared", tier=tier.word, records=sum(cleared))
        return sum(cleared)

    async def cleanup(self) -> int:
        """Evict the superseded rows that are queued now, and what glacier's compaction finds; returns how many."""
        evicted: list[int] = []
        for partition, lane in self._lanes.items():
            for tier in (TierName.WARM, TierName.COLD):
                job = partial(self._mover.evict_queued, limit=ROWS_MAX)
                for _ in range(-(-self._index.queue.count(partition, tier) // ROWS_MAX)):
                    await lane.perform(partial(_collect, partial(job, tier=tier), partition, evicted))
            await lane.perform(partial(_collect, partial(self._mover.compact, limit=ROWS_MAX), partition, evicted))
        await self._commit.step()
        return sum(evicted)

    # -- hot ---------------------------------------------------------------------------------------------------------

    async def _clear_hot(self, partition: int) -> int:
        position = self._ingest.applied(partition)  # every home in hot lies below it: one loop step makes both
        keys = self._homes(TierName.HOT, partition)
        await self._evict_older(partition, keys)
        keys = self._still(TierName.HOT, keys)
        before = self._notes.cleared_below(partition)
        self._notes.remember(partition, position)
        failpoint.reach("clear.remembered")
        try:
            await self._announce(partition, TierName.HOT, keys)
        except LogUnavailable:
            self._notes.remember(partition, before)  # nothing has gone yet, and nothing will
            raise
        failpoint.reach("clear.hot_announced")
        self._ingest.cleared_below[partition] = position
        keys = self._still(TierName.HOT, keys)
        self._hot.evict_now(keys)
        self._hot.copies.evict(self._hot.copies.of(partition), "cleared")  # their records are at home below, and stay
        self._index.drop((where.id, where.version) for where in keys)
        versions = np.array([where.version for where in keys], np.int64)
        self._ingest.watermarks[partition].settle(record.offsets(versions))
        failpoint.reach("clear.hot_dropped")
        return len(keys)

    # -- below -------------------------------------------------------------------------------------------------------

    async def _clear_below(self, tier: TierName, partition: int) -> int:
        found = [segment.version[rows] for segment, rows in self._rows(tier, partition)]
        newest = int(np.concatenate(found).max(initial=-1))
        if newest < 0:
            return 0
        epoch, offset, _ = record.unpack_version(newest)
        below = record.pack_version(epoch, offset + 1)
        if epoch == self._ingest.epoch:  # no replay meets a log that is no more
            await self._drain(partition, offset + 1, TierName.COLD if tier is TierName.WARM else TierName.WARM)
            self._notes.remember(partition, max(self._notes.cleared_below(partition), offset + 1))
        failpoint.reach("clear.drained")
        self._notes.begin(partition, tier, below)
        failpoint.reach("clear.noted", tier.word)
        return await self._finish(partition, tier, below)

    async def resume(self) -> int:
        """Finish the clearings that the life before had noted; before lanes run, and before the log is replayed."""
        cleared = 0
        for partition, (tier, below) in self._notes.unfinished().items():
            if partition in self._lanes:
                count = await self._finish(partition, tier, below)
                cleared += count
                log.warning("clearing.resumed", partition=partition, tier=tier.word, records=count)
        return cleared

    async def _drain(self, partition: int, below: int, target: TierName) -> None:
        """Move hot's oldest rows to `target` until no replay can start below `below`."""
        mark = self._ingest.watermarks[partition]
        while mark.value < below:
            dirty = sorted(self._homes(TierName.HOT, partition), key=lambda where: where.version)
            if not dirty:
                break  # dead letters hold the watermark; they settle by themselves
            pairs = [(where.id, where.version) for where in dirty[:DRAIN_ROWS]]
            await self._mover.move(partition, TierName.HOT, target, "drained", pairs)
        await self._commit.step()
        if self._commit.acknowledged(partition) < below:
            raise LogUnavailable(f"partition {partition}: a replay could still bring rows back; clear again")

    async def _finish(self, partition: int, tier: TierName, below: int) -> int:
        """Drop the homes below a version, durably; the clearing is noted already.

        LogUnavailable: what could not be announced stays, and the clearing is over.
        """
        done = 0
        while keys := self._homes(tier, partition, below, ROWS_MAX):
            try:
                await self._evict_older(partition, keys)
                failpoint.reach("clear.older_evicted", tier.word)
                keys = self._still(tier, keys)
                await self._announce(partition, tier, keys)
                failpoint.reach("clear.announced", tier.word)
                gone = self._still(tier, keys)
                self._drop(tier, gone)
                await self._mover.discard(partition, tier, keys)
                failpoint.reach("clear.discarded", tier.word)
            except LogUnavailable:
                self._notes.end(partition)
                raise
            except TierError as error:
                raise OutcomeUnknown(
                    f"{tier.word} is being cleared of partition {partition}, and a tier refused: {error}; "
                    "the next start finishes it"
                ) from error
            done += len(gone)
        self._notes.end(partition)
        failpoint.reach("clear.struck", tier.word)
        return done

    def _drop(self, tier: TierName, keys: Sequence[Location]) -> None:
        """One loop step: no reader finds these any more, their copies go, and their rows wait for eviction (R3)."""
        self._hot.copies.evict([where.id for where in keys], "cleared")
        for where in keys:
            self._index.queue.add(tier, where)
        self._index.drop((where.id, where.version) for where in keys)

    # -- both --------------------------------------------------------------------------------------------------------

    async def _evict_older(self, partition: int, keys: Sequence[Location]) -> None:
        """Evict what is queued of these ids, of each the oldest first.

        A newer row may cover an older one: a superseded tombstone (R5), or what a conditional delete was decided by. In
        the lane nothing more of them can be queued without their version changing, and then they are not cleared.
        """
        while True:
            oldest: defaultdict[TierName, list[Location]] = defaultdict(list)
            for where in keys:
                queued = [k for k in self._index.queue.of(where.id) if k.slot != NO_SLOT or k.tier is TierName.WARM]
                if queued:
                    key = min(queued, key=lambda key: key.version)
                    oldest[key.tier].append(Location(key.id, key.version, partition, key.slot))
            if not oldest:
                return
            for tier, rows in oldest.items():
                await self._mover.discard(partition, tier, rows)

    def _rows(self, tier: TierName, partition: int) -> Iterator[tuple[Segment, npt.NDArray[np.intp]]]:
        """Yield each segment and which of its rows are at home there."""
        for segment in self._index.segments():
            n = segment.count
            mask = segment.alive[:n] & (segment.home[:n] == tier) & (segment.partition[:n] == partition)
            yield segment, np.flatnonzero(mask)

    def _homes(
        self, tier: TierName, partition: int, below: int = sys.maxsize, limit: int = sys.maxsize
    ) -> list[Location]:
        """Return up to `limit` rows at home there, of versions lower than `below`."""
        found: list[Location] = []
        for segment, rows in self._rows(tier, partition):
            older = rows[segment.version[rows] < below]
            for row in older[: limit - len(found)].tolist():
                found.append(Location(segment.ids[row], int(segment.version[row]), partition, int(segment.slot[row])))
        return found

    def _still(self, tier: TierName, keys: Sequence[Location]) -> list[Location]:
        """Return those that are at home there in this version, where they lie now (a rewrite may have moved them)."""
        found: list[Location] = []
        for where in keys:
            entry = self._index.find(where.id)
            if entry is not None and (entry.version, entry.home) == (where.version, tier):
                found.append(Location(where.id, where.version, where.partition, entry.slot))
        return found

    async def _announce(self, partition: int, tier: TierName, keys: Sequence[Location]) -> None:
        if keys:
            versions = np.array([where.version for where in keys], np.int64)
            await self._changes.publish(partition, tier, None, "cleared", [where.id for where in keys], versions)


async def _collect(job: Callable[[int], Awaitable[int]], partition: int, into: list[int]) -> None:
    into.append(await job(partition))
