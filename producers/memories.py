"""MemoryProducer: how Python programs write memories. Any other Kafka client can do the same (see events.Event)."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa

from producers import columns, events, judge
from producers.decoder import check_vector
from producers.publisher import UNKNOWN_OFFSET, KafkaSettings, Position, Publisher
from producers.tracing import OFF, Tracing, published, publishing
from tiers import record
from tiers.errors import InvalidRecord, LogUnavailable
from tiers.record import Floats

SOURCE = "isotherm/python"


class MemoryProducer:
    """Publishes upserts and deletes; each call answers with a token for read-your-writes (`at_least`).

    Use it as an async context manager. `publisher` lets a node share its own connection; `rows_max` is of a message.
    Where a span is recording, each message has one of its own, and its `traceparent`: by `tracing`, else by the
    program's global provider.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        publisher: Publisher | None = None,
        *,
        epoch: int = 0,
        rows_max: int = columns.BATCH_ROWS,
        tracing: Tracing = OFF,
    ) -> None:
        self._own = publisher is None
        self._publisher = publisher if publisher is not None else Publisher(settings)
        self._topic = events.Topics.under(settings.prefix).memories
        self._epoch, self._rows_max, self._tracing = epoch, rows_max, tracing
        self._run, self._count = uuid.uuid4().hex, itertools.count()  # together the CloudEvents id of each event

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

    async def publish(
        self, identifier: str, value: bytes | None, kind: str = events.JSON_TYPE
    ) -> asyncio.Future[Position]:
        """Publish an event encoded as `kind` (JSON or msgpack), or None to delete, without waiting."""
        key = record.check_id(identifier).encode()
        return await self._enqueue(value, key, None, kind)

    async def send_batch(self, batch: pa.RecordBatch) -> str:
        """Publish every row of a batch, many to a message, and wait for the broker; returns the token of all.

        The columns are those of `producers.columns` (the record columns are among them; `version` is ignored), a row
        with `deleted` is a delete, and of an id that comes twice the last row wins. All rows are checked before any is
        sent: InvalidRecord names the first bad row. LogUnavailable: some rows may be in the log all the same.
        """
        return await self.send_rows(_checked(batch))

    async def send_rows(self, rows: pa.RecordBatch) -> str:
        """Publish rows that `columns.read` returned and `judge` has judged; see `send_batch`."""
        count = await self._publisher.partitions(self._topic)
        home = record.partitions(rows["id"].view(pa.string()), count)
        futures = []
        for number in np.unique(home).tolist():
            for value in columns.messages(rows.take(pa.array(np.flatnonzero(home == number))), self._rows_max):
                futures.append(await self._enqueue(value, None, number, events.ARROW_TYPE))
        return self.token(await asyncio.gather(*futures))

    async def _enqueue(
        self, value: bytes | None, key: bytes | None, partition: int | None, kind: str
    ) -> asyncio.Future[Position]:
        headers = events.event_headers(SOURCE, f"{self._run}-{next(self._count)}", kind)
        span = publishing(self._tracing, self._topic, headers)
        sent = await self._publisher.enqueue(self._topic, value, key, partition, headers)
        if span is not None:
            sent.add_done_callback(partial(published, span))
        return sent

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


def _checked(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the rows as they will be sent; InvalidRecord names the first that is bad."""
    columns.check_schema(batch.schema)
    try:
        rows = columns.plain(batch)
    except pa.ArrowException as error:
        raise InvalidRecord("arrow", f"the batch is not valid: {error}") from error
    _, faults = judge.judge(rows, columns.dim_of(rows), None, time.time_ns() // 1_000_000)
    for at, fault in faults.items():
        raise InvalidRecord(fault.reason, f"row {at}: {fault}")
    return rows
