"""The change stream over real HTTP and Kafka: shared, filtered, resumed, bounded, and ended with a word."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest

from consumers.selection import Selection
from pipeline.feed import ChangeFeed
from pipeline.settings import Settings, load
from pipeline.stack import Stack
from producers.changes import Changes
from tests.live import Live, live
from tests.nodes import small
from tiers import record
from tiers.errors import ServiceMissing
from tiers.tier import TierName

BOUNDS = {
    "gateway__streams_max": 30,
    "gateway__stream_events_max": 200,
    "gateway__stream_stall_s": 60.0,
    "gateway__stream_keepalive_s": 0.3,
    "gateway__resumes_max": 2,
}
IDS = [f"{space}/{n}" for n in range(2) for space in ("a", "b")]


@pytest.fixture(scope="module")
def settings_of(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A node with small bounds, its records at rest."""
    return small(stack, "t-streams", tmp_path_factory.mktemp("node"), policy__hot_age_s=3_600.0, **BOUNDS)


@pytest.fixture(scope="module")
def node(settings_of: Settings) -> Iterator[Live]:
    """The node."""
    with live(settings_of) as node:
        yield node


class Event(msgspec.Struct):
    """One server-sent event; a block without data moves only the id."""

    id: str = ""
    name: str = ""
    data: Any = None


@contextmanager
def stream(address: str, start: str | None = None, **parameters: str) -> Iterator[Iterator[Event]]:
    """Open a stream and yield its events, keep-alives among them."""
    headers = {"last-event-id": start} if start else {}
    with (
        httpx.Client(base_url=address, timeout=20) as http,
        http.stream("GET", "/v1/changes", params=parameters, headers=headers) as response,
    ):
        assert 200 == response.status_code, response.read()
        events = parsed(response.iter_lines())
        next(events)  # retry, and the id to resume at: from here on nothing is missed
        yield events


def parsed(lines: Iterator[str]) -> Iterator[Event]:
    """Yield events as the specification of server-sent events reads them."""
    event = Event()
    for line in lines:
        name, _, value = line.partition(": ")
        if name == "id":
            event.id = value
        elif name == "event":
            event.name = value
        elif name == "data":
            event.data = json.loads(value)
        elif not line:
            yield event
            event = Event(id=event.id)


def announce(node: Live, *numbers: int, ids: list[str] | None = None, source: TierName = TierName.HOT) -> None:
    """Announce a move for each number, all in partition 0, with the number as version."""
    inner = node.memory.node
    changes = Changes(inner.publisher, inner.topics.changes, lambda: 1)
    named = ids or IDS
    for n in numbers:
        versions = np.full(len(named), record.pack_version(0, n), np.int64)
        node.do(changes.publish(0, source, TierName.WARM, "age", named, versions))


def numbers(events: Iterator[Event], count: int) -> list[int]:
    """Return the numbers of the next changes."""
    found: list[int] = []
    while len(found) < count:
        event = next(events)
        if event.name == "change":
            found.append(int(event.data["versions"][0].split(".")[1]))
    return found


def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait for a condition; the assertion is the failure."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_all_clients_share_one_consumer_and_see_the_same(node: Live) -> None:
    """Twenty streams, one connection to Kafka of theirs, each with every change in order."""
    opened: list[object] = []
    feed = node.gateway.feed
    with httpx.Client(base_url=node.address, timeout=20) as http:
        streams = [http.stream("GET", "/v1/changes") for _ in range(20)]
        responses = [each.__enter__() for each in streams]
        events = [parsed(each.iter_lines()) for each in responses]
        for each in events:
            next(each)
            opened.append(node.call(lambda: feed._connected))
        announce(node, 1, 2, 3)
        assert [[1, 2, 3]] * 20 == [numbers(each, 3) for each in events]
        for each in streams:
            each.__exit__(None, None, None)
    assert 1 == len({id(each) for each in opened})
    until(lambda: node.call(lambda: feed.streams) == 0)
    until(lambda: node.call(lambda: feed._connected) is None)


def test_a_stream_shows_what_it_is_asked_for(node: Live) -> None:
    """By tier, reason, kind and namespace; an id moves on over what is not shown."""
    with (
        stream(node.address, tiers="cold,glacier") as cold,
        stream(node.address, namespaces="b", reasons="age,idle", kinds="home") as spaced,
        stream(node.address, reasons="pressure") as nothing,
    ):
        announce(node, 11)
        announce(node, 12, source=TierName.COLD)
        assert [12] == numbers(cold, 1)
        event = next(each for each in spaced if each.name == "change")
        assert (["b/0", "b/1"], ["0.11.0"] * 2) == (event.data["ids"], event.data["versions"])
        quiet = [next(nothing) for _ in range(3)]
    assert {""} == {each.name for each in quiet}, "keep-alives only"
    with stream(node.address, quiet[-1].id) as resumed:
        announce(node, 13)
        assert [13] == numbers(resumed, 1), "the keep-alive's id was past what was not shown"


def test_a_stream_resumes_exactly_after_the_id(node: Live) -> None:
    """What came meanwhile, and then what comes: each once, in order, however many resume at once."""
    with stream(node.address) as events:
        announce(node, 21, 22)
        first = next(each for each in events if each.name == "change")
    announce(node, 23, 24)
    got: list[list[int]] = []

    def resume() -> None:
        with stream(node.address, first.id) as events:
            got.append(numbers(events, 5))

    clients = [threading.Thread(target=resume) for _ in range(5)]
    for each in clients:
        each.start()
    announce(node, 25, 26)
    for each in clients:
        each.join(20)
    assert [[22, 23, 24, 25, 26]] * 5 == got


def test_the_past_may_be_longer_than_what_may_wait(node: Live) -> None:
    """A client that catches up is not dropped for it: the past waits in the log; live changes follow on."""
    announce(node, *range(31, 31 + 450))
    with stream(node.address, **{"from": "beginning"}) as events:
        announce(node, 999)
        seen = []
        while not seen or seen[-1] != 999:
            seen += numbers(events, 1)
    assert list(range(31, 481)) == [n for n in seen if 31 <= n < 481]


def test_a_client_that_reads_too_slowly_is_told_and_dropped(node: Live) -> None:
    """At the bound of what may wait: `dropped`, with the id to resume at, and nothing lost by resuming."""
    with socket.socket() as connection:
        connect(connection, node)
        until(lambda: node.call(lambda: len(node.gateway.feed._clients)) == 1)
        (client,) = node.call(lambda: list(node.gateway.feed._clients))
        flood(node, 1_000)
        until(lambda: client.ended is not None)
        text = received(connection)
    until(lambda: node.call(lambda: node.gateway.feed.streams) == 0)
    events = list(parsed(iter(text.splitlines())))
    last = events[-1]
    assert ("dropped", "slow") == (last.name, last.data["reason"])
    seen = [each for each in events if each.name == "change"]
    assert len(seen) < 400
    with stream(node.address, last.data["resume"]) as rest:
        assert [1_000 + len(seen)] == numbers(rest, 1)


def test_a_client_that_takes_nothing_is_cut_off(node: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no way to tell it: within the stall's bound the connection is reset."""
    settings = node.gateway._settings
    hasty = msgspec.structs.replace(settings.gateway, stream_stall_s=0.5)
    monkeypatch.setattr(node.gateway, "_settings", msgspec.structs.replace(settings, gateway=hasty))
    with socket.socket() as connection:
        connect(connection, node)
        until(lambda: node.call(lambda: len(node.gateway.feed._clients)) == 1)
        flood(node, 3_000)
        until(lambda: node.call(lambda: node.gateway.feed.streams) == 0)
        with pytest.raises(ConnectionResetError):
            received(connection)


def connect(connection: socket.socket, node: Live) -> None:
    """Ask for the stream over a socket that can take little."""
    host, port = node.address.removeprefix("http://").split(":")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    connection.settimeout(20)
    connection.connect((host, int(port)))
    connection.sendall(b"GET /v1/changes HTTP/1.1\r\nhost: localhost\r\n\r\n")


def flood(node: Live, begin: int) -> None:
    """Announce more than a socket and the bound can hold: 600 changes of 20 KB."""
    ids = [f"a/{'x' * 450}{n}" for n in range(40)]
    inner = node.memory.node
    changes = Changes(inner.publisher, inner.topics.changes, lambda: 1)

    async def work() -> None:
        versions = [np.full(len(ids), record.pack_version(0, n), np.int64) for n in range(begin, begin + 600)]
        await asyncio.gather(*(changes.publish(0, TierName.HOT, TierName.WARM, "age", ids, each) for each in versions))

    node.do(work())


def received(connection: socket.socket) -> str:
    """Return all that comes of an answer's body."""
    parts = []
    while part := connection.recv(65_536):
        parts.append(part)
    body, text = b"".join(parts).partition(b"\r\n\r\n")[2], b""
    while body:  # chunk by chunk
        size, _, body = body.partition(b"\r\n")
        text, body = text + body[: int(size, 16)], body[int(size, 16) + 2 :]
    return text.decode()


def test_streams_are_bounded(node: Live) -> None:
    """One too many is a 429 that says when to ask again."""
    with httpx.Client(base_url=node.address, timeout=20) as http:
        streams = [http.stream("GET", "/v1/changes") for _ in range(30)]
        try:
            events = [parsed(each.__enter__().iter_lines()) for each in streams]  # one let go closes its connection
            for each in events:
                next(each)
            refused = http.get("/v1/changes")
            assert (429, "urn:isotherm:too-many-streams") == (refused.status_code, refused.json()["type"])
            assert "1" == refused.headers["retry-after"]
        finally:
            for each in streams:
                each.__exit__(None, None, None)


def test_a_cursor_that_is_none_of_ours_is_a_400(node: Live) -> None:
    """Before the stream begins: nonsense, another count of partitions, beyond the end."""
    with httpx.Client(base_url=node.address, timeout=20) as http:
        for start in ("nonsense", "0:1", "0:999999,1:0,2:0,3:0", "0:-1,1:0,2:0,3:0", "9" * 5_000):
            response = http.get("/v1/changes", headers={"last-event-id": start})
            assert (400, "cursor") == (response.status_code, response.json()["field"]), start[:30]


def test_a_strangers_message_on_the_topic_ends_no_stream(node: Live) -> None:
    """No JSON, and ids without their versions."""
    inner = node.memory.node
    bad = (
        b'{"kind":"home","from":null,"to":"hot","reason":"x","policy":"p","at":1,"ids":["a","b"],"versions":["0.1.0"]}'
    )
    with stream(node.address) as events:
        for value in (b"{", bad):
            node.do(inner.publisher.send(inner.topics.changes, value, partition=0))
        announce(node, 5_001)
        assert [5_001] == numbers(events, 1)


async def test_without_kafka_a_stream_is_refused(stack: Stack) -> None:
    """ServiceMissing, which is a 503, and not a stream that breaks."""
    feed = ChangeFeed(load(None, {}, {"kafka.bootstrap": "127.0.0.1:1"}))
    async with asyncio.TaskGroup() as group:
        running = group.create_task(feed.run())
        with pytest.raises(ServiceMissing):
            async with feed.joined("end", Selection()):
                pass
        assert 0 == feed.streams
        running.cancel()


def test_a_stream_ends_with_a_word_at_a_stop_and_resumes_after_the_restart(
    stack: Stack, prefix: str, tmp_path: Path
) -> None:
    """`closing` with the id; the next life of the node goes on after it."""
    settings = small(stack, prefix, tmp_path / "node", policy__hot_age_s=3_600.0, **BOUNDS)
    ended: list[Event] = []
    with live(settings) as node:
        listening = threading.Event()

        def listen() -> None:
            with stream(node.address) as events:
                listening.set()
                for each in events:
                    ended.append(each)  # noqa: PERF402 - the test looks while it goes on

        client = threading.Thread(target=listen)
        client.start()
        listening.wait(10)
        announce(node, 1)
        announce(node, 2)
        until(lambda: sum(each.name == "change" for each in ended) == 2)
    client.join(10)
    changes = [each for each in ended if each.name == "change"]
    assert ("closing", "stopping") == (ended[-1].name, ended[-1].data["reason"])
    assert [1, 2] == [int(each.data["versions"][0].split(".")[1]) for each in changes]
    with live(settings) as node:
        announce(node, 3)
        with stream(node.address, ended[-1].data["resume"]) as events:
            assert [3] == numbers(events, 1)
        with stream(node.address, changes[0].id) as events:
            assert [2, 3] == numbers(events, 2)
