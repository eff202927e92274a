"""The page of `benchmarks.search`: its plots, and what is said around them. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.chapter import Chapter, Figure, Result, Scenarios, ours, theirs
from benchmarks.plot import Group


def scale(done: Scenarios) -> Iterator[Group]:
    """Yield searches by where the rows lie, each above the flat scan of the same rows."""
    for name in ("warm-200k", "cold-200k"):
        if one := done.get(name):
            recall = f"recall {one['recall']}"
            yield Group(f"{one['rows']:,} {name[:4]}", [
                ours("search", one["ours"], recall), theirs("faiss flat", one["faiss_flat"]),
            ])  # fmt: skip
    if one := done.get("million"):
        yield Group(f"{one['rows']:,} all", [
            ours("search", one["include_none"], f"recall {one['recall']}"),
            ours("with payloads", one["with_payloads"]),
            theirs("faiss flat", one["faiss_flat"]),
        ])  # fmt: skip


def selectivity(done: Scenarios) -> Iterator[Group]:
    """Yield searches by the share of rows that pass the filter."""
    for share, one in done.get("selectivity", {}).get("by_selectivity", {}).items():
        yield Group(f"{share} pass", [
            ours("search", one["ours"], f"recall {one['recall']}"),
            theirs("filter and scan", one["filtered_scan"]),
        ])  # fmt: skip


def by_id(done: Scenarios) -> Iterator[Group]:
    """Yield reads by id, each with the bare store's."""
    if one := done.get("by-id"):
        yield Group("warm", [ours("by id", one["warm"]), theirs("Redis GET", one["redis_get"])])
        indexed = one["duckdb_primary_key"]
        yield Group("cold", [ours("by id", one["cold"]), theirs("DuckDB, key", indexed)])
        files = f"{one['glacier']['files']} files"
        cached = ours("again", one["glacier_cached"])
        yield Group("glacier", [ours("by id", one["glacier"], files), cached])


def moving(done: Scenarios) -> Iterator[Group]:
    """Yield searches at rest and while rows move."""
    if one := done.get("moving"):
        rate = f"{one['loaded_rows_s']:,} rows/s"
        yield Group("", [ours("at rest", one["at_rest"]), ours("demoting", one["while_moving"], rate)])


def peers(done: Scenarios) -> Iterator[Group]:
    """Yield the same search in other stores, and how soon a new row is found."""
    if one := done.get("peers"):
        bars = [
            (ours if name == "ours" else theirs)(name, found, f"recall {found['recall']}")
            for name, found in one["stores"].items()
        ]
        found_ms = one["new_row_found_ms"].items()
        yield Group("search", bars)
        yield Group("new row", [(ours if name == "ours" else theirs)(name, found) for name, found in found_ms])


def about(result: Result) -> str:
    """Return how it was asked, and how fast the memory is."""
    threads, bandwidth = result["settings"]["threads"], result["bandwidth"]["gb_s"]
    return f"{threads} search threads,\none client in the node's process. One thread read {bandwidth} GB/s."


def closing(result: Result) -> str:
    """Return what was asked, and where the answers lay."""
    sizes = result["settings"]
    homes = result["scenarios"].get("million", {}).get("true_neighbours_in", {})
    where = ", ".join(f"{count:,} in {tier}" for tier, count in homes.items())
    return f"""\
Questions are real texts held out of {result["corpus"]["distinct"]:,} embedded ones
({sizes["dim"]} floats, k = {sizes["k"]}).
{f"The true neighbours lay {where}." if where else ""}"""


CHAPTER = Chapter(
    "search-full.json",
    "benchmarks.md",
    "Measured",
    {
        "scale": Figure("Search, by where the rows lie", scale),
        "selectivity": Figure("Search with a filter, by the share of rows that pass", selectivity),
        "by-id": Figure("One record by its id", by_id),
        "moving": Figure("Search while records move", moving),
        "peers": Figure("The same rows in other stores", peers),
    },
    about,
    closing,
)
