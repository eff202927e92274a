"""Prometheus metrics, read from the node when asked: the hot paths count in plain integers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from pipeline.archive_metrics import archive_metrics
from pipeline.codes import codes_metrics
from tiers.tier import TierName

if TYPE_CHECKING:
    from pipeline.manager import MemoryManager

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Metrics:
    """One registry a node; `query_seconds` is observed by the routes, everything else is collected."""

    def __init__(self, manager: MemoryManager) -> None:
        self._manager = manager
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self.query_seconds = Histogram(
            "isotherm_query_seconds", "Time to answer, by route", ["route"], registry=self._registry, buckets=SECONDS
        )

    def render(self) -> bytes:
        """Return the exposition text."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """Yield the current values (prometheus_client calls this)."""
        node = self._manager.node
        census = node.index.census()
        records = GaugeMetricFamily("isotherm_records", "Live records by the tier of their home", labels=["tier"])
        queued = GaugeMetricFamily("isotherm_queued", "Superseded rows waiting for eviction", labels=["tier"])
        for tier in TierName:
            records.add_metric([tier.word], float(census[tier, 0]))
            queued.add_metric([tier.word], float(sum(node.index.queue.count(p, tier) for p in node.lanes)))
        yield records
        yield queued
        moves = CounterMetricFamily("isotherm_transitions", "Records demoted", labels=["source", "target"])
        for (source, target), count in node.mover.moved.items():
            moves.add_metric([source, target], count)
        yield moves
        yield from self._copies()
        yield CounterMetricFamily("isotherm_ingested", "Records ingested", value=node.ingest.rows)
        letters = CounterMetricFamily("isotherm_dead_letters", "Inputs that could not be applied", labels=["reason"])
        for reason, count in node.ingest.letters.items():
            letters.add_metric([reason], count)
        yield letters
        yield from self._partitions()
        yield from codes_metrics(node)
        yield from archive_metrics(node.glacier.census())

    def _copies(self) -> Iterable[Metric]:
        node = self._manager.node
        copies, access = node.copies, node.access
        reads = CounterMetricFamily(
            "isotherm_reads", "Records returned, by the tier they were read in", labels=["tier"]
        )
        for tier in TierName:
            reads.add_metric([tier.word], access.reads[tier])
        yield reads
        yield CounterMetricFamily("isotherm_accesses", "Reads that became heat", value=node.heat.accesses)
        yield CounterMetricFamily("isotherm_copy_reads", "Records returned from copies in hot", value=access.copy_reads)
        yield GaugeMetricFamily("isotherm_copies", "Promoted copies in hot", value=len(copies))
        yield CounterMetricFamily("isotherm_promotions", "Copies put into hot", value=copies.promoted)
        gone = CounterMetricFamily("isotherm_copy_evictions", "Copies evicted from hot", labels=["reason"])
        for reason, count in copies.evicted.items():
            gone.add_metric([reason], count)
        yield gone
        yield CounterMetricFamily(
            "isotherm_expired", "Tombstones written for expired records", value=node.expiry.written
        )
        unmet = node.ingest.unmet
        yield CounterMetricFamily("isotherm_unmet_conditions", "Deletes that found another version", value=unmet)

    def _partitions(self) -> Iterable[Metric]:
        node = self._manager.node
        dirty = GaugeMetricFamily("isotherm_dirty_records", "Records only the log makes durable", labels=["partition"])
        watermark = GaugeMetricFamily("isotherm_watermark_offset", "Committed watermark", labels=["partition"])
        stalls = CounterMetricFamily("isotherm_move_stalls", "Moves a tier refused for now", labels=["partition"])
        for partition, mark in node.ingest.watermarks.items():
            label = [str(partition)]
            dirty.add_metric(label, mark.dirty)
            watermark.add_metric(label, mark.value)
            stalls.add_metric(label, node.lanes[partition].stalls)
        yield from (dirty, watermark, stalls)
        yield GaugeMetricFamily("isotherm_paused_partitions", "Paused for want of room", value=len(node.reader.paused))
        lag = self._manager.freshness()["lag_ms"] / 1000
        yield GaugeMetricFamily("isotherm_lag_seconds", "Age of the oldest event not yet applied", value=lag)
