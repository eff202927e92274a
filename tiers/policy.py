"""Which rows go where, and why: pure functions of what is known at a moment. No I/O, no clock, no index.

Rows leave hot in log order when old enough or under pressure; heat never delays that, it only decides where they land:
young or read rows in warm, the rest in cold. Warm and cold rows go down when idle long enough or under pressure. A
target at its high water is passed over. Tombstones have no heat. Glacier has no bound here (design §5).

A row below that is read often enough gets a copy in hot while there is room, and beyond that in place of the coldest
copy, if it is hotter by a margin. A copy stays until it has cooled far below what admits one. So one look at every
record, by which each gains one read, admits none; and nothing comes back that has not been read again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from tiers.record import Floats, Int64s
from tiers.tier import TierName, Usage

#: Why a home was rewritten, as the index keeps it: a number; what is not listed is 0.
REASONS = ("unknown", "age", "idle", "pressure", "operator", "drained", "recovered")

Bools = npt.NDArray[np.bool_]
Positions = npt.NDArray[np.intp]


class PolicySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Times are seconds. High and low water are fractions of a tier's limit: evacuation starts, and stops."""

    hot_age_s: float = 60.0
    warm_idle_s: float = 3_600.0
    cold_idle_s: float = 86_400.0
    heat_half_life_s: float = 300.0
    warm_heat_min: float = 0.5
    promote_heat_min: float = 4.0
    promote_margin: float = 1.5
    copy_heat_min: float = 1.0
    high_water: float = 0.85
    low_water: float = 0.7


@dataclass(frozen=True, slots=True)
class Columns:
    """Candidates as columns of equal length; ages and idle times in ms, heat as of now."""

    version: Int64s
    age_ms: Int64s
    idle_ms: Int64s
    heat: Floats


@dataclass(frozen=True, slots=True)
class Move:
    """Rows (positions into the candidates) to demote together, and why."""

    source: TierName
    target: TierName
    reason: str
    rows: npt.NDArray[np.intp]


def heat_at(heat: Floats, since_ms: Int64s, half_life_s: float) -> Floats:
    """Return the heat after `since_ms` more milliseconds without access."""
    return np.asarray(heat * np.exp2(-np.maximum(since_ms, 0) / (half_life_s * 1000)), np.float32)


def excess(usage: Usage, settings: PolicySettings) -> int:
    """Return how many rows must leave a tier to come down to its low water; 0 below its high water."""
    if usage.fraction < settings.high_water or usage.rows == 0:
        return 0
    return max(1, int(usage.rows * (1 - settings.low_water / usage.fraction)))


def old_until(tier: TierName, now_ms: int, settings: PolicySettings) -> tuple[str, int]:
    """Return which column says how long a row has been in `tier`, and the latest ms in it at which the row is old."""
    column, limit_s = "used", settings.warm_idle_s if tier is TierName.WARM else settings.cold_idle_s
    if tier is TierName.HOT:
        column, limit_s = "born", settings.hot_age_s
    return column, now_ms - math.ceil(limit_s * 1000) if limit_s > 0 else np.iinfo(np.int64).max


def due(tier: TierName, rows: Columns, pressed: int, settings: PolicySettings) -> tuple[npt.NDArray[np.intp], Bools]:
    """Return the rows that should leave `tier`, first to leave first, and for each whether pressure alone is why.

    Out of hot in log order; out of warm and cold the coldest and longest idle first. `pressed` rows leave at least.
    """
    if tier is TierName.HOT:
        old = rows.age_ms >= settings.hot_age_s * 1000
    else:
        idle_s = settings.warm_idle_s if tier is TierName.WARM else settings.cold_idle_s
        old = rows.idle_ms >= idle_s * 1000
    # Without pressure only what is old is put in order: most rows stay, and there may be a million of them.
    some = np.arange(len(old)) if pressed > 0 else np.flatnonzero(old)
    if tier is TierName.HOT:
        order = np.argsort(rows.version[some], kind="stable")
    else:
        order = np.lexsort((rows.version[some], -rows.idle_ms[some], rows.heat[some]))
    leave = some[order]
    leave = leave[old[leave] | (np.arange(len(leave)) < pressed)]
    return leave, ~old[leave]


def room(usage: Usage, settings: PolicySettings) -> float:
    """Return how many rows a tier takes before its high water (infinite where it has no limit)."""
    rows = settings.high_water * usage.rows_limit - usage.rows if usage.rows_limit else float("inf")
    if usage.bytes_limit:
        row_bytes = max(1.0, usage.bytes / usage.rows) if usage.rows else 2_048.0
        rows = min(rows, (settings.high_water * usage.bytes_limit - usage.bytes) / row_bytes)
    return max(0.0, rows)


def plan(
    source: TierName, rows: Columns, reason: str, usage: Mapping[TierName, Usage], settings: PolicySettings
) -> list[Move]:
    """Return the moves for candidates of one partition that lie in `source`; every row is in at most one move.

    A row that no tier has room for stays where it is: the advice comes again.
    """
    if source is TierName.GLACIER or not len(rows.version):
        return []
    order = np.argsort(rows.version, kind="stable")
    if source is TierName.HOT:
        idle = rows.idle_ms[order] >= settings.warm_idle_s * 1000
        wanted = np.where((rows.heat[order] >= settings.warm_heat_min) & ~idle, TierName.WARM, TierName.COLD)
    else:
        wanted = np.full(len(order), source + 1)
    moves: list[Move] = []
    for target in TierName:
        here = order[wanted == target]
        free = room(usage[target], settings) if target is not TierName.GLACIER else float("inf")
        taken = here[: int(min(free, len(here)))]
        if len(taken):
            moves.append(Move(source, target, reason, taken))
        if len(taken) < len(here):  # full: what is left goes one tier further down
            wanted = np.where(np.isin(order, here[len(taken) :]), target + 1, wanted)
    return moves


def admit(
    heat: Floats, version: Int64s, room: int, copy_heat: Floats, copy_version: Int64s, settings: PolicySettings
) -> tuple[Positions, Positions]:
    """Return which candidates get a copy in hot, hottest first, and which copies go to make room for them.

    `room` copies fit beside those there are. A candidate beyond that takes the place of the coldest copy left, if it is
    `promote_margin` times as hot; heat fades alike in both, so what gave way does not come back before it is read.
    """
    hot_enough = np.flatnonzero(heat >= settings.promote_heat_min)
    order = hot_enough[np.lexsort((version[hot_enough], -heat[hot_enough]))]
    free, rest = order[:room], order[room:]
    coldest = np.lexsort((copy_version, copy_heat))[: len(rest)]
    rest = rest[: len(coldest)]
    hotter = heat[rest] >= settings.promote_margin * copy_heat[coldest]
    count = int(hotter.sum())  # a prefix: candidates cool down along the list, copies warm up
    return np.concatenate([free, rest[:count]]), coldest[:count]


def cooled(copy_heat: Floats, settings: PolicySettings) -> Positions:
    """Return which copies have cooled down so far that they go."""
    return np.flatnonzero(copy_heat < settings.copy_heat_min)
