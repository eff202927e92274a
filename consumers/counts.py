"""What the consumers count of their own work, for whoever looks in (metrics): plain numbers, one owner each."""

from __future__ import annotations

from collections import Counter, defaultdict, deque

import numpy as np

from producers.tally import AGES, Tally
from tiers.policy import REASONS
from tiers.record import Int64s

RESULTS = ("applied", "superseded", "known", "unmet", "cleared", "rejected")
MARKS_MAX = 4_096  # moments of the log remembered by partition
MARK_MS = 1_000  # and how far apart they are at least


class IngestCounts:
    """Rows of the memories topic by what became of them, and how old events were at each stage.

    results: `applied`; `superseded` by a newer row of its own poll; `known` already, met again by a replay; `unmet`
    condition; `cleared` by an operator before; `rejected` to the dead letters. Stages: `searchable` (a search finds
    it) and `applied` (dead letters are written, tokens are answered), both since the message's timestamp.
    """

    def __init__(self) -> None:
        self.results: Counter[str] = Counter(dict.fromkeys(RESULTS, 0))
        self.age = {"searchable": Tally(AGES), "applied": Tally(AGES)}

    def aged(self, stage: str, sent_ms: Int64s, now_ms: int) -> None:
        """Count how old messages of these times are now, a poll at once; not while replaying: that is not freshness."""
        self.age[stage].add_all(np.maximum(now_ms - sent_ms, 0) / 1000)


class MoveCounts:
    """What the mover did, by (source, target) and reason; `refused` by (source, target, kind of error)."""

    def __init__(self) -> None:
        self.records: Counter[tuple[str, str, str]] = Counter()
        self.bytes: Counter[tuple[str, str]] = Counter()
        self.refused: Counter[tuple[str, str, str]] = Counter()
        self.seconds: defaultdict[tuple[str, str], Tally] = defaultdict(Tally)
        self.age: defaultdict[str, Tally] = defaultdict(lambda: Tally(AGES))

    def moved(self, source: str, target: str, reason: str, records: int, size: int, took_s: float) -> None:
        """Count one move of so many records; `size` is the bytes of what was copied."""
        self.records[source, target, known(reason)] += records
        self.bytes[source, target] += size
        self.seconds[source, target].add(took_s)

    def aged(self, target: str, event_time: Int64s, now_ms: int) -> None:
        """Count how old records were, by their own time, when `target` became their home."""
        self.age[target].add_all(np.maximum(now_ms - event_time, 0) / 1000)


def known(reason: str) -> str:
    """Return a reason as it may be shown: a stranger's advice may give any text for one."""
    return reason if reason in REASONS else "unknown"


def move_facts(partition: int, source: str, target: str, reason: str) -> dict[str, str | int]:
    """Return what a trace says of a move."""
    return {"partition": partition, "source": source, "target": target, "reason": known(reason)}


class Marks:
    """When the log was written around an offset, by partition: a few moments of it, those above the watermark."""

    def __init__(self) -> None:
        self._marks: defaultdict[int, deque[tuple[int, int]]] = defaultdict(lambda: deque(maxlen=MARKS_MAX))

    def add(self, partition: int, offset: int, timestamp_ms: int) -> None:
        """Remember when the message at this offset was written, if that is not clear from the last one."""
        marks = self._marks[partition]
        if not marks or timestamp_ms >= marks[-1][1] + MARK_MS:
            marks.append((offset, timestamp_ms))

    def at(self, partition: int, watermark: int) -> int | None:
        """Return when the message at the watermark was written, in ms, or a little earlier; None when unknown."""
        marks = self._marks[partition]
        while len(marks) > 1 and marks[1][0] <= watermark:
            marks.popleft()
        return marks[0][1] if marks else None
