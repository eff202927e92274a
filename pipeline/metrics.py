"""Prometheus metrics, read from the node when asked: the hot paths count in plain numbers.

`metric_names` declares them all; `node_metrics` and `archive_metrics` read the parts. A tier that does not say how full
it is within `ANSWER_S` lacks its samples and is 0 in `isotherm_tier_up`: a scrape never waits for a sick tier longer.
"""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Awaitable, Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import Metric

from pipeline.archive_metrics import archive_metrics
from pipeline.codes import codes_metrics
from pipeline.feed import ChangeFeed
from pipeline.log import REPEATS
from pipeline.metric_names import family, histogram, info
from pipeline.node_metrics import coming_in, holding, moving, only_in_the_log, owning
from pipeline.read_counts import HttpCounts, ReadCounts
from tiers.errors import IsothermError
from tiers.tier import TierName, Usage

if TYPE_CHECKING:
    from pipeline.manager import MemoryManager

T = TypeVar("T")
ANSWER_S = 1.0
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class Metrics:
    """One registry a gateway; `http` is counted by its middleware, everything else is collected."""

    def __init__(self, manager: MemoryManager, feed: ChangeFeed) -> None:
        self._manager, self._feed = manager, feed
        self._usages: dict[TierName, Usage] = {}
        self._gpu: dict[str, int] = {}
        self.http = HttpCounts()
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    @property
    def reads(self) -> ReadCounts:
        """What the manager's reads are counted in."""
        return self._manager.reads

    async def render(self) -> bytes:
        """Return the exposition text."""
        tiers = self._manager.node.tiers
        found = await asyncio.gather(*(self._in_time(tier.usage()) for tier in tiers.values()))
        self._usages = {name: usage for name, usage in zip(tiers, found, strict=True) if usage is not None}
        self._gpu = await self._in_time(self._manager.node.hot.device_memory()) or {}
        return generate_latest(self._registry)

    @staticmethod
    async def _in_time(answer: Awaitable[T]) -> T | None:
        try:
            async with asyncio.timeout(ANSWER_S):
                return await answer
        except (IsothermError, TimeoutError):
            return None

    def describe(self) -> Iterable[Metric]:
        """Describe nothing, so that registering does not collect (prometheus_client calls this)."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Yield the current values (prometheus_client calls this)."""
        node = self._manager.node
        yield from holding(node, self._usages)
        yield from codes_metrics(node)
        yield family("isotherm_gpu_memory_bytes", (((kind,), size) for kind, size in self._gpu.items()))
        yield from coming_in(node, self._manager.freshness()["lag_ms"] / 1000)
        yield from only_in_the_log(node)
        yield from moving(node)
        yield from self._asked()
        yield from archive_metrics(node.glacier.census())
        yield from owning(node)
        yield family("isotherm_memory_limit_bytes", memory_limit())
        yield family("isotherm_log_suppressed_total", REPEATS.suppressed)
        build = {"version": package_version(), "device": node.hot.device.name, "python": platform.python_version()}
        yield info("isotherm_build_info", build)

    def _asked(self) -> Iterable[Metric]:
        reads, http = self.reads, self.http
        yield histogram("isotherm_query_seconds", reads.queries.items())
        yield histogram("isotherm_query_tier_seconds", (((tier,), tally) for tier, tally in reads.tiers.items()))
        yield histogram("isotherm_query_step_seconds", (((step,), tally) for step, tally in reads.steps.items()))
        yield family("isotherm_lookup_total", reads.lookups.items())
        yield family("isotherm_http_requests_total", http.requests.items())
        yield histogram("isotherm_http_request_seconds", (((route,), tally) for route, tally in http.seconds.items()))
        yield family("isotherm_stream_subscribers", self._feed.streams)
        yield family("isotherm_stream_dropped_total", self._feed.dropped)


@cache
def memory_limit() -> int:
    """Return the bytes of memory that the process may have: its cgroup's limit, else the machine's memory."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in CGROUP_LIMITS:
        try:
            return min(machine, int(Path(file).read_text()))
        except (OSError, ValueError):  # not this kind of cgroup, or "max"
            continue
    return machine


@cache
def package_version() -> str:
    """Return the version of what is installed."""
    try:
        return version("isotherm")
    except PackageNotFoundError:
        return "unknown"
