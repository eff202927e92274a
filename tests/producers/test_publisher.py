"""A message that must arrive is waited for, is not doubled, and is given up only where no waiting mends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from aiokafka import TopicPartition
from aiokafka import errors as kafka
from aiokafka.producer.message_accumulator import MessageAccumulator
from aiokafka.producer.transaction_manager import TransactionManager

from producers import publisher as publisher_module
from producers.publisher import KafkaSettings, Position, Publisher
from tiers.errors import LogRefused, LogUnavailable

pytestmark = pytest.mark.unit

#: What aiokafka raises when it has given a message up, and may take the next.
GIVEN_UP = [kafka.KafkaTimeoutError(), kafka.LeaderNotAvailableError(), kafka.NotLeaderForPartitionError()]
REFUSED = [kafka.MessageSizeTooLargeError(), kafka.TopicAuthorizationFailedError(), kafka.OutOfOrderSequenceNumber()]


class Client:
    """AIOKafkaProducer: `answers` are one a message, an error or what becomes of it later."""

    def __init__(self, *answers: Exception | asyncio.Future[Position]) -> None:
        self._answers: Iterator[Exception | asyncio.Future[Position]] = iter(answers)
        self.sent = 0

    async def send(self, *_: object, **__: object) -> asyncio.Future[Position]:
        self.sent += 1
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer


Over = Callable[[Client], Publisher]


@pytest.fixture
def over(monkeypatch: pytest.MonkeyPatch) -> Over:
    """Make a publisher over a client, that waits for a hundredth of a second, and tries again at once."""
    monkeypatch.setattr(publisher_module, "AGAIN_S", 0.0)

    def made(client: Client) -> Publisher:
        monkeypatch.setattr(publisher_module, "AIOKafkaProducer", lambda **_: client)
        return Publisher(KafkaSettings(send_timeout_s=0.01))

    return made


def future(answer: Exception | None = None) -> asyncio.Future[Position]:
    """Return an answer that comes later, or that has come and says what went wrong."""
    made = asyncio.get_running_loop().create_future()
    if answer is not None:
        made.set_exception(answer)
    return made


async def test_past_the_deadline_a_message_is_unavailable(over: Over) -> None:
    """Who does not insist is told after `send_timeout_s`."""
    with pytest.raises(LogUnavailable) as raised:
        await over(Client(future())).send("t", b"x")
    assert raised.value.retriable


async def test_a_message_that_must_arrive_is_waited_for_and_sent_once(over: Over) -> None:
    """Past the deadline the client still has it: sent once more it would be twice in the log."""
    answer = future()
    client = Client(answer)
    sent = await over(client).enqueue("t", b"x", insist=True)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(sent), 0.1)
    answer.set_result(Position(0, 7))

    assert (Position(0, 7), 1) == (await sent, client.sent)


@pytest.mark.parametrize("error", GIVEN_UP)
async def test_what_the_client_has_given_up_is_sent_again(over: Over, error: Exception) -> None:
    """It is in no queue any more, whether it was refused at once or later."""
    answer = future()
    answer.set_result(Position(0, 7))
    client = Client(error, future(error), answer)

    assert Position(0, 7) == await (await over(client).enqueue("t", b"x", insist=True))
    assert 3 == client.sent


@pytest.mark.parametrize("error", REFUSED)
async def test_what_no_waiting_mends_is_refused(over: Over, error: Exception) -> None:
    """It would be waited for without end, and nobody would know why: the process ends and says so."""
    publisher = over(Client(future(error), future(error)))
    with pytest.raises(LogRefused):
        await (await publisher.enqueue("t", b"x", insist=True))
    with pytest.raises(LogRefused):
        await publisher.send("t", b"x")


async def test_a_client_that_the_broker_has_lost_the_thread_of_ends_the_node(over: Over) -> None:
    """No message gets through any more, and another client has numbers of its own: the service fails (R9)."""
    client = Client(future(kafka.LeaderNotAvailableError()), future(kafka.OutOfOrderSequenceNumber()))
    publisher, stop = over(client), asyncio.Event()
    running = asyncio.create_task(publisher.run(stop))
    for error in (LogUnavailable, LogRefused):
        assert not running.done()
        with pytest.raises(error):
            await publisher.send("t", b"x")

    async with asyncio.timeout(10):
        with pytest.raises(LogRefused, match="OutOfOrderSequenceNumber"):
            await running


async def test_a_message_that_is_refused_ends_nothing(over: Over) -> None:
    """It is that message's fault."""
    publisher, stop = over(Client(future(kafka.MessageSizeTooLargeError()))), asyncio.Event()
    running = asyncio.create_task(publisher.run(stop))
    with pytest.raises(LogRefused):
        await publisher.send("t", b"x")
    stop.set()

    await running


async def test_the_library_counts_what_it_gives_up_unsent() -> None:
    """What the service is for: the next message has a number that the broker does not expect. Kept to see it mended."""
    numbers = TransactionManager(None, 1_000)
    numbers.set_pid_and_epoch(1, 0)
    without_leader = SimpleNamespace(leader_for_partition=lambda _: -1)
    waiting = MessageAccumulator(without_leader, 1_000, 0, 0.0, txn_manager=numbers)
    sent = await waiting.add_message(TopicPartition("t", 0), b"key", b"value", 1.0)
    waiting.drain_by_nodes(set())

    assert isinstance(sent.exception(), kafka.LeaderNotAvailableError)
    assert 1 == numbers.sequence_number(TopicPartition("t", 0))
