"""Turns age events into moves: compare with the index, plan (pure), hand to the partition's lane.

An age event is advice: rows that have changed or moved since are left out, a full lane drops it, and it comes again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import structlog

from consumers.lane import Lane
from consumers.mover import BYTES_MAX, Mover
from producers import events
from producers.events import Message
from tiers import policy
from tiers.errors import InvalidRecord, TierUnavailable
from tiers.index import Index
from tiers.policy import PolicySettings
from tiers.segment import NO_COPY
from tiers.steps import looks, turn
from tiers.tier import TierName, Usage

log = structlog.get_logger()


class MoveSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`rows_max` rows move together, as far as they have `bytes_max`; `lane_jobs_max` moves wait in a lane."""

    rows_max: int = 4_096
    bytes_max: int = BYTES_MAX
    lane_jobs_max: int = 64
    upkeep_ms: int = 500
    compact_rows: int = 4_096
    compact_s: float = 300.0


class Demote:
    """Handler of the age topic."""

    def __init__(
        self,
        settings: MoveSettings,
        rules: PolicySettings,
        index: Index,
        mover: Mover,
        lanes: Mapping[int, Lane],
        usages: Callable[[], Awaitable[Mapping[TierName, Usage]]],
        evict_copies: Callable[[Sequence[str], str], int],
    ) -> None:
        self._settings, self._rules, self._index = settings, rules, index
        self._mover, self._lanes, self._usages = mover, lanes, usages
        self._evict_copies = evict_copies
        self.dropped = 0
        self.results = {"planned": 0, "stale": 0, "dropped": 0, "rejected": 0}  # rows that age events name

    async def apply(self, partition: int, messages: Sequence[Message]) -> None:
        """Plan and queue the moves that these messages ask for; none while a tier does not say how full it is."""
        try:
            usages = await self._usages()
        except TierUnavailable as error:  # the age monitor asks again
            log.warning("advice.dropped", partition=partition, messages=len(messages), reason=str(error))
            return
        for message in messages:
            try:
                batch = events.decode_arrow(message.value, events.AGE)
                await self.plan(partition, batch, usages)
            except InvalidRecord as error:
                self.results["rejected"] += 1
                log.warning("advice.rejected", topic="age", partition=partition, reason=str(error))

    async def plan(self, partition: int, batch: pa.RecordBatch, usages: Mapping[TierName, Usage]) -> None:
        """Queue moves of at most `rows_max` rows for the rows of `batch` that are still where it says.

        A row of hot that is a copy is at home below already: its copy goes. The index is looked at in steps: the move
        finds what changes meanwhile.
        """
        if not batch.num_rows:
            return
        number = batch["tier"][0].as_py()
        if number not in {*TierName}:
            raise InvalidRecord("tier", f"there is no tier {number}")
        source = TierName(number)
        ids, versions = batch["id"].to_pylist(), batch["version"].to_numpy()
        found: list[npt.NDArray[np.intp]] = []
        copied: list[str] = []
        for at in looks(len(ids)):
            if at.start:
                await turn()
            known = self._index.placed(ids[at])
            newest = known.known & (known.version == versions[at])
            found.append(at.start + np.flatnonzero(newest & (known.home == source) & (known.partition == partition)))
            if source is TierName.HOT:
                copied += [known.ids[one] for one in np.flatnonzero(newest & (known.copy != NO_COPY)).tolist()]
        keep = np.concatenate(found)
        rows = policy.Columns(
            version=versions[keep],
            age_ms=batch["age_ms"].to_numpy()[keep],
            idle_ms=batch["idle_ms"].to_numpy()[keep],
            heat=batch["heat"].to_numpy()[keep],
        )
        self.results["stale"] += len(ids) - len(keep)
        reason = batch["reason"][0].as_py()
        if source is TierName.HOT:
            self._evict_copies(copied, reason)
        for move in policy.plan(source, rows, reason, usages, self._rules):
            chosen = keep[move.rows]
            # Into glacier together, as they were proposed: a file a move. Bounded by age.rows_max.
            rows_max = len(chosen) if move.target is TierName.GLACIER else self._settings.rows_max
            for start in range(0, len(chosen), rows_max):
                some = chosen[start : start + rows_max]
                part = list(zip([ids[one] for one in some.tolist()], versions[some].tolist(), strict=True))
                job = partial(self._mover.move, partition, move.source, move.target, move.reason, part)
                taken = self._lanes[partition].offer(job)
                self.results["planned" if taken else "dropped"] += len(part)
                if not taken:
                    self.dropped += len(part)
