"""How hot does on a GPU: scans against the device's own copy and product, appends against the link, and others.

    make bench-gpu                                   # on a machine with a GPU: eight minutes, a file in results/
    python -m benchmarks.gpu --out FILE [--minutes 8]
    python -m benchmarks.gpu --rehearse              # anywhere: the same path, tiny, over the tests' stand-in

Every promise is a ratio to what the same device did in the same run: bytes of wanted rows a second against a copy of
device memory (which reads and writes: both count), floating point operations a second against one bare float32 product
without TF32, bytes appended against copies of pinned memory. A rehearsal's figures say nothing, and its file says so.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.console import Console

from benchmarks import gpu_peers
from benchmarks.gpu_machine import Machine, machine_of
from benchmarks.gpu_report import promises, show
from benchmarks.report import machine
from tiers.host import HostArena
from tiers.part import Ask, Part, Shape

DIM, K, MARGIN = 256, 10, 32


class Size(NamedTuple):
    """How much is measured."""

    slab_rows: int = 65_536  # few enough slabs that the host has little to say of them
    rows: tuple[int, ...] = (100_000, 1_000_000, 10_000_000)
    share: float = 0.8  # of the memory that is free, for the largest
    questions: tuple[int, ...] = (1, 8, 64, 1_024)
    peer_rows: int = 1_000_000
    block_rows: int = 262_144  # random vectors, put again and again
    repeats: int = 15
    seconds: float = 0.5  # that a figure is repeated for at most
    probes: int = 200


TINY = Size(64, (200, 700), 0.0, (1, 3, 20), 500, 256, 2, 0.2, 6)


class Bench:
    """One run on one machine. `left` says whether there is time for more."""

    def __init__(self, on: Machine, size: Size, console: Console, until_s: float) -> None:
        self.on, self.size, self.console, self.until_s = on, size, console, until_s
        rng = np.random.default_rng(11)
        block = rng.standard_normal((size.block_rows, DIM)).astype(np.float32)
        self.block = block / np.linalg.norm(block, axis=1, keepdims=True)
        self.asked = rng.standard_normal((max(size.questions), DIM)).astype(np.float32)

    def left(self) -> bool:
        """Say whether the time is not over."""
        return time.monotonic() < self.until_s

    def took_s(self, job: Callable[[], object]) -> float:
        """Return the median time of a job that ends by itself, after one turn for warmth."""
        job()
        samples: list[float] = []
        began = time.perf_counter()
        while len(samples) < self.size.repeats and (not samples or time.perf_counter() - began < self.size.seconds):
            start = time.perf_counter()
            job()
            samples.append(time.perf_counter() - start)
        return float(np.median(samples))

    def parts(self, rows: int, wanted: float = 1.0) -> list[Part]:
        """Return parts of so many rows; every so many-th of them wanted."""
        slab_rows, step = self.size.slab_rows, round(1 / wanted)
        mask = np.arange(slab_rows) % step == 0
        parts = []
        for slab in range(-(-rows // slab_rows)):
            fill = min(slab_rows, rows - slab * slab_rows)
            held = mask & (np.arange(slab_rows) < fill)
            parts.append(Part(slab, fill, held, int(np.count_nonzero(held))))
        return parts

    # -- hot ---------------------------------------------------------------------------------------------------------

    def fill(self, arena: Any, slabs: int, itemsize: int = 4) -> dict[str, Any]:
        """Fill slabs of an arena; returns how fast."""
        rows, start = self.size.slab_rows, time.perf_counter()
        for slab in range(slabs):
            at = slab * rows % (len(self.block) - rows + 1)
            arena.put(slab * rows, self.block[at : at + rows])
        arena.best([Ask(self.parts(rows), self.asked[:1], 1)])  # waits until all has arrived
        took_s = time.perf_counter() - start
        size = slabs * rows * DIM * itemsize
        return {"rows": slabs * rows, "took_s": took_s, "bytes_per_s": size / took_s}

    def scans(self, arena: Any, dtype: str, most: int) -> list[dict[str, Any]]:
        """Return the scans of each size and number of questions."""
        found: list[dict[str, Any]] = []
        itemsize = np.dtype(dtype).itemsize
        for rows in [*(each for each in self.size.rows if each < most), most]:
            for questions in self.size.questions:
                if not self.left():
                    return found
                ask = Ask(self.parts(rows), self.asked[:questions], K + MARGIN)
                took_s = self.took_s(lambda ask=ask: arena.best([ask]))
                found.append({
                    "rows": rows, "questions": questions, "dtype": dtype, "took_ms": took_s * 1000,
                    "bytes_per_s": rows * DIM * itemsize / took_s, "flop_per_s": 2 * rows * DIM * questions / took_s,
                })  # fmt: skip
                self.console.print(f"  {dtype} {rows:>12,} rows {questions:>5} questions {took_s * 1000:9.3f} ms")
        return found

    def masked(self, arena: Any, rows: int) -> list[dict[str, Any]]:
        """Return scans of which only some rows are wanted."""
        found: list[dict[str, Any]] = []
        for wanted in (1.0, 0.5, 0.1, 0.01):
            ask = Ask(self.parts(rows, wanted), self.asked[:1], K + MARGIN)
            found.append({"wanted": wanted, "took_ms": self.took_s(lambda ask=ask: arena.best([ask])) * 1000})
        return found

    def waiting(self, arena: Any, rows: int) -> dict[str, Any]:
        """Return how long searches take with and without vectors coming in, piece by piece on the same thread."""
        ask = Ask(self.parts(rows), self.asked[:1], K + MARGIN)
        piece = self.block[: min(arena.chunk_rows, self.size.slab_rows)]
        stop, pieces = threading.Event(), 0

        def probe(owner: ThreadPoolExecutor) -> list[float]:
            samples = []
            for _ in range(self.size.probes):
                start = time.perf_counter()
                owner.submit(arena.best, [ask]).result()
                samples.append((time.perf_counter() - start) * 1000)
            return samples

        def come_in(owner: ThreadPoolExecutor) -> None:
            nonlocal pieces
            while not stop.is_set():
                owner.submit(arena.put, 0, piece).result()
                pieces += 1

        with ThreadPoolExecutor(1) as owner, ThreadPoolExecutor(1) as ingest:
            probe(owner)
            alone = probe(owner)
            coming, start = ingest.submit(come_in, owner), time.perf_counter()
            busy = probe(owner)
            stop.set()
            coming.result()
            appended = pieces * piece.nbytes / (time.perf_counter() - start)
        found = {"rows": rows, "appended_bytes_per_s": appended}
        for name, samples in (("alone", alone), ("appending", busy)):
            found |= {f"{name}_p{at}_ms": float(np.percentile(samples, at)) for at in (50, 99)}
        return found

    # -- others ------------------------------------------------------------------------------------------------------

    def peers(self, arena: Any) -> dict[str, Any]:
        """Return what others take over the same rows, and how many of hot's neighbours they find."""
        count = self.size.peer_rows
        rows = np.concatenate([self.block] * (-(-count // len(self.block))))[:count]
        rows = rows + np.float32(1e-3) * np.random.default_rng(5).standard_normal(rows.shape).astype(np.float32)
        for slab in range(-(-count // self.size.slab_rows)):
            start = slab * self.size.slab_rows
            arena.put(start, rows[start : start + self.size.slab_rows])
        few = self.asked[:1]
        parts = self.parts(count)
        (truth,) = arena.best([Ask(parts, self.asked[: self.size.questions[1]], K)])
        found: dict[str, Any] = {"rows": count}
        mine = {"build_s": 0.0, "one_ms": self.took_s(lambda: arena.best([Ask(parts, few, K)])) * 1000}
        many = self.asked[: self.size.questions[-1]]
        mine["many_ms"] = self.took_s(lambda: arena.best([Ask(parts, many, K)])) * 1000
        mine["fresh_ms"] = self.took_s(lambda: (arena.put(0, rows[:1]), arena.best([Ask(parts, few, K)]))) * 1000
        found["hot"] = mine
        for name, build in gpu_peers.installed():
            if build is None or not self.left():
                found[name] = None
                continue
            try:
                found[name] = self._peer(build, rows, [set(each.slots[:K].tolist()) for each in truth])
            except Exception as error:  # noqa: BLE001 - a peer that fails is told of, and the run goes on
                found[name] = {"failed": f"{type(error).__name__}: {error}"}
        host = HostArena(Shape(-(-count // self.size.slab_rows), self.size.slab_rows, DIM, "cosine"))
        for part in parts:
            start = part.slab * self.size.slab_rows
            host.put(start, rows[start : start + part.fill])
        found["hot on numpy"] = {"one_ms": self.took_s(lambda: host.best([Ask(parts, few, K)])) * 1000}
        return found

    def _peer(self, build: Any, rows: npt.NDArray[np.float32], truth: list[set[int]]) -> dict[str, Any]:
        start = time.perf_counter()
        peer = build(rows)
        built_s = time.perf_counter() - start
        answers = peer.search(self.asked[: len(truth)], K)
        recall = np.mean([len(set(a.tolist()) & t) / K for a, t in zip(answers, truth, strict=True)])
        many = self.asked[: self.size.questions[-1]]
        one_ms, many_ms = (self.took_s(lambda q=q: peer.search(q, K)) * 1000 for q in (self.asked[:1], many))
        start = time.perf_counter()
        peer.add(rows, 1)
        peer.search(self.asked[:1], K)
        fresh_ms = (time.perf_counter() - start) * 1000
        return {"build_s": built_s, "one_ms": one_ms, "many_ms": many_ms, "fresh_ms": fresh_ms, "recall": float(recall)}


def measure(on: Machine, size: Size, console: Console, minutes: float) -> dict[str, Any]:
    """Run everything there is time for, and return it."""
    bench = Bench(on, size, console, time.monotonic() + minutes * 60)
    result: dict[str, Any] = {"benchmark": "gpu", "rehearsal": on.rehearsal, "device": on.told(), **machine()}
    console.print(f"on {result['device'].get('name')}: its own copy, product and link")
    result["own"] = {
        "copy_bytes_per_s": on.copy_bytes_per_s(bench.took_s),
        "matrix_flop_per_s": on.matrix_flop_per_s(bench.took_s, DIM),
        "pinned_bytes_per_s": on.pinned_bytes_per_s(bench.took_s),
    }
    most = on.rows_that_fit(size.share, DIM) if size.share else max(size.rows)
    slabs = most // size.slab_rows if size.share else -(-most // size.slab_rows)
    most = min(most, slabs * size.slab_rows)
    arena = on.arena(Shape(slabs, size.slab_rows, DIM, "cosine"))
    result["append"] = bench.fill(arena, slabs)
    result["scans"] = bench.scans(arena, "float32", most)
    middle = min(most, size.peer_rows)
    result["masked"] = bench.masked(arena, middle)
    result["waiting"] = bench.waiting(arena, middle)
    del arena
    on.free()
    small = Shape(-(-size.peer_rows // size.slab_rows), size.slab_rows, DIM, "cosine")
    half = on.arena(small._replace(dtype="float16"))
    result["append float16"] = bench.fill(half, small.slabs, 2)
    result["scans"] += bench.scans(half, "float16", min(most, size.peer_rows))
    del half
    on.free()
    result["peers"] = bench.peers(on.arena(small))
    result["promises"] = promises(result)
    return result


def main() -> None:
    """Measure, print, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--rehearse", action="store_true", help="without a GPU, tiny: shows that the benchmark runs")
    given = parser.parse_args()
    console = Console(stderr=True, width=110)
    result = measure(machine_of(rehearse=given.rehearse), TINY if given.rehearse else Size(), console, given.minutes)
    show(result, console)
    text = json.dumps(result, indent=1)
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(text + "\n")
    else:
        sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
