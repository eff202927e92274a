"""The age monitor: asks the index which rows should leave their tier and says so on the age topic.

It sees the index's columns and decides nothing about where rows go (that is `policy.plan`, in the demotion worker). A
row it has named is not named again for `ask_again_s`, at most `rows_max` rows a tier are named each time, and none of a
partition whose moves are behind: that bounds what is in flight, and what is named, sent and looked up in vain. Advice
may be lost, late or repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from producers import events
from producers.publisher import Publisher
from producers.ticks import ticks
from tiers import policy
from tiers.errors import LogUnavailable, TierUnavailable
from tiers.index import Index
from tiers.policy import PolicySettings
from tiers.segment import NO_COPY, Segment
from tiers.tier import TierName, Usage

MESSAGE_BYTES = 800_000  # of an age event: the producer's own limit is 1 MiB
FIXED_BYTES = 64  # of a row beside its id

Usages = Callable[[], Awaitable[Mapping[TierName, Usage]]]


class AgeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often the index is asked, how much may be in flight, and how long cold rows gather for a glacier file."""

    interval_ms: int = 500
    rows_max: int = 32_768
    ask_again_s: float = 5.0
    glacier_flush_s: float = 60.0
    glacier_flush_rows: int = 65_536


@dataclass(frozen=True, slots=True)
class Proposal:
    """Rows of one tier and partition that should leave, as an age event's batch."""

    partition: int
    batch: pa.RecordBatch


class AgeMonitor:
    """`run` proposes every `interval_ms`; `propose` is the step, for tests."""

    name = "age"

    def __init__(
        self,
        settings: AgeSettings,
        rules: PolicySettings,
        index: Index,
        usages: Usages,
        publisher: Publisher,
        topic: str,
        now_ms: Callable[[], int],
        behind: Callable[[], Collection[int]] = tuple,
    ) -> None:
        """`behind` names the partitions whose moves have not kept up."""
        self._settings, self._rules, self._index, self._usages = settings, rules, index, usages
        self._publisher, self._topic, self._now_ms, self._behind = publisher, topic, now_ms, behind
        self._flushed: dict[int, int] = {}  # partition to when cold rows last went to glacier, ms

    async def run(self, stop: asyncio.Event) -> None:
        """Propose until stopped; a log or a tier that does not answer costs the advice of one interval."""
        async for _ in ticks(stop, self._settings.interval_ms):
            with suppress(LogUnavailable, TierUnavailable):  # advice: the next interval asks again
                await self.propose()

    async def propose(self) -> int:
        """Publish one round of advice; returns the rows named."""
        usages = await self._usages()
        full = {name.word: usage.fraction for name, usage in usages.items()}
        named = 0
        for tier in (TierName.HOT, TierName.WARM, TierName.COLD):
            for proposal in self.candidates(tier, usages[tier], self._now_ms()):
                value = events.encode_arrow(events.with_usage(proposal.batch, full))
                await self._publisher.send(self._topic, value, partition=proposal.partition)
                named += proposal.batch.num_rows
        return named

    async def hint(self, identifier: str) -> bool:
        """Name a record at once, wherever it is: how an operator demotes. False when there is none; LogUnavailable.

        One that has a copy in hot loses the copy; another goes one tier down, or out of hot to where its heat says.
        """
        entry = self._index.find(identifier)
        if entry is None or entry.deleted:
            return False
        heat, heat_at = self._index.heats([identifier])
        fields = {
            "id": [identifier],
            "version": [entry.version],
            "tier": [int(TierName.HOT) if entry.copy != NO_COPY else entry.home],
            "age_ms": [0],
            "idle_ms": [0],
            "heat": policy.heat_at(heat, self._now_ms() - heat_at, self._rules.heat_half_life_s),
            "reason": ["operator"],
        }
        value = events.encode_arrow(pa.RecordBatch.from_pydict(fields, schema=events.AGE))
        await self._publisher.send(self._topic, value, partition=entry.partition)
        return True

    def candidates(self, tier: TierName, usage: Usage, now_ms: int) -> list[Proposal]:
        """Return what should leave `tier` now, by partition, and mark it as asked. One loop step."""
        pressed_rows, asked_before = policy.excess(usage, self._rules), now_ms - int(self._settings.ask_again_s * 1000)
        # Without pressure what is not old, or was named recently, stays: few rows of a million are looked at further.
        only = None if pressed_rows else _Only(*policy.old_until(tier, now_ms, self._rules), asked_before)
        found = [one for segment in self._index.segments() if (one := _resident(segment, tier, only)) is not None]
        if not found:
            return []
        table = {name: np.concatenate([one.columns[name] for one in found]) for name in _NEEDED}
        columns = policy.Columns(
            version=table["version"],
            age_ms=np.maximum(now_ms - table["born"], 0),
            idle_ms=np.maximum(now_ms - table["used"], 0),
            heat=policy.heat_at(table["heat"], now_ms - table["used"], self._rules.heat_half_life_s),
        )
        leave, pressed = policy.due(tier, columns, pressed_rows, self._rules)
        # A row named recently still counts among those that leave: pressure must not name the next ones instead.
        fresh = table["asked"][leave] < asked_before
        fresh &= ~np.isin(table["partition"][leave], list(self._behind()))
        leave, pressed = leave[fresh], pressed[fresh]
        if tier is TierName.COLD:
            ripe = self._ripe(table["partition"][leave], now_ms) | pressed
            leave, pressed = leave[ripe], pressed[ripe]
        rows_max = self._settings.rows_max
        if tier is TierName.COLD:  # together: a file a move
            rows_max = max(rows_max, self._settings.glacier_flush_rows)
        leave, pressed = leave[:rows_max], pressed[:rows_max]
        return _proposals(tier, leave, pressed, _named(found, leave, now_ms), table["partition"], columns)

    def _ripe(self, partition: npt.NDArray[np.int32], now_ms: int) -> npt.NDArray[np.bool_]:
        """Return which rows' partitions have gathered enough, or waited long enough, for a glacier file."""
        ripe = np.zeros(len(partition), bool)
        numbers, counts = np.unique(partition, return_counts=True)
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            waited = now_ms - self._flushed.setdefault(number, now_ms)
            if count >= self._settings.glacier_flush_rows or waited >= self._settings.glacier_flush_s * 1000:
                ripe |= partition == number
                self._flushed[number] = now_ms
        return ripe


_NEEDED = ("version", "partition", "born", "used", "heat", "asked")


@dataclass(frozen=True, slots=True)
class _Resident:
    """Rows of one segment whose home is the tier asked for, and their columns."""

    segment: Segment
    rows: npt.NDArray[np.intp]
    columns: dict[str, npt.NDArray[np.generic]]


class _Only(NamedTuple):
    """Of rows only those whose `column` is at most `until_ms`, and that were last named before `asked_before`."""

    column: str
    until_ms: int
    asked_before: int


def _resident(segment: Segment, tier: TierName, only: _Only | None) -> _Resident | None:
    n = segment.count
    chosen = segment.alive[:n] & (segment.home[:n] == tier)
    if only is not None:
        chosen &= getattr(segment, only.column)[:n] <= only.until_ms
    rows = np.flatnonzero(chosen)
    if only is not None:
        rows = rows[segment.asked[rows] < only.asked_before]
    if not len(rows):
        return None
    return _Resident(segment, rows, {name: getattr(segment, name)[rows] for name in _NEEDED})


def _named(found: list[_Resident], leave: npt.NDArray[np.intp], now_ms: int) -> list[str]:
    """Mark the chosen rows (positions over all that were found) as asked now; returns their ids, in order."""
    starts = np.cumsum([0, *(len(one.rows) for one in found)])
    of = np.searchsorted(starts, leave, "right") - 1
    ids = np.empty(len(leave), object)
    for number in np.unique(of).tolist():
        at, one = np.flatnonzero(of == number), found[number]
        rows = one.rows[leave[at] - starts[number]]
        one.segment.asked[rows] = now_ms
        names = one.segment.ids
        ids[at] = [names[row] for row in rows.tolist()]
    named: list[str] = ids.tolist()
    return named


def _proposals(
    tier: TierName,
    leave: npt.NDArray[np.intp],
    pressed: npt.NDArray[np.bool_],
    ids: list[str],
    partition: npt.NDArray[np.int32],
    columns: policy.Columns,
) -> list[Proposal]:
    """Cut the chosen rows into batches of one partition and reason, each as large as a message may be."""
    out: list[Proposal] = []
    all_ids = pa.array(ids, pa.string())
    for number in np.unique(partition[leave]).tolist():
        for reason, because in (("pressure", pressed), ("age" if tier is TierName.HOT else "idle", ~pressed)):
            here = np.flatnonzero((partition[leave] == number) & because)
            if not len(here):
                continue
            rows = leave[here]
            named = all_ids.take(pa.array(here))
            arrays = [
                named,
                pa.array(columns.version[rows]),
                pa.array(np.full(len(rows), tier, np.int8)),
                pa.array(columns.age_ms[rows]),
                pa.array(columns.idle_ms[rows]),
                pa.array(columns.heat[rows]),
                pa.array([reason] * len(rows)),
            ]
            batch = pa.RecordBatch.from_arrays(arrays, schema=events.AGE)
            step = max(1, MESSAGE_BYTES // (FIXED_BYTES + named.nbytes // len(rows)))
            out += [Proposal(number, batch.slice(start, step)) for start in range(0, len(rows), step)]
    return out
