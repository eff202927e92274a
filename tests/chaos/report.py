"""What a run has done and found, for people and for files."""

from __future__ import annotations

from typing import Any

from tests.chaos.run import Outcome


def summary(outcome: Outcome, seed: int) -> dict[str, Any]:
    """Return everything that was counted."""
    tally, checker = outcome.tally, outcome.checker
    rows, took_s = (sum(column) for column in zip(*tally.replayed, strict=True)) if tally.replayed else (0, 0.0)
    return {
        "seed": seed,
        "seconds": round(outcome.seconds, 1),
        "kills": dict(tally.kills),
        "faults": dict(tally.faults),
        "points": dict(sorted(tally.points.items())),
        "missed": dict(sorted(tally.missed.items())),
        "ended": dict(tally.ended),
        "recovery_s": [round(value, 2) for value in sorted(tally.recovery_s)],
        "replayed_rows": rows,
        "replayed_rows_per_s": round(rows / took_s) if took_s else None,
        "acknowledged": checker.acknowledged,
        "answers": dict(checker.answers),
        "refused": outcome.refused,
        "held": outcome.held,
        "counts": dict(checker.counts),
        "wrong": checker.wrong,
        "failures": tally.failures,
        "line": outcome.line,
    }


def report(outcome: Outcome, seed: int) -> str:
    """Return the report; its last line is the outcome's."""
    said = summary(outcome, seed)
    recovery = said["recovery_s"]
    lines = [f"seed {seed}, {said['seconds']:.0f} s", "", "kills by kind:"]
    lines += [f"  {count:5d}  {kind}" for kind, count in sorted(said["kills"].items())]
    lines += [f"other faults: {said['faults']}", "kills by failpoint:"]
    lines += [f"  {count:5d}  {point}" for point, count in said["points"].items()]
    lines += [f"  not reached in time: {said['missed'] or 'none'}"]
    lines += ["nodes that ended by themselves, and were started again:"]
    lines += [f"  {count:5d}  {reason}" for reason, count in sorted(said["ended"].items())]
    if recovery:
        lines += [f"recovery_s p50 {recovery[len(recovery) // 2]}, max {recovery[-1]}, of {len(recovery)}"]
    lines += [f"replayed {said['replayed_rows']} rows at starts, {said['replayed_rows_per_s']} rows/s of ingest"]
    lines += [f"answers judged: {said['answers']}; refused: {said['refused']}; at the end: {said['held']}"]
    lines += said["wrong"] + [f"FAILURE: {text}" for text in said["failures"]]
    return "\n".join([*lines, outcome.line])
