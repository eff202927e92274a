"""The only poll loop: one aiokafka consumer over the node's partitions of memories, access and age.

Its settings are frozen, because the defaults lose data (reliability §1): assigned partitions, no auto-commit, no
automatic reset, `getmany` only. Positions are ours: memories start at the committed watermark, advice at the end. While
a partition is paused polling goes on: it has no room, or what was polled of it is not applied within a moment (`late`).
Whatever is unexpected is raised and ends the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from operator import attrgetter
from types import TracebackType
from typing import Protocol, Self

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaError, OffsetOutOfRangeError
from aiokafka.structs import ConsumerRecord, OffsetAndMetadata

from consumers import log_faults, recognition
from consumers.late import Late
from consumers.witness import Witnesses
from producers.events import Message
from producers.publisher import KafkaSettings
from producers.security import FORBIDDEN, forbidden, unreachable
from tiers.errors import LogUnavailable, TierFull

log = structlog.get_logger()

POLL_MS = 100  # bounds how late a stop is seen; data is handed over as soon as there is any
RECORDS_MAX = 2_000  # messages a poll; with the fetch size it bounds what is decoded in one step
ALONE_ROWS = 256  # of a message that is a step alone: joined with others its vectors would be copied once more
FETCH_BYTES = 8 * 1024 * 1024
_PARTS = attrgetter("key", "value", "headers", "timestamp", "offset")  # of a record, in the order of Message
_message = partial(tuple.__new__, Message)  # without a call of Python, which Message(...) and Message._make are


class Handler(Protocol):
    """What applies messages of one topic."""

    async def apply(self, partition: int, messages: Sequence[Message]) -> None:
        """Apply messages of one partition, in order; TierFull with nothing changed asks for a pause."""


class Log(Protocol):
    """What is told of the memories topic beside its messages, and says whether a paused partition may go on."""

    def room(self, partition: int) -> int:
        """Return how many rows fit."""

    def rows_in(self, messages: Sequence[Message]) -> list[int]:
        """Return how many rows each message may become: no more than hot can ever make room for."""

    def reach(self, partition: int, position: int) -> None:
        """Take note that there is nothing to hand out below `position`."""


class Reader:
    """Polls `topics` (name to handler) on the owned partitions; `memories` is the topic with committed offsets."""

    name = "reader"

    def __init__(
        self,
        settings: KafkaSettings,
        partitions: Sequence[int],
        memories: str,
        handlers: Mapping[str, Handler],
        log: Log,
        slab_rows: int,
    ) -> None:
        self._settings, self._memories, self._handlers = settings, memories, handlers
        self._partitions, self._log, self._step_rows = list(partitions), log, min(RECORDS_MAX, slab_rows)
        self._wanted: dict[int, int] = {}  # rows that a partition without room waits to have room for
        self._late = Late[TopicPartition]()
        self._witnesses = Witnesses()
        self._next: dict[TopicPartition, int] = {}  # the offset after the last one applied
        self.polls = 0
        self._group = f"{settings.prefix}.node"
        self._consumer = AIOKafkaConsumer(
            **settings.client(),
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="none",
            max_poll_records=RECORDS_MAX,
            fetch_max_bytes=FETCH_BYTES,
            isolation_level="read_committed",
        )

    async def __aenter__(self) -> Self:
        """Connect and take the partitions; ServiceMissing when the broker does not answer."""
        try:
            await self._consumer.start()
        except KafkaConnectionError as error:
            await self._consumer.stop()
            raise await unreachable(self._settings.bootstrap, self._settings.security) from error
        self._consumer.assign([TopicPartition(topic, p) for topic in self._handlers for p in self._partitions])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect without committing."""
        await self._consumer.stop()

    async def seek(self) -> tuple[dict[int, int], dict[int, int]]:
        """Go to where reading starts; returns (start, end) offsets of memories by partition.

        LogChanged when the committed offset is not in the log any more, or not yet: the log is another one.
        """
        memories = [TopicPartition(self._memories, p) for p in self._partitions]
        begins = await self._consumer.beginning_offsets(memories)
        ends = await self._consumer.end_offsets(memories)
        starts: dict[int, int] = {}
        for tp in memories:
            try:
                committed = await self._consumer.committed(tp)
            except FORBIDDEN as error:
                raise forbidden(error, self._settings.bootstrap) from error
            start = begins[tp] if committed is None else committed
            if not begins[tp] <= start <= ends[tp]:
                raise log_faults.outside(tp.topic, tp.partition, start, begins[tp], ends[tp])
            self._consumer.seek(tp, start)
            starts[tp.partition] = start
        advice = [TopicPartition(t, p) for t in self._handlers if t != self._memories for p in self._partitions]
        if advice:
            for tp, end in (await self._consumer.end_offsets(advice)).items():
                self._consumer.seek(tp, end)
        return starts, {tp.partition: ends[tp] for tp in memories}

    @property
    def paused(self) -> set[int]:
        """Partitions of memories that are not read on: hot has no room, or what was polled is not applied yet."""
        return {*self._wanted, *(tp.partition for tp in self._late.waiting if tp.topic == self._memories)}

    async def run(self, stop: asyncio.Event) -> None:
        """Poll until stopped."""
        try:
            while not stop.is_set():
                found = await self._poll()
                self.polls += 1
                for tp, records in found.items():
                    if not await self._late.begin(tp, self._handle(tp, records)):
                        self._consumer.pause(tp)
                        log.warning("partition.late", topic=tp.topic, partition=tp.partition)
                if not found:
                    await self._reach()
                self._resume()
        finally:
            await self._late.close()

    async def _poll(self) -> Mapping[TopicPartition, list[ConsumerRecord]]:
        """Return what has come since, by partition; whatever is wrong with the log ends the process, in words."""
        try:
            found: Mapping[TopicPartition, list[ConsumerRecord]] = await self._consumer.getmany(timeout_ms=POLL_MS)
        except OffsetOutOfRangeError as error:
            ((tp, position),) = error.args[0].items()
            begins, ends = await self._consumer.beginning_offsets([tp]), await self._consumer.end_offsets([tp])
            raise log_faults.outside(tp.topic, tp.partition, position, begins[tp], ends[tp]) from error
        except FORBIDDEN as error:
            raise forbidden(error, self._settings.bootstrap) from error
        except KafkaError as error:
            raise log_faults.unreadable(error) from error
        return found

    async def _reach(self) -> None:
        """Nothing came: where the position has passed offsets without records, the replay may be over all the same."""
        for partition in self._partitions:
            tp = TopicPartition(self._memories, partition)
            if partition not in self.paused:
                self._next[tp] = position = await self._consumer.position(tp)
                self._log.reach(partition, position)

    async def _handle(self, tp: TopicPartition, records: list[ConsumerRecord]) -> None:
        """Hand over what one poll brought of a partition; whatever is logged meanwhile says which it was."""
        with structlog.contextvars.bound_contextvars(topic=tp.topic, partition=tp.partition):
            await self._hand_over(tp, records)

    async def _hand_over(self, tp: TopicPartition, records: list[ConsumerRecord]) -> None:
        """Hand over in steps that fit one slab; where hot has no room, pause the partition at the first row left."""
        messages = list(map(_message, map(_PARTS, records)))
        for step, rows in self._steps(tp.topic, messages):
            try:
                await self._handlers[tp.topic].apply(tp.partition, step)
            except TierFull:
                self._consumer.pause(tp)
                self._consumer.seek(tp, step[0].offset)
                self._wanted[tp.partition] = max(self._step_rows, rows)
                log.warning("partition.paused", partition=tp.partition, offset=step[0].offset, rows=rows)
                return
            self._next[tp] = step[-1].offset + 1
            if tp.topic == self._memories:
                self._witnesses.add(tp.partition, step[-1])
            # Neither a step nor a poll of what is there suspends: searches and fetches would wait.
            await asyncio.sleep(0)

    def _steps(self, topic: str, messages: list[Message]) -> Iterator[tuple[list[Message], int]]:
        """Yield (messages, their rows): as many as have a step's rows, or one message that has more or many."""
        rows = self._log.rows_in(messages) if topic == self._memories else [1] * len(messages)
        start = total = 0
        for at, wanted in enumerate(rows):
            if at > start and (total + wanted > self._step_rows or max(wanted, rows[at - 1]) >= ALONE_ROWS):
                yield messages[start:at], total
                start, total = at, 0
            total += wanted
        if messages:
            yield messages[start:], total

    def _resume(self) -> None:
        """Let partitions go on that were late and are not, or have room for a whole step again."""
        for tp in self._late.ended():
            if tp.topic != self._memories or tp.partition not in self._wanted:
                self._consumer.resume(tp)
        for partition, wanted in list(self._wanted.items()):
            if self._log.room(partition) >= wanted:
                self._consumer.resume(TopicPartition(self._memories, partition))
                del self._wanted[partition]
                log.info("partition.resumed", partition=partition)

    def lag(self) -> dict[tuple[str, int], int]:
        """Return how many offsets of each topic and partition were not applied yet, as far as the broker has said."""
        behind: dict[tuple[str, int], int] = {}
        for tp in self._consumer.assignment():
            end = self._consumer.highwater(tp)
            if end is not None:
                behind[tp.topic, tp.partition] = max(0, end - self._next.get(tp, end))
        return behind

    async def reading(self) -> dict[int, int]:
        """Return what is read next of each partition of memories that is not paused."""
        going = [TopicPartition(self._memories, p) for p in self._partitions if p not in self.paused]
        return {tp.partition: await self._consumer.position(tp) for tp in going}

    async def bounds(self) -> tuple[dict[int, int], dict[int, int]]:
        """Return where the memories topic begins and ends now, by partition; LogUnavailable."""
        memories = [TopicPartition(self._memories, p) for p in self._partitions]
        try:
            begins = await self._consumer.beginning_offsets(memories)
            ends = await self._consumer.end_offsets(memories)
        except KafkaError as error:
            raise LogUnavailable(f"{self._memories}: {error!r}") from error
        return {tp.partition: at for tp, at in begins.items()}, {tp.partition: at for tp, at in ends.items()}

    async def commit(self, offsets: Mapping[int, int]) -> None:
        """Commit watermarks of memories and wait for the answer (R2); LogUnavailable when there is none.

        Each with what is needed to know the log again.
        """
        marks = {
            TopicPartition(self._memories, p): OffsetAndMetadata(offset, self._witnesses.text(p, offset))
            for p, offset in offsets.items()
        }
        try:
            await self._consumer.commit(marks)
        except KafkaError as error:
            raise LogUnavailable(f"offsets were not committed: {error!r}") from error

    async def recognise(self) -> None:
        """Hold what the log has against what the commits say was applied; LogChanged, LogUnavailable."""
        memories = [TopicPartition(self._memories, p) for p in self._partitions]
        for witnessed in await recognition.committed(self._settings, self._group, memories):
            await recognition.compare(self._consumer, witnessed)

    async def positions(self) -> dict[int, tuple[int, int | None, int]]:
        """Return by partition of memories: where the log begins, what is committed (None: nothing), where it ends."""
        memories = [TopicPartition(self._memories, p) for p in self._partitions]
        begins = await self._consumer.beginning_offsets(memories)
        committed = {tp: await self._consumer.committed(tp) for tp in memories}
        ends = await self._consumer.end_offsets(memories)
        return {tp.partition: (begins[tp], committed[tp], ends[tp]) for tp in memories}

    def behind(self, partition: int) -> bool:
        """Say whether the log held more than was handed out when it was last fetched from."""
        tp = TopicPartition(self._memories, partition)
        highwater = self._consumer.highwater(tp)
        return partition in self.paused or (highwater is not None and self._next.get(tp, highwater) < highwater)
