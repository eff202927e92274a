"""What the clients do about gateways that fail, lie, hang up or are slow: on raw sockets, both clients alike."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.client import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    Failed,
    Forbidden,
    GatewayError,
    NoAnswer,
    Refused,
    Replaying,
    ServiceMissing,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from pipeline.client_calls import publish_body, tiers
from pipeline.client_exchange import Answer, Attempt, Fault, Limits, Pause, exchange
from pipeline.client_results import Memory
from pipeline.client_settings import verify_of
from pipeline.client_streams import Batches, Feed, Lines
from producers.events import Change, encode_change
from tests.scripted import CUT, GARBAGE, HANG_UP, Action, Scripted, answer, dripping, raw, silent
from tiers import errors
from tiers.errors import InvalidRecord, IsothermError, SettingsError

pytestmark = pytest.mark.unit

HIT = b'{"hits":[{"id":"a","tier":"hot","version":"0.0.0","event_time":"2026-01-01T00:00:00Z"}]}'
TOKEN = b'{"token":"t"}'


def problem(status: int, kind: str, *headers: str, **more: Any) -> Action:
    """Answer with a problem object."""
    body = {"type": f"urn:isotherm:{kind}", "title": kind, "status": status, "detail": "why", **more}
    return answer(status, msgspec.json.encode(body), *headers, kind="application/problem+json")


Ask = Callable[..., Any]


def blocking(url: str, verb: str, timeout_s: float, retries: int = 3) -> Any:
    """Ask once with Client."""
    with Client(url, timeout_s=timeout_s, retries=retries) as client:
        return client.search(id="a") if verb == "search" else client.publish("a", [1.0])


def awaiting(url: str, verb: str, timeout_s: float, retries: int = 3) -> Any:
    """Ask once with AsyncClient."""

    async def work() -> Any:
        async with AsyncClient(url, timeout_s=timeout_s, retries=retries) as client:
            return await (client.search(id="a") if verb == "search" else client.publish("a", [1.0]))

    return asyncio.run(work())


@pytest.fixture(params=[blocking, awaiting], ids=["Client", "AsyncClient"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """One of the two clients."""
    asked: Ask = request.param
    return asked


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """What ends a server that answers nothing."""
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize(
    "first",
    [HANG_UP, CUT, GARBAGE, problem(503, "replaying", "retry-after: 0"), problem(429, "busy", "retry-after: 0")],
    ids=["hangs up", "cuts off", "garbage", "503", "429"],
)
def test_a_read_is_asked_again(ask: Ask, first: Action) -> None:
    """Whatever became of the first try, the second one's answer counts."""
    with Scripted(first, answer(200, HIT)) as server:
        assert "a" == ask(server.url, "search", 10).hits[0].id
    assert 2 == len(server.requests)


@pytest.mark.parametrize(
    ("first", "raises"),
    [
        (HANG_UP, NoAnswer),
        (CUT, NoAnswer),
        (GARBAGE, NoAnswer),
        (problem(503, "log-unavailable", "retry-after: 0"), Unavailable),
        (problem(429, "busy", "retry-after: 0"), TooManyRequests),
    ],
    ids=["hangs up", "cuts off", "garbage", "503", "429"],
)
def test_a_write_is_never_sent_twice(ask: Ask, first: Action, raises: type[IsothermError]) -> None:
    """Once a byte was sent nothing is sent again: a repeated publish would be another version."""
    with Scripted(first, answer(202, TOKEN)) as server, pytest.raises(raises):
        ask(server.url, "publish", 10)
    assert 1 == len(server.requests)


def test_a_write_waits_for_a_gateway_that_is_not_there_yet(ask: Ask) -> None:
    """A refused connection proves that nothing was sent: it is tried again, and then sent once."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = Scripted(answer(202, TOKEN))
    server.port = port
    late = threading.Timer(0.08, server.__enter__)
    late.start()
    try:
        assert "t" == ask(f"http://127.0.0.1:{port}", "publish", 30, retries=100)
    finally:
        late.join()
        server.__exit__()
    assert 1 == len(server.requests)


def test_nobody_there_is_said_with_what_to_do(ask: Ask) -> None:
    """ServiceMissing names the address and the command that starts a gateway."""
    with pytest.raises(ServiceMissing, match=r"http://127\.0\.0\.1:1.*isotherm up.*--url"):
        ask("http://127.0.0.1:1", "search", 10)


@pytest.mark.parametrize("how", [silent, dripping])
def test_the_deadline_ends_a_slow_answer(
    ask: Ask, release: threading.Event, how: Callable[[threading.Event], Action]
) -> None:
    """A gateway that says nothing, or a byte now and then, is given up at the deadline; a write ends in NoAnswer."""
    for verb, raises in (("search", DeadlineExceeded), ("publish", NoAnswer)):
        release.clear()
        with Scripted(how(release)) as server:
            began = time.monotonic()
            with pytest.raises(raises):
                ask(server.url, verb, 0.3)
            assert time.monotonic() - began < 15
            release.set()


def test_retry_after_is_waited_for_or_the_error_raised(ask: Ask) -> None:
    """A second is waited for; a minute beyond the deadline is not."""
    with Scripted(problem(429, "busy", "retry-after: 1"), answer(200, HIT)) as server:
        began = time.monotonic()
        ask(server.url, "search", 10)
        assert time.monotonic() - began >= 1
    with Scripted(problem(429, "busy", "retry-after: 60")) as server, pytest.raises(TooManyRequests) as caught:
        ask(server.url, "search", 10)
    assert (60.0, True) == (caught.value.retry_after_s, caught.value.retriable)


@pytest.mark.parametrize(
    ("status", "kind", "raises", "retriable"),
    [
        (400, "invalid", Refused, False),
        (401, "unauthorized", Unauthorized, False),
        (403, "forbidden", Forbidden, False),
        (413, "too-large", Refused, False),
        (415, "unsupported", Refused, False),
        (500, "internal", Failed, False),
        (503, "replaying", Replaying, True),
        (503, "tier-unavailable", Unavailable, True),
        (504, "not-yet", DeadlineExceeded, True),
        (418, "of-tomorrow", Refused, False),
    ],
)
def test_each_problem_has_its_error(status: int, kind: str, raises: type[GatewayError], retriable: bool) -> None:
    """The error's class says what to do; the problem object is kept whole."""
    with Scripted(problem(status, kind, "retry-after: 0", field="k")) as server, pytest.raises(raises) as caught:
        blocking(server.url, "search", 5)
    assert (status, kind, retriable, raises) == (
        caught.value.status,
        caught.value.type,
        caught.value.retriable,
        type(caught.value),
    )
    assert "k" == caught.value.problem["field"]
    assert isinstance(caught.value, errors.Replaying) is (raises is Replaying)


@pytest.mark.parametrize(
    "stranger",
    [answer(200, b"<html>"), answer(200, b'{"hits": 7}'), answer(404, b"<html>"), answer(200, b"\xff"), answer(301)],
)
def test_an_answer_that_no_gateway_gives_is_a_missing_service(ask: Ask, stranger: Action) -> None:
    """Another server at that address is said to be one, whatever it answers."""
    with Scripted(stranger) as server, pytest.raises(ServiceMissing, match="not as a gateway does"):
        ask(server.url, "search", 5)


@pytest.mark.parametrize("url", ["nonsense", "ftp://host", "http://", "http://h:p"])
def test_what_is_no_address_is_a_settings_error(url: str) -> None:
    """At once, with an example of one."""
    with pytest.raises(SettingsError, match=r"http://127\.0\.0\.1:8080"):
        Client(url)


def test_a_server_always_has_to_prove_its_name() -> None:
    """By https with the system's authorities; without TLS the context at hand trusts nobody at all."""
    named, bare = verify_of("https://gateway.example"), verify_of("http://127.0.0.1:8080")
    for context in (named, bare):
        assert (ssl.CERT_REQUIRED, True) == (context.verify_mode, context.check_hostname)
    assert named.get_ca_certs() or named.cert_store_stats()["x509_ca"]
    assert 0 == bare.cert_store_stats()["x509_ca"]
    assert verify_of("https://another.example") is named


def test_sql_comes_as_rows_or_as_arrow() -> None:
    """Columns with types, rows, how old it is, whether it was cut: from JSON and from Arrow with its headers."""
    around = b'"row_count":2,"snapshot_age_ms":7,"truncated":true'
    body = b'{"columns":["n"],"types":["BIGINT"],"rows":[[1],[2]],%b}' % around
    table = pa.table({"n": [1, 2]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    told = ("isotherm-snapshot-age-ms: 7", "isotherm-truncated: true")
    arrow = answer(200, sink.getvalue().to_pybytes(), *told, kind="application/vnd.apache.arrow.stream")
    with Scripted(answer(200, body), arrow) as server, Client(server.url) as client:
        plain, exact = client.sql("SELECT n FROM memories"), client.sql("SELECT n FROM memories", arrow=True)
    assert table == exact.to_arrow() == plain.to_arrow()
    for one in (plain, exact):
        assert (["n"], [[1], [2]], 2, 7.0, True) == (
            one.columns,
            one.rows,
            one.row_count,
            one.snapshot_age_ms,
            one.truncated,
        )


def test_a_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """By argument or ISOTHERM_KEY; not in a repr, nor in an error; one that cannot be a key is not repeated."""
    monkeypatch.setenv("ISOTHERM_KEY", "iso_env_canary")
    with Scripted(answer(200, HIT)) as server:
        blocking(server.url, "search", 5)
        with Client(server.url, key="iso_given_canary") as client:
            client.search(id="a")
            assert "canary" not in repr(client) + repr(vars(client))
    assert ["iso_env_canary", "iso_given_canary"] == [
        httpx.Headers([line.split(": ", 1) for line in head.split("\r\n")[1:]])["authorization"].removeprefix("Bearer ")  # type: ignore[misc]
        for head in server.requests
    ]
    with pytest.raises(SettingsError) as caught:
        Client(key="canary\n2")
    assert "canary" not in str(caught.value)


def test_a_listing_that_breaks_off_is_an_error() -> None:
    """What came is yielded; what is missing is not taken for the end."""
    line = msgspec.json.encode(Memory(id="a", tier="hot", version="0.0.0", event_time=_now()))
    whole = b"%x\r\n%s\n\r\n" % (len(line) + 1, line)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n"
    with Scripted(raw(head + whole)) as server, Client(server.url) as client:
        found = client.retrieve_all()
        assert "a" == next(found).id
        with pytest.raises(ServiceMissing, match="broke off"):
            next(found)


def _now() -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC)


def change(number: int) -> bytes:
    """Return a server-sent event as the gateway writes it."""
    body = encode_change(
        Change(
            kind="home",
            source="hot",
            target="warm",
            reason="age",
            policy="p",
            at=1,
            ids=[f"i{number}"],
            versions=["0.0.0"],
        )
    )
    return b"id: 0:%d\nevent: change\ndata: %s\n\n" % (number, body)


def stream(*parts: bytes) -> Action:
    """Answer with server-sent events, and hang up."""
    return raw(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n" + b"".join(parts))


async def _followed(url: str, count: int) -> list[str]:
    async with AsyncClient(url) as client:
        feed = client.changes("beginning", reconnect_s=5)
        found = [(await anext(feed)).change.ids[0] for _ in range(count)]
        await feed.aclose()
        return found


@pytest.mark.parametrize("shell", ["Client", "AsyncClient"])
def test_a_feed_goes_on_where_it_was_cut(shell: str) -> None:
    """Across hang-ups, half events and 503s each change comes once; every connection says after which."""
    quick = b"retry: 10\n\n: keep-alive\n\n"
    actions = (
        stream(quick, change(1), change(2), change(3)[:30]),
        problem(503, "replaying", "retry-after: 0"),
        HANG_UP,
        stream(quick, b"event: dropped\ndata: {}\n\n"),
        stream(quick, change(3), change(4)),
    )
    with Scripted(*actions) as server:
        if shell == "Client":
            with Client(server.url) as client:
                feed = client.changes("beginning", reconnect_s=5)
                found = [next(feed).change.ids[0] for _ in range(4)]
                feed.close()  # type: ignore[attr-defined]
        else:
            found = asyncio.run(_followed(server.url, 4))
    assert ["i1", "i2", "i3", "i4"] == found
    assert "from=beginning" in server.requests[0]
    assert all("last-event-id: 0:2" in head.lower() for head in server.requests[1:5])


def test_a_feed_that_nobody_serves_any_more_ends_with_its_cursor() -> None:
    """After `reconnect_s` without a gateway the error names the cursor to go on from; a refused one is refused."""
    with Scripted(stream(b"retry: 10\n\n", change(7))) as server, Client(server.url) as client:
        feed = client.changes("beginning", reconnect_s=0.2)
        next(feed)
        server.__exit__()
        with pytest.raises(ServiceMissing, match="--from 0:7"):
            next(feed)
        server.__enter__()
    with (
        Scripted(problem(400, "invalid", field="cursor")) as server,
        Client(server.url) as client,
        pytest.raises(Refused),
    ):
        next(client.changes("9:9"))
    with Client("http://127.0.0.1:1") as client, pytest.raises(InvalidRecord, match="no cursor"):
        next(client.changes("é"))


@given(st.lists(st.integers(1, 40), max_size=30))
def test_streams_are_read_the_same_however_they_are_cut(cuts: list[int]) -> None:
    """Lines and events do not depend on where the network divides them; a rest is not an end."""
    line = msgspec.json.encode(Memory(id="a", tier="hot", version="0.0.0", event_time=_now())) + b"\n"
    feed, lines = Feed("end", "u"), Lines()
    events, data = b"retry: 50\r\n\r\n" + change(1) + b": x\n\n" + change(2), line * 3
    told = [each.cursor for part in divided(events, cuts) for each in feed.take(part)]
    assert (["0:1", "0:2"], "0:2", 0.05) == (told, feed.cursor, feed.pause_s)
    assert ["a"] * 3 == [each.id for part in divided(data, cuts) for each in lines.take(part)]
    lines.end()
    lines.take(line[:-1])
    with pytest.raises(ValueError, match="cut short"):
        lines.end()


@given(st.lists(st.integers(1, 200), max_size=30))
def test_arrow_is_read_the_same_however_it_is_cut(cuts: list[int]) -> None:
    """Batches come whole, in order; a stream without its end is cut short."""
    batch = pa.record_batch({"id": ["a", "b"], "n": [1, 2]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
        writer.write_batch(batch.slice(1))
    data = sink.getvalue().to_pybytes()
    reader, short = Batches(), Batches()
    assert [batch, batch.slice(1)] == [each for part in divided(data, cuts) for each in reader.take(part)]
    reader.end()
    short.take(data[:-8])
    with pytest.raises(ValueError, match="cut short"):
        short.end()
    with pytest.raises(ValueError, match="no message"):
        Batches().take(b"nonsense that is long enough")


def divided(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    """Yield the bytes in parts of these lengths, then the rest."""
    at = 0
    for cut in cuts:
        yield data[at : at + cut]
        at += cut
    yield data[at:]


@given(
    st.lists(st.sampled_from(["refused", "cut", 200, 429, 500, 503, 504]), min_size=6, max_size=6),
    st.booleans(),
    st.integers(0, 4),
)
def test_tries_are_bounded_and_a_write_leaves_once(outcomes: list[str | int], write: bool, retries: int) -> None:
    """At most retries + 1 attempts, never past the deadline; none of a write follows one that may have arrived."""
    now = [0.0]
    call: Any = publish_body(b"", "x") if write else tiers()
    steps = exchange(call, "u", Limits(retries, 10.0), lambda: now[0], lambda: 0.5)
    attempts: list[str | int] = []

    def drive() -> None:
        outcome: Answer | Fault | None = None
        while True:
            step = steps.send(outcome)
            if isinstance(step, Pause):
                now[0] += step.seconds
                continue
            assert isinstance(step, Attempt)
            assert now[0] < 10
            attempts.append(outcomes[len(attempts)])
            outcome = _outcome(attempts[-1])

    with pytest.raises((StopIteration, IsothermError)) as end:
        drive()
    assert isinstance(end.value, StopIteration) is (attempts[-1] == 200)
    assert len(attempts) <= retries + 1
    if write:
        assert set(attempts[:-1]) <= {"refused"}
    else:
        assert set(attempts[:-1]) <= {"refused", "cut", 429, 503}


def _outcome(name: str | int) -> Answer | Fault:
    if isinstance(name, str):
        return Fault(OSError(name), sent=name == "cut")
    body = {"title": "t", "detail": "d"} if name != 200 else {"token": "t"}
    return Answer(name, {}, msgspec.json.encode(body))
