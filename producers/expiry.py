"""Expiry: a record past its `expires_at` is deleted by a tombstone on the log, like any other deletion (R5).

The tombstone is conditional on the version that was seen to be due, so that an update on its way wins. Reads leave the
record out from the moment that it is due; the tombstone is what frees its room. Written again if it has had no effect.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import numpy as np
import structlog

from producers import events
from producers.publisher import Publisher
from producers.ticks import ticks
from tiers.errors import LogUnavailable
from tiers.index import Index
from tiers.segment import NEVER, Segment

log = structlog.get_logger()

SOURCE = "isotherm/expiry"


class ExpirySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often the index is asked, how many tombstones may be on their way, and when one is written again."""

    interval_ms: int = 1_000
    rows_max: int = 1_000
    ask_again_s: float = 10.0


class Due(NamedTuple):
    """A version of an id whose time has come."""

    id: str
    version: int
    partition: int


class Expiry:
    """`run` looks every `interval_ms`; `expire` is one look. `ready` says which partitions are ours and up to date."""

    name = "expiry"

    def __init__(
        self,
        settings: ExpirySettings,
        index: Index,
        publisher: Publisher,
        topic: str,
        ready: Callable[[int], bool],
        now_ms: Callable[[], int],
    ) -> None:
        self._settings, self._index, self._publisher, self._topic = settings, index, publisher, topic
        self._ready, self._now_ms = ready, now_ms
        self._written: dict[Due, int] = {}  # on their way: when they were written, ms
        self.written = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Expire until stopped."""
        async for _ in ticks(stop, self._settings.interval_ms):
            try:
                await self.expire()
            except LogUnavailable as error:  # the records stay out of sight; they are written of again
                log.warning("expiry.deferred", error=str(error))

    async def expire(self) -> int:
        """Write the tombstones of what is due now; returns how many."""
        due = self.due(self._now_ms())
        sent = []
        for one in due:
            headers = events.condition_headers(SOURCE, one.id, one.version)
            key = one.id.encode()
            sent.append(await self._publisher.enqueue(self._topic, None, key, one.partition, headers))
        for confirmed in sent:
            await confirmed
        self.written += len(due)
        return len(due)

    def due(self, now_ms: int) -> list[Due]:
        """Return what to write tombstones of, and take note that they are on their way. One loop step."""
        again_ms = now_ms - int(self._settings.ask_again_s * 1000)
        self._written = {one: at for one, at in self._written.items() if at > again_ms and self._is_newest(one)}
        room = self._settings.rows_max - len(self._written)
        found: list[Due] = []
        for segment in self._index.segments():
            if len(found) >= room:
                break
            found += self._in(segment, now_ms)[: room - len(found)]
        self._written |= dict.fromkeys(found, now_ms)
        return found

    def _in(self, segment: Segment, now_ms: int) -> list[Due]:
        """Return what is due in a segment, is not on its way, and lies in a partition that is up to date."""
        due = segment.due(now_ms)
        if due is None:
            return []
        n = segment.count
        living = segment.alive[:n] & ~segment.deleted[:n]
        rows = np.flatnonzero(due & living)
        if not len(rows):  # so that a segment is looked through again when its next row is due, not before
            later = segment.expires_at[:n][living & (segment.expires_at[:n] > 0)]
            segment.soonest = int(later.min(initial=NEVER))
        listed = zip(rows.tolist(), segment.version[rows].tolist(), segment.partition[rows].tolist(), strict=True)
        found = (Due(segment.ids[row], version, partition) for row, version, partition in listed)
        return [one for one in found if one not in self._written and self._ready(one.partition)]

    def _is_newest(self, one: Due) -> bool:
        entry = self._index.find(one.id)
        return entry is not None and entry.version == one.version
