"""The notebooks of docs/notebooks run to their end on a live node; what they assert holds."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from pipeline.stack import Stack
from tests.live import live
from tests.nodes import small

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

# Jupyter's own: a kernel's sockets are closed by the collector, and its event loop policy is asked for.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def address(stack: Stack, prefix: str, tmp_path: Path) -> Iterator[str]:
    """A node that takes words and ages fast."""
    ages = {"policy__hot_age_s": 1.0, "policy__warm_idle_s": 600.0}
    with live(small(stack, prefix, tmp_path / "node", dim=256, embedder="wordllama", **ages)) as node:
        yield node.address


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
async def test_it_runs(file: Path, address: str, monkeypatch: pytest.MonkeyPatch):
    """Each cell in turn, in a fresh kernel; a cell that raises fails the test."""
    monkeypatch.setenv("ISOTHERM_URL", address)
    monkeypatch.chdir(FOLDER.parents[1])
    notebook = nbformat.read(file, as_version=4)
    await asyncio.wait_for(NotebookClient(notebook, timeout=60, kernel_name="python3").async_execute(), 120)

    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.unit
def test_they_are_kept_without_outputs():
    """Nothing of one run is in the repository; both are on the page."""
    assert 2 <= len(NOTEBOOKS)
    for file in NOTEBOOKS:
        notebook = nbformat.read(file, as_version=4)
        nbformat.validate(notebook)
        assert not any(cell.get("outputs") for cell in notebook.cells), file
        assert f"({file.name})" in (FOLDER / "index.md").read_text()
