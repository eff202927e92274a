"""What a commit says of the last message below it, so that a start sees whether the log is still the one it was.

A log that was cut off and written on has the same name, id and offsets. So each commit of a watermark carries, as its
metadata, the offset, time and checksum of the last message applied below it and of the newest one, and a start
(`recognition`) compares them with what the log has there now. A message that is not there any more (retention, deleted
records) says nothing, nor does a commit without witnesses. Pure.
"""

from __future__ import annotations

from collections import defaultdict, deque
from typing import NamedTuple

import google_crc32c

from producers.events import Message

KEPT_MAX = 4_096  # messages remembered above the watermark, by partition


class Witness(NamedTuple):
    """A message as it was when it was applied."""

    offset: int
    timestamp_ms: int
    crc32c: int

    @classmethod
    def of(cls, message: Message) -> Witness:
        """Return what a message is to be known by."""
        crc = google_crc32c.extend(google_crc32c.value(message.key or b""), message.value or b"")
        return cls(message.offset, message.timestamp_ms, crc)

    @classmethod
    def parse(cls, text: str) -> Witness | None:
        """Return what `str` wrote; None for anything else."""
        offset, _, rest = text.partition(":")
        timestamp, _, crc = rest.partition(":")
        if not (offset.isdecimal() and timestamp.isdecimal() and crc.isdecimal()):
            return None
        return cls(int(offset), int(timestamp), int(crc))

    def __str__(self) -> str:
        return f"{self.offset}:{self.timestamp_ms}:{self.crc32c}"


class Witnesses:
    """The last message of each step applied, by partition, as far back as the watermark may stand."""

    def __init__(self) -> None:
        self._kept: defaultdict[int, deque[Witness]] = defaultdict(deque)

    def add(self, partition: int, message: Message) -> None:
        """Remember a message that was applied; at the bound every second one is forgotten, the oldest stays."""
        kept = self._kept[partition]
        kept.append(Witness.of(message))
        if len(kept) > KEPT_MAX:
            self._kept[partition] = deque(list(kept)[::2])

    def text(self, partition: int, watermark: int) -> str:
        """Return what a commit says: the last one below the watermark, and the newest; those before are forgotten.

        The first shows a log cut off below the watermark. The second shows one cut off above it: rows that had moved
        down already have versions that other messages would get.
        """
        kept = self._kept[partition]
        while len(kept) > 1 and kept[1].offset < watermark:
            kept.popleft()
        return f"{kept[0]} {kept[-1]}" if kept and kept[0].offset < watermark else ""
