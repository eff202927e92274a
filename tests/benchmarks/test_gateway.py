"""The benchmark of the gateway: both scenarios run, small, on real servers, and say what the committed result says."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.chapter import RESULTS
from benchmarks.gateway import SCENARIOS, Size, measure
from benchmarks.serving.figures import CHAPTER
from benchmarks.serving.load import load
from pipeline.stack import Stack

ROOT = Path(__file__).parent.parent.parent
TINY = Size(rows=300, asked=100, seconds=0.3, turns=1, searches=20)


async def test_every_scenario_runs_and_says_what_committed_results_say(stack: Stack) -> None:
    """Both sides answer, every promise has its line, and the page can be made of it."""
    result = await measure(TINY, list(SCENARIOS), Console(file=io.StringIO()), servers=stack)

    committed = json.loads((ROOT / RESULTS / CHAPTER.result).read_text())
    assert result.keys() == committed.keys()
    for name, found in committed["scenarios"].items():
        assert found.keys() <= result["scenarios"][name].keys(), name
    assert {line["scenario"] for line in result["table"]} == set(SCENARIOS)
    assert min(result["scenarios"]["by-id"][side]["per_s"] for side in ("ours", "bare")) > 0
    assert CHAPTER.files(result).keys() == CHAPTER.files(committed).keys()


@pytest.mark.unit
async def test_the_load_counts_answers_and_names_failures() -> None:
    """Answers cut in two are one, and a status that is not 200 is a failure."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in range(1_000_000):
            try:
                await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            status = b"500 Oh" if number == 3 else b"200 OK"
            writer.write(b"HTTP/1.1 " + status + b"\r\ncontent-le")
            await writer.drain()
            await asyncio.sleep(0)
            writer.write(b"ngth: 5\r\n\r\nhello")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        plan = {"requests": ["GET / HTTP/1.1\r\n\r\n"], "connections": 1, "seconds": 0.2}
        seen = await load("127.0.0.1", port, plan)

    assert seen["answers"] > 4
    assert len(seen["samples_ms"]) == seen["answers"]
    assert ["HTTP/1.1 500 Oh"] == [failure.splitlines()[0] for failure in seen["failed"]]
