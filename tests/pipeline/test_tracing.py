"""One trace leads from a producer's header to the tier, and one from a request to the tier, on a real node."""

from __future__ import annotations

import asyncio
import gzip
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import StatusCode

from pipeline import MemoryManager, Query
from pipeline.routes import Gateway
from pipeline.serve import HttpService
from pipeline.settings import Settings, load, shown
from pipeline.tracing import TraceSettings, tracing_of
from producers import MemoryProducer
from producers.events import Message
from producers.tracing import OFF, REMEMBERED_MAX, Remembered, Tracing, publishing, sampled
from tests.nodes import DIM, bring, until
from tiers.errors import SettingsError
from tiers.tier import TierName

VECTOR = np.ones(DIM, np.float32)
SECRET = "id-of-a-person"
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE = 0x0AF7651916CD43DD8448EB211C80319C


class Spans:
    """Spans that are over, by a provider of its own; only what a caller has sampled is recorded."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=ParentBased(ALWAYS_OFF), shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracing = Tracing.over(self.provider)

    def all(self) -> Sequence[ReadableSpan]:
        """Return the spans."""
        return self._exporter.get_finished_spans()

    def named(self, name: str, **facts: object) -> list[ReadableSpan]:
        """Return the spans of this name with these facts."""
        wanted = {f"isotherm.{key}": value for key, value in facts.items()}
        return [s for s in self.all() if s.name == name and wanted.items() <= dict(s.attributes or {}).items()]

    def children(self, of: ReadableSpan) -> list[str]:
        """Return the names of a span's children, in the order in which they began."""
        found = [s for s in self.all() if s.parent is not None and s.parent.span_id == of.context.span_id]
        return [span.name for span in sorted(found, key=lambda span: span.start_time or 0)]


@pytest.fixture
def spans() -> Iterator[Spans]:
    """A provider whose spans a test can look at."""
    found = Spans()
    yield found
    found.provider.shutdown()


@pytest.fixture
async def memory(settings: Settings, spans: Spans) -> AsyncIterator[MemoryManager]:
    """A node that is traced."""
    service = HttpService(settings)
    async with MemoryManager.open(settings, service, tracing=spans.tracing) as memory:
        service.gateway = Gateway(memory)
        await memory.ready()
        memory.node.services.append(service)  # so that a client finds its address
        yield memory


@pytest.fixture
async def http(memory: MemoryManager) -> AsyncIterator[httpx.AsyncClient]:
    """A client of that node."""
    service = memory.node.services[-1]
    assert isinstance(service, HttpService)
    async with httpx.AsyncClient(base_url=service.address, timeout=10) as client:
        yield client


def told(spans: Spans) -> str:
    """Return everything that the spans say."""
    return " ".join(span.to_json() for span in spans.all())


async def test_one_trace_leads_from_a_producers_header_to_glacier(
    settings: Settings, memory: MemoryManager, spans: Spans
) -> None:
    """From send through ingest (decode, append) to each move (read, store, announce, evict); no id, no payload."""
    program = TracerProvider(shutdown_on_exit=False)  # samples everything: the producer's program began the trace
    program.add_span_processor(SimpleSpanProcessor(spans._exporter))
    async with MemoryProducer(settings.kafka, tracing=Tracing.over(program)) as producer:
        with program.get_tracer("app").start_as_current_span("app") as app:
            token = await producer.send(SECRET, VECTOR, {"said": "a secret"}, {"user": "a-user"})
    trace_id = app.get_span_context().trace_id
    await memory.retrieve(Query(ids=[], at_least=token))
    await bring(memory, SECRET, *TierName)

    assert {trace_id} == {span.context.trace_id for span in spans.all()}
    (sent,) = spans.named(f"send {settings.kafka.prefix}.memories")
    (ingested,) = spans.named("ingest", messages=1)
    assert ingested.parent is not None
    assert sent.context.span_id == ingested.parent.span_id
    assert ["decode", "append", "move", "move", "move"] == spans.children(ingested)
    for source, target in (("hot", "warm"), ("warm", "cold"), ("cold", "glacier")):
        (move,) = spans.named("move", source=source, target=target, rows=1)
        assert ["read", "store", "announce", "evict"] == spans.children(move)
        assert spans.named("store", tier=target, rows=1)
    assert not any(word in told(spans) for word in (SECRET, "a secret", "a-user"))


async def test_one_trace_leads_from_a_request_to_the_tier(http: httpx.AsyncClient, spans: Spans) -> None:
    """The server's span continues the caller's; below it lie the read, its steps, and what each tier was asked."""
    body = {"id": SECRET, "vector": VECTOR.tolist(), "payload": "a secret", "attributes": {"user": "a-user"}}
    token = (await http.post("/v1/memories", json=body)).json()["token"]
    assert [] == list(spans.all()), "nobody sampled that"

    asked = {"vector": VECTOR.tolist(), "filter": "user = 'a-user'", "at_least": token}
    answer = await http.post("/v1/search", json=asked, headers={"traceparent": CALLER})
    await http.get(f"/v1/memories/{SECRET}", headers={"traceparent": CALLER})
    await until(lambda: len(spans.named("GET /v1/memories/{id:path}")) == 1)

    tier = answer.json()["hits"][0]["tier"]
    assert {TRACE} == {span.context.trace_id for span in spans.all()}
    (server,) = spans.named("POST /v1/search")
    assert server.parent is not None
    assert 0xB7AD6B7169203331 == server.parent.span_id
    assert ["retrieve"] == spans.children(server)
    (read, by_id) = sorted(spans.named("retrieve"), key=lambda span: span.start_time or 0)
    assert ["look", "filter", "scan", "fetch"] == spans.children(read)
    (fetch,) = spans.named("fetch")
    assert [f"vectors {tier}", f"get {tier}"] == spans.children(fetch)
    assert 1 == len(spans.children(by_id))
    assert 200 == (server.attributes or {})["http.response.status_code"]
    assert all((span.end_time or 0) >= (span.start_time or 0) > 0 for span in spans.all())
    assert not any(word in told(spans) for word in (SECRET, "a secret", "a-user"))


async def test_what_is_published_over_http_is_in_the_requests_trace(http: httpx.AsyncClient, spans: Spans) -> None:
    """The gateway puts the request's trace into the header of what it sends, and ingest goes on with it."""
    body = {"id": SECRET, "vector": VECTOR.tolist()}
    await http.post("/v1/memories", json=body, headers={"traceparent": CALLER, "tracestate": "vendor=1"})
    await until(lambda: bool(spans.named("ingest")))

    (server,) = spans.named("POST /v1/memories")
    (ingested,) = spans.named("ingest")
    assert [next(name for name in spans.children(server) if name.startswith("send "))] == spans.children(server)
    assert (TRACE, "vendor=1") == (ingested.context.trace_id, ingested.context.trace_state.to_header())


async def test_a_request_that_fails_says_so_without_its_words(http: httpx.AsyncClient, spans: Spans) -> None:
    """A client's mistake is no error of the server's span; the route is its template."""
    await http.get(f"/v1/memories/{SECRET}", params={"colour": SECRET}, headers={"traceparent": CALLER})
    await until(lambda: bool(spans.all()))

    (span,) = spans.all()
    assert ("GET /v1/memories/{id:path}", StatusCode.UNSET) == (span.name, span.status.status_code)
    assert 400 == (span.attributes or {})["http.response.status_code"]
    assert SECRET not in told(spans)


# -- the wiring -------------------------------------------------------------------------------------------------------


class Receiver(ThreadingHTTPServer):
    """A real OTLP receiver, as far as a test needs one."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.services: set[str] = set()
        self.authorization: set[str | None] = set()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        """Where spans are taken."""
        return f"http://127.0.0.1:{self.server_port}/v1/traces"


class Handler(BaseHTTPRequestHandler):
    """Decodes one export."""

    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        request = ExportTraceServiceRequest.FromString(body)
        for resource in request.resource_spans:
            attributes = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
            self.server.services.add(attributes["service.name"])
            self.server.names += [span.name for scope in resource.scope_spans for span in scope.spans]
        self.server.authorization.add(self.headers.get("authorization"))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver on a thread of its own."""
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


async def test_spans_arrive_at_an_otlp_receiver(settings: Settings, receiver: Receiver) -> None:
    """With [trace] enabled a node sends its spans, the last ones at its stop."""
    trace = TraceSettings(
        enabled=True, endpoint=receiver.url, ratio=1.0, service_name="mine", headers={"authorization": "Bearer x"}
    )
    traced = msgspec.structs.replace(settings, trace=trace)
    service = HttpService(traced)
    async with MemoryManager.open(traced, service) as memory:
        service.gateway = Gateway(memory)
        await memory.ready()
        async with httpx.AsyncClient(base_url=service.address) as client:
            body = {"id": "a", "vector": VECTOR.tolist()}
            token = (await client.post("/v1/memories", json=body)).json()["token"]
            await client.get("/v1/memories/a", params={"at_least": token})

    assert {"POST /v1/memories", "ingest", "append", "GET /v1/memories/{id:path}", "get hot"} <= set(receiver.names)
    assert ({"mine"}, {"Bearer x"}) == (receiver.services, receiver.authorization)


async def test_a_receiver_that_is_not_there_costs_nothing_but_the_spans(settings: Settings) -> None:
    """The node answers and stops within its time."""
    trace = TraceSettings(enabled=True, endpoint="http://127.0.0.1:9/v1/traces", ratio=1.0)
    async with asyncio.timeout(30), MemoryManager.open(msgspec.structs.replace(settings, trace=trace)) as memory:
        await memory.ready()
        assert memory.node.tracing.on


@pytest.mark.unit
async def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """trace.enabled without the SDK stops the start, and says what to install."""
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(SettingsError, match=r"isotherm\[otel\]"):
        async with tracing_of(TraceSettings(enabled=True)):
            pass


@pytest.mark.unit
async def test_off_makes_nothing() -> None:
    """Without [trace] there is no provider, no span and no header."""
    async with tracing_of(TraceSettings()) as tracing:
        headers: list[tuple[str, bytes]] = []
        with tracing.work("ingest") as work, tracing.step("decode"):
            assert (None, None) == (work.span, work.context)
            assert None is publishing(tracing, "t", headers)

    assert (False, []) == (tracing.on, headers)
    assert tracing is OFF


@pytest.mark.unit
def test_secrets_of_the_export_are_masked() -> None:
    """`config show` and errors show neither the headers' values nor a password in the URL."""
    url = "http://me:secret@collector/v1/traces"
    given = {"trace.headers": {"authorization": "secret"}, "trace.endpoint": url}

    assert "secret" not in str(shown(load(None, {}, given)))
    with pytest.raises(SettingsError, match=r"ftp://me:\*\*\*@h"):
        load(None, {}, {"trace.endpoint": "ftp://me:secret@h"})


# -- batches ----------------------------------------------------------------------------------------------------------


def message(offset: int, *headers: tuple[str, bytes]) -> Message:
    """Return a message with these headers."""
    return Message(b"k", b"{}", headers, 0, offset)


@pytest.mark.unit
def test_only_sampled_messages_are_continued() -> None:
    """A header that is unsampled, broken or null is as good as none."""
    given = [
        message(1, ("traceparent", CALLER.encode())),
        message(2, ("traceparent", CALLER.encode()[:-1] + b"0")),
        message(3, ("traceparent", b"nonsense-1")),
        message(4, ("traceparent", b"")),
        message(5, ("traceparent", None)),  # type: ignore[arg-type]
        message(6),
    ]

    assert {1: TRACE} == {offset: context.trace_id for offset, context in sampled(given).items()}


@pytest.mark.unit
def test_a_batch_is_one_span_that_links_to_the_others(spans: Spans) -> None:
    """It continues the first trace, has links to the rest, up to a bound, and a failure is named by its type alone."""
    parents = [sampled([message(n, ("traceparent", f"00-{n:032x}-{n:016x}-01".encode()))])[n] for n in range(1, 100)]
    with pytest.raises(KeyError), spans.tracing.work("ingest", parents):
        raise KeyError(SECRET)

    (span,) = spans.all()
    assert (1, 32, 2) == (span.context.trace_id, len(span.links), span.links[0].context.trace_id)
    assert (StatusCode.ERROR, "KeyError") == (span.status.status_code, span.status.description)
    assert SECRET not in span.to_json()


@pytest.mark.unit
def test_what_is_remembered_is_bounded() -> None:
    """The newest traced messages are known, each trace comes once."""
    (context,) = sampled([message(1, ("traceparent", CALLER.encode()))]).values()
    remembered = Remembered()
    remembered.add(0, range(REMEMBERED_MAX + 10), context)

    assert [context] == remembered.of(0, [5, 11, 12])
    assert [] == remembered.of(0, [5, 9])
    assert [] == remembered.of(1, [11])
