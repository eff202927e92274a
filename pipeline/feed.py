"""The change feed of a gateway: one Kafka consumer for all its clients, at the end of the topic.

A client that resumes reads the topic for itself until it has come to where the others are, and then joins them; so many
clients cost one consumer, and a client that was long away costs nobody else anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.structs import ConsumerRecord

from consumers.connected import connected
from consumers.placement import Placement
from consumers.selection import Visible
from consumers.subscribe import REMEMBERED, decode_cursor, encode_cursor, seek
from pipeline.audience import GONE, LOST, STOPPING, Client
from pipeline.problems import TooMany
from pipeline.settings import Settings
from producers import events
from producers.events import Change
from tiers.errors import InvalidRecord, LogUnavailable, ServiceMissing

log = structlog.get_logger()

POLL_MS = 500  # how long it may take to see that nobody listens any more
RETRY_S = 1.0  # between two attempts while Kafka does not answer
_LOST = (KafkaError, ServiceMissing, LogUnavailable)


class ChangeFeed:
    """`run` reads for as long as there are clients; `joined` is a client's stay."""

    def __init__(self, settings: Settings) -> None:
        self._kafka, self._limits = settings.kafka, settings.gateway
        self._topic = events.Topics.under(settings.kafka.prefix).changes
        self._clients: set[Client] = set()
        self._staying = 0  # clients, and those that are about to be
        self.dropped = 0  # refused, or ended by us before the node stops
        self._wanted = asyncio.Event()
        self._connected: asyncio.Future[AIOKafkaConsumer] | None = None
        self._positions: dict[int, int] = {}
        self._placement = Placement(REMEMBERED)
        self._resumes = asyncio.Semaphore(settings.gateway.resumes_max)

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return self._staying

    async def run(self) -> None:
        """Read while there are clients, for ever; when Kafka fails the clients are told, and it is tried again."""
        while True:
            await self._wanted.wait()
            attempt = self._attempt()
            try:
                async with connected(self._kafka) as consumer:
                    self._positions = await seek(consumer, self._topic, self._kafka.partitions, "end")
                    self._placement.clear()
                    attempt.set_result(consumer)
                    while self._staying:
                        self._hand_out(await consumer.getmany(timeout_ms=POLL_MS))
                    self._connected = None  # whoever comes while this one closes gets another
            except _LOST as error:
                log.warning("changes.lost", error=str(error))
                self._lose(attempt, str(error))
                for client in self._clients:
                    client.end(LOST)
                await asyncio.sleep(RETRY_S)
            finally:
                self._lose(attempt, "the node is stopping")

    def end(self) -> None:
        """Tell every client that the node stops."""
        for client in self._clients:
            client.end(STOPPING)

    @asynccontextmanager
    async def joined(self, start: str, visible: Visible) -> AsyncIterator[tuple[Client, Callable[[], Awaitable[None]]]]:
        """Yield a client from `start` on ("beginning", "end" or a cursor), and what has to run for it beside.

        TooMany, InvalidRecord for a cursor that is none (any more), ServiceMissing where Kafka does not answer.
        """
        if self._staying >= self._limits.streams_max:
            self.dropped += 1
            raise TooMany(f"at most {self._limits.streams_max} change streams at once")
        self._staying += 1
        self._wanted.set()
        try:
            consumer = await asyncio.shield(self._attempt())
            begin = await self._begin(consumer, start)
            client = Client(visible, self._limits, encode_cursor(self._positions if begin is None else begin))
            self._clients.add(client)
            if begin is None:
                client.join()
            try:
                yield client, lambda: self._catch_up(client, begin)
            finally:
                self._clients.discard(client)
                self.dropped += client.ended not in (None, GONE, STOPPING)
        finally:
            self._staying -= 1
            if not self._staying:
                self._wanted.clear()

    # -- live ----------------------------------------------------------------------------------------------------------

    def _attempt(self) -> asyncio.Future[AIOKafkaConsumer]:
        """Return the present attempt to connect, or the connection."""
        if self._connected is None:
            self._connected = asyncio.get_running_loop().create_future()
        return self._connected

    def _lose(self, attempt: asyncio.Future[AIOKafkaConsumer], why: str) -> None:
        """Let nobody wait for an attempt that is over."""
        if self._connected is attempt:
            self._connected = None
        if not attempt.done():
            attempt.set_exception(ServiceMissing(f"the changes topic cannot be read: {why}"))
            attempt.exception()  # perhaps nobody waits for it any more

    def _hand_out(self, found: Mapping[TopicPartition, list[ConsumerRecord]]) -> None:
        """Offer changes to every client. One loop step: whoever joins sees all of a poll or none."""
        for tp, records in found.items():
            for message in records:
                self._positions[tp.partition] = message.offset + 1
                change = _read(message, self._placement)
                if change is not None:
                    cursor = encode_cursor(self._positions)
                    for client in self._clients:
                        client.offer(tp.partition, message.offset, change, self._positions, cursor)

    # -- resuming ------------------------------------------------------------------------------------------------------

    async def _begin(self, consumer: AIOKafkaConsumer, start: str) -> dict[int, int] | None:
        """Return where a client begins, None for the end."""
        if start == "end":
            return None
        asked = None if start == "beginning" else decode_cursor(start)
        assigned = [TopicPartition(self._topic, number) for number in range(self._kafka.partitions)]
        try:
            begins = await consumer.beginning_offsets(assigned)
            ends = await consumer.end_offsets(assigned)
        except KafkaError as error:
            raise ServiceMissing(f"the changes topic cannot be read: {error}") from error
        if asked is None:
            return {tp.partition: offset for tp, offset in begins.items()}
        if any(not begins[tp] <= asked.get(tp.partition, -1) <= ends[tp] for tp in assigned):
            raise InvalidRecord("cursor", "the cursor points outside the feed: start at the beginning or the end")
        return {tp.partition: asked[tp.partition] for tp in assigned}

    async def _catch_up(self, client: Client, begin: dict[int, int] | None) -> None:
        """Push what lies between `begin` and the others; then the client has what they have."""
        if begin is None:
            return
        try:
            async with self._resumes, connected(self._kafka) as consumer:
                start = encode_cursor(begin)
                own = await seek(consumer, self._topic, self._kafka.partitions, start)
                ends = await consumer.end_offsets([TopicPartition(self._topic, number) for number in own])
                placement = Placement(REMEMBERED)
                await _push(consumer, client, own, {tp.partition: at for tp, at in ends.items()}, placement)
                goal = dict(self._positions)
                client.hold(goal, own)
                await _push(consumer, client, own, goal, placement)
                client.release(encode_cursor({p: max(at, own[p]) for p, at in goal.items()}))
        except (*_LOST, InvalidRecord) as error:
            log.warning("changes.lost", error=str(error))
            client.end(LOST)


async def _push(
    consumer: AIOKafkaConsumer, client: Client, own: dict[int, int], goal: Mapping[int, int], placement: Placement
) -> None:
    """Push the changes from the positions `own` up to `goal`; `own` moves along."""
    while client.ended is None and (behind := [p for p, at in own.items() if at < goal[p]]):
        topic = next(iter(consumer.assignment())).topic
        assigned = {p: TopicPartition(topic, p) for p in behind}
        found = await consumer.getmany(*assigned.values(), timeout_ms=POLL_MS)
        for tp, records in found.items():
            for message in records:
                if message.offset >= goal[tp.partition]:
                    consumer.seek(tp, goal[tp.partition])  # the rest comes to all, or is read with the next goal
                    break
                own[tp.partition] = message.offset + 1
                change = _read(message, placement)
                if change is not None:
                    await client.push(change, encode_cursor(own))
        for partition, tp in assigned.items():  # what is not there to be read counts too
            own[partition] = max(own[partition], min(goal[partition], await consumer.position(tp)))


def _read(message: ConsumerRecord, placement: Placement) -> Change | None:
    """Return the change, without what moves nothing on; None for what is none."""
    try:
        return placement.advance(events.decode_change(message.value))
    except InvalidRecord as error:  # anyone can write to a topic; the feed outlives it
        log.warning("change.rejected", partition=message.partition, offset=message.offset, error=str(error))
        return None
