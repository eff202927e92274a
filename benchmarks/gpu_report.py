"""What was promised of a GPU, held against what was measured on it, and a table of both."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.report import promise

COPY_SHARE, MATRIX_SHARE, APPEND_SHARE, WAIT_TIMES = 0.7, 0.5, 0.7, 3.0


def promises(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what was promised of the figures."""
    own = result["own"]
    scans = [each for each in result["scans"] if each["dtype"] == "float32"]
    one = [each for each in scans if each["questions"] == 1]
    many = [each for each in scans if each["questions"] == max(each["questions"] for each in scans)]
    lines = [
        promise(f"one question, {each['rows']:,} rows / copy bandwidth",
                each["bytes_per_s"] / own["copy_bytes_per_s"], ">=", COPY_SHARE)
        for each in one
    ]  # fmt: skip
    lines += [
        promise(f"{each['questions']} questions, {each['rows']:,} rows / matrix rate",
                each["flop_per_s"] / own["matrix_flop_per_s"], ">=", MATRIX_SHARE)
        for each in many
    ]  # fmt: skip
    append = result["append"]["bytes_per_s"] / own["pinned_bytes_per_s"]
    lines.append(promise("append / pinned copy bandwidth", append, ">=", APPEND_SHARE))
    waiting = result["waiting"]
    waits = waiting["appending_p99_ms"] / waiting["alone_p99_ms"]
    lines.append(promise("search p99 while appending / alone", waits, "<=", WAIT_TIMES))
    return lines


def show(result: dict[str, Any], console: Console) -> None:
    """Print promises and others."""
    table = Table("promise", "reached", "must", "")
    for line in result["promises"]:
        must = f"{line['relation']} {line['must']:g}"
        table.add_row(line["what"], f"{line['reached']:,.4g}", must, "ok" if line["ok"] else "NO")
    console.print(table)
    others = Table(f"over {result['peers']['rows']:,} rows", "build s", "one ms", "many ms", "a new row ms", "recall")
    for name, peer in result["peers"].items():
        if name == "rows":
            continue
        told = peer or {"failed": "not installed"}
        figures = [f"{told[key]:,.4g}" if key in told else "" for key in ("build_s", "one_ms", "many_ms", "fresh_ms")]
        others.add_row(name, *figures, told.get("failed", f"{told['recall']:.4f}" if "recall" in told else ""))
    console.print(others)
    if result["rehearsal"]:
        console.print("A rehearsal: the code ran, and the figures say nothing of any GPU.")
