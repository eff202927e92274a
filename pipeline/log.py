"""The only place that configures logging: structlog to stderr, JSON unless on a terminal; libraries' logs alike.

One event a unit of work, with what it is about as fields (never a payload, a vector or a secret); what all events of a
request or a poll share is bound once (`request_id`; `topic`, `partition`). A warning or an error that comes again
within ten seconds is counted instead of written, and the next one that is written says how many there were.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Hashable
from typing import TextIO

import msgspec
import structlog
from opentelemetry import trace
from structlog.typing import EventDict, Processor, WrappedLogger

from pipeline.settings import LogSettings

REPEAT_S = 10.0
KEYS_MAX = 1_000  # distinct messages that are looked after; beyond that all begin anew


class Repeats:
    """Leaves out what was said just before. `suppressed` counts the lines left out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: dict[Hashable, tuple[float, int]] = {}
        self.suppressed = 0

    def again(self, key: Hashable) -> int | None:
        """Return how many were left out since this was last written, None if this one is to be left out too."""
        now = self._clock()
        at, count = self._said.get(key, (-REPEAT_S, 0))
        if now - at < REPEAT_S:
            self._said[key] = (at, count + 1)
            self.suppressed += 1
            return None
        if len(self._said) >= KEYS_MAX:
            self._said.clear()
        self._said[key] = (now, 0)
        return count

    def __call__(self, _: WrappedLogger, method: str, event: EventDict) -> EventDict:
        """Leave out our own repeated warnings and errors (a processor of structlog)."""
        if method in ("warning", "error"):
            about = (event.get("partition"), event.get("topic"), event.get("route"))
            count = self.again((event.get("event"), method, *about))
            if count is None:
                raise structlog.DropEvent
            if count:
                event["repeated"] = count
        return event

    def filter(self, record: logging.LogRecord) -> bool:
        """Leave out the libraries' (a filter of the standard library's logging)."""
        count = self.again((record.name, record.levelno, str(record.msg)))
        if count:
            record.msg = f"{record.msg} [repeated {count} times]"
        return count is not None


REPEATS = Repeats()


def traced(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Name the trace that an event belongs to, where one is recorded."""
    span = trace.get_current_span()
    if span.is_recording():
        context = span.get_span_context()
        event["trace_id"], event["span_id"] = f"{context.trace_id:032x}", f"{context.span_id:016x}"
    return event


def configure(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Set up structlog and the standard library's logging; `stream` is standard error if not given."""
    stream = stream if stream is not None else sys.stderr
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    console = settings.format == "console" or (settings.format == "auto" and stream.isatty())
    renderer: Processor = (
        structlog.dev.ConsoleRenderer()
        if console
        else structlog.processors.JSONRenderer(lambda value, **_: msgspec.json.encode(value, enc_hook=str).decode())
    )
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        traced,
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[shared[0], REPEATS, *shared[1:], renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.addFilter(REPEATS.filter)
    foreign: list[Processor] = [structlog.stdlib.add_logger_name, *shared]
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=foreign))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.WARNING))  # libraries say at info what our own events say better
