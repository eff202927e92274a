"""The benchmark of moves: every scenario runs, small, on real servers, and says what the committed result says."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from benchmarks.chapter import RESULTS
from benchmarks.moves import SCENARIOS, measure
from benchmarks.moving.figures import CHAPTER
from benchmarks.moving.pairs import WAYS, named
from benchmarks.moving.run import Size
from benchmarks.report import show
from pipeline.stack import Stack

ROOT = Path(__file__).parent.parent.parent
TINY = Size(rows=480, chunk=120, files=16, file_rows=40, sustained_s=4.0, settle_s=1.0, rate=200, ids=500)


async def test_every_scenario_runs_and_says_what_committed_results_say(stack: Stack) -> None:
    """All rows go every way down, the producer's arrive, and table and page can be made of it."""
    told = io.StringIO()
    result = await measure(TINY, list(SCENARIOS), Console(file=told, width=200), stack)
    show(result, Console(file=told, width=200))

    committed = json.loads((ROOT / RESULTS / CHAPTER.result).read_text())
    assert result.keys() == committed.keys()
    for name, found in committed["scenarios"].items():
        assert found.keys() <= result["scenarios"][name].keys(), name
    ways = result["scenarios"]["pairs"]["ways"]
    assert {named(way) for way in WAYS} == set(ways)
    assert TINY.rows == ways["hot → warm"]["rows"] + ways["hot → cold"]["rows"] == ways["cold → glacier"]["rows"]
    merging = result["scenarios"]["compaction"]
    assert (16, 1, 0) == tuple(len(merging[name]) for name in ("stored_mb", "written_mb", "left_mb"))
    assert "16 files of" in CHAPTER.closing(result)
    assert result["scenarios"]["sustained"]["samples"][-1]["ingested"] > 0
    assert CHAPTER.files(result).keys() >= CHAPTER.files(committed).keys() - {Path("docs/benchmarks/moves-flow.svg")}
    assert "bare DuckDB insert" in told.getvalue()
