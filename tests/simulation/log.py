"""Kafka as a node sees it: topics that keep order, offsets that are committed, and both sides of aiokafka.

`Log` survives every crash. `Consumer` stands in for AIOKafkaConsumer under the product's own reader; `Publisher` for
the product's publisher. Messages of one topic and partition land in the order in which they were sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from producers import events
from producers.events import Message, Topics
from producers.publisher import AGAIN_S, Position
from tests.simulation.loop import Loop
from tests.simulation.network import LOG, Network
from tests.tiers.rows import NOW_MS
from tiers import record
from tiers.errors import LogUnavailable

TOPICS = Topics.under("t")
ADVICE = (TOPICS.access, TOPICS.age)


class Record(NamedTuple):
    """What aiokafka hands out of a message."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]
    timestamp: int
    offset: int


class Log:
    """`topics` by (name, partition); `committed` of memories by partition. `appended` is told of each message."""

    def __init__(self, loop: Loop, partitions: int, appended: Callable[[str, int, Message], None]) -> None:
        self._loop, self.partitions, self._appended = loop, partitions, appended
        self.topics: dict[tuple[str, int], list[Message]] = {}
        self.committed: dict[int, int] = {}
        self._waiting: list[asyncio.Future[None]] = []

    def now_ms(self) -> int:
        """The one clock of a simulation, in ms since 1970."""
        return NOW_MS + int(self._loop.now * 1000)

    def of(self, topic: str, partition: int) -> list[Message]:
        """Return a partition's messages; its list grows."""
        return self.topics.setdefault((topic, partition), [])

    def append(self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Any = ()) -> int:
        """Append a message; returns its offset."""
        messages = self.of(topic, partition)
        message = Message(key, value, list(headers), self.now_ms(), len(messages))
        messages.append(message)
        self._appended(topic, partition, message)
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)
        self._waiting.clear()
        return message.offset

    def changed(self) -> asyncio.Future[None]:
        """Return a future of the next message."""
        future = self._loop.create_future()
        self._waiting.append(future)
        return future

    def forget_waiting(self) -> None:
        """Their process has died."""
        self._waiting.clear()

    def changes(self) -> list[tuple[int, events.Change]]:
        """Return what was announced, in order within a partition."""
        return [
            (partition, events.decode_change(message.value))
            for partition in range(self.partitions)
            for message in self.of(TOPICS.changes, partition)
        ]


class Consumer:
    """The part of AIOKafkaConsumer that consumers.reader uses."""

    def __init__(self, log: Log, loop: Loop, network: Network) -> None:
        self._log, self._loop, self._network = log, loop, network
        self._at: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    def assign(self, partitions: list[TopicPartition]) -> None:
        self._at = dict.fromkeys(partitions, 0)

    def assignment(self) -> list[TopicPartition]:
        return list(self._at)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        self._at[tp] = offset

    def pause(self, tp: TopicPartition) -> None:
        self._paused.add(tp)

    def resume(self, tp: TopicPartition) -> None:
        self._paused.discard(tp)

    def highwater(self, tp: TopicPartition) -> int:
        return len(self._log.of(*tp))

    async def position(self, tp: TopicPartition) -> int:
        return self._at[tp]

    async def beginning_offsets(self, tps: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(tps, 0)

    async def end_offsets(self, tps: list[TopicPartition]) -> dict[TopicPartition, int]:
        return {tp: len(self._log.of(*tp)) for tp in tps}

    async def committed(self, tp: TopicPartition) -> int | None:
        found: int | None = await self._network.carry(LOG, "get", lambda: self._log.committed.get(tp.partition))
        return found

    async def commit(self, marks: Mapping[TopicPartition, Any]) -> None:
        offsets = {tp.partition: mark.offset for tp, mark in marks.items()}
        try:
            await self._network.carry(LOG, f"commit {offsets}", lambda: self._log.committed.update(offsets))
        except LogUnavailable as error:
            raise KafkaError(str(error)) from error

    async def getmany(self, timeout_ms: int) -> dict[TopicPartition, list[Record]]:
        found = self._take()
        if not found:
            waiting = self._log.changed()
            timeout = self._loop.call_later(timeout_ms / 1000, _finish, waiting, None)
            await waiting
            timeout.cancel()
            found = self._take()
        return found

    def _take(self) -> dict[TopicPartition, list[Record]]:
        """Return some of what there is: how much a fetch brings is chance."""
        found: dict[TopicPartition, list[Record]] = {}
        for tp in self._at:
            start, messages = self._at[tp], self._log.of(*tp)
            if (
                start >= len(messages)
                or tp in self._paused
                or self._loop.random.random() < 0.2 + self._network.faults.slow
            ):
                continue
            end = start + 1 + self._loop.random.randrange(len(messages) - start)
            found[tp] = [Record(m.key, m.value, m.headers, m.timestamp_ms, m.offset) for m in messages[start:end]]
            self._at[tp] = end
        return found


class Sent:
    """A message on its way; awaited, it is confirmed."""

    def __init__(self, answer: asyncio.Future[Position]) -> None:
        self._answer = answer

    def __await__(self) -> Generator[Any, None, Position]:
        return self._answer.__await__()


class Publisher:
    """See producers.publisher; `life` ends with its process, and with it what the broker had not read yet."""

    def __init__(self, log: Log, loop: Loop, network: Network) -> None:
        self._log, self._loop, self._network = log, loop, network
        self._last: dict[tuple[str, int], float] = {}

    async def enqueue(self, topic, value, key=None, partition=None, headers=(), *, insist=False) -> Sent:
        assert not (key is None and value is None), "aiokafka sends no message without key and value"
        faults, random = self._network.faults, self._loop.random
        await asyncio.sleep(0)
        while faults.out.get(LOG) or random.random() < faults.refused:
            if not insist:
                raise LogUnavailable("the log does not answer")
            await asyncio.sleep(AGAIN_S)
        place = record.partition(key.decode(), self._log.partitions) if partition is None else partition
        answer = self._loop.create_future()
        when = max(self._loop.now + self._network.delay(), self._last.get((topic, place), 0.0) + 1e-6)
        self._last[topic, place] = when
        lost = random.random() < faults.lost and not insist  # asked again, the broker says that it has it
        arrives = self._loop.life, answer, topic, place, key, value, headers, lost
        self._loop.later(when - self._loop.now, self._land, *arrives)
        return Sent(answer)

    def _land(self, life, answer, topic, partition, key, value, headers, lost) -> None:
        if life != self._loop.life and self._loop.random.random() < 0.5:
            self._last[topic, partition] = float("inf")  # nor does what came after it
        if self._last[topic, partition] == float("inf"):
            return
        position = Position(partition, self._log.append(topic, partition, key, value, headers))
        if life == self._loop.life:
            outcome = (_fail, LogUnavailable("no answer")) if lost else (_finish, position)
            self._loop.call_later(self._network.delay(), outcome[0], answer, outcome[1])

    async def send(self, topic, value, key=None, partition=None, headers=()) -> Position:
        return await (await self.enqueue(topic, value, key, partition, headers))


def _finish(answer: asyncio.Future[Any], result: object) -> None:
    if not answer.done():
        answer.set_result(result)


def _fail(answer: asyncio.Future[Any], error: BaseException) -> None:
    if not answer.done():
        answer.set_exception(error)
