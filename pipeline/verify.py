"""Cross-checks a live node: index against tiers both ways, side file, archive against its log, cache, the log itself.

Looking takes time and the node goes on, so a first look only gives suspicions. Each is looked at again in its
partition's lane, where nothing of the partition moves: only what is still wrong then, by an index entry that did not
change while it was looked at, is a problem. Repairs touch what is derived (side file, index), never the only copy of a
record.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import structlog

from pipeline.verify_log import Problem, log_problems, offset_problems
from pipeline.verify_survey import Found, Seen, Survey, homes, missing
from tiers import record
from tiers.errors import Replaying, TierCorrupt
from tiers.record import Row
from tiers.tier import Location, TierName

if TYPE_CHECKING:
    from pipeline.app import Node

log = structlog.get_logger()

SUSPECTS_MAX = 10_000  # looked at again, of each kind: beyond that something is wrong for certain
SHOWN_MAX = 1_000
TOGETHER = 64  # suspects judged in one turn of a lane: a move waits for some 50 ms

Job = Callable[[], Awaitable[None]]


class Verify:
    """`run` looks once; `problems` and `checked` fill on the way."""

    def __init__(self, node: Node, *, repair: bool = False) -> None:
        self._node, self._repair = node, repair
        self._survey = Survey(node)
        self.problems: list[Problem] = []
        self.checked: Counter[str] = Counter()
        self._again = 0
        self._orphans: dict[tuple[str, int], Found] = {}
        self._missing: list[tuple[Problem, TierName, Location]] = []

    async def run(self) -> dict[str, Any]:
        """Look at everything and return the report; Replaying, TierUnavailable when that cannot be."""
        if behind := self._node.replaying():
            raise Replaying(f"partitions {behind} are replaying the log; verify when they are done")
        began = time.perf_counter()
        self._counts()
        for tier in TierName:
            await self._tier(tier)
        await self._side()
        await self._cache()
        await self._files()
        self.problems += [*await log_problems(self._node), *await offset_problems(self._node)]
        self.checked["partitions"] += len(self._node.lanes)
        if self._repair:
            await self._rehome()
        if self.problems:
            kinds = Counter(problem.kind for problem in self.problems)
            log.error("verify.failed", problems=dict(kinds))
        return {
            "ok": all(problem.repaired for problem in self.problems),
            "checked": dict(self.checked),
            "looked_again": self._again,
            "problems_total": len(self.problems),
            "problems": msgspec.to_builtins(self.problems[:SHOWN_MAX]),
            "took_ms": (time.perf_counter() - began) * 1000,
        }

    # -- first looks -------------------------------------------------------------------------------------------------

    def _counts(self) -> None:
        """Compare the index's own sums, in one loop step."""
        census = self._node.index.census().sum(axis=1)
        for tier in TierName:
            if census[tier] != self._node.index.rows(tier):
                detail = f"the index counts {self._node.index.rows(tier)} homes and has {census[tier]}"
                self.problems.append(Problem(kind="count", tier=tier.word, detail=detail))

    async def _tier(self, tier: TierName) -> None:
        """Rows that nothing explains, flawed rows, and homes that are not there."""
        seen, doubtful = Seen(), []
        try:
            async for page in self._survey.rows(tier):
                self.checked[f"{tier.word}_rows"] += len(page)
                if tier in (TierName.COLD, TierName.GLACIER):
                    seen.add(page)
                doubtful += [each for each in page if each.flaw or not self._explained(tier, each.where)]
        except TierCorrupt as error:
            self.problems.append(Problem(kind="damaged", tier=tier.word, detail=f"not all of it can be read: {error}"))
        rows = [(found.where.partition, partial(self._judge_row, found)) for found in doubtful[:SUSPECTS_MAX]]
        await self._in_lanes(rows)
        gone: list[Location] = []
        for homes_page in homes(self._node, tier):
            self.checked[f"{tier.word}_homes"] += len(homes_page)
            gone += await missing(self._survey, self._node, tier, seen, homes_page)
            await asyncio.sleep(0)
        await self._in_lanes((where.partition, partial(self._judge_home, tier, where)) for where in gone[:SUSPECTS_MAX])

    def _explained(self, tier: TierName, where: Location) -> bool:
        """Say whether the index has the row as home or copy, or waits to evict it."""
        return (where.version, where.slot) in self._node.index.held(tier, where.id)

    async def _in_lanes(self, suspects: Iterable[tuple[int, Job]]) -> None:
        """Do jobs in their partitions' lanes, some at a time: each turn in a busy lane has to be waited for."""
        jobs: defaultdict[int, list[Job]] = defaultdict(list)
        for partition, job in suspects:
            jobs[partition].append(job)
        for partition, asked in jobs.items():
            self._again += len(asked)
            for at in range(0, len(asked), TOGETHER):
                await self._node.lanes[partition].perform(partial(self._judge, partition, asked[at : at + TOGETHER]))

    async def _judge(self, partition: int, jobs: Sequence[Job]) -> None:
        """Do these. What one finds damaged is a finding: raised in a lane it would end the node."""
        for job in jobs:
            try:
                await job()
            except TierCorrupt as error:
                self.problems.append(Problem(kind="damaged", partition=partition, detail=str(error)))

    # -- second looks, in the lane -----------------------------------------------------------------------------------

    async def _judge_row(self, found: Found) -> None:
        tier, where = found.tier, found.where
        if found.flaw and tier is TierName.COLD:
            await self._judge_side(where)
        if found.flaw and tier is TierName.WARM:
            entry = self._node.index.find(where.id)
            if entry is None or entry.home != tier:  # a home is judged as one
                self._add("damaged", tier, where, found.flaw)
            return
        there = await self._survey.look(tier, where)
        if there is None or self._explained(tier, where):
            return
        entry = self._node.index.find(where.id)
        older = entry is not None and where.version < entry.version
        detail = "the index does not know it" if entry is None else f"the index has version {entry.version} elsewhere"
        problem = self._add("orphan", tier, where, detail)
        self._orphans[where.id, where.version] = found
        if older and self._repair:
            self._node.index.queue.add(tier, where)
            problem.repaired, problem.detail = True, f"{detail}; it waits for eviction now"

    async def _judge_side(self, where: Location) -> None:
        again = await self._survey.cold_rows(where.slot, where.slot)
        if any(each.flaw for each in again):
            problem = self._add("side", TierName.COLD, where, "the side file has it otherwise")
            if self._repair:
                await self._survey.cold.mend([where], np.empty(0, np.int64))
                problem.repaired = not any(e.flaw for e in await self._survey.cold_rows(where.slot, where.slot))

    async def _judge_home(self, tier: TierName, where: Location) -> None:
        before = self._node.index.find(where.id)
        if before is None or (before.version, before.home) != (where.version, tier):
            return
        now = Location(before.id, before.version, before.partition, before.slot)
        kind, detail = "missing", f"the index says slot {now.slot}"
        try:
            there = await self._survey.look(tier, now)
        except TierCorrupt as error:
            there, kind, detail = None, "damaged", str(error)
        if there is None and self._node.index.find(where.id) == before:
            self._missing.append((self._add(kind, tier, now, detail), tier, now))

    def _add(self, kind: str, tier: TierName, where: Location, detail: str) -> Problem:
        problem = Problem(
            kind=kind,
            tier=tier.word,
            id=where.id,
            version=record.version_text(where.version) if where.version >= 0 else "",
            partition=where.partition,
            detail=detail,
        )
        self.problems.append(problem)
        return problem

    # -- what has no id ----------------------------------------------------------------------------------------------

    async def _side(self) -> None:
        """Slots that only the side file has; both are looked at in one job of the thread that writes them."""
        _, extra = await self._survey.cold.slots()
        if len(extra):
            problem = Problem(kind="side", tier="cold", detail=f"{len(extra)} slots that DuckDB does not have")
            self.problems.append(problem)
            if self._repair:
                await self._survey.cold.mend([], extra)
                problem.repaired = not len((await self._survey.cold.slots())[1])

    async def _cache(self) -> None:
        """Hold glacier's cache of rows against the files; what differs is looked at again in its lane."""
        for page in homes(self._node, TierName.GLACIER):
            try:
                wrong = await self._survey.glacier.miscached(page)
            except TierCorrupt:
                continue  # named with its file
            await self._in_lanes((each.partition, partial(self._judge_cache, each)) for each in wrong[:SUSPECTS_MAX])

    async def _judge_cache(self, where: Location) -> None:
        for wrong in await self._survey.glacier.miscached([where]):
            problem = self._add("cache", TierName.GLACIER, wrong, "the cache has it otherwise than the file")
            if self._repair:
                self._survey.glacier.forget([wrong])
                problem.repaired = True

    async def _files(self) -> None:
        self.checked["files"] += self._survey.files + len(self._survey.bad_files)
        live = {file.key for file in (await self._survey.glacier.state())[1]}
        for bad in self._survey.bad_files:
            if bad.key in live:
                self.problems.append(Problem(kind="file", tier="glacier", partition=bad.key[0], detail=bad.detail))

    # -- repair ------------------------------------------------------------------------------------------------------

    async def _rehome(self) -> None:
        """Let the index find a missing home where the very same version lies, which nothing else explains."""
        for problem, tier, where in self._missing:
            found = self._orphans.get((where.id, where.version))
            if found is not None and found.tier is not TierName.HOT:  # a home in hot is the log's to make
                await self._in_lanes([(where.partition, partial(self._relocate, problem, tier, where, found))])

    async def _relocate(self, problem: Problem, tier: TierName, where: Location, found: Found) -> None:
        (row,) = await self._node.tiers[found.tier].get([found.where])
        entry = self._node.index.find(where.id)
        if row is None or entry is None or (entry.version, entry.home, entry.slot) != (row.version, tier, where.slot):
            return
        self._rewrite(row, found)
        problem.repaired = True
        problem.detail += f"; found in {found.tier.word}, where the index has it now"
        for other in self.problems:
            if other.kind == "orphan" and (other.id, other.tier) == (where.id, found.tier.word):
                other.repaired = True

    def _rewrite(self, row: Row, found: Found) -> None:
        index = self._node.index
        vector = row.vector if row.vector is not None else np.zeros(index.dim, np.float32)
        slots = np.array([found.where.slot], np.int64)
        versions = np.array([row.version], np.int64)
        index.relocate(found.tier, [row.id], versions, slots, vector[None, :], "recovered", 0)
