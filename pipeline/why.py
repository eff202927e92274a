"""Why a record is where it is, and what will move it next: the index's entry, the rules, and the changes topic.

`outlook` asks the policy itself (`policy.due` and `policy.plan`) about the record at the moment it would be due, so
that what is said here cannot differ from what will be done.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from consumers.history import History
from tiers import policy, record
from tiers.index import Index
from tiers.policy import PolicySettings
from tiers.segment import NO_COPY
from tiers.tier import TierName, Usage

#: The rule behind each reason of policy.REASONS, with the settings that it reads.
RULES = {
    "age": "it was older than policy.hot_age_s = {hot_age_s:g} s",
    "idle": "nobody had read it for {idle_key} = {idle_s:g} s",
    "pressure": "the tier above was at policy.high_water = {high_water:g}, and it was among the first to go",
    "operator": "an operator asked for it (:demote)",
    "drained": "hot was drained, because an operator cleared another tier",
    "recovered": "a crash came between the move and its announcement; the start after it announced it again",
}


class Facts(NamedTuple):
    """What the index knows of one record; times in ms, heat as of now. `moved_at` 0: not since the start."""

    id: str
    version: int
    partition: int
    tier: TierName
    copy: bool
    deleted: bool
    event_time: int
    expires_at: int
    used: int
    age_ms: int
    idle_ms: int
    heat: float
    moved_at: int
    reason: str


def facts(index: Index, identifier: str, half_life_s: float, now_ms: int) -> Facts | None:
    """Return what the index knows of an id now, None when it knows none. One loop step."""
    found = index.row_of(identifier)
    if found is None:
        return None
    segment, row = found
    idle_since = np.array([now_ms - segment.used[row]], np.int64)
    return Facts(
        id=identifier,
        version=int(segment.version[row]),
        partition=int(segment.partition[row]),
        tier=TierName(int(segment.home[row])),
        copy=int(segment.copy[row]) != NO_COPY,
        deleted=bool(segment.deleted[row]),
        event_time=int(segment.event_time[row]),
        expires_at=int(segment.expires_at[row]),
        used=int(segment.used[row]),
        age_ms=max(0, now_ms - int(segment.born[row])),
        idle_ms=max(0, now_ms - int(segment.used[row])),
        heat=float(policy.heat_at(segment.heat[row : row + 1], idle_since, half_life_s)[0]),
        moved_at=int(segment.moved_at[row]),
        reason=policy.REASONS[int(segment.reason[row])],
    )


class Outlook(NamedTuple):
    """What moves a record next: the rule, where to, and in how many seconds at the earliest if nobody reads it."""

    rule: str
    target: TierName | None
    in_s: float | None
    text: str


def outlook(what: Facts, usages: Mapping[TierName, Usage], rules: PolicySettings, flush_s: float) -> Outlook:
    """Return which rule would move a record next, and roughly when. Pure."""
    if what.tier is TierName.GLACIER:
        text = "glacier is the last tier: it stays until it is updated, deleted or expires"
        if what.deleted:
            text = "compaction drops it once nothing older of its id is left anywhere and no replay can meet it"
        return Outlook("compaction" if what.deleted else "none", None, None, text)
    if what.tier is TierName.HOT:
        rule, wait_ms = "age", rules.hot_age_s * 1000 - what.age_ms
    else:
        idle_s = rules.warm_idle_s if what.tier is TierName.WARM else rules.cold_idle_s
        rule, wait_ms = "idle", idle_s * 1000 - what.idle_ms
    if policy.excess(usages[what.tier], rules):
        rule, wait_ms = "pressure", 0
    wait_ms = max(0, int(np.ceil(wait_ms)))
    then = np.array([wait_ms], np.int64)
    columns = policy.Columns(
        version=np.array([what.version], np.int64),
        age_ms=what.age_ms + then,
        idle_ms=what.idle_ms + then,
        heat=policy.heat_at(np.array([what.heat], np.float32), then, rules.heat_half_life_s),
    )
    moves = policy.plan(what.tier, columns, rule, usages, rules)
    target = moves[0].target if moves else None
    return Outlook(rule, target, wait_ms / 1000, _sentence(what, rule, target, wait_ms / 1000, rules, flush_s))


def _sentence(
    what: Facts, rule: str, target: TierName | None, in_s: float, rules: PolicySettings, flush_s: float
) -> str:
    where = "further down" if target is None else f"to {target.word}"
    if target is None:
        return f"it should leave {what.tier.word}, but no tier below has room: it stays until one has"
    if rule == "pressure":
        return f"{what.tier.word} is above policy.high_water = {rules.high_water:g}: the first to go leave {where} now"
    if rule == "age":
        heat = f"heat {what.heat:.2g} decides: policy.warm_heat_min = {rules.warm_heat_min:g} or more goes to warm"
        return f"in {in_s:.0f} s it is older than policy.hot_age_s = {rules.hot_age_s:g} s and goes {where} ({heat})"
    gather = f", within age.glacier_flush_s = {flush_s:g} s after that" if target is TierName.GLACIER else ""
    return f"if nobody reads it for another {in_s:.0f} s it goes {where}{gather}"


def because(what: Facts, last: Mapping[str, Any] | None, rules: PolicySettings) -> str:
    """Say in words why a record lies where it lies. Pure."""
    if last is None and what.tier is TierName.HOT:
        return f"it is in hot since it arrived: records leave at policy.hot_age_s = {rules.hot_age_s:g} s"
    if last is None:
        return f"it is in {what.tier.word} since before this start, and no change that was looked at names it"
    idle = what.tier is TierName.GLACIER
    rule = RULES.get(last["reason"], f"of the reason {last['reason']!r}").format(
        hot_age_s=rules.hot_age_s,
        high_water=rules.high_water,
        idle_key="policy.cold_idle_s" if idle else "policy.warm_idle_s",
        idle_s=rules.cold_idle_s if idle else rules.warm_idle_s,
    )
    return f"it went to {what.tier.word}: {rule}"


def last_move(what: Facts, past: History | None) -> dict[str, Any] | None:
    """Return the move that brought this version where it is: from the topic, else from the index, else None. Pure."""
    version = record.version_text(what.version)
    steps = past.steps if past is not None else []
    moves = [step for step in steps if (step.kind, step.version, step.target) == ("home", version, what.tier.word)]
    if moves:
        told = next((step for step in reversed(moves) if step.reason != "recovered"), moves[-1])
        return {"from": told.source, "to": told.target, "reason": told.reason, "at": time_text(told.at)}
    if what.moved_at:
        return {"from": None, "to": what.tier.word, "reason": what.reason, "at": time_text(what.moved_at)}
    return None


def decided(what: Facts, past: History | None) -> dict[str, Any] | None:
    """Return the counters that the last move was decided by, as they were then; None where no age event tells. Pure.

    The record may have moved on while the topics were read: what is known then is of a move before the last.
    """
    told = past.decision if past is not None else None
    here = (record.version_text(what.version), what.tier.word)
    if told is None or (told.move.version, told.move.target) != here:
        return None
    return {
        "at": time_text(told.at),
        "reason": told.reason,
        "age_s": told.age_ms / 1000,
        "idle_s": told.idle_ms / 1000,
        "heat": round(told.heat, 4),
        "usage": told.usage,
    }


def time_text(milliseconds: int) -> str:
    """Return a time as the API writes it."""
    return str(np.datetime64(milliseconds, "ms")) + "Z"
