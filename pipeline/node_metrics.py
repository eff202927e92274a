"""The metrics of a node's parts, read from what they count of themselves, in one step of the loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client.core import Metric

from pipeline.app import Node, now_ms
from pipeline.metric_names import family, histogram
from tiers.policy import REASONS
from tiers.tier import TierName, Usage

COPIES_END = frozenset({*REASONS, "cooled", "replaced", "superseded", "cleared"})


def holding(node: Node, usages: Mapping[TierName, Usage]) -> Iterable[Metric]:
    """Yield what each tier holds; `usages` lacks those that did not say."""
    census = node.index.census()
    by_tier = [((tier.word,), tier) for tier in TierName]
    known = [((tier.word,), usage) for tier, usage in usages.items()]
    yield family("isotherm_records", ((label, census[tier, 0]) for label, tier in by_tier))
    yield family("isotherm_rows", ((label, usage.rows) for label, usage in known))
    yield family("isotherm_bytes", ((label, usage.bytes) for label, usage in known))
    yield family("isotherm_capacity_rows", ((label, u.rows_limit) for label, u in known if u.rows_limit))
    yield family("isotherm_capacity_bytes", ((label, u.bytes_limit) for label, u in known if u.bytes_limit))
    yield family("isotherm_usage_ratio", ((label, usage.fraction) for label, usage in known))
    yield family("isotherm_high_water_ratio", node.settings.policy.high_water)
    yield family("isotherm_tier_up", ((label, tier in usages) for label, tier in by_tier))
    queue = node.index.queue
    waiting = (((tier.word,), sum(queue.count(partition, tier) for partition in node.lanes)) for tier in TierName)
    yield family("isotherm_superseded_rows", waiting)
    yield family("isotherm_copies", len(node.copies))
    yield family("isotherm_index_entries", len(node.index))
    yield family("isotherm_index_segments", len(node.index.segments()))


def coming_in(node: Node, lag_s: float) -> Iterable[Metric]:
    """Yield what the log hands out, and what becomes of it."""
    ingest, short = node.ingest, {name: word for word, name in node.topics._asdict().items()}
    results = {"memories": ingest.counts.results, "access": node.heat.results, "age": node.demote.results}
    rows = (((topic, result), n) for topic, of in results.items() for result, n in of.items())
    yield family("isotherm_ingest_total", rows)
    letters = ((("memories", reason), count) for reason, count in ingest.letters.items())
    yield family("isotherm_dead_letters_total", letters)
    ages = {**ingest.counts.age, **node.mover.counts.age}
    yield histogram("isotherm_event_age_seconds", (((stage,), tally) for stage, tally in ages.items()))
    lag = (((short[topic], str(partition)), n) for (topic, partition), n in node.reader.lag().items())
    yield family("isotherm_consumer_lag", lag)
    yield family("isotherm_lag_seconds", lag_s)
    yield family("isotherm_paused_partitions", len(node.reader.paused))
    replaying = len(node.replaying())
    yield family("isotherm_replaying_partitions", replaying)
    yield family("isotherm_ready", not replaying)
    yield family("isotherm_expired_total", node.expiry.written)


def only_in_the_log(node: Node) -> Iterable[Metric]:
    """Yield how much would be lost if Kafka forgot it, and how near that is."""
    marks, watch = node.ingest.watermarks, node.log_watch
    yield family("isotherm_dirty_records", (((str(p),), mark.dirty) for p, mark in marks.items()))
    yield family("isotherm_watermark_offset", (((str(p),), mark.value) for p, mark in marks.items()))
    committed = (((str(p),), node.commit.acknowledged(p)) for p in marks)
    yield family("isotherm_committed_offset", committed)
    yield family("isotherm_log_start_offset", (((str(p),), at) for p, at in watch.begins.items()))
    yield family("isotherm_log_end_offset", (((str(p),), at) for p, at in watch.ends.items()))
    ages = (((str(p),), _oldest_s(node, p)) for p in marks)
    yield family("isotherm_watermark_age_seconds", ages)
    yield family("isotherm_retention_seconds", [] if watch.retention_s is None else watch.retention_s)


def _oldest_s(node: Node, partition: int) -> float:
    mark = node.ingest.watermarks[partition]
    written = node.ingest.marks.at(partition, mark.value) if mark.dirty else None
    return max(0, now_ms() - written) / 1000 if written is not None else 0.0


def moving(node: Node) -> Iterable[Metric]:
    """Yield what the lanes do."""
    counts = node.mover.counts
    yield family("isotherm_transitions_total", counts.records.items())
    yield family("isotherm_transition_bytes_total", counts.bytes.items())
    yield histogram("isotherm_transition_seconds", counts.seconds.items())
    yield family("isotherm_transition_refusals_total", counts.refused.items())
    yield family("isotherm_lane_jobs", (((str(p),), lane.waiting) for p, lane in node.lanes.items()))
    stalls = (((str(p), kind), n) for p, lane in node.lanes.items() for kind, n in lane.stalled.items())
    yield family("isotherm_lane_stalls_total", stalls)
    yield family("isotherm_promotions_total", node.copies.promoted)
    ends: dict[str, int] = {}
    for reason, count in node.copies.evicted.items():  # a stranger's advice may give any reason
        known = reason if reason in COPIES_END else "unknown"
        ends[known] = ends.get(known, 0) + count
    yield family("isotherm_copy_evictions_total", (((reason,), n) for reason, n in ends.items()))
    yield family("isotherm_accesses_total", node.heat.accesses)
    yield family("isotherm_accesses_uncounted_total", node.access.uncounted)
    yield family("isotherm_reads_total", (((tier.word,), node.access.reads[tier]) for tier in TierName))
    yield family("isotherm_copy_reads_total", node.access.copy_reads)


def owning(node: Node) -> Iterable[Metric]:
    """Yield the leases, and how late the loop is."""
    yield family("isotherm_epoch", (((str(p),), epoch) for p, epoch in node.lease.epochs.items()))
    yield family("isotherm_lease_age_seconds", (((str(p),), age) for p, age in node.lease.ages_s().items()))
    yield family("isotherm_lease_ttl_seconds", node.settings.node.lease_ttl_s)
    yield histogram("isotherm_loop_lag_seconds", [((), node.loop_probe.lag)])
