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
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import command
from benchmarks.command import Keep, nothing, perform, teller
from benchmarks.report import machine
from benchmarks.searching import peers, reads, scans
from benchmarks.searching.baselines import Memory, best_of
from benchmarks.searching.corpus import NOISE, corpus
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


async def measure(
    size: Size,
    names: Sequence[str],
    texts: Path | None,
    console: Console,
    servers: Stack | None = None,
    keep: Keep = nothing,
) -> dict[str, Any]:
    """Run the scenarios and return everything; on `servers` if given, else on some of its own."""
    say = teller(console)
    result: dict[str, Any] = {"benchmark": "search", **machine()}
    say("embedding the texts")
    given = corpus(size.million, size.questions, texts, size.texts)
    array = Memory(size.bandwidth_mb)
    read = [array.read() for _ in range(READS)]
    result |= {
        "settings": {**asdict(size), "k": scans.K, "dim": given.vectors.shape[1], "noise": NOISE},
        "corpus": given.source,
    }

    def bandwidth() -> dict[str, Any]:
        read.extend(array.read() for _ in range(READS))
        return {"bandwidth": {"gb_s": best_of(read), "threads": 1, "samples": read}}

    with tempfile.TemporaryDirectory(prefix="isotherm-bench-") as scratch:
        async with AsyncExitStack() as stack:
            if servers is None:
                say("starting Kafka and Valkey")
                servers = await stack.enter_async_context(Stack(Path(scratch) / "stack"))
            run = Run(size, given, servers, Path(scratch), say)
            stack.push_async_callback(run.close)
            await perform(result, run, SCENARIOS, names, say, keep, bandwidth)
    return result


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return what the command line says."""
    parser = command.options("search", __doc__, SCENARIOS, "fewer rows and questions: two minutes in all")
    parser.add_argument("--rows", type=int, help="rows over all tiers (default 1,000,000; quick 160,000)")
    parser.add_argument("--threads", type=int, default=2, help="search threads of the node (default 2)")
    parser.add_argument("--texts", type=Path, help="a file of texts, one a line, instead of Debian's and Python's")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; 1 when a promise is not kept and that was asked."""
    given = parse(sys.argv[1:] if arguments is None else arguments)
    size = Size.quick() if given.quick else Size()
    size = replace(size if given.rows is None else size.of(given.rows), threads=given.threads)
    return command.main(
        given, SCENARIOS, lambda names, console, keep: measure(size, names, given.texts, console, keep=keep)
    )


if __name__ == "__main__":
    sys.exit(main())
