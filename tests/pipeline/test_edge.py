"""What a request meets before its route: paths, methods, parameters, encodings, and the bounds of a head."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from pipeline.stack import Stack
from tests.live import Live, live
from tests.nodes import DIM, small
from tiers.errors import DeviceLost, Fenced, InvalidRecord, OutcomeUnknown, TierUnavailable

LIMIT = 16_384


@pytest.fixture(scope="module")
def node(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A node with small bounds."""
    bounds = {"gateway__request_s": 1.0, "gateway__connections_max": 20, "gateway__answer_bytes_max": 1_048_576}
    with live(small(stack, "t-edge", tmp_path_factory.mktemp("node"), policy__hot_age_s=3_600.0, **bounds)) as node:
        yield node


@pytest.fixture
def http(node: Live) -> Iterator[httpx.Client]:
    """A client of the node."""
    with httpx.Client(base_url=node.address, timeout=10) as http:
        yield http


def raw(node: Live, *parts: bytes, pause_s: float = 0.0) -> tuple[int, dict[str, object], bytes]:
    """Send bytes, read until the other side closes; returns (status, problem, everything)."""
    host, port = node.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        answer = b""
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause_s)
            while got := connection.recv(65_536):
                answer += got
        except (ConnectionResetError, BrokenPipeError):
            pass  # it closed while we were still sending
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head[9:12] or 0), json.loads(body) if body[:1] == b"{" else {}, answer


# -- a node that ends --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OutcomeUnknown("sent"), Fenced("another"), DeviceLost("gone")])
def test_what_ends_the_node_is_a_503(
    node: Live, http: httpx.Client, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Whoever was waiting asks again in a moment: the request was not wrong, and nothing of it is unexpected."""

    async def failing(*_: object) -> None:
        raise error

    monkeypatch.setattr(node.memory, "delete", failing)
    response = http.delete("/v1/memories/x")

    assert (503, "urn:isotherm:stopping") == (response.status_code, response.json()["type"])
    assert ("1", "close") == (response.headers["retry-after"], response.headers["connection"])


@pytest.mark.parametrize(
    ("ending", "error", "status"),
    [
        (True, RuntimeError("cannot schedule new futures after shutdown"), 503),
        (False, RuntimeError("a bug"), 500),
        (True, InvalidRecord("id", "no id"), 400),
        (True, TierUnavailable("warm"), 503),
    ],
)
def test_what_goes_wrong_while_the_node_ends_is_its_end(
    node: Live, http: httpx.Client, monkeypatch: pytest.MonkeyPatch, ending: bool, error: Exception, status: int
) -> None:
    """What a request needs may be closed under it: 503. A request that is wrong is told so; a bug stays a bug."""

    async def failing(*_: object) -> None:
        monkeypatch.setattr(node.gateway.edge, "stopping", ending)
        raise error

    monkeypatch.setattr(node.memory, "delete", failing)

    assert status == http.delete("/v1/memories/x").status_code


def test_a_request_that_is_cut_off_by_the_end_of_the_node_is_answered(
    node: Live, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What still runs when the loop ends is cancelled: 503, where the server would say 500 for it."""

    async def endless(*_: object) -> None:
        monkeypatch.setattr(node.gateway.edge, "stopping", True)
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.Event().wait()

    monkeypatch.setattr(node.memory, "delete", endless)
    response = http.delete("/v1/memories/x")

    assert (503, "urn:isotherm:stopping") == (response.status_code, response.json()["type"])


# -- paths, methods, parameters ----------------------------------------------------------------------------------------


def test_an_unknown_path_is_a_problem_object(http: httpx.Client) -> None:
    """404 without a stack trace or a redirect, whatever the method."""
    for method, path in (("GET", "/"), ("GET", "/v1/search/"), ("POST", "/v2/search"), ("OPTIONS", "/nowhere")):
        response = http.request(method, path)
        assert (404, "application/problem+json") == (response.status_code, response.headers["content-type"]), path
        assert "urn:isotherm:no-such-path" == response.json()["type"]


def test_another_method_is_405_and_allow_names_all_that_there_are(http: httpx.Client) -> None:
    """Allow is of the path, not of one of its routes."""
    for path, allowed in (
        ("/v1/memories", "GET, HEAD, OPTIONS, POST"),
        ("/v1/memories/x", "DELETE, GET, HEAD, OPTIONS"),
        ("/v1/search", "OPTIONS, POST"),
    ):
        for method in ("PUT", "PATCH", "TRACE"):
            response = http.request(method, path)
            assert (405, allowed) == (response.status_code, response.headers["allow"]), (method, path)
            assert "urn:isotherm:method-not-allowed" == response.json()["type"]
        options = http.options(path)
        assert (204, allowed, b"") == (options.status_code, options.headers["allow"], options.content)


def test_head_is_get_without_a_body_and_begins_no_stream(http: httpx.Client, node: Live) -> None:
    """Of streams too: nothing is left running."""
    for path in ("/v1/tiers", "/v1/memories", "/v1/changes", "/openapi.json"):
        response = http.head(path)
        assert (200, b"") == (response.status_code, response.content), path
    assert "text/event-stream" in http.head("/v1/changes").headers["content-type"]
    assert 404 == http.head("/v1/memories/absent").status_code
    assert 0 == node.call(lambda: node.gateway.feed.streams)


def test_unknown_and_repeated_parameters_are_refused(http: httpx.Client) -> None:
    """Each names the field; a typing error must not become another question."""
    for path, field in (
        ("/v1/memories/x?inclde=payload", "inclde"),
        ("/v1/memories/x?include=payload&include=vector", "include"),
        ("/v1/tiers?x", "x"),
        ("/v1/changes?tiers=hot&tiers=cold", "tiers"),
        ("/v1/changes?kinds=sideways", "kinds"),
        ("/v1/changes?namespaces=", "namespaces"),
        ("/v1/memories/x?include=payload&id=y", "id"),
        ("/v1/memories?from=4", "from"),
        ("/v1/memories/x?deadline_ms=null", "deadline_ms"),
    ):
        response = http.get(path)
        assert (400, field) == (response.status_code, response.json()["field"]), path


def test_a_path_that_is_no_utf8_names_nothing(http: httpx.Client) -> None:
    """With replacement characters it would be another id."""
    for path, field in (("/v1/memories/%FF", "path"), ("/v1/memories?filter=%FF", "query")):
        response = http.get(path)
        assert (400, field) == (response.status_code, response.json()["field"]), path
    assert 400 == http.delete("/v1/memories/a%C3").status_code


def test_a_path_with_a_line_end_is_not_the_path_without(http: httpx.Client) -> None:
    """A router's $ matches before a last line end: to delete "x" and a line end must not delete "x"."""
    for method, path in (
        ("GET", "/healthz%0A"),
        ("DELETE", "/v1/memories/x%0A"),
        ("POST", "/v1/memories/x%0Ay:promote"),
        ("GET", "/nowhere%00"),
    ):
        response = http.request(method, path)
        assert (400, "path") == (response.status_code, response.json()["field"]), path


def test_an_id_with_slashes_and_colons_is_an_id(http: httpx.Client) -> None:
    """Percent-encoded or not; what ends in :promote is an id where it is not posted."""
    for name in ("a/b", "a:promote", "ü/ /%"):
        token = http.post("/v1/memories", json={"id": name, "vector": [1.0] * DIM}).json()["token"]
        path = "/v1/memories/" + "".join(f"%{byte:02x}" for byte in name.encode())
        assert name == http.get(path, params={"at_least": token}).json()["id"]
        assert 202 == http.post(f"{path}:promote").status_code


# -- bodies ------------------------------------------------------------------------------------------------------------


def test_a_content_encoding_is_refused_everywhere(http: httpx.Client) -> None:
    """415 before a byte of the body is looked at."""
    for method, path in (("POST", "/v1/memories"), ("POST", "/v1/retrieve"), ("GET", "/v1/tiers")):
        response = http.request(method, path, headers={"content-encoding": "gzip"}, content=b"\x1f\x8b" * 10)
        assert (415, "content-encoding") == (response.status_code, response.json()["field"]), path


def test_nesting_is_bounded(http: httpx.Client) -> None:
    """A hundred thousand brackets are a 400 wherever JSON is read, and the node lives on."""
    deep = b"[" * 100_000
    vector = json.dumps([1.0] * DIM).encode()
    for path, body in (
        ("/v1/search", deep),
        ("/v1/retrieve", b'{"ids": ' + deep),
        ("/v1/memories", deep),
        ("/v1/memories", b'{"id": "a", "vector": ' + vector + b', "payload": ' + deep + b"]" * 100_000 + b"}"),
        (
            "/v1/memories",
            b'{"id": "a", "vector": ' + vector + b', "attributes": {"user": ' + deep + b"]" * 100_000 + b"}}",
        ),
    ):
        assert 400 == http.post(path, content=body).status_code, path
    brackets = {"filter": "(" * 100_000 + "id = 'a'" + ")" * 100_000}
    assert 400 == http.post("/v1/retrieve", json=brackets).status_code
    assert http.get("/healthz").is_success


def test_a_body_that_does_not_come_is_given_up(node: Live) -> None:
    """408 after request_s; the connection is closed."""
    head = b"POST /v1/search HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n{"
    status, problem, _ = raw(node, head)
    assert (408, "urn:isotherm:request-timeout") == (status, problem.get("type"))


def test_a_chunked_body_is_bounded_as_it_comes(http: httpx.Client) -> None:
    """Without a content-length the bound holds all the same."""
    response = http.post("/v1/search", content=(b" " * 65_536 for _ in range(200)))
    assert (413, "urn:isotherm:too-large") == (response.status_code, response.json()["type"])


# -- heads -------------------------------------------------------------------------------------------------------------


def test_a_long_path_is_414(node: Live) -> None:
    """Path and query together, whole in one packet or in many."""
    status, problem, _ = raw(node, b"GET /v1/memories/" + b"a" * LIMIT + b" HTTP/1.1\r\nhost: localhost\r\n\r\n")
    assert (414, "urn:isotherm:uri-too-long") == (status, problem.get("type"))
    status, _, _ = raw(node, b"GET /healthz?x=", *[b"b" * 1_000] * 20, pause_s=0.001)
    assert 414 == status


def test_headers_are_bounded_in_number_and_bytes(node: Live) -> None:
    """431: 101 headers, headers of 33 KB, and one header without an end, of which no more is kept than the bound."""
    begin = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n"
    many = b"".join(b"x-%d: 1\r\n" % n for n in range(101))
    large = b"".join(b"x-%d: %s\r\n" % (n, b"a" * 4_000) for n in range(9))
    for head in (begin + many + b"\r\n", begin + large + b"\r\n", begin + b"x-endless: " + b"a" * 5_000_000):
        status, problem, _ = raw(node, head)
        assert (431, "urn:isotherm:headers-too-large") == (status, problem.get("type")), head[:60]


def test_a_head_that_does_not_come_is_given_up(node: Live) -> None:
    """A begun head is a 408 after request_s, a silent connection is closed without a word."""
    status, problem, _ = raw(node, b"GET /healthz HTTP/1.1\r\nhost:")
    assert (408, "urn:isotherm:request-timeout") == (status, problem.get("type"))
    assert b"" == raw(node)[2]


def test_what_is_no_http_is_a_problem_object(node: Live) -> None:
    """400, closed."""
    status, problem, answer = raw(node, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
    assert (400, "urn:isotherm:invalid") == (status, problem.get("type")), answer


def test_pipelined_requests_are_answered_in_order(node: Live) -> None:
    """Bounds are counted anew for each."""
    one = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nx-pad: " + b"a" * 20_000 + b"\r\n\r\n"
    last = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    answer = raw(node, one * 5 + last)[2]
    assert 6 == answer.count(b"200 OK")


def test_a_websocket_is_not_served(node: Live) -> None:
    """An upgrade is ignored: the answer is the path's own."""
    upgrade = (
        b"connection: upgrade, close\r\nupgrade: websocket\r\nsec-websocket-key: eA==\r\nsec-websocket-version: 13\r\n"
    )
    assert 200 == raw(node, b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n" + upgrade + b"\r\n")[0]


def test_connections_are_bounded(node: Live) -> None:
    """One too many gets 503 and is closed; when others go there is room again."""
    host, port = node.address.removeprefix("http://").split(":")
    open_ones = [socket.create_connection((host, int(port)), timeout=10) for _ in range(20)]
    try:
        with socket.create_connection((host, int(port)), timeout=10) as one_more:
            answer = one_more.recv(65_536)
        assert b"503" in answer[:20]
        assert b"urn:isotherm:busy" in answer
    finally:
        for each in open_ones:
            each.close()
    deadline = time.monotonic() + 5
    while raw(node, b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")[0] != 200:
        assert time.monotonic() < deadline


# -- answers -----------------------------------------------------------------------------------------------------------


def test_an_answer_is_bounded_in_bytes_and_says_what_it_left_out(http: httpx.Client) -> None:
    """Every hit is there, in order; those past the bound without their fields, marked and counted."""
    payload = "x" * 200_000
    memories = [{"id": f"big-{n}", "vector": [1.0] * DIM, "payload": payload} for n in range(8)]
    token = http.post("/v1/memories", json=memories).json()["token"]
    ids = [each["id"] for each in memories]
    page = http.post("/v1/retrieve", json={"ids": ids, "at_least": token}).json()
    assert ids == [hit["id"] for hit in page["hits"]]
    bare = [hit["id"] for hit in page["hits"] if "truncated" in hit]
    assert (page["truncated"], ids[-page["truncated"] :]) == (len(bare), bare)
    assert {True} == {hit.keys() == {"id", "tier", "version", "event_time", "truncated"} for hit in page["hits"][-4:]}
    assert payload == page["hits"][0]["payload"]

    found = http.post("/v1/search", json={"queries": [{"id": "big-1", "k": 8, "filter": "id LIKE 'big-%'"}] * 2})
    assert [5, 8] == [answer["truncated"] for answer in found.json()["results"]]
    assert len(found.content) < 1_048_576 + 100_000
    light = http.post("/v1/search", json={"id": "big-1", "k": 8, "include": []}).json()
    assert "truncated" not in light


def test_an_arrow_answer_is_bounded_too(http: httpx.Client) -> None:
    """Rows past the bound have no payload; the metadata counts them."""
    import pyarrow as pa

    accept = {"accept": "application/vnd.apache.arrow.stream"}
    found = http.post("/v1/search", json={"id": "big-1", "k": 8, "filter": "id LIKE 'big-%'"}, headers=accept)
    table = pa.ipc.open_stream(found.content).read_all()
    said = json.loads(table.schema.metadata[b"isotherm"])
    assert 8 == table.num_rows
    assert said["truncated"] == sum(1 for each in table["payload"].to_pylist() if each == b"") > 0
