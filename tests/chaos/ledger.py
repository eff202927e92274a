"""What was sent, and what the broker acknowledged: the producers' own file, which the product has no part in.

    ["s", n, id, deleted, t]             about to be sent: event n of this id (0, 1, 2…); may be in the log from now on
    ["a", n, id, partition, offset, t]   acknowledged by all in-sync replicas

Times are seconds of the machine's monotonic clock, which all processes share. Acknowledgements are on stable storage
before anything is concluded from them (`Pen.write` with `durable`).
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(slots=True)
class Event:
    """One event of an id; `offset` None until it is acknowledged."""

    n: int
    deleted: bool
    sent: float
    partition: int = -1
    offset: int | None = None
    acknowledged: float = float("inf")


class Pen:
    """Appends lines."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, lines: Sequence[Sequence[Any]], *, durable: bool) -> None:
        """Append lines in one write, and wait for the disk if asked to."""
        if lines:
            os.write(self._file, b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        if lines and durable:
            os.fdatasync(self._file)


class Ledger:
    """Everything a ledger's file says so far; `read` takes in what was added to it."""

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, 0
        self.events: defaultdict[str, list[Event]] = defaultdict(list)
        self.newest: dict[str, Event] = {}  # of each id the newest that is acknowledged
        self.acknowledged = 0
        self.ends: dict[int, int] = {}  # partition to the offset after the last acknowledged one

    def read(self) -> None:
        """Take in whole lines that were added since."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._at)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        for line in whole.splitlines():
            self.take(json.loads(line))

    def take(self, line: Sequence[Any]) -> None:
        """Take in one line."""
        if line[0] == "s":
            _, n, identifier, deleted, at = line
            assert n == len(self.events[identifier]), "events of an id are numbered in order"
            self.events[identifier].append(Event(n, deleted, at))
            return
        _, n, identifier, partition, offset, at = line
        event = self.events[identifier][n]
        event.partition, event.offset, event.acknowledged = partition, offset, at
        self.acknowledged += 1
        self.ends[partition] = max(self.ends.get(partition, 0), offset + 1)
        known = self.newest.get(identifier)
        if known is None or known.n < n:
            assert known is None or known.offset is None or known.offset < offset, "the log keeps an id's order"
            self.newest[identifier] = event
