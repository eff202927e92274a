"""The one seam between glacier and what keeps its files: a directory (tiers/disk.py) or a bucket (tiers/bucket.py).

Paths are relative to the archive's root, with "/" between their parts. FileNotFoundError and FileExistsError say what
they say; another OSError, or TierUnavailable, that nothing was changed; OutcomeUnknown that something may have been.
Nothing here is awaited: it is called on the tier's own threads, by several at once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

import pyarrow as pa

OPERATIONS = ("put", "get", "head", "list", "delete")


@dataclass(frozen=True, slots=True)
class Count:
    """Requests of one kind: how many were sent, how many had no good answer, and the bytes of content they carried."""

    requests: int = 0
    failures: int = 0
    bytes: int = 0


class Traffic:
    """What was asked of a remote store, by operation. A directory has none."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, Count] = {}

    def add(self, operation: str, carried: int, *, failed: bool) -> None:
        """Count one request."""
        with self._lock:
            was = self._counts.get(operation, Count())
            self._counts[operation] = replace(
                was, requests=was.requests + 1, failures=was.failures + failed, bytes=was.bytes + carried
            )

    def counts(self) -> dict[str, Count]:
        """Return the counts by operation."""
        with self._lock:
            return dict(self._counts)


class Storage(Protocol):
    """See the module. `uri` and `options` are what delta-rs opens the same place with.

    `proof` says what an answered write has waited for; `readers` how many reads at once pay.
    """

    uri: str
    options: dict[str, str] | None
    proof: str
    readers: int
    remote: bool
    traffic: Traffic

    def prepare(self) -> None:
        """Make the place ready; ServiceMissing or OSError where it cannot be used, and what to do."""

    def create(self, path: str) -> AbstractContextManager[pa.NativeFile]:
        """Give a sink for a new file, whole when the block ends; FileExistsError. The caller removes a failed one."""

    def put_new(self, path: str, content: bytes) -> None:
        """Write a small file, whole, only if there is none; FileExistsError if there is one with other content."""

    def open(self, path: str, size: int | None = None) -> pa.NativeFile:
        """Open a file for reading; `size` where it is known. FileNotFoundError, now or at the first read."""

    def read(self, path: str) -> bytes:
        """Return a small file whole; FileNotFoundError."""

    def size(self, path: str) -> int:
        """Return the bytes of a file."""

    def sync(self, paths: Iterable[str]) -> None:
        """Return when these files, and the directories that name them, would survive a power cut."""

    def list(self, folder: str, after: str = "") -> list[str]:
        """Return the paths of the files right in a folder, sorted, from after a path on; of an absent folder none."""

    def put_aside(self, path: str) -> None:
        """Give a file, if it is there, a name that nothing reads."""

    def remove(self, paths: Iterable[str]) -> None:
        """Remove files; those that are not there are fine."""
