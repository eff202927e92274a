"""What the archive's upkeep has to show: how many files there are and of which kind, and what was done about them."""

from __future__ import annotations

from dataclasses import dataclass, field

from tiers.storage import Count


@dataclass(slots=True)
class Done:
    """What was done since the start. `vacuumed_s` is when a file was last removed, in seconds since 1970, or 0."""

    rewrites: int = 0
    rewritten_files: int = 0
    dropped_rows: int = 0
    vacuumed_files: int = 0
    vacuumed_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Census:
    """Live files, those of them less than half full, files that wait for vacuum, and the log's own.

    `bytes` are those of live files; `waiting_bytes` those of replaced ones. `requests` is empty on a local disk.
    """

    files: int
    bytes: int
    small_files: int
    waiting_files: int
    waiting_bytes: int
    log_entries: int
    done: Done
    requests: dict[str, Count] = field(default_factory=dict)
