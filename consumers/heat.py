"""Applies access events to the index: advice, by id, harmless when late, repeated or lost.

What was read is then considered for a copy in hot. A stranger's event cannot heat the future, nor cool anything down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from producers import events
from producers.events import Message
from tiers.errors import InvalidRecord
from tiers.index import Index

log = structlog.get_logger()


class Considers(Protocol):
    """What decides whether rows that were read get a copy in hot."""

    def consider(self, partition: int, ids: Sequence[str]) -> int:
        """Look at these ids, and act on them later."""


class Heat:
    """Handler of the access topic."""

    def __init__(self, index: Index, half_life_s: float, promotion: Considers, now_ms: Callable[[], int]) -> None:
        self._index, self._half_life_ms = index, half_life_s * 1000
        self._promotion, self._now_ms = promotion, now_ms
        self.accesses = 0
        self.results = {"applied": 0, "rejected": 0}  # access events

    async def apply(self, partition: int, messages: Sequence[Message]) -> None:
        """Add the accesses of these messages, and consider what was read."""
        for message in messages:
            try:
                batch = events.decode_arrow(message.value, events.ACCESS)
            except InvalidRecord as error:
                self.results["rejected"] += 1
                log.warning("advice.rejected", topic="access", partition=partition, reason=str(error))
                continue
            ids, counts, last = (batch[name].to_pylist() for name in ("id", "count", "last"))
            now = self._now_ms()
            counts, last = [max(0, count) for count in counts], [min(now, at) for at in last]
            self._index.touch(ids, counts, last, self._half_life_ms)
            self.accesses += sum(counts)
            self.results["applied"] += len(ids)
            self._promotion.consider(partition, ids)
