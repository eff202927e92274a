"""The GPU's benchmark runs from end to end without one, and its file has what is promised."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from benchmarks.gpu import TINY, measure
from benchmarks.gpu_machine import Rehearsal
from benchmarks.gpu_peers import PEERS
from benchmarks.gpu_report import show

pytestmark = pytest.mark.unit


def test_a_rehearsal_goes_through_everything():
    """All sizes, both types, masks, peers that are installed, and a line for each promise; it says what it is."""
    told = io.StringIO()
    console = Console(file=told, width=150)
    result = measure(Rehearsal(), TINY, console, minutes=5)
    show(result, console)
    scans = {(each["dtype"], each["rows"], each["questions"]) for each in result["scans"]}

    assert {
        (dtype, rows, count) for dtype in ("float32", "float16") for rows in (200,) for count in (1, 3, 20)
    } <= scans
    assert 2 + 2 + 1 + 1 == len(result["promises"])
    assert all(line["reached"] is not None and line["reached"] > 0 for line in result["promises"])
    assert {"rows", "hot", "hot on numpy", *PEERS} == result["peers"].keys()
    assert 1.0 == result["peers"]["numpy"]["recall"] == result["peers"]["faiss-cpu"]["recall"]
    assert result["rehearsal"]
    assert "figures say nothing" in told.getvalue()
