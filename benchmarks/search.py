"""How search and reads over the tiers do on real embeddings, against what we promise and against others.

    python -m benchmarks.search --out benchmarks/results/search-full.json     # all of it
    python -m benchmarks.search --quick --json                                # two minutes, the same JSON
    python -m benchmarks.search --only million                                # one scenario

A real node (Kafka, Valkey, DuckDB, Delta on a local disk) in a scratch directory; one client in the node's process;
truth is NumPy over all rows, outside the product. benchmarks/README.md says what is measured and how, and what not.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before FAISS and NumPy: both sides are compared a thread at a time
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import asyncio
import json
import logging
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import structlog
from rich.console import Console

from benchmarks.searching import peers, reads, scans
from benchmarks.searching.baselines import Memory, best_of
from benchmarks.searching.corpus import NOISE, corpus
from benchmarks.searching.report import machine, promises, show
from benchmarks.searching.run import Run, Size
from pipeline.stack import Stack

READS = 5  # of the memory, after each scenario

Scenario = Callable[[Run], Awaitable[dict[str, Any]]]

#: In this order: the four after `million` go on with its node, and `rebuild` stops and starts it.
SCENARIOS: dict[str, Scenario] = {
    "exact-hot": scans.exact_hot,
    "warm-200k": scans.warm,
    "cold-200k": scans.cold,
    "million": scans.million,
    "selectivity": scans.selectivity,
    "moving": reads.moving,
    "rebuild": reads.rebuild,
    "by-id": reads.by_id,
    "peers": peers.peers,
}


def _nothing(_: dict[str, Any]) -> None:
    """Keep nothing."""


async def measure(
    size: Size,
    names: Sequence[str],
    texts: Path | None,
    console: Console,
    servers: Stack | None = None,
    keep: Callable[[dict[str, Any]], None] = _nothing,
) -> dict[str, Any]:
    """Run the scenarios and return everything; on `servers` if given, else on some of its own.

    `keep` is given what there is after each: a run that is cut short has measured something.
    """
    began = time.perf_counter()

    def say(what: str) -> None:
        console.print(f"[dim]{time.perf_counter() - began:6.1f} s[/dim]  {what}")

    result: dict[str, Any] = {"benchmark": "search", **machine()}
    say("embedding the texts")
    given = corpus(size.million, size.questions, texts, size.texts)
    array = Memory(size.bandwidth_mb)
    read = [array.read() for _ in range(READS)]
    result |= {
        "settings": {**asdict(size), "k": scans.K, "dim": given.vectors.shape[1], "noise": NOISE},
        "corpus": given.source,
        "notes": {},
        "scenarios": {},
    }
    with tempfile.TemporaryDirectory(prefix="isotherm-bench-") as scratch:
        async with AsyncExitStack() as stack:
            if servers is None:
                say("starting Kafka and Valkey")
                servers = await stack.enter_async_context(Stack(Path(scratch) / "stack"))
            run = Run(size, given, servers, Path(scratch), say)
            stack.push_async_callback(run.close)
            for name in names:
                say(f"[bold]{name}[/bold]")
                started = time.perf_counter()
                done = result["scenarios"][name] = await SCENARIOS[name](run)
                done["took_s"] = round(time.perf_counter() - started, 1)
                if note := done.pop("note", None):
                    result["notes"][name] = note
                read += [array.read() for _ in range(READS)]
                result["bandwidth"] = {"gb_s": best_of(read), "threads": 1, "samples": read}
                if missing := [one for one in SCENARIOS if one not in result["scenarios"]]:
                    result["notes"]["not run"] = f"Not in this run: {', '.join(missing)}."
                else:
                    result["notes"].pop("not run", None)
                result |= {"took_s": round(time.perf_counter() - began, 1), "table": promises(result)}
                keep(result)
    return result


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=SCENARIOS, metavar="NAME", help=", ".join(SCENARIOS))
    parser.add_argument("--quick", action="store_true", help="fewer rows and questions: two minutes in all")
    parser.add_argument("--rows", type=int, help="rows over all tiers (default 1,000,000; quick 160,000)")
    parser.add_argument("--threads", type=int, default=2, help="search threads of the node (default 2)")
    parser.add_argument("--texts", type=Path, help="a file of texts, one a line, instead of Debian's and Python's")
    parser.add_argument("--note", help="what a reader of the result must know of the machine")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a promise is not kept")
    parser.add_argument("--json", action="store_true", help="the whole result, samples too, as one JSON object")
    parser.add_argument("--out", type=Path, help="write the JSON to this file too")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; 1 when a promise is not kept and that was asked."""
    given = parse(sys.argv[1:] if arguments is None else arguments)
    size = Size.quick() if given.quick else Size()
    size = replace(size if given.rows is None else size.of(given.rows), threads=given.threads)
    logging.disable(logging.ERROR)  # of libraries: what fails is raised
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    names = [name for name in SCENARIOS if given.only is None or name in given.only]

    def keep(result: dict[str, Any]) -> None:
        result["settings"]["quick"] = given.quick
        if given.note:
            result["notes"]["machine"] = given.note
        if given.out is not None:
            given.out.write_text(json.dumps(result, separators=(",", ":")) + "\n")

    result = asyncio.run(measure(size, names, given.texts, Console(stderr=True), keep=keep))
    if given.json:
        print(json.dumps(result))
    else:
        show(result, Console())
    return 1 if given.check and not all(line["ok"] for line in result["table"]) else 0


if __name__ == "__main__":
    sys.exit(main())
