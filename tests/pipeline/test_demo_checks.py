"""What the demo finds out by itself of the topics."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from pipeline.demo_checks import Published, fold_changes

pytestmark = pytest.mark.unit


def change(source: str, target: str | None, version: str) -> SimpleNamespace:
    told = {"kind": "home", "from": source, "to": target, "ids": ["a"], "versions": [version]}
    return SimpleNamespace(value=json.dumps(told))


def test_the_deepest_place_told_counts_not_the_last():
    """A message of a node that died, behind what its successor has told, moves nothing back."""
    newest = {"a": Published(5 << 16, deleted=False, payload=b"", vector=None)}
    told = [change("hot", "warm", "0.5.0"), change("warm", "cold", "0.5.0")]
    late = [change("hot", "warm", "0.5.0"), change("cold", "glacier", "0.4.0")]

    assert {"a": "cold"} == fold_changes([*told, *late], newest)[0]
    assert {"a": None} == fold_changes([*told, change("cold", None, "0.5.0"), *late], newest)[0]
    assert {"a": "hot"} == fold_changes(late[1:], newest)[0]
