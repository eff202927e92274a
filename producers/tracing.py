"""Traces, from a producer's header to the tier: what is known of OpenTelemetry here, so that the parts say little.

A span is a unit of work (a poll applied, a move), never a row. `work` opens one, `step` a part of it. What comes from
Kafka continues the trace of the first sampled message and links to the others; a move continues the trace of what it
moves, as long as the node remembers it (`Remembered`). Nothing is recorded without a provider: `OFF` costs one
attribute look-up where it is asked.

Attributes are sizes, tiers, reasons and partitions. Ids, payloads, vectors, filters and namespaces are never among
them, nor are messages of errors, which may name an id: ids may be personal, and a hash of one is as good as the id to
whoever can guess it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeAlias

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from producers.events import Message

NAME = "isotherm"
CONSUMER, SERVER = SpanKind.CONSUMER, SpanKind.SERVER
LINKS_MAX = 32
REMEMBERED_MAX = 4_096  # traced messages a node remembers

Fact: TypeAlias = str | int | float | bool
NO_FACTS: Mapping[str, Fact] = {}
_W3C = TraceContextTextMapPropagator()
_SAMPLED = frozenset(b"13579bdf")  # the last hexadecimal digit of a traceparent's flags


class Work:
    """A unit of work under way; without a span, nothing."""

    __slots__ = ("span",)

    def __init__(self, span: Span | None = None) -> None:
        self.span = span

    def note(self, **facts: Fact) -> None:
        """Add facts to the span."""
        if self.span is not None:
            self.span.set_attributes({f"{NAME}.{name}": value for name, value in facts.items()})

    @property
    def context(self) -> SpanContext | None:
        """Where others may continue; None when nothing is recorded."""
        return self.span.get_span_context() if self.span is not None and self.span.is_recording() else None


NOTHING = Work()
_NOTHING: AbstractContextManager[Work] = nullcontext(NOTHING)


class Remembered:
    """In which trace a message was applied, by partition and offset: the newest traced ones."""

    def __init__(self) -> None:
        self._contexts: OrderedDict[tuple[int, int], SpanContext] = OrderedDict()

    def add(self, partition: int, offsets: Sequence[int], context: SpanContext) -> None:
        """Remember a context for these offsets."""
        for offset in offsets:
            self._contexts[partition, offset] = context
        while len(self._contexts) > REMEMBERED_MAX:
            self._contexts.popitem(last=False)

    def of(self, partition: int, offsets: Sequence[int]) -> list[SpanContext]:
        """Return the contexts that these offsets were applied in, each once."""
        if not self._contexts:
            return []
        found = (self._contexts.get((partition, offset)) for offset in offsets)
        return list({context.span_id: context for context in found if context is not None}.values())


class Tracing:
    """Makes spans with a tracer, or none at all."""

    def __init__(self, tracer: Tracer | None = None) -> None:
        self.on = tracer is not None
        self.tracer = tracer
        self.remembered = Remembered()

    @classmethod
    def over(cls, provider: trace.TracerProvider) -> Tracing:
        """Return tracing by a provider: the SDK's, set up by whoever embeds a node or a producer."""
        return cls(provider.get_tracer(NAME))

    def work(
        self,
        name: str,
        parents: Sequence[SpanContext] = (),
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        context: Context | None = None,
        facts: Mapping[str, Fact] = NO_FACTS,
    ) -> AbstractContextManager[Work]:
        """Open a span: a child of the first parent with links to the others, else in `context`, else a new trace."""
        return self._open(name, parents, kind, context, facts) if self.on else _NOTHING

    def step(self, name: str, **facts: Fact) -> AbstractContextManager[Work]:
        """Open a part of the work under way; nothing where that is not recorded."""
        if not self.on or not trace.get_current_span().is_recording():
            return _NOTHING
        return self._open(name, (), SpanKind.INTERNAL, trace.set_span_in_context(trace.get_current_span()), facts)

    @contextmanager
    def _open(
        self,
        name: str,
        parents: Sequence[SpanContext],
        kind: SpanKind,
        context: Context | None,
        facts: Mapping[str, Fact],
    ) -> Iterator[Work]:
        assert self.tracer is not None
        within = trace.set_span_in_context(NonRecordingSpan(parents[0]), Context()) if parents else context or Context()
        links = [Link(parent) for parent in parents[1 : 1 + LINKS_MAX]]
        attributes = {f"{NAME}.{key}": value for key, value in facts.items()}
        with self.tracer.start_as_current_span(
            name, within, kind, attributes, links, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield Work(span) if span.is_recording() else NOTHING
            except BaseException as error:
                span.set_status(Status(StatusCode.ERROR, type(error).__name__))
                raise

    def done(self, name: str, parent: Span, began_ns: int, ended_ns: int, **facts: Fact) -> Span:
        """Record what is over already; times in ns since 1970. The span returned may have parts of its own."""
        assert self.tracer is not None
        attributes = {f"{NAME}.{key}": value for key, value in facts.items()}
        span = self.tracer.start_span(
            name, trace.set_span_in_context(parent, Context()), start_time=began_ns, attributes=attributes
        )
        span.end(ended_ns)
        return span


OFF = Tracing()


# -- Kafka -------------------------------------------------------------------------------------------------------------


def publishing(tracing: Tracing, topic: str, headers: list[tuple[str, bytes]]) -> Span | None:
    """Begin a producer's span and put it into the headers, if a span is recording here; else do nothing.

    A program's own provider, set globally, makes it where `tracing` is off. `published` ends it.
    """
    current = trace.get_current_span()
    if not current.is_recording():
        return None
    tracer = tracing.tracer if tracing.tracer is not None else trace.get_tracer(NAME)
    within = trace.set_span_in_context(current, Context())
    attributes = {"messaging.system": "kafka", "messaging.destination.name": topic, "messaging.operation.type": "send"}
    span = tracer.start_span(f"send {topic}", within, SpanKind.PRODUCER, attributes)
    carrier: dict[str, str] = {}
    _W3C.inject(carrier, trace.set_span_in_context(span, Context()))
    headers += [(name, value.encode()) for name, value in carrier.items()]
    return span


def published(span: Span, sent: asyncio.Future[object]) -> None:
    """End a producer's span with its message's outcome."""
    if sent.cancelled() or sent.exception() is not None:
        span.set_status(
            Status(StatusCode.ERROR, "CancelledError" if sent.cancelled() else type(sent.exception()).__name__)
        )
    span.end()


def sampled(messages: Sequence[Message]) -> dict[int, SpanContext]:
    """Return the contexts of those messages that belong to a sampled trace, by offset."""
    found: dict[int, SpanContext] = {}
    for message in messages:
        for name, value in message.headers:
            if name == "traceparent" and value and value[-1] in _SAMPLED:
                given = {key: text.decode("latin-1") for key, text in message.headers if key in _W3C.fields and text}
                context = trace.get_current_span(_W3C.extract(given, Context())).get_span_context()
                if context.is_valid:
                    found[message.offset] = context
    return found


# -- HTTP --------------------------------------------------------------------------------------------------------------


def asked_in(headers: Sequence[tuple[bytes, bytes]]) -> Context:
    """Return the context that a request's headers continue; an empty one if they name none."""
    fields = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers if name in _HTTP}
    return _W3C.extract(fields, Context())


_HTTP = frozenset({b"traceparent", b"tracestate"})
