"""One run: its sizes, its servers, its corpus, and the node with all rows over all tiers, which scenarios share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.searching import node
from benchmarks.searching.corpus import Corpus, scaled
from pipeline import MemoryManager
from pipeline.stack import Stack
from tiers import TierName
from tiers.record import Floats

#: Share of all rows, in percent, and the number of batches that a tier is loaded with: glacier's make 20 files.
SHARES = {TierName.HOT: 10, TierName.WARM: 20, TierName.COLD: 30, TierName.GLACIER: 40}
GLACIER_BATCHES = 5
ALL_CACHED = 1 << 30  # bytes of glacier's cache that hold all of its rows here


@dataclass(frozen=True, slots=True)
class Size:
    """Rows and questions of a run. `scans`, `filtered`, `flat`, `truth`, `reads` are numbers of questions."""

    million: int = 1_000_000
    tier: int = 200_000
    peers: int = 200_000
    moved: int = 30_000
    questions: int = 2_000
    scans: int = 300
    filtered: int = 100
    flat: int = 100
    truth: int = 300
    reads: int = 1_000
    glacier_reads: int = 200
    peer_questions: int = 200
    fresh: int = 20
    bandwidth_mb: int = 256
    texts: int | None = None
    threads: int = 2

    @classmethod
    def quick(cls) -> Size:
        """Return what takes two minutes in all."""
        return cls(
            million=160_000, tier=80_000, peers=20_000, moved=8_000, questions=400, scans=150, filtered=60, flat=60,
            truth=150, reads=300, glacier_reads=60, peer_questions=60, fresh=8, bandwidth_mb=128, texts=20_000,
        )  # fmt: skip

    def of(self, rows: int) -> Size:
        """Return the same for so many rows over all tiers, and a fifth of them in one; smaller, fewer questions."""
        part = max(1, rows // 5)
        small = {} if rows >= 50_000 else {"questions": 60, "texts": 2_000, "moved": rows // 10, "bandwidth_mb": 32}
        return replace(self, million=rows, tier=part, peers=min(self.peers, part), **small)


class Run:
    """Scenarios ask for nodes here; `say` tells a person how far it is."""

    def __init__(self, size: Size, corpus: Corpus, stack: Stack, folder: Path, say: Callable[[str], None]) -> None:
        self.size, self.corpus, self.stack, self.folder, self.say = size, corpus, stack, folder, say
        self.load_s: dict[str, float] = {}
        self._million: MemoryManager | None = None
        self._open = AsyncExitStack()
        self._units: Floats | None = None

    def units(self) -> Floats:
        """Return the corpus as unit vectors."""
        if self._units is None:
            self._units = scaled(self.corpus.vectors)
        return self._units

    def node(self, name: str, rows: int = 0, **given: Any) -> AbstractAsyncContextManager[MemoryManager]:
        """Return an empty node of its own to enter; codes are made from a quarter of its `rows` on, 20,000 at most."""
        self.say(f"loading {name}")
        settings = {
            "index__search_threads": self.size.threads,
            "index__train_rows": min(20_000, max(640, (rows or self.size.tier) // 4)),  # FAISS wants 624
            **given,
        }
        return node.opened(self.stack, self.folder / f"bench-{name}", **settings)

    async def million(self) -> MemoryManager:
        """Return the node with all rows over all tiers, loaded when first asked for."""
        if self._million is None:
            self._million = await self._opened()
            start, rows = 0, self.size.million
            for tier, share in SHARES.items():
                stop = start + rows * share // 100
                step = -(-(stop - start) // GLACIER_BATCHES) if tier == TierName.GLACIER else 0
                self.say(f"loading {stop - start:,} rows into {tier.word}")
                seconds = await node.fill(self._million, self.corpus.vectors, start, stop, tier, step)
                self.load_s[tier.word] = round(seconds, 2)
                start = stop
            await node.coded(self._million)
        return self._million

    async def reopened(self) -> MemoryManager:
        """Stop the node and start it again: what was in hot is gone, and glacier's cache is empty."""
        await self.million()
        await self.close()
        self._million = await self._opened()
        return self._million

    async def _opened(self) -> MemoryManager:
        opened = self.node("million", self.size.million, glacier__cache_bytes=ALL_CACHED)
        return await self._open.enter_async_context(opened)

    async def close(self) -> None:
        """Stop the node."""
        await self._open.aclose()
        self._million = None
