"""Traces of a node: the SDK behind `[trace]`, and the spans of a read, made from what it noted of itself.

A read times its own steps (`tiers/trace.py`), for `explain` and for the metrics; its spans are made from that once it
is over, and only if the request is recorded. So a tier knows nothing of OpenTelemetry, and nothing is timed twice.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from opentelemetry import trace
from opentelemetry.trace import Span

from producers.tracing import OFF, Tracing
from tiers.errors import SettingsError
from tiers.tier import Result
from tiers.trace import Part
from tiers.worker import SerialExecutor

TIMEOUT_S = 5  # for one export, and for the last one at a stop


class TraceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`ratio` of traces that begin here are recorded, and all that a caller has sampled; `headers` may hold secrets."""

    enabled: bool = False
    endpoint: str = "http://127.0.0.1:4318/v1/traces"
    ratio: float = 0.01
    service_name: str = "isotherm"
    headers: dict[str, str] = {}


@asynccontextmanager
async def tracing_of(settings: TraceSettings, given: Tracing | None = None) -> AsyncIterator[Tracing]:
    """Open what records spans and sends them to `endpoint` by OTLP over HTTP; SettingsError without the extra.

    What is `given`, by a program that has a tracer provider of its own, is used as it is.
    """
    if given is not None or not settings.enabled:
        yield given if given is not None else OFF
        return
    provider = _provider(settings)
    thread = SerialExecutor("trace")
    try:
        yield Tracing.over(provider)
    finally:
        await thread.run(provider.shutdown)  # sends what is left; a collector that does not answer costs its timeout
        thread.close()


def _provider(settings: TraceSettings) -> Any:
    try:
        sdk, export, sampling, resources, otlp = (
            importlib.import_module(f"opentelemetry.{name}")
            for name in (
                "sdk.trace",
                "sdk.trace.export",
                "sdk.trace.sampling",
                "sdk.resources",
                "exporter.otlp.proto.http.trace_exporter",
            )
        )
    except ImportError as error:
        raise SettingsError("trace.enabled = true needs the extra: pip install 'isotherm[otel]'") from error
    provider = sdk.TracerProvider(
        sampler=sampling.ParentBased(sampling.TraceIdRatioBased(settings.ratio)),
        resource=resources.Resource.create({"service.name": settings.service_name}),
        shutdown_on_exit=False,
    )
    exporter = otlp.OTLPSpanExporter(settings.endpoint, headers=settings.headers or None, timeout=TIMEOUT_S)
    provider.add_span_processor(export.BatchSpanProcessor(exporter))
    return provider


def record_read(tracing: Tracing, result: Result, began: float) -> None:
    """Make the spans of a read that is over, under the span that is recording now, if any.

    `began` is on time.perf_counter. Steps are its children, and what was asked of a tier belongs to the step around it.
    """
    current = trace.get_current_span()
    if result.trace is None or not current.is_recording():
        return
    ended = time.perf_counter()
    to_ns = time.time_ns() - int(ended * 1e9)

    def at(moment: float) -> int:
        return to_ns + int(moment * 1e9)

    facts = {"hits": len(result.hits), "scanned": result.scanned, "of": result.of, "complete": result.complete}
    read = tracing.done("retrieve", current, at(began), at(ended), **facts)
    steps: list[tuple[Part, Span]] = []
    for part in sorted(result.trace.parts, key=lambda one: (one.tier is not None, one.began)):
        if part.tier is None:
            steps.append((part, tracing.done(part.name, read, at(part.began), at(part.ended))))
        else:
            within = [span for step, span in steps if step.began <= part.began and part.ended <= step.ended]
            parent = within[-1] if within else read
            name = f"{part.name} {part.tier}"
            tracing.done(name, parent, at(part.began), at(part.ended), tier=part.tier, rows=part.rows)
