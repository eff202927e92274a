"""How near the watermark is to where Kafka has forgotten: what lies between is durable nowhere else (R1, R2).

Asked beside the reader, every ten seconds, and never waited for: a broker that does not answer leaves the old numbers.
"""

from __future__ import annotations

import asyncio
import math

import structlog
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError

from consumers.connected import held
from consumers.reader import Reader
from producers.publisher import KafkaSettings
from producers.ticks import ticks
from tiers.errors import LogUnavailable

log = structlog.get_logger()

EVERY_MS = 10_000
ANSWER_S = 5.0
RETENTION_EVERY = 60  # looks, so ten minutes: a topic's configuration hardly ever changes


class LogWatch:
    """`begins` and `ends` by partition; `retention_s` None until the broker has said, and where it may not be asked."""

    name = "log-watch"

    def __init__(self, settings: KafkaSettings, reader: Reader, memories: str) -> None:
        self._settings, self._reader, self._memories = settings, reader, memories
        self.begins: dict[int, int] = {}
        self.ends: dict[int, int] = {}
        self.retention_s: float | None = None
        self._looks = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Look at once, and then until stopped."""
        await self.look()
        async for _ in ticks(stop, EVERY_MS):
            await self.look()

    async def look(self) -> None:
        """Ask the broker once."""
        try:
            async with asyncio.timeout(ANSWER_S):
                self.begins, self.ends = await self._reader.bounds()
                if self._looks % RETENTION_EVERY == 0:
                    self.retention_s = await retention_s(self._settings, self._memories)
                self._looks += 1
        except (LogUnavailable, KafkaError, TimeoutError) as error:
            log.warning("log.unwatched", error=repr(error))


async def retention_s(settings: KafkaSettings, topic: str) -> float | None:
    """Return how long a topic keeps a message, math.inf for ever, None where we may not ask."""
    admin = AIOKafkaAdminClient(**settings.client())
    async with held(admin.start, admin.close):
        answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    for answer in answers:
        for code, _, _, _, entries in answer.resources:
            for name, value, *_ in entries if code == 0 else ():
                if name == "retention.ms":
                    return math.inf if int(value) < 0 else int(value) / 1000
    return None
