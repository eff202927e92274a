"""How fast records come in: from messages in memory, from Kafka, and while searches are asked.

    python -m benchmarks.ingest --out benchmarks/results/ingest-full.json     # all of it, about four minutes
    python -m benchmarks.ingest --quick --json                                # a minute and a half, the same JSON
    python -m benchmarks.ingest --only kafka-arrow                            # one scenario

benchmarks/README.md says what is measured and how, and what not.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy: a thread at a time, on both sides
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import command
from benchmarks.command import Keep, nothing, perform, teller
from benchmarks.ingesting import live, peers
from benchmarks.ingesting.events import DIM
from benchmarks.ingesting.limits import limits
from benchmarks.ingesting.memory import decoding, growth
from benchmarks.ingesting.run import PARTITIONS, Run, Size
from benchmarks.ingesting.stream import restart, searchable
from benchmarks.report import machine
from pipeline.stack import Stack

Scenario = Callable[[Run], Awaitable[dict[str, Any]]]

#: `restart` and `lancedb` compare with what `kafka-arrow` measured.
SCENARIOS: dict[str, Scenario] = {
    "limits": limits,
    "memory-arrow": decoding("arrow", 0.2, 600_000),
    "memory-msgpack": decoding("msgpack", 0.25),
    "memory-json": decoding("json", 0.4),
    "growth": growth,
    "kafka-arrow": searchable("arrow", 0.45, 120_000),
    "kafka-json": searchable("json", 0.5),
    "kafka-msgpack": searchable("msgpack", 0.5),
    "restart": restart,
    "freshness": live.freshness,
    "searching": live.searching,
    "lancedb": peers.lance,
}


async def measure(
    size: Size, names: Sequence[str], console: Console, servers: Stack | None = None, keep: Keep = nothing
) -> dict[str, Any]:
    """Run the scenarios and return everything; on `servers` if given, else on some of its own."""
    say = teller(console)
    result: dict[str, Any] = {"benchmark": "ingest", **machine()}
    result["settings"] = {**asdict(size), "dim": DIM, "partitions": PARTITIONS}
    with tempfile.TemporaryDirectory(prefix="isotherm-bench-") as scratch:
        async with AsyncExitStack() as stack:
            if servers is None:
                say("starting Kafka and Valkey")
                servers = await stack.enter_async_context(Stack(Path(scratch) / "stack"))
            run = Run(size, servers, Path(scratch), say)
            await perform(result, run, SCENARIOS, names, say, keep)
    return result


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return what the command line says."""
    quick = "fewer rows and rounds: a minute and a half in all"
    return command.options("ingest", __doc__, SCENARIOS, quick).parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; 1 when a promise is not kept and that was asked."""
    given = parse(sys.argv[1:] if arguments is None else arguments)
    size = Size.quick() if given.quick else Size()
    return command.main(given, SCENARIOS, lambda names, console, keep: measure(size, names, console, keep=keep))


if __name__ == "__main__":
    sys.exit(main())
