"""How fast records go down through the tiers, durably, against the bare stores, and what they cost there.

    python -m benchmarks.moves --out benchmarks/results/moves-full.json     # all of it, about eight minutes
    python -m benchmarks.moves --quick --json                               # a minute and a half, the same JSON
    python -m benchmarks.moves --only pairs                                 # one scenario

A real node (Kafka, Valkey, DuckDB, Delta on a local disk) in a scratch directory. benchmarks/README.md says what is
measured and how, and what not.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy: both sides are compared a thread at a time
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
from benchmarks.moving import compaction, pairs, sustained
from benchmarks.moving.rows import DIM
from benchmarks.moving.run import PARTITIONS, Run, Size
from benchmarks.report import machine
from pipeline.stack import Stack

HEAP_MB = 512  # of the broker: messages of a megabyte, in and out, thirty a second

SCENARIOS: dict[str, Callable[[Run], Awaitable[dict[str, Any]]]] = {
    "pairs": pairs.pairs,
    "compaction": compaction.compaction,
    "sustained": sustained.sustained,
}


async def measure(
    size: Size, names: Sequence[str], console: Console, servers: Stack | None = None, keep: Keep = nothing
) -> dict[str, Any]:
    """Run the scenarios and return everything; on `servers` if given, else on some of its own."""
    say = teller(console)
    result: dict[str, Any] = {"benchmark": "moves", **machine()}
    result["settings"] = {**asdict(size), "dim": DIM, "partitions": PARTITIONS}
    with tempfile.TemporaryDirectory(prefix="isotherm-bench-") as scratch:
        async with AsyncExitStack() as stack:
            if servers is None:
                say("starting Kafka and Valkey")
                servers = await stack.enter_async_context(Stack(Path(scratch) / "stack", kafka_heap_mb=HEAP_MB))
            await perform(result, Run(size, servers, Path(scratch), say), SCENARIOS, names, say, keep)
    return result


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return what the command line says."""
    parser = command.options("moves", __doc__, SCENARIOS, "fewer rows and seconds: a minute and a half in all")
    parser.add_argument("--rows", type=int, help="rows that go down (default 1,000,000; quick 120,000)")
    parser.add_argument("--seconds", type=float, help="of the sustained run (default 300; quick 25)")
    parser.add_argument("--rate", type=int, help="rows a second of the sustained run (default 26,000)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; 1 when a promise is not kept and that was asked."""
    given = parse(sys.argv[1:] if arguments is None else arguments)
    size = Size.quick() if given.quick else Size()
    asked = {"rows": given.rows, "sustained_s": given.seconds, "rate": given.rate}
    size = replace(size, **{name: value for name, value in asked.items() if value is not None})
    return command.main(given, SCENARIOS, lambda names, console, keep: measure(size, names, console, keep=keep))


if __name__ == "__main__":
    sys.exit(main())
