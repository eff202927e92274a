"""Bad input by foreign clients, through a live node: every letter, every neighbour, and flat memory (R8, R9)."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec
import numpy as np
import pytest
from confluent_kafka import Producer

from consumers.watermark import Watermark
from pipeline import MemoryManager, Query
from pipeline.dead_letters import newest
from pipeline.routes import Gateway
from pipeline.serve import HttpService
from pipeline.settings import Settings
from pipeline.stack import Stack
from producers.events import JSON_TYPE, encode_token
from tests.nodes import DIM, small, until
from tests.pipeline import bad_inputs
from tests.pipeline.bad_inputs import ARROW, ATTRIBUTES, HTTP, KAFKA, Bad, key_in

ROOT = Path(__file__).parents[2]
EVERYTHING = [bad for table in KAFKA.values() for bad in table]
ROUNDS = 12
GROWTH_MAX = 24 * 1024 * 1024  # bytes of resident memory over ROUNDS rounds of everything, after as many to warm up


class Running(NamedTuple):
    """A live node."""

    settings: Settings
    memory: MemoryManager
    address: str


@pytest.fixture
async def running(stack: Stack, prefix: str, tmp_path: Path) -> AsyncIterator[Running]:
    """A node with a gateway, whose records stay hot."""
    settings = small(stack, prefix, tmp_path / "node", policy__hot_age_s=3_600.0, attributes=ATTRIBUTES)
    service = HttpService(settings)
    async with MemoryManager.open(settings, service) as memory:
        service.gateway = Gateway(memory)
        await memory.ready()
        yield Running(settings, memory, service.address)


class Foreign:
    """confluent-kafka as strangers use it: one client that partitions as Java does, one by librdkafka's default."""

    def __init__(self, settings: Settings) -> None:
        common = {"bootstrap.servers": settings.kafka.bootstrap, "message.max.bytes": 100_000_000, "linger.ms": 1}
        self._producers = {
            "murmur2": Producer(common | {"partitioner": "murmur2"}),
            "crc32": Producer(common),
        }
        self._topic = f"{settings.kafka.prefix}.memories"
        self.positions: list[tuple[int, int] | None] = []
        self.failures: list[str] = []

    def send(self, bad: Bad) -> None:
        """Send one message; its position is the next of `positions` once flushed."""
        at = len(self.positions)
        self.positions.append(None)

        def landed(error: Any, message: Any) -> None:
            if error is not None:
                self.failures.append(error.name())
            else:
                self.positions[at] = (message.partition(), message.offset())

        where = {"partition": bad.partition} if isinstance(bad.partition, int) else {}
        headers = [("content-type", bad.kind.encode("latin-1"))] if bad.kind is not None else []
        self._producers["crc32" if bad.partition == "crc32" else "murmur2"].produce(
            self._topic, bad.value, bad.key, headers=headers, timestamp=bad.timestamp_ms, on_delivery=landed, **where
        )
        self._producers["murmur2"].poll(0)

    async def flush(self) -> None:
        """Wait for the broker's answers."""
        for producer in self._producers.values():
            assert 0 == await asyncio.to_thread(producer.flush, 30)


def good(identifier: str, vector: np.ndarray[Any, Any]) -> Bad:
    """Return a good event."""
    return Bad(identifier, "", bad_inputs.event(vector=vector.tolist()), key=identifier.encode())


async def send_everything(foreign: Foreign) -> dict[str, np.ndarray[Any, Any]]:
    """Send each bad message and, behind it in the same partition, a good one; returns the good vectors by id."""
    rng = np.random.default_rng()
    behind: dict[str, np.ndarray[Any, Any]] = {}
    for bad in EVERYTHING:
        foreign.send(bad)
    await foreign.flush()
    for at, position in enumerate(list(foreign.positions)):
        assert position is not None, EVERYTHING[at].name
        identifier = key_in(position[0], f"behind-{at}")
        behind[identifier] = rng.normal(size=DIM).astype(np.float32)
        foreign.send(good(identifier, behind[identifier]))
    await foreign.flush()
    return behind


def ends(foreign: Foreign) -> dict[int, int]:
    """Return the last offset of each partition that was written to."""
    return dict(sorted(p for p in foreign.positions if p is not None))


async def applied(running: Running, foreign: Foreign) -> None:
    """Wait until everything sent is applied and every letter of it is written."""
    ingest = running.memory.node.ingest
    await ingest.wait(ends(foreign), 60)
    await until(lambda: all(mark.dirty == count for mark, count in dirty(running)), 60)


def dirty(running: Running) -> list[tuple[Watermark, int]]:
    """Return each watermark with the rows that lie in hot: what more is dirty are letters not written yet."""
    index, marks = running.memory.node.index, running.memory.node.ingest.watermarks
    homes = Counter(
        partition
        for segment in index.segments()
        for partition in segment.partition[: segment.count][segment.alive[: segment.count]].tolist()
    )
    return [(mark, homes[partition]) for partition, mark in marks.items()]


def expected(foreign: Foreign) -> Counter[tuple[int, int, int | None, str]]:
    """Return (partition, offset, row, reason) of every letter that there must be."""
    return Counter(
        (*position, row, bad.reason)
        for bad, position in zip(EVERYTHING, foreign.positions, strict=False)
        if position is not None
        for row in bad.rows
    )


async def test_every_bad_input_becomes_its_letters_and_nothing_else_is_lost(running: Running) -> None:
    """As many letters as bad rows, each with its reason and place; what lies beside and behind them is found."""
    foreign = Foreign(running.settings)
    behind = await send_everything(foreign)
    assert [] == foreign.failures
    await applied(running, foreign)

    found = await newest(running.settings, 10_000, 10_000)
    said = Counter((one.letter.partition, one.letter.offset, one.letter.row, one.letter.reason) for one in found)
    assert expected(foreign) == said
    assert sum(len(bad.rows) for bad in EVERYTHING) == running.memory.node.ingest.letters.total()

    beside = {name for bad in ARROW for name in bad.good}
    result = await running.memory.retrieve(Query(ids=[*behind, *beside]))
    assert {*behind, *beside} == {hit.row.id for hit in result.hits}
    for identifier, vector in behind.items():
        (hit,) = (await running.memory.retrieve(Query(vector=vector, k=1))).hits
        assert identifier == hit.row.id


async def test_a_letter_holds_what_was_sent(running: Running) -> None:
    """Key, headers and value of a letter are those of the message, byte for byte, however they look."""
    foreign = Foreign(running.settings)
    chosen = [bad for bad in EVERYTHING if bad.rows in ((0,), (None,)) and not bad.good and bad.key != b"bad"][:20]
    for bad in chosen:
        foreign.send(bad)
    await foreign.flush()
    await applied(running, foreign)
    letters = {(one.letter.partition, one.letter.offset): one.letter for one in await newest(running.settings, 99, 999)}

    for bad, position in zip(chosen, foreign.positions, strict=True):
        assert (bad.key, bad.value) == (letters[position].key, letters[position].value), bad.name
        assert [("content-type", bad.kind.encode("latin-1"))] == list(letters[position].headers)


async def test_a_payload_survives_as_it_was_sent(running: Running) -> None:
    """Integers beyond 2^53 and keys that come twice in a payload are there as bytes; an int attribute is exact."""
    payload = b'{"big": 9007199254740993, "a": 1, "a": 2, "huge": 123456789012345678901234567890}'
    value = bad_inputs.text('{VECTOR, "attributes": {"rank": 9007199254740993}, "payload": PAYLOAD}')
    foreign = Foreign(running.settings)
    foreign.send(Bad("", "", value.replace(b"PAYLOAD", payload), JSON_TYPE, b"exact"))
    await foreign.flush()
    token = encode_token(ends(foreign), 0)
    (hit,) = (await running.memory.retrieve(Query(ids=["exact"], at_least=token))).hits

    assert (payload, {"rank": 9007199254740993}) == (hit.row.payload, hit.row.attributes)


def resident() -> int:
    """Return the bytes of memory that this process has."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.timeout(300)
async def test_memory_stays_flat_under_bad_input(running: Running) -> None:
    """Round after round of everything, bombs included, costs no memory that stays."""
    foreign = Foreign(running.settings)
    sizes = []
    for _ in range(2 * ROUNDS):
        foreign.positions.clear()
        for bad in EVERYTHING:
            foreign.send(bad)
        await foreign.flush()
        await applied(running, foreign)
        sizes.append(resident())
    print(f"resident MB by round: {[size // 2**20 for size in sizes]}")  # noqa: T201 - the number to report

    assert sum(len(bad.rows) for bad in EVERYTHING) * 2 * ROUNDS == running.memory.node.ingest.letters.total()
    assert GROWTH_MAX > sizes[-1] - sizes[ROUNDS - 1]


async def test_a_kafka_compression_bomb_is_refused_to_its_producer(running: Running) -> None:
    """8 MB that a producer compressed to less than a KB never enter the log: the broker unpacks and measures it."""
    settings = running.settings
    bomb = Producer(
        {
            "bootstrap.servers": settings.kafka.bootstrap,
            "compression.type": "zstd",
            "message.max.bytes": 100_000_000,
            "message.timeout.ms": 20_000,
        }
    )
    answers: list[str] = []
    bomb.produce(
        f"{settings.kafka.prefix}.memories",
        b"\0" * 8_000_000,
        b"bomb",
        on_delivery=lambda error, _: answers.append(error.name() if error is not None else "taken"),
    )
    assert 0 == await asyncio.to_thread(bomb.flush, 30)
    assert ["MSG_SIZE_TOO_LARGE"] == answers


# -- HTTP ------------------------------------------------------------------------------------------------------------


def ask(address: str, request: bytes, *, half_close: bool) -> tuple[int, dict[str, Any]]:
    """Send bytes to the gateway and return (status, body) of the first answer, (0, {}) when there is none."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        try:
            connection.sendall(request)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            answer = b""
            while part := connection.recv(65_536):
                answer += part
        except (ConnectionResetError, BrokenPipeError):  # it may answer, and close, before it has read everything
            pass
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head:
        return 0, {}
    status = int(head.split()[1])
    return status, msgspec.json.decode(body) if b"problem+json" in head else {}


@pytest.mark.timeout(300)
async def test_a_bad_request_publishes_nothing_and_the_gateway_goes_on(running: Running) -> None:
    """Each answer has its status and names field and position; not one of the memories beside it was published."""
    wrong = []
    async with httpx.AsyncClient(base_url=running.address, timeout=10) as client:
        for bad in HTTP:
            status, problem = await asyncio.to_thread(ask, running.address, bad.request, half_close=bad.status == 0)

            if (bad.status, bad.field, bad.position) != (status, problem.get("field"), problem.get("position")):
                wrong.append((bad.name, status, problem))
            assert 200 == (await client.get("/healthz")).status_code, bad.name
        good = await client.post("/v1/memories", json=bad_inputs.memory("good"))
        answer = await client.get("/v1/memories/good", params={"at_least": good.json()["token"]})

    assert [] == wrong
    assert 200 == answer.status_code
    assert (1, {}) == (running.memory.node.ingest.rows, dict(running.memory.node.ingest.letters))


def test_the_document_holds_the_tables() -> None:
    """docs/bad-input.md is what `python -m tests.pipeline.bad_inputs` prints."""
    assert bad_inputs.render() == (ROOT / "docs" / "bad-input.md").read_text()
