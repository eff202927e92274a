"""What the log says: one JSON object a line, libraries' alike, bound to its request, repeats counted, no records."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import msgspec
import pytest
import structlog

from pipeline import MemoryManager, log
from pipeline.log import Repeats, configure
from pipeline.routes import Gateway
from pipeline.serve import HttpService
from pipeline.settings import LogSettings, Settings
from tests.nodes import DIM, rows


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """The log as it would stand on standard error; everything is set back afterwards."""
    stream, root = io.StringIO(), logging.getLogger()
    handlers, level, before = root.handlers[:], root.level, structlog.get_config()
    monkeypatch.setattr(log, "REPEATS", Repeats())
    configure(LogSettings(level="debug"), stream)
    yield stream
    structlog.configure(**before)
    root.handlers[:], root.level = handlers, level


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    """Return the log's lines."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.unit
def test_our_lines_and_those_of_libraries_look_alike(written):
    """Both are JSON with event, level and timestamp where the log is no terminal, and carry what is bound."""
    with structlog.contextvars.bound_contextvars(request_id="r-1"):
        structlog.get_logger().info("batch.ingested", rows=3)
        logging.getLogger("aiokafka.consumer").warning("Heartbeat failed for %s", "group")

    ours, theirs = lines(written)
    assert ("batch.ingested", "info", 3, "r-1") == tuple(ours[k] for k in ("event", "level", "rows", "request_id"))
    assert ("Heartbeat failed for group", "warning", "aiokafka.consumer", "r-1") == tuple(
        theirs[k] for k in ("event", "level", "logger", "request_id")
    )
    assert {"timestamp"} <= ours.keys() & theirs.keys()


@pytest.mark.unit
def test_a_warning_that_comes_again_is_counted(written):
    """Within ten seconds it is written once; the next one written says how many were left out."""
    now = [100.0]
    repeats = Repeats(lambda: now[0])
    log.REPEATS = repeats
    configure(LogSettings(), written)
    say = structlog.get_logger()
    for _ in range(5):
        say.warning("partition.paused", partition=1)
        logging.getLogger("redis").warning("no answer from %s", "x")
    say.warning("partition.paused", partition=2)
    say.info("batch.ingested")
    say.info("batch.ingested")
    now[0] += 11
    say.warning("partition.paused", partition=1)
    logging.getLogger("redis").warning("no answer from %s", "y")

    found = [(one["event"], one.get("partition"), one.get("repeated")) for one in lines(written)]
    assert [
        ("partition.paused", 1, None),
        ("no answer from x", None, None),
        ("partition.paused", 2, None),
        ("batch.ingested", None, None),
        ("batch.ingested", None, None),
        ("partition.paused", 1, 4),
        ("no answer from y [repeated 4 times]", None, None),
    ] == found
    assert 8 == repeats.suppressed


@pytest.mark.unit
def test_what_is_looked_after_is_bounded():
    """A flood of distinct messages does not grow the memory of them."""
    repeats = Repeats(lambda: 0.0)
    for number in range(5_000):
        repeats.again(number)

    assert len(repeats._said) <= log.KEYS_MAX


@pytest.fixture
async def http(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a ready node that logs every request."""
    settings = msgspec.structs.replace(settings, log=LogSettings(level="debug"))
    service = HttpService(settings)
    async with MemoryManager.open(settings, service) as memory:
        service.gateway = Gateway(memory)
        await memory.ready()
        async with httpx.AsyncClient(base_url=service.address, timeout=10) as client:
            yield client


async def test_a_request_has_one_id_everywhere(written: io.StringIO, http: httpx.AsyncClient) -> None:
    """A plain id of the client's goes through; else one is made; it is in the answer, the problem and the log."""
    given = await http.get("/v1/memories/absent", headers={"x-request-id": "mine-1"})
    made = await http.get("/healthz", headers={"x-request-id": "not plain; <really>"})
    await http.get("/v1/memories/absent", headers={"x-request-id": "x" * 129})

    assert (404, "mine-1", "mine-1") == (
        given.status_code,
        given.headers["x-request-id"],
        given.json()["request_id"],
    )
    assert 32 == len(made.headers["x-request-id"])
    answered = [one for one in lines(written) if one["event"] == "request.answered"]
    assert {"request_id": "mine-1", "route": "/v1/memories/{id:path}", "status": 404}.items() <= answered[0].items()
    assert answered[1]["request_id"] == made.headers["x-request-id"]
    assert "x" * 129 != answered[2]["request_id"]


async def test_a_fault_has_its_id_in_the_problem_and_its_reason_in_the_log_alone(
    written: io.StringIO, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 500 says where to look, and nothing of what went wrong."""

    async def broken(*_: object) -> None:
        raise RuntimeError("a secret of ours")

    monkeypatch.setattr(MemoryManager, "retrieve", broken)
    answer = await http.post("/v1/search", json={"vector": [1.0] * DIM}, headers={"x-request-id": "r-500"})

    assert (500, "urn:isotherm:internal", "r-500") == (
        answer.status_code,
        answer.json()["type"],
        answer.json()["request_id"],
    )
    assert "r-500" == answer.headers["x-request-id"]
    assert "secret" not in answer.text
    failed = next(one for one in lines(written) if one["event"] == "request.failed")
    assert ("r-500", True) == (failed["request_id"], "a secret of ours" in failed["error"])


async def test_the_work_of_a_record_is_in_the_log_but_the_record_is_not(
    written: io.StringIO, settings: Settings
) -> None:
    """One line a poll, with topic and partition; never an id, a payload or a vector."""
    async with MemoryManager.open(settings) as memory:
        await memory.ready()
        (row,) = rows(1)
        token = await memory.store([row])
        from pipeline import Query

        await memory.retrieve(Query(ids=[row.id], at_least=token))

    ingested = [one for one in lines(written) if one["event"] == "batch.ingested"]
    assert [(1, f"{settings.kafka.prefix}.memories")] == [(one["rows"], one["topic"]) for one in ingested]
    assert isinstance(ingested[0]["partition"], int)
    assert "id-0" not in written.getvalue()
