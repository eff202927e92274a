"""What a seed is about: how many ids, what happens how often, what goes wrong. Each seed leaves something out.

Leaving out whole kinds of action lets the others meet more often: a world in which everything happens is one in which
nothing happens twice in a row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from random import Random
from typing import Any

from tests.simulation.network import Faults
from tiers import record

WEIGHTS = {
    "upsert": 6.0,
    "delete": 3.0,
    "delete_if": 1.0,
    "upsert_expiring": 0.7,
    "bad_event": 0.2,
    "advise": 9.0,
    "access": 3.0,
    "commit": 4.0,
    "upkeep": 2.0,
    "compact": 2.0,
    "cool": 0.5,
    "expire": 0.7,
    "rewrite_index": 0.3,
    "get": 2.0,
    "search": 1.0,
    "list_all": 0.5,
    "give_up": 0.5,
    "clear": 0.25,
    "clean": 0.3,
    "crash": 1.5,
    "stop": 0.2,
    "outage": 0.5,
    "stop_valkey": 0.3,
}
ALWAYS = ("upsert", "advise", "commit")


#: Plans that come sooner to one kind of trouble: what happens, how often, and what else is fixed.
FOCUS: dict[str, tuple[dict[str, float], dict[str, Any]]] = {
    "tombstones": (
        {},
        {
            "ids": 1,
            "partitions": 1,
            "pace": 40,
            "crashes": 0,
            "refused": 0.0,
            "lost": 0.0,
            "script": "upsert wait advise wait wait delete wait advise wait wait advise wait wait advise wait wait "
            "commit wait compact wait compact wait",
        },
    ),
    "moves": (
        {"upsert": 5, "delete": 4, "advise": 14, "commit": 4, "compact": 4, "upkeep": 0.5, "crash": 1},
        {"ids": 1, "partitions": 1, "pace": 25, "crashes": 2, "actions": 25, "refused": 0.0, "lost": 0.0},
    ),
    "late commits": (
        {},
        {
            "ids": 1,
            "partitions": 1,
            "pace": 30,
            "crashes": 1,
            "late": 1.0,
            "slow": 0.6,
            "refused": 0.0,
            "lost": 0.0,
            "script": "upsert delete wait advise wait advise wait advise wait commit:6 crash:20 started compact:12 "
            "compact:12 advise:6 advise:6 advise:6 advise:6 advise:6 advise:6 advise:6 advise:6 wait",
        },
    ),
    "late writes": (
        {"upsert": 5, "delete": 3, "advise": 12, "commit": 3, "upkeep": 2, "compact": 3, "crash": 3},
        {"ids": 1, "partitions": 1, "pace": 25, "crashes": 3, "actions": 30, "late": 1.0, "slow": 0.4, "refused": 0.0},
    ),
    "copies": (
        {"upsert": 6, "delete": 1, "advise": 8, "access": 8, "commit": 2, "cool": 0.5, "get": 1},
        {"ids": 1, "partitions": 1, "pace": 25, "crashes": 0, "actions": 40, "refused": 0.0, "slow_device": True},
    ),
    "readers": (
        {
            "upsert": 7,
            "delete": 3,
            "advise": 10,
            "get": 5,
            "search": 5,
            "list_all": 2,
            "compact": 1,
            "rewrite_index": 3,
        },
        {"partitions": 1, "pace": 12, "crashes": 0, "actions": 40, "slow": 0.4, "refused": 0.0, "lost": 0.0},
    ),
    "conditions": (
        {"upsert": 5, "delete_if": 5, "advise": 10, "commit": 5, "upkeep": 2, "compact": 1, "crash": 3},
        {"ids": 1, "partitions": 1, "pace": 25, "crashes": 3, "actions": 30, "refused": 0.0, "lost": 0.0},
    ),
    "outages": (
        {"upsert": 6, "delete": 2, "advise": 12, "commit": 3, "upkeep": 2, "outage": 4, "crash": 2},
        {"ids": 1, "partitions": 1, "pace": 25, "crashes": 2, "actions": 40, "refused": 0.05},
    ),
}


@dataclass(frozen=True)
class Plan:
    """See `of`."""

    seed: int
    ids: int
    partitions: int
    hot_rows: int
    actions: int
    pace: int
    crashes: int
    weights: dict[str, float]
    slow: float
    refused: float
    lost: float
    late: float
    last_crash: bool
    slow_device: bool
    script: str = ""  # actions one after another, each with how many steps may follow, instead of chance's choice

    @property
    def faulty(self) -> bool:
        """Whether a request may fail at all."""
        return bool(self.refused or self.lost or self.weights.get("outage") or self.weights.get("stop_valkey"))

    @property
    def exact_ledger(self) -> bool:
        """Whether every announcement was answered, so that none tells of what then did not happen."""
        return not (self.refused or self.lost or self.weights.get("outage") or self.weights.get("clear"))

    def faults(self) -> Faults:
        """Return the chances of the network."""
        return Faults(slow=self.slow, refused=self.refused, lost=self.lost, late=self.late)

    def names(self) -> list[str]:
        """Return the ids."""
        return [f"n{at}" for at in range(self.ids)]

    def partition(self, name: str) -> int:
        """Return the partition of an id."""
        return _partition(name, self.partitions)


_partition = cache(record.partition)


def of(seed: int, focus: str = "") -> Plan:
    """Return the plan of a seed, of any kind or of one."""
    if focus:
        weights, fixed = FOCUS[focus]
        return replace(of(seed), weights=dict(weights), **fixed)
    random = Random(f"plan {seed}")
    weights = {
        name: weight * random.choice((1, 1, 3))
        for name, weight in WEIGHTS.items()
        if name in ALWAYS or random.random() < 0.6
    }
    return Plan(
        seed=seed,
        ids=random.choice((1, 1, 1, 2, 3)),
        partitions=random.choice((1, 1, 2)),
        hot_rows=random.choice((32, 64)),
        actions=random.choice((12, 20, 30, 40)),
        pace=random.choice((8, 25, 60)),
        crashes=random.choice((0, 1, 2, 3)),
        weights=weights,
        slow=random.choice((0.0, 0.1, 0.4)),
        refused=random.choice((0.0, 0.0, 0.0, 0.05)),
        lost=random.choice((0.0, 0.0, 0.0, 0.02)),
        late=random.choice((0.0, 0.3, 0.8)),
        last_crash=random.random() < 0.3,
        slow_device=random.random() < 0.4,
    )
