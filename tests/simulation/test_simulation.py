"""A slice of the simulation with each test run: seeds that are always the same, and seeds that nobody has seen.

`python -m tests.simulation SEED` prints what happens in one; `--seeds` and `--seconds` here choose how many are run.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable

import pytest

from tests.simulation import run
from tests.simulation.run import Outcome, simulated, world

FIXED = 40
SECONDS = 12.0  # of CPU, for the fresh ones
#: A conditional delete decided otherwise by a replay; a place that was never told again; a partition never read on.
ONCE = (112, 12217, 40382)


def told(outcome: Outcome) -> str:
    """Return what to do about a seed that failed."""
    return "\n".join([*outcome.trace[-40:], f"{outcome.error}", f"replay: python -m tests.simulation {outcome.failed}"])


def search(seeds: Iterable[int], seconds: float = 1e9) -> None:
    found = run.search(seeds, seconds=seconds)
    assert found.failed is None, told(found)


@pytest.mark.unit
def test_fixed_seeds_break_no_rule() -> None:
    """Nothing is lost, stale, resurrected or invisible in them, whatever fails, and all comes to rest (R1 to R7)."""
    search([*ONCE, *range(FIXED)])


def test_fresh_seeds_break_no_rule() -> None:
    """Nor in seeds that are new each time."""
    first = secrets.randbelow(1 << 40)
    search(range(first, first + 100_000), SECONDS)


@pytest.mark.unit
@pytest.mark.parametrize("seed", [3, 17])
def test_a_seed_is_always_the_same(seed: int) -> None:
    """Run twice, the same things happen at the same times."""
    traces = []
    for _ in range(2):
        with simulated():
            one = world(seed)
            one.run()
        traces.append(one.trace)

    assert traces[0] == traces[1]
