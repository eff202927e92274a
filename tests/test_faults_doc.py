"""docs/faults.md: numbered without a gap, and each test that it names exists."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"^\| (\d+) \| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
LEAST = 40
RESULT = re.compile(r"(passed|failed|no wrong answer) \d{4}-\d\d-\d\d|not run for this table")


def rows() -> list[tuple[str, ...]]:
    """Return the rows of the tables: number, fault, what happens, tests, result."""
    return [match.groups() for match in ROW.finditer((ROOT / "docs" / "faults.md").read_text())]


@functools.cache
def names_in(path: str) -> frozenset[str]:
    """Return the names of all test functions in a file, those in classes among them."""
    tree = ast.parse((ROOT / path).read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, kinds) and node.name.startswith("test_"))


def test_faults_are_numbered_and_enough() -> None:
    """From 1, each once, in order."""
    numbers = [int(number) for number, *_ in rows()]

    assert list(range(1, len(numbers) + 1)) == numbers
    assert len(numbers) >= LEAST


def test_every_row_has_a_test_or_says_why_not() -> None:
    """A row without a test is one of an assumption, or does not apply, and says so where the result would stand."""
    for number, _, happens, named, result in rows():
        if TEST.search(named):
            assert RESULT.match(result), number
        else:
            assert named == "none", number
            assert result in ("assumed", "does not apply"), number
            assert len(happens) > 10, number


def test_every_test_that_is_named_exists() -> None:
    """By file and name, so that a test renamed takes its row along."""
    missing = [
        (number, f"{path}::{name}")
        for number, _, _, named, _ in rows()
        for path, name in TEST.findall(named)
        if not (ROOT / path).is_file() or name not in names_in(path)
    ]

    assert [] == missing
