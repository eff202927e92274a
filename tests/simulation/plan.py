"""What a seed is about: how many ids, what happens how often, what goes wrong. Each seed leaves something out.

Leaving out whole kinds of action lets the others meet more often: a world in which everything happens is one in which
nothing happens twice in a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from random import Random

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


def of(seed: int) -> Plan:
    """Return the plan of a seed."""
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
    )
