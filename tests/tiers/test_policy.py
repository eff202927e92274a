"""Placement as a pure function: what it never does, whatever the candidates."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiers import policy
from tiers.policy import Columns, PolicySettings
from tiers.tier import TierName, Usage

pytestmark = pytest.mark.unit

QUICK = settings(max_examples=80, deadline=None)
RULES = PolicySettings(
    hot_age_s=60, warm_idle_s=600, cold_idle_s=6_000, warm_heat_min=0.5, high_water=0.8, low_water=0.5
)
UNLIMITED = Usage(0, 0)
SOURCES = st.sampled_from([TierName.HOT, TierName.WARM, TierName.COLD])

CANDIDATE = st.tuples(
    st.integers(0, 120_000),  # age
    st.integers(0, 12_000_000),  # idle
    st.sampled_from([0.0, 0.25, 0.5, 1.0, 8.0]),  # heat
)


def columns(candidates, versions=None) -> Columns:
    """Return candidates as columns; versions count up where none are given."""
    ages, idles, heats = zip(*candidates, strict=True) if candidates else ((), (), ())
    numbers = range(len(candidates)) if versions is None else versions
    return Columns(
        np.array(numbers, np.int64), np.array(ages, np.int64), np.array(idles, np.int64), np.array(heats, np.float32)
    )


def take(rows: Columns, order) -> Columns:
    """Return the candidates in another order."""
    return Columns(rows.version[order], rows.age_ms[order], rows.idle_ms[order], rows.heat[order])


@st.composite
def usages(draw):
    """Return usages of all tiers; warm and cold with a limit by rows, by bytes, or none."""
    found = {}
    for tier in TierName:
        rows = draw(st.integers(0, 40))
        kind = draw(st.sampled_from(["none", "rows", "bytes"]))
        by_rows = draw(st.integers(1, 50)) if kind == "rows" else 0
        by_bytes = draw(st.integers(1, 100_000)) if kind == "bytes" else 0
        found[tier] = Usage(rows, rows * 1_000, by_rows, by_bytes)
    return found


def outcome(rows: Columns, moves) -> set[tuple[int, TierName]]:
    return {(int(version), move.target) for move in moves for version in rows.version[move.rows]}


@QUICK
@given(SOURCES, st.lists(CANDIDATE, max_size=30), usages())
def test_no_row_is_in_two_moves(source, candidates, usage):
    """Every candidate is moved at most once."""
    rows = columns(candidates)
    moved = [at for move in policy.plan(source, rows, "age", usage, RULES) for at in move.rows.tolist()]

    assert sorted(set(moved)) == sorted(moved)
    assert set(moved) <= set(range(len(candidates)))


@QUICK
@given(SOURCES, st.lists(CANDIDATE, max_size=30), usages())
def test_moves_go_downwards_only(source, candidates, usage):
    """The target of a move is a lower tier than its source, and the source and reason are those that were given."""
    moves = policy.plan(source, columns(candidates), "age", usage, RULES)

    assert [(source, "age", True)] * len(moves) == [(m.source, m.reason, m.target > m.source) for m in moves]


@QUICK
@given(SOURCES, st.lists(CANDIDATE, max_size=30), usages(), st.randoms(use_true_random=False))
def test_the_order_of_candidates_decides_nothing(source, candidates, usage, random):
    """Permuting the candidates changes neither which rows move nor where to."""
    rows = columns(candidates)
    order = list(range(len(candidates)))
    random.shuffle(order)
    shuffled = take(rows, np.array(order, np.intp))
    expected = outcome(rows, policy.plan(source, rows, "age", usage, RULES))

    assert expected == outcome(shuffled, policy.plan(source, shuffled, "age", usage, RULES))


@QUICK
@given(SOURCES, st.lists(CANDIDATE, max_size=60), usages())
def test_a_target_never_gets_more_than_its_room(source, candidates, usage):
    """A limited target takes at most what is free below its high water, and stays there when it has taken it."""
    for move in policy.plan(source, columns(candidates), "age", usage, RULES):
        target = usage[move.target]
        bounded = move.target is not TierName.GLACIER

        assert not bounded or len(move.rows) <= policy.room(target, RULES)
        if bounded and target.rows_limit:
            assert (target.rows + len(move.rows)) / target.rows_limit <= RULES.high_water


@QUICK
@given(SOURCES, st.lists(CANDIDATE, max_size=30), usages())
def test_every_candidate_finds_a_place(source, candidates, usage):
    """Glacier takes what no other tier has room for: no row that was named stays behind."""
    moves = policy.plan(source, columns(candidates), "age", usage, RULES)

    assert len(candidates) == sum(len(move.rows) for move in moves)


@QUICK
@given(st.lists(CANDIDATE, max_size=30))
def test_only_warm_and_recent_rows_land_in_warm(candidates):
    """Out of hot, exactly the rows with enough heat that are not idle go to warm; the rest goes to cold."""
    rows = columns(candidates)
    fit = (rows.heat >= RULES.warm_heat_min) & (rows.idle_ms < RULES.warm_idle_s * 1000)
    expected = {(int(v), TierName.WARM if ok else TierName.COLD) for v, ok in zip(rows.version, fit, strict=True)}
    everywhere = dict.fromkeys(TierName, UNLIMITED)

    assert expected == outcome(rows, policy.plan(TierName.HOT, rows, "age", everywhere, RULES))


@QUICK
@given(st.lists(CANDIDATE, min_size=1, max_size=10), usages())
def test_tombstones_never_go_to_warm(candidates, usage):
    """A tombstone has no heat, so it goes to cold or glacier however young it is."""
    rows = columns([(age, idle, 0.0) for age, idle, _ in candidates])

    assert TierName.WARM not in {m.target for m in policy.plan(TierName.HOT, rows, "age", usage, RULES)}


@QUICK
@given(st.lists(CANDIDATE, min_size=1, max_size=30), usages())
def test_when_a_target_is_short_the_oldest_rows_get_its_room(candidates, usage):
    """The rows that a full tier passes on are the newest of those that it was meant for."""
    rows = columns(candidates)
    moves = {m.target: rows.version[m.rows].tolist() for m in policy.plan(TierName.COLD, rows, "idle", usage, RULES)}

    assert {TierName.GLACIER: list(range(len(candidates)))} == moves


def test_a_full_target_is_passed_over():
    """With warm and cold at high water, rows of hot go to glacier at once."""
    full = Usage(80, 0, rows_limit=100)
    usage = {TierName.HOT: UNLIMITED, TierName.WARM: full, TierName.COLD: full, TierName.GLACIER: UNLIMITED}
    moves = policy.plan(TierName.HOT, columns([(0, 0, 9.0), (0, 0, 0.0)]), "pressure", usage, RULES)

    assert [(move.target, move.rows.tolist()) for move in moves] == [(TierName.GLACIER, [0, 1])]


def test_the_older_rows_get_what_room_there_is():
    """Of three rows for a warm tier with room for one, the lowest version goes there and the others to cold."""
    usage = dict.fromkeys(TierName, UNLIMITED) | {TierName.WARM: Usage(79, 0, rows_limit=100)}
    rows = columns([(0, 0, 1.0)] * 3, versions=[30, 10, 20])
    moves = policy.plan(TierName.HOT, rows, "age", usage, RULES)

    assert [(m.target, rows.version[m.rows].tolist()) for m in moves] == [
        (TierName.WARM, [10]),
        (TierName.COLD, [20, 30]),
    ]


def test_glacier_has_nothing_below_it():
    """Rows of glacier are never moved."""
    assert policy.plan(TierName.GLACIER, columns([(9**9, 9**9, 0.0)]), "idle", {}, RULES) == []


# -- who leaves ----------------------------------------------------------------------------------------------------


@QUICK
@given(st.lists(CANDIDATE, max_size=40), st.integers(0, 50), st.randoms(use_true_random=False))
def test_rows_leave_hot_in_version_order(candidates, pressed, random):
    """Under pressure and by age alike, the lower version leaves first; heat delays nothing."""
    versions = list(range(len(candidates)))
    random.shuffle(versions)
    rows = columns(candidates, versions)
    leave, _ = policy.due(TierName.HOT, rows, pressed, RULES)
    lowest = set(sorted(versions)[:pressed])
    old = {int(v) for v, age in zip(rows.version, rows.age_ms, strict=True) if age >= RULES.hot_age_s * 1000}

    assert sorted(lowest | old) == rows.version[leave].tolist()


@QUICK
@given(SOURCES, st.lists(CANDIDATE, max_size=40), st.integers(0, 50))
def test_pressure_makes_exactly_as_many_leave_as_it_must(tier, candidates, pressed):
    """At least `pressed` rows leave, and a row that leaves beyond them leaves for its age or idleness."""
    leave, because = policy.due(tier, columns(candidates), pressed, RULES)

    assert len(leave) >= min(pressed, len(candidates))
    assert int(because.sum()) <= pressed
    assert len(set(leave.tolist())) == len(leave) == len(because)


@QUICK
@given(st.sampled_from([TierName.WARM, TierName.COLD]), st.lists(CANDIDATE, max_size=40), st.integers(0, 50))
def test_the_coldest_leave_warm_and_cold_first(tier, candidates, pressed):
    """Out of warm and cold rows leave by heat, then by idleness, coldest and longest idle first."""
    rows = columns(candidates)
    leave, _ = policy.due(tier, rows, pressed, RULES)
    order = [(float(rows.heat[at]), -int(rows.idle_ms[at]), int(rows.version[at])) for at in leave.tolist()]

    assert sorted(order) == order


def test_without_pressure_only_the_old_leave():
    """A row exactly as old as the limit leaves, one a millisecond younger stays."""
    leave, pressed = policy.due(TierName.HOT, columns([(59_999, 0, 0.0), (60_000, 0, 0.0)]), 0, RULES)

    assert (leave.tolist(), pressed.tolist()) == ([1], [False])


# -- capacity ------------------------------------------------------------------------------------------------------


@QUICK
@given(st.integers(0, 1_000), st.integers(1, 1_000), st.sampled_from(["rows", "bytes"]))
def test_excess_starts_at_high_water_and_ends_at_low_water(rows, limit, kind):
    """Nothing leaves below high water; at it, as many leave as bring the tier to low water, to a row."""
    usage = Usage(rows, rows * 10, limit, 0) if kind == "rows" else Usage(rows, rows * 10, 0, limit * 10)
    excess = policy.excess(usage, RULES)

    if rows < RULES.high_water * limit:
        assert excess == 0
    else:
        left = rows - excess
        assert RULES.low_water * limit - 1 <= left <= RULES.low_water * limit + 1


@QUICK
@given(st.integers(1, 1_000), st.integers(1, 1_000))
def test_evacuation_does_not_follow_evacuation(rows, limit):
    """Once a tier is at low water nothing more is pressed out of it, so rows do not trickle at the brink."""
    usage = Usage(rows, 0, limit)
    after = Usage(rows - policy.excess(usage, RULES), 0, limit)

    assert policy.excess(after, RULES) == 0 or limit <= math.ceil(1 / (RULES.high_water - RULES.low_water))


def test_a_tier_without_limit_is_never_pressed():
    """No limit means no excess and endless room."""
    assert policy.excess(Usage(10**9, 10**12), RULES) == 0
    assert math.inf == policy.room(Usage(10**9, 10**12), RULES)


def test_an_overfull_tier_has_no_room():
    """Room is never negative."""
    assert policy.room(Usage(100, 100, rows_limit=10), RULES) == 0.0


def test_room_by_bytes_counts_in_rows_of_the_mean_size():
    """A limit in bytes is turned into rows with the mean size of those that are there."""
    assert pytest.approx(policy.room(Usage(50, 50_000, bytes_limit=100_000), RULES)) == 30.0


@QUICK
@given(st.floats(0, 100), st.integers(-10, 10**7), st.integers(0, 10**7))
def test_heat_halves_every_half_life(heat, since, more):
    """Heat never grows by itself, is halved after one half-life, and a clock that goes back changes nothing."""
    early, late = policy.heat_at(np.array([heat] * 2, np.float32), np.array([since, since + more]), 300)
    halved = policy.heat_at(np.array([heat], np.float32), np.array([300_000]), 300)[0]

    assert np.float32(heat) >= early >= late
    assert halved == pytest.approx(heat / 2, rel=1e-6)


def test_usage_is_as_full_as_its_fuller_limit():
    """A tier with two limits is as full as the one it is nearer to."""
    assert Usage(1, 50, rows_limit=10, bytes_limit=100).fraction == 0.5
    assert Usage(10**6, 10**9).fraction == 0.0


# -- copies --------------------------------------------------------------------------------------------------------

HEATS = st.lists(st.floats(0, 50, width=32), max_size=30)
NO_HEAT, NO_VERSION = np.zeros(0, np.float32), np.zeros(0, np.int64)


def heats(values) -> tuple[np.ndarray, np.ndarray]:
    """Return heats as a column, and versions that count up."""
    return np.array(values, np.float32), np.arange(len(values))


@QUICK
@given(HEATS, st.integers(0, 20), HEATS)
def test_copies_never_exceed_their_bound(wanted, room, held):
    """As many copies go as come beyond the room; nobody comes or goes twice."""
    come, go = policy.admit(*heats(wanted), room, *heats(held), RULES)

    assert len(come) - len(go) <= room
    assert len(go) == max(0, len(come) - room)
    assert len(set(come.tolist())) == len(come)
    assert len(set(go.tolist())) == len(go)


@QUICK
@given(HEATS, st.integers(0, 20), HEATS, st.randoms(use_true_random=False))
def test_the_order_decides_nothing_about_copies(wanted, room, held, random):
    """Permuting candidates and copies changes neither who comes nor who goes."""
    heat, version = heats(wanted)
    copy_heat, copy_version = heats(held)
    orders = [list(range(len(wanted))), list(range(len(held)))]
    for order in orders:
        random.shuffle(order)
    first, second = (np.array(order, np.intp) for order in orders)
    come, go = policy.admit(heat, version, room, copy_heat, copy_version, RULES)
    again, gone = policy.admit(heat[first], version[first], room, copy_heat[second], copy_version[second], RULES)

    assert version[come].tolist() == version[first][again].tolist()
    assert copy_version[go].tolist() == copy_version[second][gone].tolist()


@QUICK
@given(HEATS, st.integers(0, 20), HEATS)
def test_only_what_is_hot_enough_gets_a_copy_and_the_hottest_first(wanted, room, held):
    """Who comes has the heat that admission asks for; nobody hotter is left behind."""
    heat, version = heats(wanted)
    come, _ = policy.admit(heat, version, room, *heats(held), RULES)
    left = np.setdiff1d(np.arange(len(wanted)), come)

    assert (heat[come] >= RULES.promote_heat_min).all()
    assert not len(left) or not len(come) or heat[left].max() <= heat[come].min()


@QUICK
@given(HEATS, HEATS, st.floats(0.01, 1))
def test_what_gave_way_does_not_come_back_unread(wanted, held, faded):
    """No ping-pong: with heat fading alike and no reads, a second look moves nothing."""
    heat, version = heats(wanted)
    copy_heat, copy_version = heats(held)
    come, go = policy.admit(heat, version, 0, copy_heat, copy_version + 1_000, RULES)
    stay, wait = np.setdiff1d(np.arange(len(held)), go), np.setdiff1d(np.arange(len(wanted)), come)
    inside = np.concatenate([copy_heat[stay], heat[come]]) * np.float32(faded)
    outside = np.concatenate([copy_heat[go], heat[wait]]) * np.float32(faded)
    again, gone = policy.admit(*heats(outside), 0, *heats(inside), RULES)

    assert not set(again.tolist()) & set(range(len(go)))
    assert len(again) == len(gone) <= len(wait)


@QUICK
@given(st.lists(st.floats(0, 2, width=32), max_size=30), st.integers(0, 20), HEATS)
def test_one_look_at_everything_admits_nothing(untouched, room, held):
    """A scan gives each row one read: with the heat of a new record on top it is below admission, room or not."""
    come, go = policy.admit(*heats(untouched), room, *heats(held), PolicySettings())

    assert ([], []) == (come.tolist(), go.tolist())


@QUICK
@given(HEATS)
def test_a_copy_just_admitted_does_not_cool_down_at_once(wanted):
    """Hysteresis: what admission takes in is above what cooling lets go."""
    heat, version = heats(wanted)
    come, _ = policy.admit(heat, version, len(wanted), NO_HEAT, NO_VERSION, RULES)

    assert [] == policy.cooled(heat[come], RULES).tolist()
    assert [] == policy.cooled(heat[come] * np.float32(0.26), RULES).tolist()  # nearly two half-lives later


def test_cooled_copies_are_those_below_the_lower_threshold():
    """A copy exactly at the threshold stays."""
    assert [1] == policy.cooled(np.array([1.0, 0.99, 7.0], np.float32), PolicySettings(copy_heat_min=1.0)).tolist()
