"""What a run says: samples with their percentiles, promises with what was reached, the machine, and a table."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

PACKAGES = ("faiss-cpu", "numpy", "pyarrow", "duckdb", "redis", "deltalake", "lancedb", "chromadb")


def spread(samples: Sequence[float]) -> dict[str, Any]:
    """Return p50 and p99 in ms, and the samples."""
    p50, p99 = (round(float(np.percentile(samples, at)), 4) for at in (50, 99))
    return {"p50_ms": p50, "p99_ms": p99, "samples_ms": [round(one, 4) for one in samples]}


def promise(what: str, reached: float | None, relation: str, must: float, unit: str = "") -> dict[str, Any]:
    """Return one line of the table; `reached` None where it was not measured, which is not ok."""
    ok = reached is not None and (reached >= must if relation == ">=" else reached <= must)
    value = None if reached is None else float(f"{reached:.4g}")
    return {"what": what, "reached": value, "relation": relation, "must": must, "unit": unit, "ok": bool(ok)}


def machine() -> dict[str, Any]:
    """Return the commit, the host and the versions of what is compared."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "host": {
            "cpu": _first("/proc/cpuinfo", "model name"),
            "cores": os.cpu_count(),
            "memory_gb": round(int(_first("/proc/meminfo", "MemTotal").split()[0]) / 1e6, 1),
            "load_1min_at_start": round(os.getloadavg()[0], 2),
            "system": platform.platform(),
        },
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }


def _git(*command: str) -> str:
    told = subprocess.run(["git", *command], capture_output=True, text=True, check=False)  # noqa: S603, S607
    return told.stdout.strip()


def _first(file: str, key: str) -> str:
    """Return the value of the first line "key : value" of a file, "0" where there is none."""
    lines = Path(file).read_text().splitlines() if Path(file).exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "0")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def promises(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return all lines of all scenarios, each with its scenario's name."""
    return [{"scenario": name, **line} for name, part in result["scenarios"].items() for line in part["promises"]]


def show(result: dict[str, Any], console: Console) -> None:
    """Print the table."""
    host = result["host"]
    console.print(f"{host['cpu']}, {host['cores']} cores, load {host['load_1min_at_start']} at the start")
    table = Table("scenario", "promise", "reached", "must", "")
    for line in result["table"]:
        must = f"{'≥' if line['relation'] == '>=' else '≤'} {line['must']:,.10g} {line['unit']}"
        reached = "not measured" if line["reached"] is None else f"{line['reached']:,.10g} {line['unit']}"
        table.add_row(line["scenario"], line["what"], reached, must, "ok" if line["ok"] else "NO")
    console.print(table)
    for name, note in result["notes"].items():
        console.print(f"{name}: {note}")
