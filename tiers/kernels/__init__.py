"""The source of the GPU's kernels: package data, compiled when hot starts on a GPU."""

from __future__ import annotations

from importlib.resources import files

#: The block size that scan.cu is written for, rows that a warp takes at once, questions that one reading answers.
THREADS, LANES, ROWS, FEW = 256, 32, 4, 8
BLOCKS_EACH = (
    8  # blocks of the scores that a processor of the GPU gets at a time: as many as fit, so that loads overlap
)
OPTIONS = ("--std=c++17",)


def source() -> str:
    """Return the text of scan.cu."""
    return (files(__package__) / "scan.cu").read_text(encoding="utf-8")
