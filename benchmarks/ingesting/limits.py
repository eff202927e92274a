"""What the machine itself can do, on one thread: the limits that every other figure is to be read against."""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from benchmarks.ingesting.events import DIM
from benchmarks.ingesting.run import Run

ROWS = 64_000  # of DIM floats: 65 MB, more than any cache
ROUNDS = 7


async def limits(run: Run) -> dict[str, Any]:  # noqa: ARG001 - a scenario like the others
    """Copy, read, touch for the first time, enter into a map."""
    source, target = np.ones((ROWS, DIM), np.float32), np.ones((ROWS, DIM), np.float32)
    names = [f"id-{number}" for number in range(ROWS)]
    text = msgspec.json.encode(source[0].tobytes())
    decoder = msgspec.json.Decoder(bytes)

    def touch() -> None:
        with mmap.mmap(-1, source.nbytes) as fresh:
            view = np.frombuffer(fresh, np.uint8)
            view[:: mmap.PAGESIZE] = 1
            del view

    tried: dict[str, Callable[[], Any]] = {
        "copy_1_kb_vector": lambda: np.copyto(target, source),
        "length_of_a_vector": lambda: np.vecdot(source, source),
        "first_touch_of_1_kb": touch,
        "id_into_a_map": lambda: dict(zip(names, range(ROWS), strict=True)),
        "base64_of_1_kb": lambda: [decoder.decode(text) for _ in range(ROWS // 8)],
    }
    ns: dict[str, float] = {}
    for name, work in tried.items():
        best = min(_timed(work) for _ in range(ROUNDS))
        ns[name] = round(best / (ROWS // 8 if name == "base64_of_1_kb" else ROWS) * 1e9, 1)
    moved = {"copy_1_kb_vector": 2, "length_of_a_vector": 1}
    return {
        "ns_a_row": ns,
        "gb_s": {name: round(times * DIM * 4 / ns[name], 1) for name, times in moved.items()},
        "promises": [],
    }


def _timed(work: Callable[[], Any]) -> float:
    began = time.thread_time()
    work()
    return time.thread_time() - began
