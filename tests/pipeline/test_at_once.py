"""Reads by id that are answered in the loop step in which they come: as the routes answer, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from pipeline.edge import LET_IN
from pipeline.log import LogSettings
from pipeline.routes import Gateway
from tests.access import bearer, make_key
from tests.pipeline.hot_gateway import ROWS, Wire, asked, hot_gateway, scope_of, settings_of

pytestmark = pytest.mark.unit

ID = b"x-request-id"


@pytest.fixture
async def gateway(tmp_path: Path) -> Gateway:
    """A gateway over records in hot."""
    return await hot_gateway(settings_of(tmp_path))


@pytest.fixture
def wire(gateway: Gateway) -> Iterator[Wire]:
    """A connection to it."""
    one = Wire(gateway)
    yield one
    one.loop.close()


async def test_it_is_answered_as_the_route_answers(gateway: Gateway) -> None:
    """Status, headers and body, whatever a record has; the id of the request goes with it."""
    for number in range(ROWS):
        at_once = gateway.app.at_once(scope_of(f"/v1/memories/id-{number}", x_request_id="mine-1"))
        assert at_once is not None
        by_route = await asked(gateway, scope_of(f"/v1/memories/id-{number}", x_request_id="mine-1"))

        assert by_route == (at_once.status_code, dict(at_once.raw_headers), bytes(at_once.body))
        assert b"mine-1" == by_route[1][ID]
        assert f"id-{number}" == msgspec.json.decode(bytes(at_once.body))["id"]


async def test_whatever_takes_more_is_left_to_the_route(gateway: Gateway) -> None:
    """Parameters, Arrow, HEAD, another method or path, what is wrong and what is not in hot: nothing is done."""
    one = "/v1/memories/id-3"
    for scope in (
        scope_of(one, query=b"include=vector"),
        scope_of(one, accept="application/vnd.apache.arrow.stream"),
        scope_of(one, content_encoding="gzip"),
        scope_of(one, "HEAD"),
        scope_of(one, "DELETE"),
        scope_of("/v1/memories/absent"),
        scope_of("/v1/memories//a"),
        scope_of("/v1/memories/" + "x" * 600),
        scope_of("/v1/memories/a\n"),
        scope_of("/v1/tiers"),
        scope_of("/nowhere"),
        scope_of(one, origin="http://evil.example"),
    ):
        assert gateway.app.at_once(scope) is None, scope
    assert 0 == sum(gateway._metrics.http.requests.values())
    assert 0 == sum(gateway._manager.node.access.reads.values())
    gateway.edge.stopping = True
    assert gateway.app.at_once(scope_of(one)) is None


async def test_what_was_read_is_counted(gateway: Gateway) -> None:
    """The request, the read and the access, once each, as a route counts them."""
    gateway.app.at_once(scope_of("/v1/memories/id-3"))
    await asked(gateway, scope_of("/v1/memories/id-3"))
    counts, reads = gateway._metrics.http, gateway._manager.reads

    assert {("GET", "/v1/memories/{id:path}", "200"): 2} == counts.requests
    assert 2 == len(reads.queries["get", "hot"]) == reads.lookups["hot", "found"]
    assert {"id-3": 2} == gateway._manager.node.access._counts


async def test_a_node_that_logs_each_request_answers_by_the_route(tmp_path: Path) -> None:
    """There the line is written."""
    settings = msgspec.structs.replace(settings_of(tmp_path), log=LogSettings(level="debug"))

    assert (await hot_gateway(settings)).app.at_once(scope_of("/v1/memories/id-3")) is None


async def test_a_key_counts_once(tmp_path: Path) -> None:
    """Its rate holds, a request that goes on to the route takes no second token, and nothing stays under way."""
    settings = settings_of(tmp_path)
    key = bearer(make_key(settings, rate_per_s=0.001, burst=3, concurrent=1))
    others = bearer(make_key(settings, "elsewhere"))
    gateway = await hot_gateway(settings)
    absent = scope_of("/v1/memories/absent", **key)

    assert gateway.app.at_once(scope_of("/v1/memories/id-1", **key)) is not None
    assert gateway.app.at_once(absent) is None
    assert LET_IN in absent
    assert 404 == (await asked(gateway, absent))[0]
    assert gateway.app.at_once(scope_of("/v1/memories/id-2", **key)) is not None
    refused = scope_of("/v1/memories/id-2", **key)
    assert gateway.app.at_once(refused) is None
    assert 429 == (await asked(gateway, refused))[0]
    assert gateway.app.at_once(scope_of("/v1/memories/id-1")) is None
    assert gateway.app.at_once(scope_of("/v1/memories/id-1", **others)) is None  # not of its namespaces
    assert 404 == (await asked(gateway, scope_of("/v1/memories/id-1", **others)))[0]


# -- on the wire -------------------------------------------------------------------------------------------------------


def test_it_is_one_write_and_no_task(wire: Wire) -> None:
    """Head and body together, and the connection goes on."""
    first, second = wire.get("/v1/memories/id-1"), wire.get("/v1/memories/id-2")

    assert (b"HTTP/1.1 200 OK\r\n", True) == (first[:17], b'{"id":"id-2"' in second)
    assert (2, [], False) == (len(wire.transport.written), wire.loop.tasks, wire.transport.closed)


def test_those_that_come_together_are_answered_one_a_turn(wire: Wire) -> None:
    """In order, and others come in between: a client that sends thousands keeps nobody waiting."""
    head = "GET /v1/memories/id-{} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    wire.protocol.data_received("".join(head.format(n) for n in range(3)).encode())
    for n in range(3):
        assert n == len(wire.transport.written)
        wire.loop.turn()
        assert b'{"id":"id-%d"' % n in wire.transport.written[-1]
    assert [] == wire.loop.tasks


def test_who_does_not_read_is_not_answered_at_once(wire: Wire) -> None:
    """What was written before waits; more would only be kept."""
    wire.protocol.pause_writing()

    assert (b"", 1) == (wire.get("/v1/memories/id-1"), len(wire.loop.tasks))


def test_a_connection_that_is_not_kept_is_closed(wire: Wire) -> None:
    """By `Connection: close`, or by HTTP/1.0, and the answer says so."""
    answer = wire.get("/v1/memories/id-1", "Connection: close\r\n")

    assert (True, True) == (b"\r\nconnection: close\r\n" in answer, wire.transport.closed)


def test_whoever_has_gone_is_not_written_to(wire: Wire) -> None:
    """The connection may end before the loop step does."""
    wire.protocol.data_received(b"GET /v1/memories/id-1 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    wire.protocol.connection_lost(None)
    wire.loop.turn()

    assert [] == wire.transport.written
