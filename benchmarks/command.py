"""What all benchmarks share at the command line: options, scenarios one after the other, what is printed."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import structlog
from rich.console import Console

from benchmarks.report import promises, show

R = TypeVar("R")
Result = dict[str, Any]
Say = Callable[[str], None]
Keep = Callable[[Result], None]


def nothing(_: Result) -> None:
    """Keep nothing."""


def teller(console: Console) -> Say:
    """Return what tells a person how far it is, with the seconds since now."""
    began = time.perf_counter()
    return lambda what: console.print(f"[dim]{time.perf_counter() - began:6.1f} s[/dim]  {what}")


def options(name: str, description: str | None, scenarios: Iterable[str], quick: str) -> argparse.ArgumentParser:
    """Return the parser of `python -m benchmarks.<name>`; `quick` says what --quick does."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    chosen = list(scenarios)
    parser.add_argument("--only", action="append", choices=chosen, metavar="NAME", help=", ".join(chosen))
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--note", help="what a reader of the result must know of the machine")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a promise is not kept")
    parser.add_argument("--json", action="store_true", help="the whole result, samples too, as one JSON object")
    parser.add_argument("--out", type=Path, help="write the JSON to this file too")
    return parser


async def perform(
    result: Result,
    run: R,
    scenarios: Mapping[str, Callable[[R], Awaitable[Result]]],
    names: Sequence[str],
    say: Say,
    keep: Keep = nothing,
    after: Callable[[], Result] = dict,
) -> None:
    """Add scenarios and table to the result, one after the other; `after` each it gets what that returns.

    `keep` is given what there is after each: a run that is cut short has measured something.
    """
    began = time.perf_counter()
    result |= {"notes": {}, "scenarios": {}}
    for name in names:
        say(f"[bold]{name}[/bold]")
        started = time.perf_counter()
        done = result["scenarios"][name] = await scenarios[name](run)
        done["took_s"] = round(time.perf_counter() - started, 1)
        if note := done.pop("note", None):
            result["notes"][name] = note
        result |= after()
        if missing := [one for one in scenarios if one not in result["scenarios"]]:
            result["notes"]["not run"] = f"Not in this run: {', '.join(missing)}."
        else:
            result["notes"].pop("not run", None)
        result |= {"took_s": round(time.perf_counter() - began, 1), "table": promises(result)}
        keep(result)


def main(
    given: argparse.Namespace,
    scenarios: Iterable[str],
    measure: Callable[[list[str], Console, Keep], Coroutine[Any, Any, Result]],
) -> int:
    """Measure what `given` asks for and print it; 1 when a promise is not kept and that was asked."""
    logging.disable(logging.ERROR)  # of libraries: what fails is raised
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    names = [name for name in scenarios if given.only is None or name in given.only]

    def keep(result: Result) -> None:
        result["settings"]["quick"] = given.quick
        if given.note:
            result["notes"]["machine"] = given.note
        if given.out is not None:
            given.out.write_text(json.dumps(result, separators=(",", ":")) + "\n")

    result = asyncio.run(measure(names, Console(stderr=True), keep))
    if given.json:
        print(json.dumps(result))
    else:
        show(result, Console())
    return 1 if given.check and not all(line["ok"] for line in result["table"]) else 0
