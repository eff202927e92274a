"""Placement = fold(memories, changes): whoever reads both topics knows where each id is."""

from __future__ import annotations

from collections.abc import Mapping

from consumers.placement import Placement
from tests.simulation.checker import Violation
from tests.simulation.life import Life
from tests.simulation.log import Log
from tests.simulation.model import Model
from tiers import record
from tiers.tier import TierName

DEPTHS = ("hot", "warm", "cold", "glacier", None)
GONE = DEPTHS.index(None)

Placed = Mapping[tuple[str, int], int]


def check(life: Life, log: Log, model: Model) -> None:
    """Compare what is told with the index of a life at rest."""
    placed, feed = fold(log), Placement(len(model.partition))
    for _, change in log.changes():
        feed.advance(change)
    for name, partition in model.partition.items():
        state = model.newest(name, life.marks[partition].end)
        if state is None:
            continue
        entry = life.index.find(name)
        told = DEPTHS[placed.get((name, state.version), 0)]
        shown = TierName(entry.home).word if entry is not None else None
        if shown is None and _dropped(placed, model, name, state.repeats):
            continue  # a delete of a tombstone that is gone: it does not count, and nothing is there either way
        if told != shown:
            raise Violation(f"ledger: the changes say that {name} is in {told}, the index says {shown}")
        if told != _where(feed.home(name), state.version):
            raise Violation(f"ledger: the feed's placement says otherwise than that {name} is in {told}")


def fold(log: Log) -> Placed:
    """Return the deepest place told of each (id, version): a version only goes down.

    That matters for a message of a former life that lands late; of one life they come in order.
    """
    placed: dict[tuple[str, int], int] = {}
    for _, change in log.changes():
        if change.kind == "home":
            for name, text in zip(change.ids, change.versions, strict=True):
                key = name, record.parse_version(text)
                placed[key] = max(placed.get(key, 0), DEPTHS.index(change.target))
    return placed


def _where(home: tuple[int, str | None] | None, version: int) -> str | None:
    """Return where the product's own fold has a version."""
    return home[1] if home is not None and home[0] == version else DEPTHS[0]


def _dropped(placed: Placed, model: Model, name: str, version: int | None) -> bool:
    """Say whether the changes tell that this tombstone, or one that it is itself a delete of, was dropped."""
    before = {state.version: state.repeats for state in model.history[name]}
    while version is not None and placed.get((name, version), 0) != GONE:
        version = before[version]
    return version is not None
