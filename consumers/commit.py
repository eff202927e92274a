"""Commits watermarks: only them, only with the lease, and remembers what was acknowledged in this life (R2, R5)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

import msgspec
import structlog

from consumers.watermark import Watermark
from producers.ticks import ticks
from tiers import failpoint
from tiers.errors import LogUnavailable

log = structlog.get_logger()


class Commits(Protocol):
    """What can commit offsets."""

    async def commit(self, offsets: Mapping[int, int]) -> None:
        """Commit and wait for the answer."""


class Holds(Protocol):
    """What knows whether a partition is still ours."""

    def check(self, partition: int) -> None:
        """Raise Fenced when it is not."""


class CommitSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often watermarks are committed."""

    interval_ms: int = 500


class Commit:
    """`acknowledged(p)` is the committed offset as this life has read it or had it answered."""

    name = "commit"

    def __init__(
        self, settings: CommitSettings, reader: Commits, lease: Holds, watermarks: Mapping[int, Watermark]
    ) -> None:
        self._settings, self._reader, self._lease, self._watermarks = settings, reader, lease, watermarks
        self._committing = asyncio.Lock()
        self._acknowledged = {partition: mark.value for partition, mark in watermarks.items()}

    def acknowledged(self, partition: int) -> int:
        """Return the offset below which no replay of this log can start."""
        return self._acknowledged[partition]

    async def run(self, stop: asyncio.Event) -> None:
        """Commit until stopped."""
        async for _ in ticks(stop, self._settings.interval_ms):
            try:
                await self.step()
            except LogUnavailable as error:  # a later commit covers this one; until then more would be replayed
                log.warning("offsets.uncommitted", error=str(error))

    async def step(self) -> int:
        """Commit the watermarks that have advanced; returns how many.

        One at a time: of two commits on their way the lower could land last, below what was acknowledged (R5).
        """
        async with self._committing:
            ahead = {p: m.value for p, m in self._watermarks.items() if m.value > self._acknowledged[p]}
            if ahead:
                failpoint.reach("commit.due")
            for partition in ahead:
                self._lease.check(partition)
            if ahead:
                failpoint.reach("commit.checked")
                await self._reader.commit(ahead)
                failpoint.reach("commit.answered")
                self._acknowledged |= ahead
                log.info("offsets.committed", offsets=ahead)
            return len(ahead)
