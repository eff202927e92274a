"""What `why` foretells is what the policy does, and what it tells of the past is what the ledger says."""

from __future__ import annotations

import io

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from consumers.history import Decision, History, Step
from pipeline import why
from pipeline.why import Facts
from pipeline.why_shown import why_shown
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


def test_what_was_decided_is_told_of_the_last_move_alone():
    """A record that moved on, or was updated, while the topics were read has nothing told of the move before."""
    move = Step(1, 2_000, "home", "warm", "cold", "idle", record.version_text(record.pack_version(0, 7)))
    past = History(0, [move], decision=Decision(move, 1_990, "idle", 9_000, 7_000, 0.5, None))
    told = why.decided(facts(TierName.COLD), past)

    assert told is not None
    assert (7.0, 0.5, None) == (told["idle_s"], told["heat"], told["usage"])
    assert None is why.decided(facts(TierName.GLACIER), past)
    assert None is why.decided(facts(TierName.COLD, version=record.pack_version(0, 8)), past)
    assert None is why.decided(facts(TierName.COLD), History(0, [move]))


def answer(**more: object) -> dict[str, object]:
    """Return what /v1/why says of a record that went to cold."""
    then = {"at": "2026-11-23T05:00:01.000Z", "reason": "idle", "age_s": 700.0, "idle_s": 605.0, "heat": 0.25}
    step = {"at": "2026-11-23T05:00:01.100Z", "kind": "home", "from": "warm", "to": "cold", "reason": "idle"}
    told: dict[str, object] = {
        "id": "a",
        "partition": 3,
        "version": "0.7.0",
        "deleted": False,
        "tier": "cold",
        "copy_in_hot": False,
        "event_time": "2026-11-23T04:48:21.000Z",
        "expires_at": None,
        "last_read": "2026-11-23T04:49:56.000Z",
        "age_s": 5_400.0,
        "idle_s": 4_000.0,
        "heat": 0.01,
        "because": "it went to cold: nobody had read it",
        "decided": then | {"usage": {"hot": 0.5, "warm": 0.9, "cold": 0.1, "glacier": 0.0}},
        "usage": {"hot": 0.4, "warm": 0.6, "cold": 0.2, "glacier": 0.0},
        "next": {"rule": "idle", "to": "glacier", "in_s": 2_000.0, "text": "if nobody reads it …"},
        "policy": msgspec.to_builtins(RULES),
        "superseded": [{"tier": "glacier", "version": "0.3.0"}],
        "history": [step | {"version": "0.7.0", "offset": 5}],
        "looked": {"from_offset": 0, "to_offset": 6, "begin_offset": 0, "complete": True, "took_ms": 1.0},
    }
    return told | more


def printed(told: dict[str, object]) -> str:
    """Return it as a terminal shows it, without colours."""
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(why_shown(told))
    return console.export_text()


def test_the_answer_reads_as_a_place_a_reason_and_numbers_beside_their_limits():
    """What it was decided by stands beside what it is now, and what both are held to."""
    text = printed(answer())

    assert "a: in cold" in text
    assert (True, True) == ("66.7 min" in text, "10.1 min" in text)
    assert "when decided (2026-11-23T05:00:01.000Z)" in text
    warm = next(line for line in text.splitlines() if "warm full" in line)
    assert ["60%", "90%"] == [word for word in warm.split() if word.endswith("%")][:2]
    assert "warm cold idle home 0.7.0" in " ".join(text.split())
    assert "waits for eviction: version 0.3.0 in glacier" in text


def test_what_is_not_known_is_left_out():
    """No age event, no history, a tombstone: the rest is shown all the same."""
    text = printed(answer(decided=None, history=[], superseded=[], deleted=True, tier="hot"))

    assert "a: deleted; its tombstone is in hot" in text
    assert "when decided" not in text
