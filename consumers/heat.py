"""Applies access events to the index: advice, by id, harmless when late, repeated or lost."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from producers import events
from producers.events import Message
from tiers.errors import InvalidRecord
from tiers.index import Index

log = structlog.get_logger()


class Heat:
    """Handler of the access topic."""

    def __init__(self, index: Index, half_life_s: float) -> None:
        self._index, self._half_life_ms = index, half_life_s * 1000

    async def apply(self, partition: int, messages: Sequence[Message]) -> None:
        """Add the accesses of these messages."""
        for message in messages:
            try:
                batch = events.decode_arrow(message.value, events.ACCESS)
            except InvalidRecord as error:
                log.warning("advice.rejected", topic="access", partition=partition, reason=str(error))
                continue
            ids, counts, last = (batch[name].to_pylist() for name in ("id", "count", "last"))
            self._index.touch(ids, counts, last, self._half_life_ms)
