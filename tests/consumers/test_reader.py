"""The one poll loop, on the real broker: where it begins, what it never does by itself, and what ends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiokafka.errors import CorruptRecordException, KafkaError

from consumers.late import PATIENCE_S
from consumers.log_faults import Identity
from consumers.reader import Reader
from pipeline import log_watch
from pipeline.log_watch import STUCK_LOOKS, STUCK_POLLS, LogWatch
from pipeline.stack import Stack
from pipeline.topics import ensure_topics
from producers import KafkaSettings
from producers.events import Message, Topics
from producers.publisher import Publisher
from tests.kafka_admin import commit, committed, delete_before
from tests.nodes import until
from tiers.errors import LogChanged, TierFull

PARTITIONS = 2


@dataclass
class Recorder:
    """A handler and a log: what came, by partition; `full` are partitions without room."""

    offsets: dict[int, list[int]] = field(default_factory=lambda: {p: [] for p in range(PARTITIONS)})
    full: set[int] = field(default_factory=set)
    error: Exception | None = None

    async def apply(self, partition: int, messages: Sequence[Message]) -> None:
        if partition in self.full:
            raise TierFull("no room")
        if self.error is not None:
            raise self.error
        self.offsets[partition] += [message.offset for message in messages]

    def room(self, partition: int) -> int:
        return 0 if partition in self.full else 1_000_000

    def rows_in(self, messages: Sequence[Message]) -> list[int]:
        return [1] * len(messages)

    def reach(self, partition: int, position: int) -> None:
        pass


@pytest.fixture
async def settings(stack: Stack, prefix: str) -> KafkaSettings:
    """Ten messages in each of two partitions of memories, and three of advice."""
    settings = KafkaSettings(bootstrap=stack.kafka, prefix=prefix, partitions=PARTITIONS)
    topics = Topics.under(prefix)
    await ensure_topics(settings, topics)
    async with Publisher(settings) as publisher:
        await publish(publisher, settings, 10)
        for _ in range(3):
            await publisher.send(topics.age, b"old advice", partition=0)
    return settings


async def publish(publisher: Publisher, settings: KafkaSettings, count: int) -> None:
    """Send messages to each partition of memories."""
    for at in range(count):
        for partition in range(PARTITIONS):
            await publisher.send(Topics.under(settings.prefix).memories, b"%d" % at, partition=partition)


def group(settings: KafkaSettings) -> str:
    return f"{settings.prefix}.node"


@asynccontextmanager
async def reading(settings: KafkaSettings, log: Recorder, advice: Recorder) -> AsyncIterator[Reader]:
    """Yield a reader that runs; what it raises is raised at the end."""
    topics = Topics.under(settings.prefix)
    handlers = {topics.memories: log, topics.age: advice}
    stop = asyncio.Event()
    async with Reader(settings, range(PARTITIONS), topics.memories, handlers, log, 100) as reader:
        await reader.seek()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(reader.run(stop))
            try:
                yield reader
            finally:
                stop.set()


async def test_it_begins_at_the_beginning_or_at_what_was_committed_and_commits_nothing(settings: KafkaSettings) -> None:
    """Nothing committed: all of the log; else from there on; advice from its end; and no commit but our own."""
    log, advice = Recorder(), Recorder()
    await commit(settings.bootstrap, group(settings), Topics.under(settings.prefix).memories, {1: 4})
    async with reading(settings, log, advice) as reader:
        await until(lambda: (10, 6) == (len(log.offsets[0]), len(log.offsets[1])))
        polled = reader.polls
        await until(lambda: reader.polls > polled + 2)

    assert {0: list(range(10)), 1: list(range(4, 10))} == log.offsets
    assert [] == advice.offsets[0]
    memories = Topics.under(settings.prefix).memories
    assert {0: None, 1: 4} == await committed(settings.bootstrap, group(settings), memories, PARTITIONS)


async def test_polling_goes_on_while_a_partition_is_paused(settings: KafkaSettings) -> None:
    """Without room in one the other is read; with room again it goes on at the very message that was refused."""
    log = Recorder(full={0})
    async with reading(settings, log, Recorder()) as reader, Publisher(settings) as publisher:
        await until(lambda: reader.paused == {0} and len(log.offsets[1]) == 10)
        polled = reader.polls
        await publish(publisher, settings, 5)
        await until(lambda: len(log.offsets[1]) == 15 and reader.polls > polled + 3)
        assert [] == log.offsets[0]
        log.full.clear()
        await until(lambda: len(log.offsets[0]) == 15)

    assert {p: list(range(15)) for p in range(PARTITIONS)} == log.offsets


async def ended(settings: KafkaSettings, log: Recorder) -> BaseException:
    """Run a reader until it ends by itself, and return why."""
    with pytest.raises(BaseExceptionGroup) as failed:
        await forever(settings, log)
    (error,) = failed.value.exceptions
    return error


async def forever(settings: KafkaSettings, log: Recorder) -> None:
    async with reading(settings, log, Recorder()):
        await asyncio.Event().wait()


async def test_a_position_that_the_log_has_forgotten_is_fatal_and_says_what_to_do(settings: KafkaSettings) -> None:
    """Deleted under a paused reader: out of range when it goes on, never `earliest` or `latest`."""
    memories, log = Topics.under(settings.prefix).memories, Recorder(full={0, 1})

    async def accident() -> None:
        async with reading(settings, log, Recorder()) as reader:
            await until(lambda: len(reader.paused) == PARTITIONS)
            await delete_before(settings.bootstrap, memories, {0: 7})
            log.full.clear()
            await asyncio.Event().wait()

    with pytest.raises(BaseExceptionGroup) as failed:
        await accident()
    (error,) = failed.value.exceptions

    assert isinstance(error, LogChanged)
    assert f"{memories}[0]: reading goes on at offset 0, and the log has [7, 10]" in str(error)
    assert "Raise retention.ms" in str(error)
    assert "isotherm log adopt" in str(error)
    assert [] == log.offsets[0]


async def test_a_handler_that_fails_is_fatal(settings: KafkaSettings) -> None:
    """What applying a message raises is raised: no message is passed over."""
    log = Recorder(error=RuntimeError("a bug"))

    assert "a bug" in str(await ended(settings, log))
    assert {0: [], 1: []} == log.offsets


@pytest.mark.parametrize("error", [CorruptRecordException("Invalid CRC"), KafkaError("something new")])
async def test_what_the_client_cannot_read_is_fatal_and_says_what_to_do(
    settings: KafkaSettings, monkeypatch: pytest.MonkeyPatch, error: KafkaError
) -> None:
    """A damaged batch, an error that nobody knows: the client would go on behind it at the next poll."""

    async def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("aiokafka.AIOKafkaConsumer.getmany", failing)
    found = await ended(settings, Recorder())

    assert isinstance(found, LogChanged)
    assert "the log cannot be read on" in str(found)
    assert "kafka-dump-log.sh" in str(found)


@dataclass
class Quiet:
    """A reader that polls, of which one partition is handed nothing."""

    polls: int = 0
    paused: frozenset[int] = frozenset()

    async def reading(self) -> dict[int, int]:
        return {p: 5 for p in range(PARTITIONS) if p not in self.paused}

    async def bounds(self) -> tuple[dict[int, int], dict[int, int]]:
        return {0: 0, 1: 0}, {0: 9, 1: 5}


@pytest.mark.unit
@pytest.mark.parametrize(("polls", "paused", "fatal"), [(STUCK_POLLS, (), True), (0, (), False), (50, (0,), False)])
async def test_a_partition_that_is_never_handed_out_is_fatal(
    monkeypatch: pytest.MonkeyPatch, polls: int, paused: tuple[int, ...], fatal: bool
) -> None:
    """The client repeats a fetch that fails for ever: polled for a minute without a message that is there, it ends.

    Not while it is paused, and not while the node itself did not come to poll.
    """

    async def identified(*_: object) -> Identity:
        return Identity("log", "id", PARTITIONS)

    async def kept(*_: object) -> float:
        return 1.0

    monkeypatch.setattr(log_watch, "identity", identified)
    monkeypatch.setattr(log_watch, "retention_s", kept)
    reader = Quiet(paused=frozenset(paused))
    watch = LogWatch(KafkaSettings(), reader, Identity("log", "id", PARTITIONS))  # type: ignore[arg-type]

    async def look() -> None:
        for _ in range(STUCK_LOOKS + 2):
            reader.polls += polls
            await watch.look()

    if fatal:
        with pytest.raises(LogChanged, match=r"log\[0\]: the log ends at 9, and nothing after offset 5"):
            await look()
    else:
        await look()


@pytest.mark.unit
async def test_an_end_before_what_was_read_is_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that was cut off below what is applied is another log from there on."""

    async def identified(*_: object) -> Identity:
        return Identity("log", "id", PARTITIONS)

    class Cut(Quiet):
        async def bounds(self) -> tuple[dict[int, int], dict[int, int]]:
            return {0: 0, 1: 0}, {0: 9, 1: 3}

    monkeypatch.setattr(log_watch, "identity", identified)
    watch = LogWatch(KafkaSettings(), Cut(), Identity("log", "id", PARTITIONS))  # type: ignore[arg-type]
    watch._looks = 1

    with pytest.raises(
        LogChanged, match=r"log\[1\]: reading goes on at offset 5, and the log has \[0, 3\]: it was trun"
    ):
        await watch.look()


async def test_a_partition_whose_messages_take_long_waits_alone(settings: KafkaSettings) -> None:
    """While a handler waits (for a dead letter, say) its partition is paused; the other is read; it goes on after."""
    gate = asyncio.Event()

    class Slow(Recorder):
        async def apply(self, partition: int, messages: Sequence[Message]) -> None:
            if partition == 0:
                await gate.wait()
            await super().apply(partition, messages)

    log = Slow()
    async with reading(settings, log, Recorder()) as reader, Publisher(settings) as publisher:
        await until(lambda: reader.paused == {0})
        await publish(publisher, settings, 5)
        await until(lambda: len(log.offsets[1]) == 15)
        assert ([], {0}) == (log.offsets[0], reader.paused)
        assert reader.behind(0)
        gate.set()
        await until(lambda: len(log.offsets[0]) == 15)

    assert {p: list(range(15)) for p in range(PARTITIONS)} == log.offsets
    assert set() == reader.paused


async def test_what_a_late_handler_raises_is_fatal(settings: KafkaSettings) -> None:
    """A handler that fails after the poll has gone on ends the reader all the same."""

    class Slow(Recorder):
        async def apply(self, partition: int, messages: Sequence[Message]) -> None:
            await asyncio.sleep(PATIENCE_S * 1.2)
            raise RuntimeError("a late bug")

    assert "a late bug" in str(await ended(settings, Slow()))


async def test_a_stop_does_not_wait_for_what_is_late(settings: KafkaSettings) -> None:
    """A handler that waits without end is cancelled by a stop: what it had is read again at the next start."""

    class Endless(Recorder):
        async def apply(self, partition: int, messages: Sequence[Message]) -> None:
            await asyncio.Event().wait()

    async with asyncio.timeout(20), reading(settings, Endless(), Recorder()) as reader:
        await until(lambda: reader.paused == {0, 1})
