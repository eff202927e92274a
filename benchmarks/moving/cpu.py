"""Seconds of processor time, by process: on a machine that others use too they say more than the clock."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


def of(pid: int) -> float:
    """Return what a process has used, 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICK


def resident_mb(pid: int) -> float:
    """Return the memory a process holds, in MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


class Meter:
    """Reads the clock and the processor time of some processes; this one is `node`, `loop` its event loop's part."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = pids

    def read(self) -> dict[str, float]:
        """Return seconds: of the clock, and used by each."""
        return {
            "wall": time.perf_counter(),
            "loop": time.thread_time(),
            "node": time.process_time(),
            **{name: of(pid) for name, pid in self._pids.items()},
        }

    def since(self, before: Mapping[str, float]) -> dict[str, float]:
        """Return what went by since an earlier reading."""
        now = self.read()
        return {name: now[name] - before[name] for name in before}


def per_row_us(spent: Mapping[str, float], rows: int) -> dict[str, float]:
    """Return microseconds a row, the clock's left out."""
    return {name: round(seconds / rows * 1e6, 2) for name, seconds in spent.items() if name != "wall"}
