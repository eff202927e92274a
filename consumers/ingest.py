"""From messages of the memories topic to rows that a search finds. The only writer of new versions.

One call takes one partition's messages through: decode (bad ones apart) -> newest a key -> what a replay need not
append -> hot -> one loop step that makes them visible and masks what they supersede -> dead letters -> watermark.
What must be in the log before the partition goes on (letters, what is announced again) is waited for without a limit.

A delete may carry a condition (expiry's do): it counts only if the newest version of its id, in the log up to there, is
the one that it names. That is a fold over the log, so a replay decides as the life before did (`conditions.met`).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import structlog

from consumers import conditions
from consumers.counts import IngestCounts, Marks
from consumers.watermark import Watermark
from producers import events, letters, wire
from producers.changes import Changes
from producers.decoder import EventDecoder
from producers.events import Message
from producers.letters import Letter
from producers.publisher import Publisher
from producers.tracing import CONSUMER, OFF, Tracing, sampled
from tiers import failpoint, record
from tiers.errors import InvalidRecord, NotYet
from tiers.hot import HotMemory
from tiers.index import Index
from tiers.tier import Location, TierName

log = structlog.get_logger()


LETTERS = 256  # dead letters on their way at once
HOT_PART = 8  # a message may take this part of hot: less than evacuation leaves free, so that it will always fit


class Ingest:
    """State by partition: watermark, applied offset, whether the replay is over. `epoch` names the log's incarnation.

    `cleared_below` are offsets below which rows were cleared from hot by an operator: a replay leaves them out.
    """

    def __init__(
        self,
        decoder: EventDecoder,
        shape: pa.Schema,
        hot: HotMemory,
        index: Index,
        publisher: Publisher,
        topics: events.Topics,
        changes: Changes,
        *,
        epoch: int,
        partitions: int,
        watermarks: Mapping[int, Watermark],
        now_ms: Callable[[], int],
        tracing: Tracing = OFF,
    ) -> None:
        self._decoder, self._shape, self._hot, self._index = decoder, shape, hot, index
        self._publisher, self._topics, self._changes = publisher, topics, changes
        self.epoch, self._partitions, self._now_ms = epoch, partitions, now_ms
        self._tracing = tracing
        self.rows_max = min(record.ROW_MAX + 1, max(1, hot.capacity // HOT_PART))
        self.watermarks = watermarks
        self.replay_until: dict[int, int] = {}
        self.cleared_below: dict[int, int] = {}
        self.applied_at: dict[int, int] = {}  # ms, timestamp of the newest applied message
        self.rows = 0
        self.counts, self.marks = IngestCounts(), Marks()
        self.unmet = 0  # conditional deletes that found another version
        self.letters: Counter[str] = Counter()
        self._waiting: defaultdict[int, list[tuple[int, asyncio.Future[None]]]] = defaultdict(list)

    def room(self, partition: int) -> int:
        """Return how many more rows of this partition hot takes."""
        return self._hot.room(partition)

    def rows_in(self, messages: Sequence[Message]) -> list[int]:
        """Return how many rows of hot each message may take."""
        most = self.rows_max
        return [min(rows, most) for rows in wire.rows(messages)]

    async def apply(self, partition: int, messages: Sequence[Message]) -> None:
        """Apply messages in offset order. TierFull, with nothing changed, when hot has no room for all of them."""
        traced = sampled(messages) if self._tracing.on else None
        if not traced:
            await self._apply(partition, messages)
            return
        parents = list(traced.values())
        facts = {"partition": partition, "messages": len(messages)}
        with self._tracing.work("ingest", parents, kind=CONSUMER, facts=facts) as work:
            if work.context is not None:
                self._tracing.remembered.add(partition, list(traced), work.context)
            await self._apply(partition, messages)

    async def _apply(self, partition: int, messages: Sequence[Message]) -> None:
        began, step = time.perf_counter(), self._tracing.step
        place = wire.Place(self.epoch, partition, self._partitions)
        with step("decode"):
            decoded = wire.decode(self._decoder, self._shape, place, messages, self.rows_max)
        counting, conditional = self._conditional(decoded.batch, messages)
        ids = counting["id"].to_pylist()
        new = self._index.unknown(ids)  # nearly always: there is nothing to compare with
        newest = counting if new else record.newest(counting)
        fresh, replayed = (newest, None) if new else self._fresh(newest)
        batch = await self._without_cleared(partition, fresh)
        first, end = messages[0].offset, messages[-1].offset + 1
        with step("append", tier=TierName.HOT.word, rows=batch.num_rows):
            slots = await self._hot.reserve(batch, partition)
            failpoint.reach("ingest.appended")
            self._hot.publish(slots)
            home = np.full(batch.num_rows, partition, np.int32)
            claimed = self._index.claim(ids) if new and batch is counting else None
            known = ids if batch is counting else None
            masked = self._index.put(batch, home, TierName.HOT, slots, self._now_ms(), claimed=claimed, ids=known)
        live = self.ready(partition)
        failpoint.reach("ingest.visible" if live else "replay.visible")
        sent_ms = np.array([message.timestamp_ms for message in messages], np.int64)
        if live:
            self.counts.aged("searchable", sent_ms, self._now_ms())
        self.watermarks[partition].open(first, end, batch.num_rows + len(decoded.letters) + len(replayed or ()))
        self._release(partition, masked, _among(batch, conditional))
        await self._bury(partition, decoded.letters)
        if replayed is not None:
            await self._announce_again(partition, replayed)
            failpoint.reach("replay.announced")
        failpoint.reach("ingest.applied" if live else "replay.applied")
        self.marks.add(partition, first, messages[0].timestamp_ms)
        self._advance(partition, messages[-1])
        if live:
            self.counts.aged("applied", sent_ms, self._now_ms())
        self.rows += batch.num_rows
        unmet = decoded.batch.num_rows - counting.num_rows
        self.unmet += unmet
        self.counts.results.update(
            applied=batch.num_rows,
            superseded=counting.num_rows - newest.num_rows,
            known=newest.num_rows - fresh.num_rows,
            unmet=unmet,
            cleared=fresh.num_rows - batch.num_rows,
            rejected=len(decoded.letters),
        )
        took_ms = (time.perf_counter() - began) * 1000
        bad = len(decoded.letters)
        log.info("batch.ingested", partition=partition, offset=end, rows=batch.num_rows, bad=bad, took_ms=took_ms)

    def _fresh(self, newest: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.RecordBatch | None]:
        """Return what is newer than what the index knows, and what a replay has met again, if anything."""
        fresh = self._index.newer(newest["id"].to_pylist(), record.versions_of(newest))
        if fresh.all():
            return newest, None
        return newest.filter(pa.array(fresh)), newest.filter(pa.array(~fresh))

    def _conditional(self, batch: pa.RecordBatch, messages: Sequence[Message]) -> tuple[pa.RecordBatch, set[int]]:
        """Leave out deletes whose condition is not met: nothing depends on the log for them.

        Also returned are the versions of the deletes that had one.
        """
        deletes = [message for message in messages if message.value is None]
        asked = {m.offset: m for m in deletes if any(name == events.IF_VERSION for name, _ in m.headers)}
        if not asked:
            return batch, set()
        versions = record.versions_of(batch)
        at_offset = zip(versions.tolist(), record.offsets(versions).tolist(), strict=True)
        wanted = {version: events.condition(asked[offset]) for version, offset in at_offset if offset in asked}
        keep = conditions.met(batch["id"].to_pylist(), versions.tolist(), wanted, self._index)
        return batch.filter(pa.array(keep)), set(wanted)

    async def _without_cleared(self, partition: int, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Leave out what was cleared, and announce it again: the life before may have died before it could."""
        versions, below = record.versions_of(batch), self.cleared_below.get(partition, 0)
        keep = record.offsets(versions) >= below
        if not below or keep.all():
            return batch
        ids = batch["id"].filter(pa.array(~keep)).to_pylist()
        await self._changes.publish(partition, TierName.HOT, None, "cleared", ids, versions[~keep], insist=True)
        return batch.filter(pa.array(keep))

    def _release(self, partition: int, masked: list[tuple[TierName, Location]], conditional: Mapping[str, int]) -> None:
        """Drop superseded rows from hot at once, queue those below (R3).

        Those of hot were dirty, and R2 settles them; but a copy was not: its home is below, and settled long ago. What
        a conditional delete (by id: its offset) supersedes stays dirty with it: a replay must find it to decide alike.
        """
        mark = self.watermarks[partition]
        copies = [where.id for tier, where in masked if tier == TierName.HOT and self._hot.copies.holds(where)]
        self._hot.copies.evict(copies, "superseded")
        hot = [where for tier, where in masked if tier == TierName.HOT and where.id not in copies]
        for offset in conditional.values():
            mark.hold(offset, np.zeros(0, np.int64))
        if hot:
            self._hot.evict_now(hot)
            settled = np.array([where.version for where in hot if where.id not in conditional], np.int64)
            mark.settle(record.offsets(settled))
            for where in hot:
                if where.id in conditional:
                    mark.hold(conditional[where.id], record.offsets(np.array([where.version], np.int64)))
        for tier, where in masked:
            if tier != TierName.HOT:
                self._index.queue.add(tier, where)

    async def _bury(self, partition: int, bad: Sequence[Letter]) -> None:
        """Write dead letters and wait for them: while they cannot be written the partition does not go on."""
        for start in range(0, len(bad), LETTERS):
            some = bad[start : start + LETTERS]
            sent = []
            for letter in some:
                key, value, headers = letters.encode(self._topics.memories, partition, letter)
                topic = self._topics.dead_letters
                sent.append(await self._publisher.enqueue(topic, value, key, headers=headers, insist=True))
            for confirmed in sent:
                await confirmed
            failpoint.reach("letters.confirmed")
            self.watermarks[partition].settle(np.array([letter.message.offset for letter in some], np.int64))
            reasons = Counter(letter.error.reason for letter in some)
            self.letters += reasons
            first = some[0].message.offset
            log.warning("events.rejected", partition=partition, offset=first, rows=len(some), reasons=dict(reasons))

    async def _announce_again(self, partition: int, batch: pa.RecordBatch) -> None:
        """Announce replayed rows that lie below already: the life before may have died before it could.

        The watermark waits for the answer: no later life would meet them again.
        """
        by_tier: defaultdict[TierName, list[tuple[str, int]]] = defaultdict(list)
        for identifier, version in zip(batch["id"].to_pylist(), batch["version"].to_pylist(), strict=True):
            entry = self._index.find(identifier)
            if entry is not None and entry.version == version and entry.home != TierName.HOT:
                by_tier[TierName(entry.home)].append((identifier, version))
        for tier, keys in by_tier.items():
            versions = np.array([version for _, version in keys], np.int64)
            ids = [identifier for identifier, _ in keys]
            await self._changes.publish(partition, TierName.HOT, tier, "recovered", ids, versions, insist=True)
        self.watermarks[partition].settle(record.offsets(record.versions_of(batch)))

    # -- what is applied ---------------------------------------------------------------------------------------------

    def _advance(self, partition: int, last: Message) -> None:
        self.applied_at[partition] = last.timestamp_ms
        self._wake(partition)

    def reach(self, partition: int, position: int) -> None:
        """Take note that the log has nothing to hand out below `position`."""
        self.watermarks[partition].skip(position)
        self._wake(partition)

    def _wake(self, partition: int) -> None:
        end = self.watermarks[partition].end
        still = []
        for offset, future in self._waiting[partition]:
            if offset < end and not future.done():
                future.set_result(None)
            elif not future.done():
                still.append((offset, future))
        self._waiting[partition] = still

    def applied(self, partition: int) -> int:
        """Return the offset after the last applied one."""
        return self.watermarks[partition].end

    def ready(self, partition: int) -> bool:
        """Say whether the replay has reached the end of the log as it was at start (R7)."""
        return self.applied(partition) >= self.replay_until.get(partition, 0)

    async def wait(self, positions: Mapping[int, int], timeout_s: float) -> None:
        """Wait until these offsets are applied; NotYet past the timeout, InvalidRecord for a partition not ours."""
        futures = []
        for partition, offset in positions.items():
            if partition not in self.watermarks:
                raise InvalidRecord("token", f"at_least names partition {partition}, which this node does not own")
            if self.applied(partition) <= offset:
                future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiting[partition].append((offset, future))
                futures.append(future)
        try:
            async with asyncio.timeout(timeout_s):
                for future in futures:
                    await future
        except TimeoutError as error:
            raise NotYet(f"the position asked for was not applied within {timeout_s:g} s") from error
        finally:
            for future in futures:
                future.cancel()


def _among(batch: pa.RecordBatch, versions: set[int]) -> dict[str, int]:
    """Return id to offset of the rows of a batch that have one of these versions."""
    if not versions:
        return {}
    pairs = zip(batch["id"].to_pylist(), batch["version"].to_pylist(), strict=True)
    return {identifier: record.unpack_version(version)[1] for identifier, version in pairs if version in versions}
