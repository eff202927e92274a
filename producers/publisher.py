"""The one way into Kafka: an idempotent, acks=all producer whose every answer is checked.

aiokafka reports success with offset -1 for a message that the broker had already (DUPLICATE_SEQUENCE): such an answer
proves that the message is in the log but not where, so `send` never builds a position from it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, Self

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError, KafkaError

from tiers.errors import LogUnavailable, ServiceMissing

UNKNOWN_OFFSET = -1


class KafkaSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`prefix` names the topics and the consumer group; all four keyed topics have `partitions` partitions."""

    bootstrap: str = "127.0.0.1:9092"
    prefix: str = "isotherm"
    partitions: int = 8
    replication: int = 1
    linger_ms: int = 2
    batch_bytes: int = 262_144
    send_timeout_s: float = 30.0

    @classmethod
    def from_environment(cls) -> KafkaSettings:
        """Return the defaults with ISOTHERM_KAFKA__BOOTSTRAP and ISOTHERM_KAFKA__PREFIX applied."""
        fields = {name: os.environ.get(f"ISOTHERM_KAFKA__{name.upper()}") for name in ("bootstrap", "prefix")}
        partitions = os.environ.get("ISOTHERM_KAFKA__PARTITIONS")
        given = {name: value for name, value in fields.items() if value}
        return cls(**given, **({"partitions": int(partitions)} if partitions else {}))  # type: ignore[arg-type]


class Position(NamedTuple):
    """Where a message landed; `offset` is UNKNOWN_OFFSET when the broker confirmed it without saying where."""

    partition: int
    offset: int


class Publisher:
    """Sends bytes to topics; one instance a process is enough."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.settings = settings
        self._producer = AIOKafkaProducer(
            bootstrap_servers=settings.bootstrap,
            acks="all",
            enable_idempotence=True,
            linger_ms=settings.linger_ms,
            max_batch_size=settings.batch_bytes,
            max_request_size=1_048_576,
            request_timeout_ms=int(settings.send_timeout_s * 1000),
        )

    async def __aenter__(self) -> Self:
        """Connect; ServiceMissing names the broker when it does not answer."""
        try:
            await self._producer.start()
        except KafkaConnectionError as error:
            await self._producer.stop()
            raise missing(self.settings.bootstrap) from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Flush what was sent and disconnect."""
        await self._producer.stop()

    async def partitions(self, topic: str) -> int:
        """Return how many partitions a topic has; LogUnavailable when the broker does not say."""
        try:
            return len(await self._producer.partitions_for(topic))
        except KafkaError as error:
            raise LogUnavailable(f"{topic}: {error!r}") from error

    async def enqueue(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> asyncio.Future[Position]:
        """Queue a message (waits while the buffer is full); the future ends when the broker has confirmed it."""
        try:
            sent = await self._producer.send(topic, value=value, key=key, partition=partition, headers=list(headers))
        except KafkaError as error:
            raise LogUnavailable(f"{topic}: {error!r}") from error
        return asyncio.ensure_future(self._confirmed(topic, sent))

    async def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> Position:
        """Send one message and wait until all in-sync replicas have it; LogUnavailable past the deadline."""
        return await (await self.enqueue(topic, value, key, partition, headers))

    async def _confirmed(self, topic: str, sent: asyncio.Future[object]) -> Position:
        try:
            async with asyncio.timeout(self.settings.send_timeout_s):
                answer = await asyncio.shield(sent)
        except (KafkaError, TimeoutError) as error:
            raise LogUnavailable(f"{topic}: {error!r}") from error
        return Position(answer.partition, answer.offset)  # type: ignore[attr-defined]


def missing(bootstrap: str) -> ServiceMissing:
    """Return the error for a broker that does not answer."""
    return ServiceMissing(
        f"Kafka does not answer at {bootstrap}; start it, or name another with kafka.bootstrap "
        "(ISOTHERM_KAFKA__BOOTSTRAP). `isotherm up` runs a local one"
    )
