"""What a read did: for whoever asks it to explain itself, for the metrics, and for traces made afterwards."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

PARTS_MAX = 128  # an exact search over much fetches many times: the first ones are kept, the sums are of all


class Part(NamedTuple):
    """Something done for a read, from `began` to `ended` on time.perf_counter; `tier` None for a step."""

    name: str
    tier: str | None
    began: float
    ended: float
    rows: int


class Trace:
    """Counts and times gathered on the way; a step entered twice adds up.

    `lookups` are rows asked of a tier by what came of them: `found`, `moved` (another version, or nothing, lay there)
    or `unanswered`.
    """

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.lookups: Counter[tuple[str, str]] = Counter()
        self._steps_ms: dict[str, float] = {}
        self._counts: Counter[str] = Counter()
        self._fetched: Counter[str] = Counter()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time what is done inside."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._part(name, None, began, time.perf_counter(), 0)

    def _part(self, name: str, tier: str | None, began: float, ended: float, rows: int) -> None:
        if tier is None:
            self._steps_ms[name] = self._steps_ms.get(name, 0.0) + (ended - began) * 1000
        if len(self.parts) < PARTS_MAX:
            self.parts.append(Part(name, tier, began, ended, rows))

    def asked(
        self, what: str, tier: str, began: float, ended: float, wanted: int, rows: Sequence[object] | None
    ) -> None:
        """Take note of what a tier said when `wanted` rows or vectors were asked of it; None: it was too late.

        `what` is the tier's own word for it: "get" or "vectors".
        """
        self._part(what, tier, began, ended, wanted)
        if rows is None:
            self.lookups[tier, "unanswered"] += wanted
            return
        moved = sum(row is None for row in rows)
        self.lookups[tier, "found"] += wanted - moved
        if moved:
            self.lookups[tier, "moved"] += moved

    @property
    def steps_s(self) -> dict[str, float]:
        """Seconds in each step."""
        return {name: ms / 1000 for name, ms in self._steps_ms.items()}

    def count(self, name: str, number: int) -> None:
        """Add to a count."""
        self._counts[name] += number

    def fetched(self, tier: str, rows: int, size: int) -> None:
        """Take note of rows that a tier handed out, and of the bytes of their vectors and payloads."""
        self._fetched[tier] += rows
        self._counts["bytes_read"] += size

    def shown(self) -> dict[str, Any]:
        """Return everything as plain values; bytes are those of vectors, codes and payloads."""
        return {
            **{name: self._counts[name] for name in COUNTS},
            "fetched": dict(self._fetched),
            "steps_ms": {name: round(ms, 3) for name, ms in self._steps_ms.items()},
        }


#: Looks at the index, other questions that shared a scan, segments scanned, rows scanned by vector and by code,
#: candidates that the scans named, candidates scored exactly, candidates left out because reading them would have
#: passed a bound, row groups read from files, rows that had moved or changed when they were fetched and were looked up
#: again, rows fetched whole for the answer, bytes read.
COUNTS = (
    "looks",
    "shared",
    "segments",
    "by_vector",
    "by_code",
    "candidates",
    "reranked",
    "skipped",
    "row_groups",
    "rechecked",
    "rows",
    "bytes_read",
)
