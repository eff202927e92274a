"""MemoryProducer: how Python programs write memories. Any other Kafka client can do the same (see events.Event)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import msgspec
import numpy as np
import pyarrow as pa

from producers import events
from producers.decoder import check_vector
from producers.publisher import UNKNOWN_OFFSET, KafkaSettings, Position, Publisher
from tiers import record
from tiers.errors import InvalidRecord, LogUnavailable
from tiers.record import Floats

SOURCE = "isotherm/python"


class MemoryProducer:
    """Publishes upserts and deletes; each call answers with a token for read-your-writes (`at_least`).

    Use it as an async context manager. `publisher` lets a node share its own connection.
    """

    def __init__(self, settings: KafkaSettings, publisher: Publisher | None = None, *, epoch: int = 0) -> None:
        self._own = publisher is None
        self._publisher = publisher if publisher is not None else Publisher(settings)
        self._topic = events.Topics.under(settings.prefix).memories
        self._epoch = epoch

    @classmethod
    def from_settings(cls, settings: KafkaSettings | None = None) -> MemoryProducer:
        """Return a producer for these settings, else for the environment's (ISOTHERM_KAFKA__BOOTSTRAP, …)."""
        return cls(settings if settings is not None else KafkaSettings.from_environment())

    async def __aenter__(self) -> Self:
        """Connect."""
        if self._own:
            await self._publisher.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Flush and disconnect."""
        if self._own:
            await self._publisher.__aexit__(kind, error, trace)

    async def send(
        self,
        identifier: str,
        vector: Floats,
        payload: Any = None,
        attributes: Mapping[str, Any] | None = None,
        event_time: datetime | None = None,
        ttl_s: float | None = None,
    ) -> str:
        """Publish one record and wait for the broker; returns its token.

        `vector` is float32[dim]; `payload` anything that JSON can say; InvalidRecord, LogUnavailable.
        """
        return self.token([await (await self.enqueue(identifier, vector, payload, attributes, event_time, ttl_s))])

    async def enqueue(
        self,
        identifier: str,
        vector: Floats,
        payload: Any = None,
        attributes: Mapping[str, Any] | None = None,
        event_time: datetime | None = None,
        ttl_s: float | None = None,
    ) -> asyncio.Future[Position]:
        """Publish without waiting; the future says where the record landed."""
        vector = check_vector(np.asarray(vector, np.float32), len(vector))
        value = events.encode_event(vector, payload, attributes, event_time, ttl_s)
        return await self.publish(identifier, value)

    async def publish(self, identifier: str, value: bytes | None) -> asyncio.Future[Position]:
        """Publish an encoded event, or None to delete, without waiting."""
        key = record.check_id(identifier).encode()
        return await self._publisher.enqueue(self._topic, value, key, headers=events.event_headers(SOURCE))

    async def send_batch(self, batch: pa.RecordBatch) -> str:
        """Publish every row of a batch with the record columns; returns the token of all.

        `version` is ignored, `expires_at` becomes the time to live from the event on. InvalidRecord before anything of
        the row is sent, LogUnavailable.
        """
        futures = []
        for row in record.rows_of(batch):
            value = None if row.vector is None else self._value(row.vector, row)
            futures.append(await self.publish(row.id, value))
        return self.token(await asyncio.gather(*futures))

    @staticmethod
    def _value(vector: Floats, row: record.Row) -> bytes:
        try:
            payload = msgspec.json.decode(row.payload) if row.payload else None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidRecord("payload", f"{row.id!r}: a payload on a JSON event is JSON itself") from error
        event_time = datetime.fromtimestamp(row.event_time / 1000, UTC)
        ttl_s = (row.expires_at - row.event_time) / 1000 if row.expires_at is not None else None
        return events.encode_event(vector, payload, row.attributes, event_time, ttl_s)

    async def delete(self, identifier: str) -> str:
        """Publish a delete and wait for the broker; returns its token."""
        return self.token([await (await self.publish(identifier, None))])

    def token(self, positions: list[Position]) -> str:
        """Return the token that covers these positions; LogUnavailable when the broker did not say where one is."""
        if any(position.offset == UNKNOWN_OFFSET for position in positions):
            raise LogUnavailable(
                "the broker confirmed a message without its position: it is in the log, without a token"
            )
        highest: dict[int, int] = {}
        for partition, offset in positions:
            highest[partition] = max(offset, highest.get(partition, offset))
        return events.encode_token(highest, self._epoch)
