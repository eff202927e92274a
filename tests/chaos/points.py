"""The failpoints of the product, as its sources name them, and what has to happen for some of them to be reached."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("tiers", "producers", "consumers", "pipeline")
REACH = re.compile(r"failpoint\.reach\(\s*(?P<all>[^()]*(?:\([^()]*\)[^()]*)*)\)")

#: What `reach` is told beside the name, by the first word of it: pairs of tiers, or one tier.
PAIRS = {"move": ("hot-warm", "hot-cold", "warm-cold", "cold-glacier")}
TIERS = {"superseded": ("warm", "cold"), "start.loaded": ("warm", "cold", "glacier")}
CLEARED = ("warm", "cold", "glacier")

#: Reached at most once in a life: armed for the first time.
ONCE = ("start", "archive.checkpoint", "codebook", "codes", "lease.ended", "clear", "manifest", "cold.checkpoint")
#: Reached in a clearing (clearing.py): an operator's command that deletes, and so needs checks of its own.
OF_CLEARING = ("clear", "manifest")
STIMULUS = {"lease.ended": "stop", "codebook.written": "reindex"}


def named() -> set[str]:
    """Return what the sources name: the first argument of every `reach`."""
    found: set[str] = set()
    for package in PACKAGES:
        for path in (ROOT / package).glob("*.py"):
            for call in REACH.finditer(path.read_text()):
                found |= set(re.findall(r'"([a-z_.]+)"', call["all"]))
    return found


def everything() -> list[str]:
    """Return every point, with the tiers that it is between."""
    points: list[str] = []
    for name in sorted(named()):
        first = name.partition(".")[0]
        between = PAIRS.get(first) or TIERS.get(first) or TIERS.get(name)
        if first == "clear" and name.removeprefix("clear.") in {
            "noted",
            "older_evicted",
            "announced",
            "discarded",
            "struck",
        }:
            between = CLEARED
        points += [f"{name}:{each}" for each in between] if between else [name]
    return points


def of_clearing(point: str) -> bool:
    """Say whether a point is reached in a clearing only."""
    return point.startswith(OF_CLEARING)


def once(point: str) -> bool:
    """Say whether a life reaches a point once at most."""
    return point.startswith(ONCE)
