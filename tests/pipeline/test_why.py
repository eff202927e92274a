"""What `why` foretells is what the policy does, and what it tells of the past is what the ledger says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.history import History, Step
from pipeline import why
from pipeline.why import Facts
from tiers import policy, record
from tiers.policy import PolicySettings
from tiers.tier import TierName, Usage

pytestmark = pytest.mark.unit

RULES = PolicySettings(hot_age_s=60, warm_idle_s=600, cold_idle_s=6_000)
ROOMY = dict.fromkeys(TierName, Usage(10, 1_000))
FLUSH_S = 60.0


def facts(tier: TierName, age_s: float = 10, idle_s: float = 5, heat: float = 1.0, **more: object) -> Facts:
    """Return what the index might know of a record."""
    given_facts: dict[str, object] = {
        "id": "a",
        "version": record.pack_version(0, 7),
        "partition": 0,
        "tier": tier,
        "copy": False,
        "deleted": False,
        "event_time": 0,
        "expires_at": 0,
        "used": 0,
        "age_ms": int(age_s * 1000),
        "idle_ms": int(idle_s * 1000),
        "heat": heat,
        "moved_at": 0,
        "reason": "unknown",
    }
    return Facts(**(given_facts | more))  # type: ignore[arg-type]


def due(what: Facts, in_ms: int, usages: dict[TierName, Usage]) -> bool:
    """Say whether the policy lets the record leave after so many more ms without a read."""
    columns = policy.Columns(
        version=np.array([what.version], np.int64),
        age_ms=np.array([what.age_ms + in_ms], np.int64),
        idle_ms=np.array([what.idle_ms + in_ms], np.int64),
        heat=np.array([what.heat], np.float32),
    )
    return len(policy.due(what.tier, columns, policy.excess(usages[what.tier], RULES), RULES)[0]) == 1


@given(
    tier=st.sampled_from([TierName.HOT, TierName.WARM, TierName.COLD]),
    age_s=st.floats(0, 10_000),
    idle_s=st.floats(0, 10_000),
    heat=st.floats(0, 100),
)
def test_a_record_leaves_when_it_is_said_to_and_not_before(tier, age_s, idle_s, heat):
    """At the foretold moment the policy lets it go, a millisecond earlier it does not."""
    what = facts(tier, age_s, idle_s, heat)
    ahead = why.outlook(what, ROOMY, RULES, FLUSH_S)
    in_ms = round((ahead.in_s or 0.0) * 1000)

    assert due(what, in_ms, ROOMY)
    assert in_ms == 0 or not due(what, in_ms - 1, ROOMY)
    assert ahead.target is not None
    assert ahead.target > tier


def test_pressure_is_foretold_before_age():
    """A tier above its high water lets the first go now, whatever their age."""
    full = {**ROOMY, TierName.HOT: Usage(900, 0, rows_limit=1_000)}
    ahead = why.outlook(facts(TierName.HOT), full, RULES, FLUSH_S)

    assert ("pressure", 0.0) == (ahead.rule, ahead.in_s)


def test_where_it_goes_follows_heat_and_room():
    """A cool record goes past warm; one that no tier has room for stays, and says so."""
    cool = facts(TierName.HOT, heat=0.1)
    full = {**ROOMY, TierName.WARM: Usage(900, 0, rows_limit=1_000)}

    assert TierName.COLD is why.outlook(cool, ROOMY, RULES, FLUSH_S).target
    assert TierName.WARM is why.outlook(facts(TierName.HOT, age_s=59), ROOMY, RULES, FLUSH_S).target
    assert TierName.COLD is why.outlook(facts(TierName.HOT, age_s=59), full, RULES, FLUSH_S).target


def test_glacier_is_the_end_and_a_tombstone_there_is_compacted():
    """Nothing goes below glacier; what is deleted there waits for compaction."""
    assert ("none", None) == why.outlook(facts(TierName.GLACIER), ROOMY, RULES, FLUSH_S)[:2]
    assert "compaction" == why.outlook(facts(TierName.GLACIER, deleted=True), ROOMY, RULES, FLUSH_S).rule


def test_the_last_move_is_that_of_this_version_to_this_tier():
    """Moves of older versions, and to tiers it has left since, are not why it is where it is."""
    now, before = record.version_text(record.pack_version(0, 7)), record.version_text(record.pack_version(0, 3))
    steps = [
        Step(0, 1_000, "home", "hot", "warm", "age", before),
        Step(1, 2_000, "home", "hot", "warm", "pressure", now),
        Step(2, 3_000, "home", "warm", "cold", "idle", now),
        Step(3, 4_000, "home", "warm", "cold", "recovered", now),
    ]
    told = why.last_move(facts(TierName.COLD), History(0, steps))

    assert {"from": "warm", "to": "cold", "reason": "idle", "at": "1970-01-01T00:00:03.000Z"} == told
    assert "policy.warm_idle_s = 600 s" in why.because(facts(TierName.COLD), told, RULES)

    known = facts(TierName.COLD, moved_at=5_000, reason="pressure")

    assert {"from": None, "to": "cold", "reason": "pressure", "at": "1970-01-01T00:00:05.000Z"} == why.last_move(
        known, History(0)
    )
    assert None is why.last_move(facts(TierName.COLD), History(0))
