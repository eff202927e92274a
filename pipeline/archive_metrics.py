"""The metrics of glacier's files and upkeep, and of what was asked of its bucket."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from tiers.census import Census


def archive_metrics(census: Census) -> Iterable[Metric]:
    """Yield what a census says."""
    gauges = {
        "files": (census.files, "Live files"),
        "bytes": (census.bytes, "Bytes of live files"),
        "small_files": (census.small_files, "Live files less than half full, which upkeep merges"),
        "waiting_files": (census.waiting_files, "Files that no version names, which vacuum removes"),
        "waiting_bytes": (census.waiting_bytes, "Bytes of replaced files, which vacuum removes"),
        "log_entries": (census.log_entries, "Entries and checkpoints of the Delta log"),
        "vacuumed_timestamp_seconds": (census.done.vacuumed_s, "When vacuum last removed a file, 0 for never"),
    }
    for name, (value, help_) in gauges.items():
        yield GaugeMetricFamily(f"isotherm_archive_{name}", help_, value=value)
    counters = {
        "rewrites": (census.done.rewrites, "Commits that replaced files: rows dropped, small files merged"),
        "rewritten_files": (census.done.rewritten_files, "Files that were replaced"),
        "dropped_rows": (census.done.dropped_rows, "Superseded rows and finished tombstones dropped"),
        "vacuumed_files": (census.done.vacuumed_files, "Files removed"),
    }
    for name, (value, help_) in counters.items():
        yield CounterMetricFamily(f"isotherm_archive_{name}", help_, value=value)
    yield from _requests(census)


def _requests(census: Census) -> Iterable[Metric]:
    requests = CounterMetricFamily("isotherm_s3_requests", "Requests of S3, without checkpoints", labels=["operation"])
    failures = CounterMetricFamily("isotherm_s3_failures", "Requests without a good answer", labels=["operation"])
    carried = CounterMetricFamily("isotherm_s3_bytes", "Bytes of content sent or received", labels=["operation"])
    for operation, count in sorted(census.requests.items()):
        requests.add_metric([operation], count.requests)
        failures.add_metric([operation], count.failures)
        carried.add_metric([operation], count.bytes)
    yield from (requests, failures, carried)
