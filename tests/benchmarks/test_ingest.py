"""The benchmark of ingest itself: every scenario runs, small, on real servers, and its page can be drawn."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.chapter import RESULTS
from benchmarks.ingest import SCENARIOS, measure
from benchmarks.ingesting import memory
from benchmarks.ingesting.events import messages, polled, vectors
from benchmarks.ingesting.figures import CHAPTER
from benchmarks.ingesting.run import Size
from benchmarks.report import show
from pipeline.stack import Stack

ROOT = Path(__file__).parent.parent.parent
TINY = Size(
    in_memory=400, rounds_in_memory=1, growth_first=200, growth=800, arrow=600, singles=300, rounds=1, fresh_s=0.5,
    events_s=200, resting=300, ingesting_s=0.5, rows_s=500, lance=200,
)  # fmt: skip


async def test_every_scenario_runs_and_says_what_committed_results_say(stack: Stack) -> None:
    """Every promise has its line, whatever is installed beside; table and page can be made of it."""
    told = io.StringIO()
    result = await measure(TINY, list(SCENARIOS), Console(file=told, width=200), stack)
    show(result, Console(file=told, width=200))

    committed = json.loads((ROOT / RESULTS / CHAPTER.result).read_text())
    assert result.keys() == committed.keys()
    assert list(SCENARIOS) == list(result["scenarios"])
    for name, found in committed["scenarios"].items():
        missing = found.keys() - result["scenarios"][name].keys()
        assert not missing or name == "lancedb", f"{name} lacks {missing}"
    assert {line["scenario"] for line in result["table"]} == set(SCENARIOS) - {"limits"}
    assert CHAPTER.files(result).keys() >= CHAPTER.files(committed).keys()
    assert "a consumer that only counts" in told.getvalue()


@pytest.mark.unit
@pytest.mark.parametrize("kind", ["arrow", "json", "msgpack"])
async def test_what_is_measured_in_memory_applies_every_row(kind: str) -> None:
    """The messages that are made are plain ones of the product's own form: none is a dead letter."""
    given = polled(list(messages(kind, vectors(700), 1)))
    bench = memory.Bench(1_400)
    ingest = await bench.fresh()
    for step in memory.steps(kind, given):
        await ingest.apply(0, step)

    assert (700, 700) == (ingest.rows, len(bench.hot.index))
