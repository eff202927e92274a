"""Folds reads into access events: in memory, bounded, off the read path, lost harmlessly (R11)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import msgspec
import numpy as np
import pyarrow as pa

from producers import events
from producers.publisher import Publisher
from producers.ticks import ticks
from tiers import record
from tiers.errors import LogUnavailable
from tiers.tier import Hit, TierName


class AccessSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Reads are folded for `flush_ms`; beyond `ids_max` distinct ids in that time, further ids are not counted."""

    flush_ms: int = 1_000
    ids_max: int = 50_000


class Access:
    """`note` is called for every answer; `run` publishes the fold."""

    name = "access"

    def __init__(
        self, settings: AccessSettings, publisher: Publisher, topic: str, partitions: int, now_ms: Callable[[], int]
    ) -> None:
        self._settings, self._publisher, self._topic = settings, publisher, topic
        self._partitions, self._now_ms = partitions, now_ms
        self._counts: Counter[str] = Counter()
        self._last: dict[str, tuple[int, int]] = {}
        self.uncounted = 0
        self.reads: Counter[TierName] = Counter()  # records returned, by the tier they were read in
        self.copy_reads = 0  # of those of hot: from copies

    def note(self, hits: Iterable[Hit], is_copy: Callable[[str], bool] = lambda _: False) -> None:
        """Count one access of each hit; no I/O. `is_copy` says which ids have a copy in hot."""
        now = self._now_ms()
        for hit in hits:
            identifier, tier = hit.row.id, hit.tier
            self.note_one(identifier, tier, now, copied=tier is TierName.HOT and is_copy(identifier))

    def note_one(self, identifier: str, tier: TierName, now_ms: int, *, copied: bool) -> None:
        """Count one access; `copied`: of a copy in hot."""
        self.reads[tier] += 1
        self.copy_reads += copied
        if identifier not in self._last and len(self._last) >= self._settings.ids_max:
            self.uncounted += 1
            return
        self._counts[identifier] += 1
        self._last[identifier] = (now_ms, int(tier))

    async def run(self, stop: asyncio.Event) -> None:
        """Flush every `flush_ms` until stopped."""
        async for _ in ticks(stop, self._settings.flush_ms):
            await self.flush()

    async def flush(self) -> None:
        """Publish the fold, one message a partition; what cannot be sent is dropped and counted."""
        if not self._counts:
            return
        counts, last = self._counts, self._last
        self._counts, self._last = Counter(), {}
        try:
            await self._publish(counts, last)
        except LogUnavailable:
            self.uncounted += len(counts)

    async def hint(self, identifier: str, count: int) -> None:
        """Publish at once that a record is wanted, as if read `count` times: how an operator promotes. LogUnavailable.

        `policy.promote_heat_min` reads are what admission asks for; where copies are short, the hotter stay.
        """
        await self._publish({identifier: count}, {identifier: (self._now_ms(), int(TierName.HOT))})

    async def _publish(self, counts: Mapping[str, int], last: Mapping[str, tuple[int, int]]) -> None:
        ids = list(counts)
        batch = pa.RecordBatch.from_arrays(
            [
                pa.array(ids, pa.string()),
                pa.array([last[i][1] for i in ids], pa.int8()),
                pa.array(list(counts.values()), pa.int32()),
                pa.array([last[i][0] for i in ids], pa.int64()),
            ],
            schema=events.ACCESS,
        )
        partition = record.partitions(batch["id"], self._partitions)
        for number in np.unique(partition).tolist():
            part = batch.filter(pa.array(partition == number))
            for start in range(0, part.num_rows, 5_000):
                value = events.encode_arrow(part.slice(start, 5_000))
                await self._publisher.send(self._topic, value, partition=number)
