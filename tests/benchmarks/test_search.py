"""The benchmark itself: every scenario runs, small, on real servers, and says what the committed result says."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import page
from benchmarks.chapter import RESULTS
from benchmarks.report import promise, show
from benchmarks.search import SCENARIOS, measure
from benchmarks.searching import corpus
from benchmarks.searching.figures import CHAPTER
from benchmarks.searching.run import Size
from pipeline.stack import Stack

ROOT = Path(__file__).parent.parent.parent
TINY = Size(
    million=1_200, tier=400, peers=300, moved=40, questions=25, scans=25, filtered=21, flat=10, truth=10, reads=10,
    glacier_reads=5, peer_questions=5, fresh=1, bandwidth_mb=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real sentences, those of the documents."""
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    lines = {line for file in files for line in file.read_text().splitlines() if len(line) > 40}
    file = tmp_path_factory.mktemp("texts") / "texts"
    file.write_text("\n".join(sorted(lines)[:400]))
    return file


async def test_every_scenario_runs_and_says_what_committed_results_say(texts: Path, stack: Stack) -> None:
    """Every promise has its line, whatever is installed beside; table and page can be made of it."""
    told = io.StringIO()
    result = await measure(TINY, list(SCENARIOS), texts, Console(file=told, width=200), stack)
    show(result, Console(file=told, width=200))

    committed = json.loads((ROOT / RESULTS / CHAPTER.result).read_text())
    assert result.keys() == committed.keys()
    assert list(SCENARIOS) == list(result["scenarios"])
    for name, found in committed["scenarios"].items():
        assert found.keys() <= result["scenarios"][name].keys(), name
    assert {line["scenario"] for line in result["table"]} == set(SCENARIOS)
    assert result["scenarios"]["million"]["recall"] > 0.9
    assert sum(result["scenarios"]["million"]["true_neighbours_in"].values()) == 10 * TINY.truth
    assert CHAPTER.files(result).keys() >= CHAPTER.files(committed).keys()
    assert "faster than faiss" in told.getvalue()


@pytest.mark.unit
def test_a_promise_not_measured_is_not_kept() -> None:
    """What was left out never looks like what was reached."""
    assert not promise("faster", None, ">=", 1)["ok"]
    assert [True, False] == [promise("faster", value, ">=", 2)["ok"] for value in (2.0, 1.9)]
    assert [True, False] == [promise("slower", value, "<=", 2)["ok"] for value in (2.0, 2.1)]


@pytest.mark.unit
def test_truth_is_what_a_sort_of_everything_finds() -> None:
    """Blocks, masks and fewer rows than asked for make no difference."""
    import numpy as np

    random = np.random.default_rng(0)
    units = corpus.scaled(random.normal(size=(70_000, 8)).astype(np.float32))
    questions, mask = units[:5], np.arange(70_000) % 3 == 0
    for allowed in (None, mask, np.arange(70_000) < 4):
        values = np.where(True if allowed is None else allowed, questions @ units.T, -np.inf)
        best = np.argsort(-values, axis=1)[:, : min(10, 70_000 if allowed is None else int(allowed.sum()))]
        assert [set(one) for one in best.tolist()] == corpus.truth(units, questions, 10, allowed)


@pytest.mark.unit
def test_the_pages_are_what_the_committed_results_say() -> None:
    """Pages of benchmarks and their plots are written by `python -m benchmarks.page`, not by hand."""
    assert page.main(["--check"]) == 0
