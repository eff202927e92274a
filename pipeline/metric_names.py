"""Every metric of a node: name, type, labels and meaning. What is shown, documented and alerted on is made from here.

Conventions: base units in the name (`_seconds`, `_bytes`, `_ratio`), `_total` for what only grows, no ids in labels. A
label is bounded by the code (tiers, reasons, routes) or by the settings (partitions). `docs/metrics.md` is this table,
written by `python -m pipeline.metric_names`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from producers.tally import Tally

Labels = tuple[str, ...]


class Name(NamedTuple):
    """One metric; `name` as it is written, `_total` included."""

    group: str
    name: str
    kind: str
    labels: Labels
    help: str


_T, _P = ("tier",), ("partition",)
_FLOW = ("src", "dst")

_GROUPS: dict[str, tuple[tuple[str, str, Labels, str], ...]] = {
    "What each tier holds": (
        ("isotherm_records", "gauge", _T, "Live records by the tier of their home"),
        ("isotherm_rows", "gauge", _T, "Physical rows, tombstones and superseded ones too"),
        ("isotherm_bytes", "gauge", _T, "Bytes held"),
        ("isotherm_capacity_rows", "gauge", _T, "Limit of rows; no sample where none is set"),
        ("isotherm_capacity_bytes", "gauge", _T, "Limit of bytes; no sample where none is set"),
        ("isotherm_usage_ratio", "gauge", _T, "How full, by the tighter of its limits; what the policy sees"),
        ("isotherm_high_water_ratio", "gauge", (), "Where evacuation of a tier begins (policy.high_water)"),
        ("isotherm_tier_up", "gauge", _T, "1 if the tier said how full it is when this was asked, else 0"),
        ("isotherm_superseded_rows", "gauge", _T, "Superseded rows in the queue of evictions"),
        ("isotherm_copies", "gauge", (), "Promoted copies in hot"),
        ("isotherm_index_entries", "gauge", (), "Entries of the index, tombstones too"),
        ("isotherm_index_segments", "gauge", (), "Segments of the index"),
        ("isotherm_codes_bytes", "gauge", (), "Codes, and vectors without one yet, that scans read below hot"),
        ("isotherm_codes_rows", "gauge", (), "Rows that searches scan by their code"),
        ("isotherm_codes_waiting_rows", "gauge", (), "Vectors that have no code yet"),
        (
            "isotherm_codes_recall_ratio",
            "gauge",
            (),
            "Recall of sampled questions by codes; no sample before the first",
        ),
        ("isotherm_codes_questions_total", "counter", (), "Questions that recall was asked"),
        ("isotherm_codebook_trained", "gauge", (), "1 once a codebook makes codes, 0 while scans are exact"),
        ("isotherm_reindex_ratio", "gauge", (), "Share of segments coded by the newest codebook"),
        (
            "isotherm_gpu_memory_bytes",
            "gauge",
            ("kind",),
            "Memory of the GPU: total, free, and the pool's own; GPU only",
        ),
    ),
    "What comes in": (
        ("isotherm_ingest_total", "counter", ("topic", "result"), "Rows handed out, by what became of them"),
        ("isotherm_dead_letters_total", "counter", ("topic", "reason"), "Inputs that could not be applied"),
        ("isotherm_event_age_seconds", "histogram", ("stage",), "How old events were when they came to a stage"),
        ("isotherm_consumer_lag", "gauge", ("topic", "partition"), "Offsets in the log that were not applied yet"),
        ("isotherm_lag_seconds", "gauge", (), "Age of what was applied last, of the slowest partition that is behind"),
        ("isotherm_paused_partitions", "gauge", (), "Partitions paused for want of room in hot"),
        ("isotherm_replaying_partitions", "gauge", (), "Partitions that do not answer yet: they replay the log"),
        ("isotherm_ready", "gauge", (), "1 when every partition answers"),
        ("isotherm_expired_total", "counter", (), "Tombstones written for records whose time was over"),
    ),
    "What only the log holds": (
        ("isotherm_dirty_records", "gauge", _P, "Records of hot that only the log makes durable"),
        ("isotherm_watermark_offset", "gauge", _P, "The offset below which everything is durable"),
        ("isotherm_committed_offset", "gauge", _P, "The watermark that the broker has acknowledged"),
        ("isotherm_log_start_offset", "gauge", _P, "Where the memories topic begins; asked every 10 s"),
        ("isotherm_log_end_offset", "gauge", _P, "Where the memories topic ends; asked every 10 s"),
        (
            "isotherm_watermark_age_seconds",
            "gauge",
            _P,
            "Age of the oldest message that is not durable yet; 0 for none",
        ),
        ("isotherm_retention_seconds", "gauge", (), "How long the topic keeps a message; +Inf for ever"),
    ),
    "What moves": (
        ("isotherm_transitions_total", "counter", (*_FLOW, "reason"), "Records whose home moved"),
        ("isotherm_transition_bytes_total", "counter", _FLOW, "Bytes copied by moves, as Arrow"),
        ("isotherm_transition_seconds", "histogram", _FLOW, "Duration of a move, from read to eviction"),
        ("isotherm_transition_refusals_total", "counter", (*_FLOW, "kind"), "Moves that a tier refused for now"),
        ("isotherm_lane_jobs", "gauge", _P, "Jobs waiting in a partition's lane"),
        ("isotherm_lane_stalls_total", "counter", ("partition", "kind"), "Jobs of a lane given up for now"),
        ("isotherm_promotions_total", "counter", (), "Copies put into hot"),
        ("isotherm_copy_evictions_total", "counter", ("reason",), "Copies evicted from hot"),
        ("isotherm_accesses_total", "counter", (), "Reads that became heat"),
        ("isotherm_accesses_uncounted_total", "counter", (), "Reads beyond access.ids_max, or that the log refused"),
    ),
    "What is asked": (
        ("isotherm_query_seconds", "histogram", ("route", "tier"), "Time to answer, by the coldest tier that answered"),
        ("isotherm_query_tier_seconds", "histogram", _T, "Time that a query spent in a tier: its scan and its fetches"),
        ("isotherm_query_step_seconds", "histogram", ("step",), "Time of a search in look, filter, scan and fetch"),
        ("isotherm_lookup_total", "counter", ("tier", "outcome"), "Rows asked of a tier: found, moved, unanswered"),
        ("isotherm_reads_total", "counter", _T, "Records returned, by the tier that they were read in"),
        ("isotherm_copy_reads_total", "counter", (), "Records returned from copies in hot"),
        ("isotherm_http_requests_total", "counter", ("method", "route", "status"), "Requests answered"),
        ("isotherm_http_request_seconds", "histogram", ("route",), "Time until the answer began"),
        ("isotherm_stream_subscribers", "gauge", (), "Change streams open now"),
        ("isotherm_stream_dropped_total", "counter", (), "Change streams refused, or ended by us"),
    ),
    "The archive": (
        ("isotherm_archive_files", "gauge", (), "Live files"),
        ("isotherm_archive_bytes", "gauge", (), "Bytes of live files"),
        ("isotherm_archive_small_files", "gauge", (), "Live files less than half full, which upkeep merges"),
        ("isotherm_archive_waiting_files", "gauge", (), "Files that no version names, which vacuum removes"),
        ("isotherm_archive_waiting_bytes", "gauge", (), "Bytes of replaced files, which vacuum removes"),
        ("isotherm_archive_log_entries", "gauge", (), "Entries and checkpoints of the Delta log"),
        ("isotherm_archive_vacuumed_timestamp_seconds", "gauge", (), "When vacuum last removed a file, 0 for never"),
        ("isotherm_archive_rewrites_total", "counter", (), "Commits that replaced files"),
        ("isotherm_archive_rewritten_files_total", "counter", (), "Files that were replaced"),
        ("isotherm_archive_dropped_rows_total", "counter", (), "Superseded rows and finished tombstones dropped"),
        ("isotherm_archive_vacuumed_files_total", "counter", (), "Files removed"),
        ("isotherm_s3_requests_total", "counter", ("operation",), "Requests of S3, without checkpoints"),
        ("isotherm_s3_failures_total", "counter", ("operation",), "Requests of S3 without a good answer"),
        ("isotherm_s3_bytes_total", "counter", ("operation",), "Bytes of content sent to S3 or received"),
    ),
    "The process": (
        ("isotherm_build_info", "info", ("version", "device", "python"), "What runs here; always 1"),
        ("isotherm_epoch", "gauge", _P, "The epoch of our lease; it grows with every owner"),
        ("isotherm_lease_age_seconds", "gauge", _P, "Time since the lease was renewed; at node.lease_ttl_s it is over"),
        ("isotherm_lease_ttl_seconds", "gauge", (), "How long a lease lasts (node.lease_ttl_s)"),
        (
            "isotherm_loop_lag_seconds",
            "histogram",
            (),
            "How late the event loop was for a timer, sampled 20 times a second",
        ),
        (
            "isotherm_memory_limit_bytes",
            "gauge",
            (),
            "Memory the process may have: its cgroup's limit, else the machine's",
        ),
        ("isotherm_log_suppressed_total", "counter", (), "Log lines left out because the same was said just before"),
    ),
}

ALL = {row[0]: Name(group, *row) for group, rows in _GROUPS.items() for row in rows}

#: What prometheus_client says of the process by itself.
PROCESS = (
    ("process_resident_memory_bytes", "gauge", "Resident memory"),
    ("process_virtual_memory_bytes", "gauge", "Virtual memory"),
    ("process_cpu_seconds_total", "counter", "CPU time, user and system"),
    ("process_open_fds", "gauge", "Open file descriptors"),
    ("process_max_fds", "gauge", "Most file descriptors"),
    ("process_start_time_seconds", "gauge", "When the process started, since 1970"),
)

Sample = tuple[Labels, float]


def family(name: str, samples: Iterable[Sample] | float) -> Metric:
    """Return a declared counter or gauge with these samples (one number: without labels)."""
    what = ALL[name]
    kind = CounterMetricFamily if what.kind == "counter" else GaugeMetricFamily
    made = kind(name, what.help, labels=what.labels)
    for labels, value in [((), float(samples))] if isinstance(samples, int | float) else samples:
        assert len(labels) == len(what.labels), f"{name} has the labels {what.labels}, not {labels}"
        made.add_metric(labels, float(value))
    return made


def info(name: str, values: dict[str, str]) -> Metric:
    """Return a declared info metric."""
    made = InfoMetricFamily(name.removesuffix("_info"), ALL[name].help)
    assert tuple(values) == ALL[name].labels, f"{name} has the labels {ALL[name].labels}"
    made.add_metric([], values)
    return made


def histogram(name: str, tallies: Iterable[tuple[Labels, Tally]]) -> Metric:
    """Return a declared histogram."""
    what = ALL[name]
    made = HistogramMetricFamily(name, what.help, labels=what.labels)
    for labels, tally in tallies:
        assert len(labels) == len(what.labels), f"{name} has the labels {what.labels}, not {labels}"
        made.add_metric(labels, tally.buckets(), tally.sum)
    return made


def document() -> str:
    """Return docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "`GET /metrics` has them in Prometheus's text form; `compose/observability/` has a scrape configuration, alert",
        "rules and a Grafana board. This page is written by `python -m pipeline.metric_names > docs/metrics.md`, and a",
        "test holds the two equal. [operating.md](operating.md) says what each alert means and what to do.",
        "",
        "A histogram has `_bucket` (label `le`), `_sum` and `_count`. Labels are bounded: tiers, reasons and routes by",
        "the code, partitions by `kafka.partitions`; ids, namespaces and whatever a client sends are never labels.",
    ]
    for group in _GROUPS:
        lines += ["", f"## {group}", "", "| metric | type | labels | meaning |", "|---|---|---|---|"]
        for what in ALL.values():
            if what.group == group:
                labels = ", ".join(f"`{label}`" for label in what.labels)
                lines.append(f"| `{what.name}` | {what.kind} | {labels} | {what.help} |")
    lines += ["", "From the operating system, where it is Linux:", "", "| metric | type | meaning |", "|---|---|---|"]
    lines += [f"| `{name}` | {kind} | {text} |" for name, kind, text in PROCESS]
    return "\n".join([*lines, "", *_VALUES, ""])


_VALUES = """## What the labels say

- `topic` is `memories`, `access` or `age`, without the prefix.
- `result` of memories: `applied`, `superseded` by a newer row of the same poll, `known` already (a replay met it
  again), `unmet` condition of a delete, `cleared` before by an operator, `rejected` to the dead letters. Of access:
  `applied`, `rejected`. Of age, in rows that it names: `planned`, `stale` (moved or changed since), `dropped` (the lane
  was full; they are named again), `rejected` (in events).
- `stage` of `isotherm_event_age_seconds`: `searchable` (since the Kafka message's timestamp, when a search would find
  it), `applied` (dead letters written, `at_least` answered), and `warm`, `cold`, `glacier` (since the record's own
  event time, when that tier became its home). What a replay applies is left out of the first two.
- `reason` of a transition: `age`, `idle`, `pressure`, `operator`, `drained`; docs/operating.md explains them.
- `tier` of `isotherm_query_seconds`: the coldest that a record of the answer came from, `none` for an empty answer;
  each query is counted once. `route`: `get`, `search`, `retrieve`; of HTTP the template, as `/v1/memories/{id:path}`.
- `kind` of refusals and stalls: `TierFull`, `TierUnavailable`, `LogUnavailable`. Reads that a tier did not answer are
  `isotherm_lookup_total{outcome="unanswered"}`.""".splitlines()


if __name__ == "__main__":
    print(document(), end="")  # noqa: T201 - it is the program's output
