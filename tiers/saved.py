"""Codes kept in a file from one life to the next, by what they are of: partition and version.

A version is a row's place in the log, so what it names never changes, wherever the row lies now. The tiers say which
rows there are and where; a file only says what a row's code is. It is derived: one that is torn, damaged or gone costs
time at the start. And a code, even a wrong one, only nominates: what a search returns is scored by the exact vector.

    frame: magic "IKC1" | rows u32 | code bytes u16 | crc32c u32 of what follows (HEADER, 14 bytes)
    versions i64[rows], partitions i16[rows], codes u8[rows, code bytes]          little-endian

Frames are appended without fsync: the checksum finds what a power loss left out, and the file ends there. 74 bytes a
row at 256 dimensions; a million rows are read and sorted in 0.25 s.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np

from tiers import failpoint
from tiers.blocks import Bytes
from tiers.listed import Partitions
from tiers.record import Int64s

HEADER = struct.Struct("<4sIHI")
MAGIC = b"IKC1"
PARTITIONS_MAX = 32_767  # int16 here and in the index


class Frame(NamedTuple):
    """Codes of some rows."""

    versions: Int64s
    partitions: Partitions
    codes: Bytes


def pack(frame: Frame) -> bytes:
    """Return a frame as bytes."""
    rows, size = frame.codes.shape
    body = b"".join(
        np.ascontiguousarray(column).tobytes()
        for column in (frame.versions.astype("<i8"), frame.partitions.astype("<i2"), frame.codes)
    )
    return HEADER.pack(MAGIC, rows, size, google_crc32c.value(body)) + body


def frames(data: bytes, code_bytes: int) -> Iterator[tuple[Frame, int]]:
    """Yield each whole frame, its arrays in the memory of `data`, and where it ends; stops at the first that is not."""
    at = 0
    while at + HEADER.size <= len(data):
        magic, rows, size, crc = HEADER.unpack_from(data, at)
        start, end = at + HEADER.size, at + HEADER.size + rows * (10 + size)
        if magic != MAGIC or size != code_bytes or end > len(data):
            return
        if google_crc32c.value(data[start:end]) != crc:
            return
        yield (
            Frame(
                np.frombuffer(data, "<i8", rows, start),
                np.frombuffer(data, "<i2", rows, start + 8 * rows),
                np.frombuffer(data, np.uint8, rows * size, start + 10 * rows).reshape(rows, size),
            ),
            end,
        )
        at = end


class Saved:
    """What was found in a file, to be looked up by partition and version. Never changed."""

    def __init__(self, found: Sequence[Frame], code_bytes: int) -> None:
        self._found = found
        self._starts = np.cumsum([0, *(len(frame.versions) for frame in found)])
        self._none = np.zeros((0, code_bytes), np.uint8)
        versions = np.concatenate([np.zeros(0, np.int64), *(frame.versions for frame in found)])
        partitions = np.concatenate([np.zeros(0, np.int16), *(frame.partitions for frame in found)])
        self._of: dict[int, tuple[Int64s, Int64s]] = {}
        for partition in np.unique(partitions).tolist():
            at = np.flatnonzero(partitions == partition)
            order = np.argsort(versions[at])
            self._of[partition] = versions[at][order], at[order]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def find(self, partitions: Partitions, versions: Int64s) -> Int64s:
        """Return where the code of each row is, -1 where there is none."""
        found = np.full(len(versions), -1, np.int64)
        for partition in np.unique(partitions).tolist():
            if partition in self._of:
                rows = np.flatnonzero(partitions == partition)
                known, at = self._of[partition]
                place = np.minimum(np.searchsorted(known, versions[rows]), len(known) - 1)
                same = known[place] == versions[rows]
                found[rows[same]] = at[place[same]]
        return found

    def codes(self, at: Int64s) -> Bytes:
        """Return uint8[len(at), code bytes] of places that `find` returned."""
        of = np.searchsorted(self._starts, at, "right") - 1
        codes = np.empty((len(at), self._none.shape[1]), np.uint8)
        for number in np.unique(of).tolist():
            here = of == number
            codes[here] = self._found[number].codes[at[here] - self._starts[number]]
        return codes


class CodesFile:
    """A file of frames, of one codebook. Every method on the one thread that owns it; OSError is the caller's."""

    def __init__(self, path: Path, code_bytes: int) -> None:
        self.path, self._code_bytes = path, code_bytes
        self.rows = 0  # in the file, those of dead rows too

    def load(self) -> Saved:
        """Return what the file holds, and cut off what is torn."""
        data = self.path.read_bytes() if self.path.exists() else b""
        found, end = [], 0
        for frame, end in frames(data, self._code_bytes):  # noqa: B007 - the last end is asked below
            found.append(frame)
        if end < len(data):
            with self.path.open("r+b") as file:
                file.truncate(end)
        self.rows = sum(len(frame.versions) for frame in found)
        return Saved(found, self._code_bytes)

    def append(self, frame: Frame) -> None:
        """Add codes at the end."""
        self.path.parent.mkdir(exist_ok=True)
        with self.path.open("ab") as file:
            file.write(pack(frame))
        failpoint.reach("codes.appended")
        self.rows += len(frame.versions)

    def replace(self, kept: Iterator[Frame]) -> None:
        """Write these codes instead of all; a crash leaves the former file."""
        self.path.parent.mkdir(exist_ok=True)
        fresh, rows = self.path.with_suffix(".new"), 0
        with fresh.open("wb") as file:
            for frame in kept:
                file.write(pack(frame))
                rows += len(frame.versions)
        failpoint.reach("codes.rewritten")
        fresh.replace(self.path)
        self.rows = rows

    def remove(self) -> None:
        """Delete the file."""
        self.path.unlink(missing_ok=True)
        self.rows = 0
