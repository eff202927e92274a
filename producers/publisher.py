"""The one way into Kafka: an idempotent, acks=all producer whose every answer is checked.

A client of which the broker has lost the thread is of no use any more: `run`, a service of the node, ends with it. That
comes of aiokafka counting a message that it gave up unsent (a partition without a leader for longer than the deadline):
the next one has a number that the broker does not expect, and so have all after it.

aiokafka reports success with offset -1 for a message that the broker had already (DUPLICATE_SEQUENCE): such an answer
proves that the message is in the log but not where, so `send` never builds a position from it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import msgspec
import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    InvalidProducerEpoch,
    InvalidProducerIdMapping,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    OutOfOrderSequenceNumber,
    ProducerFenced,
    UnknownProducerId,
)

from producers.security import FORBIDDEN, KafkaSecurity, forbidden, missing, unreachable
from tiers.errors import LogRefused, LogUnavailable, SettingsError

log = structlog.get_logger()

UNKNOWN_OFFSET = -1
ENVIRONMENT = "ISOTHERM_KAFKA__"
#: Every message after it fails too: only another client, with numbers of its own, gets on.
BROKEN = (OutOfOrderSequenceNumber, UnknownProducerId, InvalidProducerEpoch, InvalidProducerIdMapping, ProducerFenced)
AGAIN_S = 1.0  # between two tries of a message that must arrive


class KafkaSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`prefix` names the topics and the consumer group; all four keyed topics have `partitions` partitions."""

    bootstrap: str = "127.0.0.1:9092"
    prefix: str = "isotherm"
    partitions: int = 8
    replication: int = 1
    linger_ms: int = 0
    batch_bytes: int = 262_144
    send_timeout_s: float = 30.0

    security: KafkaSecurity = KafkaSecurity()

    @classmethod
    def from_environment(cls) -> KafkaSettings:
        """Return the defaults with ISOTHERM_KAFKA__* applied, as a node takes them; SettingsError for what is wrong."""
        values: dict[str, Any] = {}
        for name, text in os.environ.items():
            if name.startswith(ENVIRONMENT):
                *tables, key = name.removeprefix(ENVIRONMENT).lower().split("__")
                within = values
                for table in tables:
                    within = within.setdefault(table, {})
                within[key] = text
        try:
            return msgspec.convert(values, cls, strict=False)
        except msgspec.ValidationError as error:
            raise SettingsError(f"{ENVIRONMENT}…: {error}") from error

    def client(self) -> dict[str, Any]:
        """Return what every aiokafka client is made with: where the brokers are, and who we are."""
        return {"bootstrap_servers": self.bootstrap, **self.security.options()}


class Position(NamedTuple):
    """Where a message landed; `offset` is UNKNOWN_OFFSET when the broker confirmed it without saying where."""

    partition: int
    offset: int


class Publisher:
    """Sends bytes to topics; one instance a process is enough."""

    name = "publisher"

    def __init__(self, settings: KafkaSettings) -> None:
        self.settings = settings
        self._insisting: set[asyncio.Task[Position]] = set()
        self._broken: LogRefused | None = None
        self._breaks = asyncio.Event()
        self._producer = AIOKafkaProducer(
            **settings.client(),
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
            raise await unreachable(self.settings.bootstrap, self.settings.security) from error
        except FORBIDDEN as error:
            await self._producer.stop()
            raise forbidden(error, self.settings.bootstrap) from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Flush what was sent and disconnect."""
        for task in self._insisting:
            task.cancel()
        await self._producer.stop()

    async def run(self, stop: asyncio.Event) -> None:
        """Wait until stopped; LogRefused when the client is of no use any more (R9)."""
        waits = [asyncio.ensure_future(each.wait()) for each in (stop, self._breaks)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
        if self._broken is not None:
            raise self._broken

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
        *,
        insist: bool = False,
    ) -> asyncio.Future[Position]:
        """Queue a message (waits while the buffer is full); the future ends when the broker has confirmed it.

        LogUnavailable past the deadline. Who insists waits as long as it takes, and is raised LogRefused alone.
        """
        given = {"value": value, "key": key, "partition": partition, "headers": list(headers)}
        if insist:
            task = asyncio.ensure_future(self._insisted(topic, given))
            self._insisting.add(task)
            task.add_done_callback(self._insisting.discard)
            return task
        try:
            sent = await self._producer.send(topic, **given)
        except KafkaError as error:
            raise self._unsent(topic, error) from error
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
            raise self._unsent(topic, error) from error
        return Position(answer.partition, answer.offset)  # type: ignore[attr-defined]

    async def _insisted(self, topic: str, given: Mapping[str, Any]) -> Position:
        """Send until it is confirmed: once more only where the client has given the message up, else it would double.

        The client of an idempotent producer repeats a message that was sent until it has the broker's answer. It gives
        up what it could not send: no leader, no room in its buffer.
        """
        while True:
            try:
                answer = await (await self._producer.send(topic, **given))
            except KafkaError as error:
                if not (unsent := self._unsent(topic, error)).retriable:
                    raise unsent from error
                log.warning("message.awaited", topic=topic, error=repr(error))
                await asyncio.sleep(AGAIN_S)
            else:
                return Position(answer.partition, answer.offset)

    def _unsent(self, topic: str, error: Exception) -> LogUnavailable:
        """Return what to raise: LogRefused for what no waiting mends."""
        if isinstance(error, TimeoutError | KafkaTimeoutError) or getattr(error, "retriable", False):
            return LogUnavailable(f"{topic}: {error!r}")
        refused = LogRefused(f"{topic}: {error!r}")
        if isinstance(error, BROKEN):
            self._broken = refused
            self._breaks.set()
        return refused


__all__ = ["KafkaSettings", "Position", "Publisher", "missing"]
