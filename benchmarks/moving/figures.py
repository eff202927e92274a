"""The page of `benchmarks.moves`: its plots, and what is said around them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.chapter import Chapter, Figure, Result, Scenarios
from benchmarks.plot import Bar, Group

PROCESSES = ("node", "valkey", "kafka", "producer")


def rates(done: Scenarios) -> Iterator[Group]:
    """Yield each way down above the bare store that is given the same rows."""
    for way, found in done.get("pairs", {}).get("ways", {}).items():
        yield Group(way, [
            Bar("move, durable", found["rows_s"]), Bar("bare store", found["bare_rows_s"], ours=False),
        ])  # fmt: skip


def costs(done: Scenarios) -> Iterator[Group]:
    """Yield what a row costs, by process."""
    ways = dict(done.get("pairs", {}).get("ways", {}))
    if one := done.get("sustained"):
        ways["all four tiers"] = one
    for way, found in ways.items():
        spent = found["cpu_us_a_row"]
        bars = [Bar(name, spent[name], ours=name == "node") for name in PROCESSES if spent.get(name, 0) > 0]
        if bars:
            yield Group(way, bars)


def curves(done: Scenarios) -> Iterator[Group]:
    """Yield the cost of the first rows, twice as many each time."""
    for way, found in done.get("pairs", {}).get("ways", {}).items():
        yield Group(way, [Bar(f"{point['rows']:,} rows", point["cpu_s"]) for point in found["curve"] if point["cpu_s"]])


def flow(done: Scenarios) -> Iterator[Group]:
    """Yield the sustained rate into each tier."""
    if one := done.get("sustained"):
        bars = [Bar(f"into {tier}", rate) for tier, rate in one["rows_s"].items() if rate > 0]
        if bars:
            yield Group(f"{one['seconds']:g} s", bars)


def about(result: Result) -> str:
    """Return how it was moved."""
    sizes = result["settings"]
    return f"{sizes['partitions']} partitions,\n{sizes['dim']} floats and some 200 bytes of payload a record."


def closing(result: Result) -> str:
    """Return what a record takes in each tier, and how lag and memory went."""
    lines = []
    if one := result["scenarios"].get("pairs"):
        held = ", ".join(f"{tier} {one['bytes_a_record'][tier]:,}" for tier in ("hot", "warm", "cold", "glacier"))
        lines.append(f"Bytes a record, {one['raw_bytes']:,} as it is: {held}.")
    if one := result["scenarios"].get("compaction"):
        stored, written, left = (sizes_of(one[name]) for name in ("stored_mb", "written_mb", "left_mb"))
        lines.append(
            f"Compaction of one partition: {stored} became {written}; {left} wait for others\n"
            f"({one['rows_s']:,} rows/s merged, {one['cpu_us_a_row']['node']:g} us a row of the node)."
        )
    if one := result["scenarios"].get("sustained"):
        memory, lag = one["node_mb"], one["lag_ms"]
        lines.append(
            f"Sustained: the newest row applied was {lag['p50']:,} ms old (p50), {lag['p99']:,} ms (p99);\n"
            f"the node held {memory['first']:,} MB when the tiers had filled and {memory['last']:,} MB at the end."
        )
    return "\n".join(lines)


def sizes_of(files_mb: Sequence[float]) -> str:
    """Return how many files there are, and the smallest and largest size."""
    return f"{len(files_mb)} files of {files_mb[0]:g} to {files_mb[-1]:g} MB" if files_mb else "no files"


RATE, COST = "rows a second, the median of the chunks", "microseconds of processor time a row"
CHAPTER = Chapter(
    "moves-full.json",
    "benchmarks-moves.md",
    "Measured: moves",
    {
        "moves-rates": Figure("Each way down, and the bare store", rates, "rows/s", RATE),
        "moves-costs": Figure("What a row costs, by process", costs, "us", COST),
        "moves-growth": Figure("Cost of the first rows, all processes", curves, "s", "seconds of processor time"),
        "moves-flow": Figure("Sustained, through all four tiers", flow, "rows/s", "rows a second"),
    },
    about,
    closing,
)
