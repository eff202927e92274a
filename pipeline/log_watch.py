"""Whether the log is still the one that is read, and how near the watermark is to where Kafka has forgotten.

Asked beside the reader, every ten seconds, and never waited for: a broker that does not answer leaves the old numbers.
The client library follows a topic by its name, and a fetch that fails in a way it does not know it repeats for ever: a
topic made again, a log cut off, and a partition that is not read on are seen here, and end the process.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping

import structlog
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError

from consumers import log_faults
from consumers.connected import held
from consumers.log_faults import Identity
from consumers.reader import Reader
from pipeline.log_identity import identity
from producers.publisher import KafkaSettings
from producers.ticks import ticks
from tiers.errors import LogChanged, LogUnavailable

log = structlog.get_logger()

EVERY_MS = 10_000
ANSWER_S = 5.0
STUCK_LOOKS, STUCK_POLLS = 6, 20  # a minute; polls between two looks, or it is ours to read on
RETENTION_EVERY = 60  # looks, so ten minutes: a topic's configuration hardly ever changes


class LogWatch:
    """`begins` and `ends` by partition; `retention_s` None until the broker has said, and where it may not be asked."""

    name = "log-watch"

    def __init__(self, settings: KafkaSettings, reader: Reader, memories: Identity) -> None:
        self._settings, self._reader, self._memories = settings, reader, memories
        self._polls, self._unread = 0, dict[int, tuple[int, int]]()  # by partition: position, and looks at it
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
        """Ask the broker once; LogChanged where it says that this is another log."""
        try:
            async with asyncio.timeout(ANSWER_S):
                reading = await self._reader.reading()  # before the ends: a log only grows
                self.begins, self.ends = await self._reader.bounds()
                found = await identity(self._settings, self._memories.topic)
                if self._looks % RETENTION_EVERY == 0:
                    self.retention_s = await retention_s(self._settings, self._memories.topic)
                self._looks += 1
            self._recognise(found, reading)
        except (LogUnavailable, KafkaError, TimeoutError) as error:
            log.warning("log.unwatched", error=repr(error))

    def _recognise(self, found: Identity, reading: Mapping[int, int]) -> None:
        topic, known, partitions = self._memories
        if fault := log_faults.fault(found, known, partitions):
            raise LogChanged(fault)
        polled, self._polls = self._reader.polls - self._polls, self._reader.polls
        for partition, position in reading.items():
            end = self.ends[partition]
            if position > end:
                raise log_faults.outside(topic, partition, position, self.begins[partition], end)
            before, looks = self._unread.get(partition, (-1, 0))
            still = position == before and position < end and polled >= STUCK_POLLS
            self._unread[partition] = (position, looks + 1 if still else 0)
            if looks + 1 >= STUCK_LOOKS and still:
                raise log_faults.stuck(topic, partition, position, end, EVERY_MS * STUCK_LOOKS / 1000)


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
