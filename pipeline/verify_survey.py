"""Surveys for `verify`: every physical row of a tier, and whether a row that the index names is there.

Surveys go by pages, on the tiers' own threads; what they find is a suspicion only, because things move meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from tiers import record
from tiers.cold import ColdMemory
from tiers.errors import TierCorrupt, TierUnavailable
from tiers.glacier import GlacierMemory
from tiers.record import Int64s, Row
from tiers.tier import NO_SLOT, Location, TierName
from tiers.warm import WarmMemory

if TYPE_CHECKING:
    from pipeline.app import Node

PAGE_ROWS = 1_000
ROUNDS = 3  # listings of glacier's files: what is rewritten meanwhile is surveyed in its new file


class Found(NamedTuple):
    """One physical row; `flaw` is "" or what is wrong with it."""

    tier: TierName
    where: Location
    flaw: str = ""


class BadFile(NamedTuple):
    """A file of the archive that is not what the log says."""

    path: str
    key: tuple[int, int]
    detail: str


class Survey:
    """The tiers of a node, looked at physically. `bad_files` fills while glacier is surveyed."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.hot, self.warm = node.tiers[TierName.HOT], cast("WarmMemory", node.tiers[TierName.WARM])
        self.cold = cast("ColdMemory", node.tiers[TierName.COLD])
        self.glacier: GlacierMemory = node.glacier
        self.bad_files: list[BadFile] = []
        self.files = 0

    async def rows(self, tier: TierName) -> AsyncIterator[list[Found]]:
        """Yield every physical row of a tier, a page at a time."""
        surveys = {
            TierName.HOT: self._hot,
            TierName.WARM: self._warm,
            TierName.COLD: self._cold,
            TierName.GLACIER: self._glacier,
        }
        async for page in surveys[tier]():
            for start in range(0, len(page), PAGE_ROWS):
                yield page[start : start + PAGE_ROWS]
                await asyncio.sleep(0)  # a page costs some ms of the loop

    async def _hot(self) -> AsyncIterator[list[Found]]:
        async for batch in self.hot.retrieve_all():
            partitions = record.partitions(batch["id"], self._node.settings.kafka.partitions)
            rows = zip(
                batch["id"].to_pylist(),
                batch["version"].to_pylist(),
                partitions.tolist(),
                batch["slot"].to_pylist(),
                strict=True,
            )
            yield [Found(TierName.HOT, Location(*row)) for row in rows]

    async def _warm(self) -> AsyncIterator[list[Found]]:
        async for page in self.warm.survey():
            mine = [row for row in page if row[0] in self._node.lanes]
            yield [
                Found(
                    TierName.WARM,
                    Location(identifier, -1 if version is None else version, partition),
                    "its bytes are damaged" if version is None else "",
                )
                for partition, identifier, version in mine
            ]

    async def _cold(self) -> AsyncIterator[list[Found]]:
        slots, _ = await self.cold.slots()
        for start in range(0, len(slots), PAGE_ROWS):
            page = slots[start : start + PAGE_ROWS]
            yield await self.cold_rows(int(page[0]), int(page[-1]))

    async def cold_rows(self, first: int, last: int) -> list[Found]:
        """Return the rows of these slots of cold; flawed where the side file has them otherwise."""
        batch, wrong = await self.cold.survey(first, last)
        partitions = record.partitions(batch["id"], self._node.settings.kafka.partitions)
        rows = zip(
            batch["id"].to_pylist(),
            batch["version"].to_pylist(),
            partitions.tolist(),
            batch["slot"].to_pylist(),
            strict=True,
        )
        found = [Found(TierName.COLD, Location(*row)) for row in rows]
        for at in wrong:
            found[at] = found[at]._replace(flaw="the side file has it otherwise")
        return found

    async def _glacier(self) -> AsyncIterator[list[Found]]:
        surveyed: set[tuple[int, int]] = set()
        for _ in range(ROUNDS):
            _, files = await self.glacier.state()
            left = [file for file in files if file.key not in surveyed and file.partition in self._node.lanes]
            for file in left:
                surveyed.add(file.key)
                try:
                    ids, versions = await self.glacier.survey(file)
                except TierUnavailable:
                    continue  # replaced and vacuumed: the next listing has what took its place
                except TierCorrupt as error:
                    self.bad_files.append(BadFile(file.path, file.key, str(error)))
                    continue
                self.files += 1
                rows = zip(ids, versions.tolist(), file.slots().tolist(), strict=True)
                yield [Found(TierName.GLACIER, Location(one, v, file.partition, slot)) for one, v, slot in rows]

    async def look(self, tier: TierName, where: Location) -> Row | Location | None:
        """Return what is physically at a location, None if it is not that row; TierCorrupt where it is damaged."""
        if tier is TierName.COLD:
            found = await self.cold_rows(where.slot, where.slot)
            return next((each.where for each in found if each.where == where), None)
        if tier is TierName.GLACIER:
            return await self.glacier.look(where)
        return (await self._node.tiers[tier].get([where]))[0]


class Seen:
    """Which (slot, version) a survey of cold or glacier met, by partition; 16 bytes a row."""

    def __init__(self) -> None:
        self._pages: dict[int, list[tuple[Int64s, Int64s]]] = {}
        self._sorted: dict[int, tuple[Int64s, Int64s]] = {}

    def add(self, page: list[Found]) -> None:
        """Take note of a page."""
        for partition in {each.where.partition for each in page}:
            mine = [each.where for each in page if each.where.partition == partition]
            slots = np.array([where.slot for where in mine], np.int64)
            versions = np.array([where.version for where in mine], np.int64)
            self._pages.setdefault(partition, []).append((slots, versions))

    def has(self, where: Location) -> bool:
        """Say whether the survey met this version in this slot."""
        slots, versions = self._of(where.partition)
        at = int(np.searchsorted(slots, where.slot))
        return at < len(slots) and slots[at] == where.slot and versions[at] == where.version

    def _of(self, partition: int) -> tuple[Int64s, Int64s]:
        if partition not in self._sorted:
            pages = self._pages.get(partition, [(np.empty(0, np.int64), np.empty(0, np.int64))])
            slots, versions = (np.concatenate(part) for part in zip(*pages, strict=True))
            order = np.argsort(slots, kind="stable")
            self._sorted[partition] = slots[order], versions[order]
        return self._sorted[partition]


def homes(node: Node, tier: TierName) -> Iterator[list[Location]]:
    """Yield the rows at home in a tier as the index has them when a page is taken, tombstones too."""
    for segment in node.index.segments():
        n = segment.count
        rows = np.flatnonzero(segment.alive[:n] & (segment.home[:n] == tier))
        for start in range(0, len(rows), PAGE_ROWS):
            page = rows[start : start + PAGE_ROWS]
            page = page[segment.alive[page] & (segment.home[page] == tier)]
            entries = segment.entries(page)
            yield [Location(each.id, each.version, each.partition, each.slot) for each in entries]


async def missing(survey: Survey, node: Node, tier: TierName, seen: Seen, page: list[Location]) -> list[Location]:
    """Return those of a page of homes that are not where the index says, or are damaged there."""
    if tier in (TierName.COLD, TierName.GLACIER):
        return [where for where in page if where.slot == NO_SLOT or not seen.has(where)]
    try:
        rows = await node.tiers[tier].get(page)
    except TierCorrupt:
        if len(page) == 1:
            return page
        half = len(page) // 2
        first = await missing(survey, node, tier, seen, page[:half])
        return first + await missing(survey, node, tier, seen, page[half:])
    return [where for row, where in zip(rows, page, strict=True) if row is None]
