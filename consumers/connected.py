"""A Kafka consumer without a group, for as long as a block lasts, and not a moment longer.

aiokafka leaves a connection open when its start or its stop is cancelled, and a gateway's answer is cancelled at every
await once its client is gone. So neither runs in the caller's task: the start is finished before the stop, and the stop
goes on when nobody waits for it any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaConnectionError

from producers.publisher import KafkaSettings
from producers.security import unreachable

CLOSE_S = 2.0  # waited for; a broker that answers nothing is left to the task

_closing: set[asyncio.Task[None]] = set()  # a task that nothing refers to may be collected while it runs


@asynccontextmanager
async def connected(settings: KafkaSettings, **options: Any) -> AsyncIterator[AIOKafkaConsumer]:
    """Yield a consumer that commits nothing and chooses no position by itself; ServiceMissing."""
    consumer = AIOKafkaConsumer(
        **settings.client(), enable_auto_commit=False, auto_offset_reset="none", group_id=None, **options
    )
    try:
        async with held(consumer.start, consumer.stop):
            yield consumer
    except KafkaConnectionError as error:
        raise await unreachable(settings.bootstrap, settings.security) from error


@asynccontextmanager
async def held(
    start: Callable[[], Coroutine[Any, Any, None]], stop: Callable[[], Awaitable[None]]
) -> AsyncIterator[None]:
    """Start a client of aiokafka for a block, in a task of its own, and stop it in one that is never cancelled."""
    starting = asyncio.create_task(start(), name="client-start")
    try:
        await asyncio.shield(starting)
        yield
    finally:
        closing = asyncio.create_task(_close(stop, starting), name="client-stop")
        _closing.add(closing)
        closing.add_done_callback(_closing.discard)
        done, _ = await asyncio.wait({closing}, timeout=CLOSE_S)  # does not cancel it
        for each in done:
            each.result()


async def _close(stop: Callable[[], Awaitable[None]], starting: asyncio.Task[None]) -> None:
    await asyncio.wait({starting})
    if not starting.cancelled():
        starting.exception()  # whoever waited for it has had it
    await stop()
