"""What the gateway adds: to a reply that only replies, reads by id; to the search itself, a search over HTTP.

    python -m benchmarks.gateway --out benchmarks/results/gateway-full.json
    python -m benchmarks.gateway --quick --json                               # the same JSON, in twenty seconds

A real node with its gateway (Kafka and Valkey beside it), loaded from another process; benchmarks/README.md says how.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before FAISS and NumPy
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import asyncio
import base64
import json
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import command
from benchmarks.report import machine, promise, spread
from benchmarks.searching.corpus import DIM
from benchmarks.searching.node import fill, opened
from benchmarks.serving.bare import Bare, served
from benchmarks.serving.spent import Clock, Spent, Watched
from pipeline import Query
from pipeline.questions import DEFAULT_FIELDS
from pipeline.routes import Gateway
from pipeline.serve import HttpService
from pipeline.settings import load
from pipeline.stack import Stack
from tiers.record import Floats
from tiers.tier import TierName

CONNECTIONS, K = 32, 10
PIPE_BYTES = 1 << 24  # a line of what was seen
GRACE_S = 60.0  # beyond a load's seconds, for its process to start and end


@dataclass(frozen=True)
class Size:
    """Rows in hot, `asked` of them by id, seconds of each load, turns of ours and theirs, searches in a turn."""

    rows: int = 20_000
    asked: int = 1_000
    seconds: float = 4.0
    turns: int = 5
    searches: int = 300

    @classmethod
    def quick(cls) -> Size:
        """Return twenty seconds' worth."""
        return cls(rows=10_000, seconds=1.0, turns=3, searches=100)


class Run:
    """A node that serves, and what is asked of it."""

    def __init__(self, size: Size, memory: Watched, http: HttpService, vectors: Floats) -> None:
        self.size, self.memory, self.http, self.vectors = size, memory, http, vectors
        self.port = int(http.address.rsplit(":", 1)[1])

    async def load(self, port: int, requests: list[str], connections: int, seconds: float) -> dict[str, Any]:
        """Load a port from another process; returns what was seen, and the CPU of this process and thread meanwhile."""
        plan = {"requests": requests, "connections": connections, "seconds": seconds}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.serving.load", "127.0.0.1", str(port),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=PIPE_BYTES,
        )  # fmt: skip
        assert process.stdin is not None, "it was asked for"
        assert process.stdout is not None, "it was asked for"
        async with asyncio.timeout(seconds + GRACE_S):
            process.stdin.write(json.dumps(plan).encode() + b"\n")
            assert json.loads(await process.stdout.readline()) == "ready"
            clock, began = Clock(), time.process_time()
            process.stdin.write(b'"go"\n')
            assert json.loads(await process.stdout.readline()) == "done"
            cpu_s, spent = time.process_time() - began, clock.spent()
            seen = json.loads(await process.stdout.readline())
            await process.wait()
        assert not seen["failed"], seen["failed"]
        return {**seen, "cpu_us": round(cpu_s / seen["answers"] * 1e6, 2), "spent": spent}


async def by_id(run: Run) -> dict[str, Any]:
    """GET /v1/memories/{id} from hot over 32 connections, in turns with a bare reply of the same bytes."""
    ids = np.random.default_rng(0).choice(run.size.rows, run.size.asked, replace=False).tolist()
    ours_asked = [f"GET /v1/memories/id-{at} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" for at in ids]
    headers, body = await _answered(run, ours_asked[0])
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    async with served(Bare(headers, body), run.memory.node.settings.gateway) as port:
        for _ in range(run.size.turns):
            ours.append(await run.load(run.port, ours_asked, CONNECTIONS, run.size.seconds))
            theirs.append(await run.load(port, ours_asked, CONNECTIONS, run.size.seconds))
    rate, bare = (float(np.median([one["answers"] / one["seconds"] for one in side])) for side in (ours, theirs))
    return {
        "connections": CONNECTIONS,
        "answer_bytes": len(body),
        "ours": _side(ours, rate),
        "bare": _side(theirs, bare),
        "promises": [promise("GET by id from hot / a bare ASGI reply, answers a second", rate / bare, ">=", 0.5)],
    }


async def _answered(run: Run, request: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return the headers and the body of one answer of the gateway."""
    reader, writer = await asyncio.open_connection("127.0.0.1", run.port)
    writer.write(request.encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[1:-2]
    pairs = [tuple(line.split(": ", 1)) for line in head]
    headers = {name.lower().encode(): value.encode() for name, value in pairs}
    body = await reader.readexactly(int(headers[b"content-length"]))
    writer.close()
    return [(name, value) for name, value in headers.items() if name not in (b"date", b"server")], body


def _side(turns: list[dict[str, Any]], rate: float) -> dict[str, Any]:
    samples = [ms for one in turns for ms in one["samples_ms"][:: max(1, len(one["samples_ms"]) // 1_000)]]
    return {"per_s": round(rate), "cpu_us": float(np.median([one["cpu_us"] for one in turns])), **spread(samples)}


async def search(run: Run) -> dict[str, Any]:
    """POST /v1/search with `vector_b64`, one connection: CPU of the loop's thread, and how much of it was the search.

    Both are of the same requests, less what the node takes in the same time with nobody asking. The same searches made
    in process, one after the other, are cheaper: what they read stays in the processor's caches. They are shown beside,
    and so is a bare reply of the same bytes that waits as long as a search takes: what others do meanwhile on the same
    cores makes all that comes after it dearer.
    """
    vectors = run.vectors[: run.size.searches]
    posts = [_post(vector) for vector in vectors]
    idle: list[float] = []  # share of the time
    sides = ("over_http", "of_that_search", "in_process", "bare_that_waits")
    turns: dict[str, list[tuple[Spent, int]]] = {side: [] for side in sides}
    headers, body = await _answered(run, posts[0])
    ms: list[float] = []
    for _ in range(run.size.turns):
        clock = Clock()
        await asyncio.sleep(run.size.seconds)
        spent = clock.spent()
        idle.append(spent.cpu_s / spent.wall_s)
        run.memory.spent = Spent()
        seen = await run.load(run.port, posts, 1, run.size.seconds)
        turns["over_http"].append((seen["spent"], seen["answers"]))
        turns["of_that_search"].append((run.memory.spent, seen["answers"]))
        ms += seen["samples_ms"]
        run.memory.spent = Spent()
        for vector in vectors:
            await run.memory.retrieve(Query(vector=vector, k=K, include=frozenset(DEFAULT_FIELDS)))
        turns["in_process"].append((run.memory.spent, len(vectors)))
        bare = Bare(headers, body, run.memory.spent.wall_s / len(vectors))
        async with served(bare, run.memory.node.settings.gateway) as port:
            seen = await run.load(port, posts, 1, run.size.seconds)
            turns["bare_that_waits"].append((seen["spent"], seen["answers"]))
    share = float(np.median(idle))
    cpu_us = {name: [spent.beyond(share) / asked * 1e6 for spent, asked in side] for name, side in turns.items()}
    beyond = float(np.median(np.subtract(cpu_us["over_http"], cpu_us["of_that_search"])))
    return {
        "loop_cpu_us": {name: [round(one, 1) for one in side] for name, side in cpu_us.items()},
        "over_http": spread(ms),
        "promises": [promise("POST /v1/search, CPU beyond the search", beyond, "<=", 200, "us")],
    }


def _post(vector: Floats) -> str:
    body = json.dumps({"vector_b64": base64.b64encode(vector.tobytes()).decode(), "k": K})
    head = (
        f"POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    )
    return f"{head}\r\n\r\n{body}"


SCENARIOS = {"by-id": by_id, "search": search}


async def measure(
    size: Size, names: list[str], console: Console, keep: command.Keep = command.nothing, servers: Stack | None = None
) -> dict[str, Any]:
    """Run the scenarios and return everything; on `servers` if given, else on some of its own."""
    say = command.teller(console)
    result: dict[str, Any] = {"benchmark": "gateway", **machine(), "settings": {**asdict(size), "k": K, "dim": DIM}}
    vectors = np.random.default_rng(0).standard_normal((size.rows, DIM), np.float32)
    with tempfile.TemporaryDirectory(prefix="isotherm-bench-") as scratch:
        async with AsyncExitStack() as stack:
            if servers is None:
                say("starting Kafka and Valkey")
                servers = await stack.enter_async_context(Stack(Path(scratch) / "stack"))
            http = HttpService(load(None, {}, {"data": scratch, "gateway.port": 0}))
            folder = Path(scratch) / "gateway" / "node"
            memory = await stack.enter_async_context(opened(servers, folder, (http,), hot__capacity_rows=65_536))
            watched = Watched(memory.node)
            http.gateway = Gateway(watched)
            http.listen()
            await fill(memory, vectors, 0, size.rows, TierName.HOT)
            await command.perform(result, Run(size, watched, http, vectors), SCENARIOS, names, say, keep)
    return result


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; 1 when a promise is not kept and that was asked."""
    parser = command.options("gateway", __doc__, SCENARIOS, "fewer rows and seconds: twenty seconds in all")
    given = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    size = Size.quick() if given.quick else Size()
    return command.main(given, SCENARIOS, lambda names, console, keep: measure(size, names, console, keep))


if __name__ == "__main__":
    sys.exit(main())
