"""`isotherm tiers`: what is drawn of a moment, rates from two, and the live view on a real terminal."""

from __future__ import annotations

import copy
import os
import pty
import signal
import subprocess
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pipeline.tiers_rates import rates
from pipeline.tiers_view import SPARKS, frame, line, spark
from tests.pipeline.test_cli import ISOTHERM
from tests.scripted import Scripted, answer

pytestmark = pytest.mark.unit


def tier(records: int, rows_limit: int = 0, bytes_limit: int = 0) -> dict[str, int]:
    """Return a tier as /v1/tiers tells of it."""
    held = {"records": records, "tombstones": 0, "queued": 3, "rows": records, "bytes": records * 1024}
    return {**held, "rows_limit": rows_limit, "bytes_limit": bytes_limit}


NOW: dict[str, Any] = {
    "tiers": {
        "hot": tier(90_000, rows_limit=100_000),
        "warm": tier(800_000, bytes_limit=1_100_000_000),
        "cold": tier(2_000_000),
        "glacier": tier(12_000_000, bytes_limit=100_000_000_000),
    },
    "moved": [{"from": "hot", "to": "warm", "records": 900}, {"from": "hot", "to": "cold", "records": 40}],
    "copies": {"records": 12, "records_max": 1024},
    "reads": {"hot": 100, "warm": 0, "cold": 100, "glacier": 0, "copies": 50},
    "ingested": 5000,
    "dead_letters": {"vector_dim": 3, "json": 1},
    "dirty": {"0": 7, "1": 5},
    "paused": [2],
    "replaying": [],
    "freshness": {"lag_ms": 7},
    "at": 1_795_000_002.0,
}
BEFORE = copy.deepcopy(NOW) | {"at": 1_795_000_000.0, "ingested": 1000, "reads": {"hot": 20}, "moved": []}


def drawn(now: dict[str, Any], before: dict[str, Any] | None, width: int = 80, **more: Any) -> str:
    """Return what a terminal of that width shows, without colours."""
    console = Console(record=True, width=width, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    with console.file:
        console.print(frame(now, before, **more))
        return console.export_text()


def test_a_moment_shows_occupancy_flow_freshness_and_what_is_wrong() -> None:
    """On eighty columns nothing is cut off: each tier with bar and rates, flows, copies, letters, pauses."""
    shown = drawn(NOW, BEFORE, ingests=[0.0, 1000.0, 2000.0], where="http://here")
    rows = {each.split()[0].strip("▌"): each for each in shown.splitlines() if each.startswith("▌")}

    assert "…" not in shown
    assert ["hot", "warm", "cold", "glacier"] == list(rows)
    assert "90%" in rows["hot"]
    assert ["2,000", "470", "40"] == rows["hot"].split()[-3:]
    assert "no limit" in rows["cold"]
    assert "hot → warm 450/s" in shown
    assert "ready · 7 ms behind the log" in shown
    assert "▁▅█ 2,000/s" in shown
    assert "4 dead letters (vector_dim 3, json 1)" in shown
    assert "partitions 2 are paused" in shown
    assert "12 of 1,024" in shown
    assert all(len(each) <= 80 for each in shown.splitlines())


def test_before_there_are_rates_it_shows_what_happened_since_the_start() -> None:
    """The first moment has totals; so has the one after a restart, whose counts began anew."""
    assert ["5,000", "940", "100"] == next(e for e in drawn(NOW, None).splitlines() if "▌hot" in e).split()[-3:]
    assert "reads from hot 50% (25% copies)" in drawn(NOW, None, width=120)
    assert rates(NOW, {**NOW, "ingested": 9_000, "at": 1.0}) is None
    assert rates(NOW, NOW) is None


def test_a_key_of_some_namespaces_sees_what_it_is_told() -> None:
    """An answer with records only is drawn with these."""
    told = {"namespaces": ["a"], "tiers": {name: {"records": 5} for name in NOW["tiers"]}}
    assert "▌glacier" in drawn(told, told)
    assert "hot 5" in line(told, None)


def test_a_fault_and_a_replay_are_said_at_the_top() -> None:
    """Instead of being ready."""
    assert "the gateway does not answer" in drawn(NOW, None, fault="the gateway does not answer").splitlines()[0]
    assert "replaying partitions 1, 3" in drawn({**NOW, "replaying": [1, 3]}, None).splitlines()[0]


@given(st.lists(st.floats(0, 1e9), max_size=50))
def test_a_spark_line_has_a_mark_for_each_value(values: list[float]) -> None:
    """The largest is the highest; nothing is out of range."""
    marks = spark(values)
    assert len(values) == len(marks)
    assert set(marks) <= set(SPARKS)
    if any(values):
        assert SPARKS[-1] == marks[values.index(max(values))]


def test_on_no_terminal_there_is_a_line_a_second() -> None:
    """What a file or a pipe gets can be read by eye and by grep."""
    text = line(NOW, BEFORE)
    assert "hot 90,000 (90%) +2,000/s -470/s" in text
    assert "\x1b" not in text
    with Scripted(answer(200, msgspec.json.encode(NOW))) as server:
        command = [*ISOTHERM, "tiers", "--watch", "--url", server.url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
            assert watching.stdout is not None
            assert "hot 90,000 (90%)" in watching.stdout.readline()
            watching.send_signal(signal.SIGINT)
            assert 0 == watching.wait(20)


def test_on_a_terminal_it_draws_until_interrupted() -> None:
    """The alternate screen shows the frame; Ctrl-C ends it with 0 and gives the terminal back."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    with Scripted(answer(200, msgspec.json.encode(NOW))) as server:
        command = [*ISOTHERM, "tiers", "--watch", "--url", server.url]
        with subprocess.Popen(command, stdout=theirs, env=environment) as watching:
            os.close(theirs)
            seen = b""
            while seen.count(b"paused") < 2:  # the first is drawn while the screen is being taken
                seen += os.read(ours, 65_536)
            watching.send_signal(signal.SIGINT)
            try:
                while part := os.read(ours, 65_536):
                    seen += part
            except OSError:  # the terminal's other end is closed
                pass
            assert 0 == watching.wait(20)
    os.close(ours)
    assert b"\x1b[?1049h" in seen
    assert b"\x1b[?1049l" in seen
    assert "▌".encode() in seen
