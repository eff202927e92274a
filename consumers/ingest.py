"""From messages of the memories topic to rows that a search finds. The only writer of new versions.

One call takes one partition's messages through: decode (bad ones apart) -> newest a key -> what a replay need not
append -> hot -> one loop step that makes them visible and masks what they supersede -> dead letters -> watermark.

A delete may carry a condition (expiry's do): it counts only if the newest version of its id, in the log up to there, is
the one that it names. That is a fold over the log, so a replay decides as the life before did (`conditions.met`).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import structlog

from consumers import conditions
from consumers.watermark import Watermark
from producers import events
from producers.changes import Changes
from producers.decoder import EventDecoder
from producers.events import Message
from producers.publisher import Publisher
from tiers import record
from tiers.errors import InvalidRecord, NotYet
from tiers.hot import HotMemory
from tiers.index import Index
from tiers.record import Row
from tiers.tier import Location, TierName

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Letter:
    """A message that cannot be applied, and why."""

    message: Message
    error: InvalidRecord


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
    ) -> None:
        self._decoder, self._shape, self._hot, self._index = decoder, shape, hot, index
        self._publisher, self._topics, self._changes = publisher, topics, changes
        self._epoch, self._partitions, self._now_ms = epoch, partitions, now_ms
        self.watermarks = watermarks
        self.replay_until: dict[int, int] = {}
        self.cleared_below: dict[int, int] = {}
        self.applied_at: dict[int, int] = {}  # ms, timestamp of the newest applied message
        self.rows = 0
        self.unmet = 0  # conditional deletes that found another version
        self.letters: Counter[str] = Counter()
        self._waiting: defaultdict[int, list[tuple[int, asyncio.Future[None]]]] = defaultdict(list)

    def room(self, partition: int) -> int:
        """Return how many more rows of this partition hot takes."""
        return self._hot.room(partition)

    async def apply(self, partition: int, messages: Sequence[Message]) -> None:
        """Apply messages in offset order. TierFull, with nothing changed, when hot has no room for all of them."""
        began = time.perf_counter()
        rows, letters = self._decode(partition, messages)
        given = record.to_batch(rows, self._shape)
        counting = self._conditional(given, messages)
        batch = record.newest(counting)
        fresh = self._index.newer(batch["id"].to_pylist(), record.versions_of(batch))
        replayed = batch.filter(pa.array(~fresh)) if not fresh.all() else None
        batch = self._without_cleared(partition, batch.filter(pa.array(fresh)) if replayed else batch)
        slots = await self._hot.reserve(batch, partition)
        first, end = messages[0].offset, messages[-1].offset + 1
        self._hot.publish(slots)
        masked = self._index.put(
            batch, np.full(batch.num_rows, partition, np.int32), TierName.HOT, slots, self._now_ms()
        )
        self.watermarks[partition].open(first, end, batch.num_rows + len(letters))
        self._release(partition, masked)
        await self._bury(partition, letters)
        if replayed is not None:
            await self._announce_again(partition, replayed)
        self._advance(partition, messages[-1])
        self.rows += batch.num_rows
        self.unmet += given.num_rows - counting.num_rows
        took_ms = (time.perf_counter() - began) * 1000
        log.info(
            "batch.ingested", partition=partition, offset=end, rows=batch.num_rows, bad=len(letters), took_ms=took_ms
        )

    def _decode(self, partition: int, messages: Sequence[Message]) -> tuple[list[Row], list[Letter]]:
        rows: list[Row] = []
        letters: list[Letter] = []
        origin: list[Message] = []
        for message in messages:
            try:
                rows.append(self._decoder.decode(message, self._epoch))
                origin.append(message)
            except InvalidRecord as error:
                letters.append(Letter(message, error))
        if not rows:
            return rows, letters
        home = record.partitions(pa.array([row.id for row in rows], pa.string()), self._partitions)
        for at in np.flatnonzero(home != partition)[::-1].tolist():
            text = f"the key belongs to partition {home[at]}: use Kafka's default (murmur2) partitioner"
            letters.append(Letter(origin[at], InvalidRecord("wrong_partition", text)))
            del rows[at]
        return rows, letters

    def _conditional(self, batch: pa.RecordBatch, messages: Sequence[Message]) -> pa.RecordBatch:
        """Leave out deletes whose condition is not met: nothing depends on the log for them."""
        asked = {m.offset: m for m in messages if m.value is None and any(n == events.IF_VERSION for n, _ in m.headers)}
        if not asked:
            return batch
        versions = record.versions_of(batch)
        at_offset = zip(versions.tolist(), record.offsets(versions).tolist(), strict=True)
        wanted = {version: events.condition(asked[offset]) for version, offset in at_offset if offset in asked}
        keep = conditions.met(batch["id"].to_pylist(), versions.tolist(), wanted, self._index)
        return batch.filter(pa.array(keep))

    def _without_cleared(self, partition: int, batch: pa.RecordBatch) -> pa.RecordBatch:
        below = self.cleared_below.get(partition, 0)
        keep = record.offsets(record.versions_of(batch)) >= below
        return batch if keep.all() else batch.filter(pa.array(keep))

    def _release(self, partition: int, masked: list[tuple[TierName, Location]]) -> None:
        """Drop superseded rows from hot at once, queue those below (R3).

        Those of hot were dirty, and R2 settles them; but a copy was not: its home is below, and settled long ago.
        """
        copies = [where.id for tier, where in masked if tier == TierName.HOT and self._hot.copies.holds(where)]
        self._hot.copies.evict(copies, "superseded")
        hot = [where for tier, where in masked if tier == TierName.HOT and where.id not in copies]
        if hot:
            self._hot.evict_now(hot)
            versions = np.array([where.version for where in hot], np.int64)
            self.watermarks[partition].settle(record.offsets(versions))
        for tier, where in masked:
            if tier != TierName.HOT:
                self._index.queue.add(tier, where)

    async def _bury(self, partition: int, letters: list[Letter]) -> None:
        """Write dead letters and wait for them: while they cannot be written the partition does not go on."""
        for letter in letters:
            key, value, headers = events.dead_letter(self._topics.memories, partition, letter.message, letter.error)
            await self._publisher.send(self._topics.dead_letters, value, key, headers=headers)
            self.letters[letter.error.reason] += 1
            self.watermarks[partition].settle(np.array([letter.message.offset], np.int64))
            log.warning("event.rejected", partition=partition, offset=letter.message.offset, reason=letter.error.reason)

    async def _announce_again(self, partition: int, batch: pa.RecordBatch) -> None:
        """Announce replayed rows that lie below already: the life before may have died before it could."""
        by_tier: defaultdict[TierName, list[tuple[str, int]]] = defaultdict(list)
        for identifier, version in zip(batch["id"].to_pylist(), batch["version"].to_pylist(), strict=True):
            entry = self._index.find(identifier)
            if entry is not None and entry.version == version and entry.home != TierName.HOT:
                by_tier[TierName(entry.home)].append((identifier, version))
        for tier, keys in by_tier.items():
            versions = np.array([version for _, version in keys], np.int64)
            ids = [identifier for identifier, _ in keys]
            await self._changes.publish(partition, TierName.HOT, tier, "recovered", ids, versions)

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
