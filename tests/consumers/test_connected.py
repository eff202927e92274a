"""A consumer for a block: whenever its user goes, its connections go."""

from __future__ import annotations

import asyncio
import gc

import pytest
from aiokafka.conn import AIOKafkaConnection

from consumers import connected
from producers.publisher import KafkaSettings
from tests.nodes import until
from tiers.errors import ServiceMissing


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Connections that were open when the last reference to them went."""
    found: list[str] = []
    monkeypatch.setattr(AIOKafkaConnection, "__del__", lambda self: self._reader and found.append(repr(self)))
    return found


async def use(settings: KafkaSettings) -> None:
    """Have a consumer, and keep it."""
    async with connected.connected(settings) as consumer:
        await consumer.topics()
        await asyncio.Event().wait()


@pytest.mark.parametrize("insistent", [False, True])
async def test_a_user_cancelled_at_any_moment_leaves_no_connection(stack, left, insistent) -> None:
    """At the start, in the middle of it, or later; cancelled once, or at every await as a gateway's answers are."""
    loop = asyncio.get_running_loop()
    for after_ms in range(40):
        task = asyncio.create_task(use(KafkaSettings(bootstrap=stack.kafka)))
        loop.call_later(after_ms / 2_000, task.cancel)
        while not task.done():
            await asyncio.sleep(0)
            if insistent and task.cancelling():
                task.cancel()
        assert task.cancelled()
    await until(lambda: not connected._closing)
    gc.collect()

    assert [] == left


async def test_a_broker_that_is_not_there_is_named() -> None:
    """ServiceMissing, with the address."""
    with pytest.raises(ServiceMissing, match=r"127\.0\.0\.1:1"):
        await use(KafkaSettings(bootstrap="127.0.0.1:1"))
