"""What happened between two answers of /v1/tiers, and how full a tier is. Pure."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

Answer = dict[str, Any]


class Rates(NamedTuple):
    """Records a second: arriving in and leaving each tier, between two, and read; empty before the second sample."""

    into: dict[str, float]
    out: dict[str, float]
    flows: dict[tuple[str, str], float]
    reads: dict[str, float]


def rates(now: Answer, before: Answer | None) -> Rates | None:
    """Return what happened between two answers; None where that cannot be known (the first, or a restart between)."""
    if before is None or now["at"] <= before["at"] or now["ingested"] < before["ingested"]:
        return None
    seconds = now["at"] - before["at"]
    earlier = {(move["from"], move["to"]): move["records"] for move in before["moved"]}
    flows: dict[tuple[str, str], float] = {}
    for move in now["moved"]:
        way = (move["from"], move["to"])
        flows[way] = max(0, move["records"] - earlier.get(way, 0)) / seconds
    into = dict.fromkeys(now["tiers"], 0.0) | {"hot": (now["ingested"] - before["ingested"]) / seconds}
    out = dict.fromkeys(now["tiers"], 0.0)
    for (source, target), rate in flows.items():
        out[source] = out.get(source, 0.0) + rate
        into[target] = into.get(target, 0.0) + rate
    reads = {name: max(0, count - before["reads"].get(name, 0)) / seconds for name, count in now["reads"].items()}
    return Rates(into, out, flows, reads)


def whole(answer: Answer) -> Answer:
    """Return an answer with all that is drawn: a key of some namespaces is told of their records only."""
    nothing: Answer = {"moved": [], "reads": {}, "ingested": 0, "dead_letters": {}, "dirty": {}, "paused": []}
    nothing |= {
        "replaying": [],
        "copies": {"records": 0, "records_max": 0},
        "freshness": {"lag_ms": 0},
        "at": time.time(),
    }
    tier = dict.fromkeys(("records", "queued", "rows", "bytes", "rows_limit", "bytes_limit"), 0)
    return {**nothing, **answer, "tiers": {name: {**tier, **each} for name, each in answer["tiers"].items()}}


def totals(now: Answer) -> Rates:
    """Return what happened since the node started, as if it were of one second."""
    found = rates(now, {"at": now["at"] - 1, "ingested": 0, "moved": [], "reads": {}})
    assert found is not None, "counts are not negative"
    return found


def fullness(tier: Answer) -> float | None:
    """Return how full a tier is, as the larger of rows and bytes against their limits; None without a limit."""
    parts = [
        tier[held] / tier[limit] for held, limit in (("rows", "rows_limit"), ("bytes", "bytes_limit")) if tier[limit]
    ]
    return max(parts, default=None)
