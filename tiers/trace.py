"""What a read did, for whoever asks it to explain itself."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Trace:
    """Counts and times gathered on the way; a step entered twice adds up."""

    def __init__(self) -> None:
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
            self._steps_ms[name] = self._steps_ms.get(name, 0.0) + (time.perf_counter() - began) * 1000

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
