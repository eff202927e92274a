"""What waits for one client of the change feed: bounded in events and bytes; past a bound the client is dropped."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from consumers.selection import Visible
from consumers.subscribe import encode_cursor
from pipeline.settings import GatewaySettings
from producers import events
from producers.events import Change

SLOW, STOPPING, LOST, GONE = "slow", "stopping", "log-unavailable", "gone"


class Item(NamedTuple):
    """An event that waits; `cursor` resumes after it."""

    cursor: str
    data: bytes


class Client:
    """One client. It is `away` until it has caught up, then its live events are held back, then they come.

    `ended` says why nothing comes any more: SLOW, STOPPING, LOST (Kafka does not answer) or GONE.
    """

    def __init__(self, visible: Visible, limits: GatewaySettings, cursor: str) -> None:
        self._visible, self._limits = visible, limits
        self._ready: deque[Item] = deque()
        self._held: deque[Item] | None = None
        self._after: Mapping[int, int] = {}
        self._ahead = False
        self._filled, self._room = asyncio.Event(), asyncio.Event()
        self._bytes = 0
        self._passed = cursor  # where it stands once nothing waits
        self.away = True
        self.cursor = cursor  # of what was taken last
        self.ended: str | None = None

    @property
    def waiting(self) -> int:
        """How many events wait."""
        return len(self._ready) + len(self._held or ())

    # -- what the feed does ------------------------------------------------------------------------------------------

    def offer(self, partition: int, offset: int, change: Change, positions: Mapping[int, int], cursor: str) -> None:
        """Add a live change, or drop the client where no more may wait."""
        if self.away or self.ended is not None or offset < self._after.get(partition, 0):
            return
        if self._ahead:  # it resumed from further on than the shared consumer had come
            cursor = encode_cursor({p: max(at, self._after.get(p, 0)) for p, at in positions.items()})
        if (shown := self._visible(change)) is not None:
            if self._full():
                self.end(SLOW)
                return
            self._add(self._ready if self._held is None else self._held, cursor, shown)
        if self._held is None:
            self._passed = cursor

    def end(self, reason: str) -> None:
        """Let nothing more come; of a slow client what waits is forgotten."""
        if self.ended is None:
            self.ended = reason
            self._ready.clear()
            self._held = None
            self._filled.set()
            self._room.set()

    # -- catching up -------------------------------------------------------------------------------------------------

    async def push(self, change: Change, cursor: str) -> None:
        """Add an old change once there is room; nothing is dropped, the past waits in the log."""
        while self.ended is None and self._ready and self._full():
            self._room.clear()
            await self._room.wait()
        if self.ended is None and (shown := self._visible(change)) is not None:
            self._add(self._ready, cursor, shown)

    def hold(self, live: Mapping[int, int], own: Mapping[int, int]) -> None:
        """Hold live changes back from now on: those that neither `live` nor `own` positions have passed."""
        self._after = {partition: max(at, own[partition]) for partition, at in live.items()}
        self._ahead = self._after != live
        self._held, self.away = deque(), False

    def release(self, cursor: str) -> None:
        """Let live changes come: everything before them has been pushed."""
        if self._held is not None:
            self._passed = self._held[-1].cursor if self._held else cursor
            self._ready.extend(self._held)
            self._held = None
            self._filled.set()

    def join(self) -> None:
        """Take live changes at once: there is nothing to catch up with."""
        self.away = False

    # -- what the stream does ----------------------------------------------------------------------------------------

    async def take(self, wait_s: float) -> Item | None:
        """Return the next event, None when there was none for so long, or the client has `ended`."""
        if not self._ready and self.ended is None:
            self._filled.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._filled.wait()
            except TimeoutError:
                pass
        if not self._ready:
            if self.ended is None and self._held is None and not self.away:
                self.cursor = self._passed
            return None
        item = self._ready.popleft()
        self._bytes -= len(item.data)
        self._room.set()
        self.cursor = item.cursor
        return item

    def _add(self, to: deque[Item], cursor: str, change: Change) -> None:
        item = Item(cursor, events.encode_change(change))
        to.append(item)
        self._bytes += len(item.data)
        self._filled.set()

    def _full(self) -> bool:
        return self.waiting >= self._limits.stream_events_max or self._bytes >= self._limits.stream_bytes_max
