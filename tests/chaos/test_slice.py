"""A slice of the harness, and the same with a rule of the product broken, which it must notice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.run import run

#: One of each part of the order of effects, a start that dies half way, and a clearing.
POINTS = ["move.stored:hot-warm", "move.relocated:cold-glacier", "start.rebuilt", "archive.entered", "clear.noted:cold"]


@pytest.mark.timeout(300)
async def test_nothing_is_lost(tmp_path: Path) -> None:
    """A few kills of everything; `make chaos` does a thousand."""
    outcome = await run(tmp_path, kills=6, seed=3, ids=400, wanted=POINTS, share=0.3)
    assert [] == outcome.checker.wrong + outcome.tally.failures
    assert 6 <= outcome.tally.kills.total()
    assert outcome.tally.points["clear.noted:cold"] + outcome.tally.missed["clear.noted:cold"]
    assert 300 < outcome.checker.ledger.acknowledged
    assert 300 < outcome.checker.answers["by id"]
    assert outcome.line.endswith(
        f"lost=0 stale=0 resurrected=0 invisible=0 recovery_s_max={max(outcome.tally.recovery_s):.1f}"
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("rule", "point", "kind"),
    [("evict-before-store", "move.read:warm-cold", "lost"), ("receipt-without-store", "move.evicted:hot-warm", "lost")],
)
async def test_a_broken_rule_is_found(tmp_path: Path, rule: str, point: str, kind: str) -> None:
    """Warm's rows are gone before cold has them, and the node dies in between; a receipt for what was never stored."""
    outcome = await run(tmp_path, kills=4, seed=3, ids=200, rule=rule, wanted=[point], share=0.0)
    assert outcome.checker.counts[kind], outcome.tally
