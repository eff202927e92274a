"""Rules of the product that can be broken on purpose: a harness that finds nothing wrong then is worth nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from consumers.commit import Commit
from consumers.mover import Mover
from consumers.watermark import Watermark
from tiers.index import Index
from tiers.tier import Location, TierName
from tiers.warm import WarmMemory


def evict_before_store() -> None:
    """Take rows out of warm before cold has them (R4): a kill in between loses them."""
    read = Mover._read

    async def read_and_evict(self: Mover, source: TierName, sources: list[Location]) -> Any:
        found = await read(self, source, sources)
        if source is TierName.WARM:
            await self._tiers[source].evict(sources, None)
        return found

    Mover._read = read_and_evict  # type: ignore[method-assign]


def commit_everything() -> None:
    """Commit what was ingested and not what is durable (R2): a kill loses hot."""
    commit = Commit.step

    async def step(self: Commit) -> int:
        class Applied:
            def __init__(self, mark: Watermark) -> None:
                self.value = mark.end

        kept = self._watermarks
        self._watermarks = {p: Applied(mark) for p, mark in kept.items()}  # type: ignore[misc]
        try:
            return await commit(self)
        finally:
            self._watermarks = kept

    Commit.step = step  # type: ignore[method-assign]


def forget_superseded() -> None:
    """Never queue what a newer version has superseded (R3): older rows stay in the tiers below."""
    put = Index.put

    def put_and_forget(self: Index, *args: Any, **more: Any) -> Sequence[tuple[TierName, Location]]:
        masked = put(self, *args, **more)
        return [(tier, where) for tier, where in masked if tier is TierName.HOT]

    Index.put = put_and_forget  # type: ignore[method-assign]


def ignore_versions_in_warm() -> None:
    """Say that warm took every row, whatever it holds, and send nothing (a receipt without a store)."""

    async def nothing(self: WarmMemory, unique: Any) -> Any:
        from tiers import record

        return record.versions_of(unique)

    WarmMemory._put = nothing  # type: ignore[method-assign]


RULES: Mapping[str, Callable[[], None]] = {
    "evict-before-store": evict_before_store,
    "commit-everything": commit_everything,
    "forget-superseded": forget_superseded,
    "receipt-without-store": ignore_versions_in_warm,
}
