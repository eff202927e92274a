"""Scenarios in memory, on one thread: messages that lie there become rows that a search finds. CPU seconds count.

Ours is `Ingest.apply`, all of it but the log; a baseline decodes and keeps nothing. By turns, the fastest round of
each: what another process takes away is not what the code costs.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from benchmarks.ingesting.events import ATTRIBUTES, DIM, SHAPE, messages, polled, vectors
from benchmarks.ingesting.run import Run
from benchmarks.report import promise
from benchmarks.searching.corpus import PAYLOAD
from consumers.ingest import Ingest
from consumers.reader import RECORDS_MAX
from consumers.watermark import Watermark
from producers.decoder import EventDecoder
from producers.events import Message, Topics
from tiers.hot import HotMemory, HotSettings
from tiers.index import Index

POOL_ROWS = 20_000  # vectors that growth sends again and again, under other ids
SLAB_ROWS = 8_192


class _Json(msgspec.Struct):
    """What a baseline decodes of a JSON event: everything in it."""

    vector_b64: bytes
    payload: msgspec.Raw
    attributes: dict[str, Any]


class _Msgpack(msgspec.Struct):
    """Likewise of a msgpack event."""

    vector: bytes
    payload: bytes
    attributes: dict[str, Any]


class Bench:
    """A hot tier and what ingest needs beside it; `fresh` forgets all rows, and keeps hot's memory as it is."""

    def __init__(self, rows: int) -> None:
        slabs = -(-rows // SLAB_ROWS) + 1
        self.hot = HotMemory(
            HotSettings(device="cpu", capacity_rows=slabs * SLAB_ROWS, slab_rows=SLAB_ROWS),
            SHAPE,
            partitions=1,
            index=Index.of(SHAPE),
        )

    async def fresh(self) -> Ingest:
        """Return ingest into nothing."""
        await self.hot.clear()
        self.hot.index = Index.of(SHAPE)
        return Ingest(
            EventDecoder(DIM, ATTRIBUTES),
            SHAPE,
            self.hot,
            self.hot.index,
            publisher=None,  # type: ignore[arg-type] - asked where there are dead letters
            topics=Topics.under("bench"),
            changes=None,  # type: ignore[arg-type] - asked in a replay
            epoch=0,
            partitions=1,
            watermarks={0: Watermark(0)},
            now_ms=lambda: time.time_ns() // 1_000_000,
        )


def steps(kind: str, given: Sequence[Message]) -> list[Sequence[Message]]:
    """Return the messages as the reader hands them over."""
    size = 1 if kind == "arrow" else RECORDS_MAX
    return [given[at : at + size] for at in range(0, len(given), size)]


async def _apply(ingest: Ingest, parts: Sequence[Sequence[Message]]) -> float:
    began = time.thread_time()
    for part in parts:
        await ingest.apply(0, part)
    return time.thread_time() - began


def _alone(kind: str, given: Sequence[Message]) -> float:
    """Return the CPU seconds of a program that decodes the same messages and keeps nothing."""
    began = time.thread_time()
    if kind == "arrow":
        for message in given:
            with pa.ipc.open_stream(message.value) as reader:
                for batch in reader:
                    batch["id"].to_pylist()
                    batch["vector"].flatten().to_numpy().copy()
    else:
        decode = msgspec.json.Decoder(_Json).decode if kind == "json" else msgspec.msgpack.Decoder(_Msgpack).decode
        for message in given:
            decode(message.value or b"")
    return time.thread_time() - began


def decoding(kind: str, must: float, floor_rows_s: int = 0) -> Callable[[Run], Any]:
    """Return the scenario that decodes messages of a kind and appends their rows to hot."""

    async def scenario(run: Run) -> dict[str, Any]:
        rows = run.size.in_memory
        given = polled(list(messages(kind, vectors(rows), 1)))
        bench, parts = Bench(rows), steps(kind, given)
        await _apply(await bench.fresh(), parts)  # touches hot's memory for the first time
        ours: list[float] = []
        alone: list[float] = []
        for _ in range(run.size.rounds_in_memory):
            gc.collect()
            alone.append(_alone(kind, given))
            ingest = await bench.fresh()
            ours.append(await _apply(ingest, parts))
            assert ingest.rows == rows, "every row was applied"
            await asyncio.sleep(0)
        what = {"arrow": "ids in Python and vectors copied", "json": "msgspec decode", "msgpack": "msgspec decode"}
        rate = rows / min(ours)
        promises = [promise(f"decode + append / {what[kind]}", min(alone) / min(ours), ">=", must)]
        if floor_rows_s:
            promises.append(promise("rows a second of one core", rate, ">=", floor_rows_s, "rows/s"))
        return {
            "rows": rows,
            "message_bytes_a_row": round(sum(len(message.value or b"") for message in given) / rows),
            "rows_s": round(rate),
            "alone_rows_s": round(rows / min(alone)),
            "cpu_us_a_row": [round(one / rows * 1e6, 3) for one in ours],
            "alone_cpu_us_a_row": [round(one / rows * 1e6, 3) for one in alone],
            "promises": promises,
        }

    return scenario


async def growth(run: Run) -> dict[str, Any]:
    """Append twice as many again and again: what doubling costs, and what a row takes of memory."""
    most = run.size.growth
    pool = vectors(POOL_ROWS)
    bench = Bench(most)
    ingest = await bench.fresh()
    gc.collect()
    before, held = _resident(), 0
    rows: list[int] = []
    cpu_s: list[float] = []
    spent, done = 0.0, 0
    mark = run.size.growth_first
    while done < most:
        count = min(POOL_ROWS, mark - done)
        given = [
            message._replace(offset=message.offset + 10 * done)
            for message in polled(list(messages("arrow", pool[:count], 1, done)))
        ]
        spent += await _apply(ingest, steps("arrow", given))
        held += sum(len(message.value or b"") for message in given)
        done += count
        if done == mark:
            rows.append(done)
            cpu_s.append(round(spent, 4))
            mark *= 2
            await asyncio.sleep(0)
    gc.collect()
    grown = _resident() - before
    doublings = [second / first for first, second in pairwise(cpu_s)]
    return {
        "rows": rows,
        "cpu_s": cpu_s,
        "doublings": [round(one, 3) for one in doublings],
        "message_bytes_a_row": round(held / most),
        "resident_bytes_a_row": round(grown / most),
        "parts_bytes_a_row": _parts(bench, most, held),
        "raw_bytes_a_row": DIM * 4 + len(PAYLOAD) + len(f"id-{most}") + 8 + len("topic-10"),
        "promises": [promise("CPU of twice the rows, the worst doubling", max(doublings), "<=", 2.2, "times")],
        "note": f"A record in hot takes {round(grown / most):,} bytes of the host's memory: its vector in hot's array, "
        f"the {round(held / most):,} bytes of the message that it came in, and its entry in the index.",
    }


def _parts(bench: Bench, rows: int, held: int) -> dict[str, int]:
    """Return bytes a row of what can be counted: hot's columns, messages kept, columns of the index."""
    segments = bench.hot.index.segments()
    columns = sum(
        value.nbytes for segment in segments for value in vars(segment).values() if isinstance(value, np.ndarray)
    )
    return {"hot_vector": DIM * 4, "message": round(held / rows), "index_columns": round(columns / rows)}


def _resident() -> int:
    """Return the bytes of memory that the process has now."""
    with open("/proc/self/statm") as file:  # noqa: PTH123 - of the kernel
        return int(file.read().split()[1]) * resource.getpagesize()
