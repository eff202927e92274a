"""The metrics of glacier's files and upkeep, and of what was asked of its bucket."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import Metric

from pipeline.metric_names import family
from tiers.census import Census


def archive_metrics(census: Census) -> Iterable[Metric]:
    """Yield what a census says."""
    values = {
        "files": census.files,
        "bytes": census.bytes,
        "small_files": census.small_files,
        "waiting_files": census.waiting_files,
        "waiting_bytes": census.waiting_bytes,
        "log_entries": census.log_entries,
        "vacuumed_timestamp_seconds": census.done.vacuumed_s,
        "rewrites_total": census.done.rewrites,
        "rewritten_files_total": census.done.rewritten_files,
        "dropped_rows_total": census.done.dropped_rows,
        "vacuumed_files_total": census.done.vacuumed_files,
    }
    for name, value in values.items():
        yield family(f"isotherm_archive_{name}", value)
    counts = sorted(census.requests.items())
    yield family("isotherm_s3_requests_total", (((operation,), count.requests) for operation, count in counts))
    yield family("isotherm_s3_failures_total", (((operation,), count.failures) for operation, count in counts))
    yield family("isotherm_s3_bytes_total", (((operation,), count.bytes) for operation, count in counts))
