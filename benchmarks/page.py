"""Draws docs/benchmarks.md and its plots from the committed results.

python -m benchmarks.page            # writes them
python -m benchmarks.page --check    # says whether they are what would be written
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.plot import Bar, Group, svg

ROOT = Path(__file__).parent.parent
RESULT = Path("benchmarks") / "results" / "search-full.json"
PAGE = Path("docs") / "benchmarks.md"
PLOTS = Path("docs") / "benchmarks"

Scenarios = dict[str, dict[str, Any]]


def _ours(label: str, found: dict[str, Any], note: str = "") -> Bar:
    return Bar(label, found["p50_ms"], found["p99_ms"], note, ours=True)


def _theirs(label: str, found: dict[str, Any], note: str = "") -> Bar:
    return Bar(label, found["p50_ms"], found["p99_ms"], note, ours=False)


def scale(done: Scenarios) -> Iterator[Group]:
    """Yield searches by where the rows lie, each above the flat scan of the same rows."""
    for name in ("warm-200k", "cold-200k"):
        if one := done.get(name):
            recall = f"recall {one['recall']}"
            yield Group(f"{one['rows']:,} {name[:4]}", [
                _ours("search", one["ours"], recall), _theirs("faiss flat", one["faiss_flat"]),
            ])  # fmt: skip
    if one := done.get("million"):
        yield Group(f"{one['rows']:,} all", [
            _ours("search", one["include_none"], f"recall {one['recall']}"),
            _ours("with payloads", one["with_payloads"]),
            _theirs("faiss flat", one["faiss_flat"]),
        ])  # fmt: skip


def selectivity(done: Scenarios) -> Iterator[Group]:
    """Yield searches by the share of rows that pass the filter."""
    for share, one in done.get("selectivity", {}).get("by_selectivity", {}).items():
        yield Group(f"{share} pass", [
            _ours("search", one["ours"], f"recall {one['recall']}"),
            _theirs("filter and scan", one["filtered_scan"]),
        ])  # fmt: skip


def by_id(done: Scenarios) -> Iterator[Group]:
    """Yield reads by id, each with the bare store's."""
    if one := done.get("by-id"):
        yield Group("warm", [_ours("by id", one["warm"]), _theirs("Redis GET", one["redis_get"])])
        indexed = one["duckdb_primary_key"]
        yield Group("cold", [_ours("by id", one["cold"]), _theirs("DuckDB, key", indexed)])
        files = f"{one['glacier']['files']} files"
        cached = _ours("again", one["glacier_cached"])
        yield Group("glacier", [_ours("by id", one["glacier"], files), cached])


def moving(done: Scenarios) -> Iterator[Group]:
    """Yield searches at rest and while rows move."""
    if one := done.get("moving"):
        rate = f"{one['loaded_rows_s']:,} rows/s"
        yield Group("", [_ours("at rest", one["at_rest"]), _ours("demoting", one["while_moving"], rate)])


def peers(done: Scenarios) -> Iterator[Group]:
    """Yield the same search in other stores, and how soon a new row is found."""
    if one := done.get("peers"):
        bars = [
            (_ours if name == "ours" else _theirs)(name, found, f"recall {found['recall']}")
            for name, found in one["stores"].items()
        ]
        found_ms = one["new_row_found_ms"].items()
        yield Group("search", bars)
        yield Group("new row", [(_ours if name == "ours" else _theirs)(name, found) for name, found in found_ms])


FIGURES: dict[str, tuple[str, Callable[[Scenarios], Iterator[Group]]]] = {
    "scale": ("Search, by where the rows lie", scale),
    "selectivity": ("Search with a filter, by the share of rows that pass", selectivity),
    "by-id": ("One record by its id", by_id),
    "moving": ("Search while records move", moving),
    "peers": ("The same rows in other stores", peers),
}


def files(result: dict[str, Any]) -> dict[Path, str]:
    """Return every file of the page, by its path below the repository. Pure."""
    drawn = {name: (title, list(groups(result["scenarios"]))) for name, (title, groups) in FIGURES.items()}
    plots = {name: svg(title, "ms", groups) for name, (title, groups) in drawn.items() if groups}
    pictures = "\n\n".join(f"![{drawn[name][0]}](benchmarks/{name}.svg)" for name in plots)
    return {PAGE: page(result, pictures), **{PLOTS / f"{name}.svg": plot for name, plot in plots.items()}}


def page(result: dict[str, Any], pictures: str) -> str:
    """Return the page's text."""
    host, sizes, done = result["host"], result["settings"], result["scenarios"]
    lines = [
        "| scenario | promise | reached | must | |",
        "|---|---|---|---|---|",
        *(_line(line) for line in result["table"]),
    ]
    notes = "".join(f"\n{note}\n" for note in result["notes"].values())
    homes = done.get("million", {}).get("true_neighbours_in", {})
    where = ", ".join(f"{count:,} in {tier}" for tier, count in homes.items())
    return f"""\
# Measured

Written by `python -m benchmarks.page` from `{RESULT.as_posix()}`; not to be edited.
`benchmarks/README.md` says what is measured and how, and what is not.

Commit `{result["commit"][:12]}`{" with changes" if result["dirty"] else ""}; {host["cpu"]}, {host["cores"]} cores,
{host["memory_gb"]} GB, one-minute load {host["load_1min_at_start"]} at the start; {sizes["threads"]} search threads,
one client in the node's process. One thread read {result["bandwidth"]["gb_s"]} GB/s.
{notes}
{chr(10).join(lines)}

{pictures}

Questions are real texts held out of {result["corpus"]["distinct"]:,} embedded ones
({sizes["dim"]} floats, k = {sizes["k"]}).
{f"The true neighbours lay {where}." if where else ""}
"""


def _line(line: dict[str, Any]) -> str:
    reached = "not measured" if line["reached"] is None else f"{line['reached']:,.10g}"
    must = f"{'≥' if line['relation'] == '>=' else '≤'} {line['must']:,.10g} {line['unit']}".strip()
    return f"| {line['scenario']} | {line['what']} | {reached} | {must} | {'ok' if line['ok'] else '**not yet**'} |"


def main(arguments: list[str] | None = None) -> int:
    """Write the files, or check them; 1 when they differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 when a file is not what it should be")
    given = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    wanted = files(json.loads((ROOT / RESULT).read_text()))
    stale = [path for path, text in wanted.items() if not (ROOT / path).exists() or (ROOT / path).read_text() != text]
    for path in stale:
        print(f"{path} {'is not' if given.check else 'written:'} what {RESULT} says")
        if not given.check:
            (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
            (ROOT / path).write_text(wanted[path])
    return 1 if given.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
