"""Doing something regularly until told to stop: the loop of every service that is not driven by messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator


async def ticks(stop: asyncio.Event, interval_ms: int) -> AsyncIterator[None]:
    """Yield every `interval_ms` (counted from the end of the step before) until `stop` is set, at once then."""
    while not stop.is_set():
        try:
            async with asyncio.timeout(interval_ms / 1000):
                await stop.wait()
        except TimeoutError:
            yield
