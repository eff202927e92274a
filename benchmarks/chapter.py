"""A committed result and the page that is drawn from it: what all benchmarks' pages have in common. Pure.

A benchmark says in a module of its own which plots its result makes (`Figure`) and what is to be said around them, in
one `Chapter`; `benchmarks.page` lists the chapters, and writes and checks them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.plot import TIMES, Bar, Group, svg

RESULTS = Path("benchmarks") / "results"
PAGES = Path("docs")
PLOTS = PAGES / "benchmarks"

Result = dict[str, Any]
Scenarios = dict[str, dict[str, Any]]


class Figure(NamedTuple):
    """A plot of what scenarios have measured; without groups it is left out. `legend` says what a bar is."""

    title: str
    groups: Callable[[Scenarios], Iterator[Group]]
    unit: str = "ms"
    legend: str = TIMES


class Chapter(NamedTuple):
    """`about` ends the sentence on the machine, `closing` follows the plots; names of plots are unique in all pages."""

    result: str
    page: str
    title: str
    figures: Mapping[str, Figure]
    about: Callable[[Result], str]
    closing: Callable[[Result], str]

    def files(self, result: Result) -> dict[Path, str]:
        """Return every file of the page, by its path below the repository."""
        drawn = {name: (figure, list(figure.groups(result["scenarios"]))) for name, figure in self.figures.items()}
        plots = {
            name: svg(figure.title, figure.unit, groups, figure.legend)
            for name, (figure, groups) in drawn.items()
            if groups
        }
        pictures = "\n\n".join(f"![{self.figures[name].title}](benchmarks/{name}.svg)" for name in plots)
        return {
            PAGES / self.page: self._page(result, pictures),
            **{PLOTS / f"{name}.svg": plot for name, plot in plots.items()},
        }

    def _page(self, result: Result, pictures: str) -> str:
        host = result["host"]
        lines = [
            "| scenario | promise | reached | must | |",
            "|---|---|---|---|---|",
            *(_line(line) for line in result["table"]),
        ]
        notes = "".join(f"\n{note}\n" for note in result["notes"].values())
        return f"""\
# {self.title}

Written by `python -m benchmarks.page` from `{(RESULTS / self.result).as_posix()}`; not to be edited.
`benchmarks/README.md` says what is measured and how, and what is not.

Commit `{result["commit"][:12]}`{" with changes" if result["dirty"] else ""}; {host["cpu"]}, {host["cores"]} cores,
{host["memory_gb"]} GB, one-minute load {host["load_1min_at_start"]} at the start; {self.about(result)}
{notes}
{chr(10).join(lines)}

{pictures}

{self.closing(result)}
"""


def _line(line: dict[str, Any]) -> str:
    reached = "not measured" if line["reached"] is None else f"{line['reached']:,.10g}"
    must = f"{'≥' if line['relation'] == '>=' else '≤'} {line['must']:,.10g} {line['unit']}".strip()
    return f"| {line['scenario']} | {line['what']} | {reached} | {must} | {'ok' if line['ok'] else '**not yet**'} |"


def ours(label: str, found: dict[str, Any], note: str = "") -> Bar:
    """Return the bar of times that our side took, as `report.spread` says them."""
    return Bar(label, found["p50_ms"], found["p99_ms"], note, ours=True)


def theirs(label: str, found: dict[str, Any], note: str = "") -> Bar:
    """Return the bar of times that what we compare with took."""
    return Bar(label, found["p50_ms"], found["p99_ms"], note, ours=False)
