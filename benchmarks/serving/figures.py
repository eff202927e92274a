"""The page of `benchmarks.gateway`: its plot, and what is said around it. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.chapter import Chapter, Figure, Result, Scenarios, ours, theirs
from benchmarks.plot import Group


def answers(done: Scenarios) -> Iterator[Group]:
    """Yield the times of answers: reads by id beside a bare reply, and searches."""
    if one := done.get("by-id"):
        sides = (("GET by id", ours, one["ours"]), ("bare reply", theirs, one["bare"]))
        yield Group(
            f"{one['connections']} connections",
            [bar(label, found, f"{found['per_s']:,} a second") for label, bar, found in sides],
        )
    if one := done.get("search"):
        yield Group("1 connection", [ours("search", one["over_http"])])


def about(result: Result) -> str:
    """Return how it was asked."""
    return f"{result['settings']['rows']:,} records in hot,\none process that asks, one node that answers."


def closing(result: Result) -> str:
    """Return what a request costs, in CPU time."""
    lines: list[str] = []
    if one := result["scenarios"].get("by-id"):
        ours_us, bare_us = one["ours"]["cpu_us"], one["bare"]["cpu_us"]
        of = f"a bare reply of the same {one['answer_bytes']:,} bytes {bare_us:,} µs"
        lines.append(f"A read by id took {ours_us:,} µs of the node's CPU, {of}.")
    if one := result["scenarios"].get("search"):
        over, inside, waits = (
            sorted(one["loop_cpu_us"][side])[len(one["loop_cpu_us"][side]) // 2]
            for side in ("over_http", "of_that_search", "bare_that_waits")
        )
        lines.append(
            f"A search over HTTP took {over:,} µs of the loop's thread, {inside:,} µs of them the search itself; a "
            f"bare reply of the same bytes that waits as long as a search took {waits:,} µs."
        )
    return "\n".join(lines)


CHAPTER = Chapter(
    "gateway-full.json",
    "benchmarks-gateway.md",
    "Measured: the gateway",
    {"gateway": Figure("Answers over HTTP", answers)},
    about,
    closing,
)
