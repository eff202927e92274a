"""How the gateway's answers look on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from pipeline.client_results import Result


def table_of_hits(answer: Result) -> None:
    """Print hits as a table, and how complete the answer is."""
    table = Table("score", "tier", "id", "payload")
    for hit in answer.hits:
        table.add_row(f"{hit.score or 0:.3f}", hit.tier, hit.id, str(hit.payload)[:70])
    console = Console()
    console.print(table)
    missed = f", missed {', '.join(answer.missed)}" if answer.missed else ""
    console.print(f"{answer.scanned} of {answer.of} records scanned in {answer.took_ms:.1f} ms{missed}")


def tier_table(answer: dict[str, Any]) -> Table:
    """Return what `/v1/tiers` says as a table."""
    table = Table("tier", "records", "tombstones", "queued", "bytes", "arrived", title="where memories are")
    arrived = {move["to"]: 0 for move in answer["moved"]}
    for move in answer["moved"]:
        arrived[move["to"]] += move["records"]
    arrived["hot"] = answer["ingested"]
    for name, tier in answer["tiers"].items():
        numbers = (tier["records"], tier["tombstones"], tier["queued"], tier["bytes"], arrived.get(name, 0))
        table.add_row(name, *(f"{number:,}" for number in numbers))
    return table


@contextmanager
def progress(doing: str, total: int | None, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Show on standard error how far long work is, on a terminal only; yields what counts it on."""
    columns = [SpinnerColumn(), TextColumn(doing), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=quiet or not sys.stderr.isatty()) as bar:
        task = bar.add_task(doing, total=total)
        yield lambda count: bar.advance(task, count)
