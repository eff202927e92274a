"""The page of `benchmarks.ingest`: its plots, and what is said around them. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.chapter import Chapter, Figure, Result, Scenarios, ours
from benchmarks.plot import Bar, Group

KINDS = ("arrow", "msgpack", "json")
RATE = "bar: rows a second"


def memory(done: Scenarios) -> Iterator[Group]:
    """Yield rows a second of one core, each above a program that decodes and keeps nothing."""
    for kind in KINDS:
        if one := done.get(f"memory-{kind}"):
            yield Group(kind, [
                Bar("decode, check, append", one["rows_s"]), Bar("decode alone", one["alone_rows_s"], ours=False),
            ])  # fmt: skip


def kafka(done: Scenarios) -> Iterator[Group]:
    """Yield rows a second out of Kafka, each above a consumer that only counts."""
    for kind in KINDS:
        if one := done.get(f"kafka-{kind}"):
            yield Group(kind, [
                Bar("until searchable", one["rows_s"]), Bar("only counted", one["counted_rows_s"], ours=False),
            ])  # fmt: skip
    if one := done.get("restart"):
        yield Group("restart", [Bar("replayed", one["rows_s"], note="Arrow")])
    if (one := done.get("lancedb")) and one["rows"]:
        yield Group("lancedb", [Bar("append from memory", one["lancedb_rows_s"], ours=False)])


def live(done: Scenarios) -> Iterator[Group]:
    """Yield how soon a search finds, how fast it is meanwhile, and how late the loop."""
    if one := done.get("freshness"):
        rate = f"{one['events_s']:,} events/s"
        yield Group("freshness", [ours("sent until found", one["found"], rate), ours("loop lag", one["loop_lag"])])
    if one := done.get("searching"):
        rate = f"{one['rows_s']:,} rows/s"
        yield Group("search", [
            ours("at rest", one["at_rest"]), ours("while ingesting", one["while_ingesting"], rate),
            ours("loop lag", one["loop_lag"]),
        ])  # fmt: skip


def growth(done: Scenarios) -> Iterator[Group]:
    """Yield what a row costs, by how many there are."""
    if one := done.get("growth"):
        bars = zip(one["rows"], one["cpu_s"], strict=True)
        yield Group("", [Bar(f"{rows:,} rows", 1e6 * cpu_s / rows) for rows, cpu_s in bars])


def about(result: Result) -> str:
    """Return how it was measured."""
    sizes = result["settings"]
    return (
        f"{sizes['dim']} floats, {sizes['partitions']} partitions,\nbroker, Valkey, node and producer on this machine."
    )


def closing(result: Result) -> str:
    """Return what a row takes of each process, of memory, and what the machine can do at most."""
    done, lines = result["scenarios"], []
    told = [(kind, done[f"kafka-{kind}"]["cpu_us_a_row"]) for kind in KINDS if f"kafka-{kind}" in done]
    if told:
        lines += [
            "CPU a row out of Kafka, in µs, the least of the rounds:",
            "",
            "| | broker | Valkey | node |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {kind} | " + " | ".join(f"{min(one[name] for one in rounds):.2f}" for name in _PROCESSES) + " |"
            for kind, rounds in told
        ]
    if one := done.get("growth"):
        lines += ["", f"A record of {one['raw_bytes_a_row']:,} bytes takes {one['resident_bytes_a_row']:,} in hot."]
    if one := done.get("limits"):
        least = ", ".join(f"{name.replace('_', ' ')} {ns:,.0f}" for name, ns in one["ns_a_row"].items())
        lines += ["", f"What one thread of this machine needs at least, in ns: {least}."]
    return "\n".join(lines)


_PROCESSES = ("broker", "valkey", "node")

CHAPTER = Chapter(
    "ingest-full.json",
    "benchmarks-ingest.md",
    "Ingest, measured",
    {
        "ingest-memory": Figure("From messages in memory to rows in hot, one core", memory, "rows/s", RATE),
        "ingest-kafka": Figure("From Kafka to rows that a search finds", kafka, "rows/s", RATE),
        "ingest-live": Figure("While events come in", live),
        "ingest-growth": Figure("CPU a row of Arrow messages, by rows in hot", growth, "µs", "bar: µs of CPU a row"),
    },
    about,
    closing,
)
