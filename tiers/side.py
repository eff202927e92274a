"""SideFile: packed rows by slot beside the DuckDB file, for reads that DuckDB answers in milliseconds a row.

Derived: DuckDB holds every row durably, and `reconcile` says at open which rows must be appended again. So nothing
here is fsynced: whatever a crash leaves behind is caught by a checksum (the frame's at open, the row's at every read)
and made again. Layout, little-endian, in `side-<number>.dat` of at most `segment_bytes` (one row may exceed it):

    frame   magic 2s "IF" | format u16 = 1 | rows u32 | bytes of the rows u64 | crc32c u32 of all that and the tables
    tables  slot i64 per row, length u32 per row
    rows    packed rows (tiers/codec.py), end to end

A frame is one append, so that opening reads tables and no rows. A slot's last frame counts.

Rows are read by pread, not through a map: a file cut short under a map kills the process (SIGBUS), and a page fault
holds the interpreter's lock while the disk works. Measured, 100 scattered rows: map 0.02 ms warm, 7.2 ms cold with
every thread stalled for 5.6 ms; pread with advice 0.10 ms warm, 1.1 ms cold, none stalled.

One thread appends, releases and shrinks; any thread reads. A region once written is never written again, and a reader
holds the Segment whose row it reads: its descriptor closes, and an unlinked file goes, with the last of them.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tiers import failpoint, packed
from tiers.record import Int64s
from tiers.slots import ABSENT, GONE, PLACE, Places, Slots, nowhere

FRAME = struct.Struct("<2sHIQ")
CRC = struct.Struct("<I")
MAGIC, FORMAT = b"IF", 1
HEAD = FRAME.size + CRC.size
ROW_TABLES = 8 + 4  # bytes of slot and length
NOWAIT: int = getattr(os, "RWF_NOWAIT", 0)  # Linux's
AT_ONCE_BYTES = 1_048_576  # copied and decoded on the loop: a millisecond
REWRITE_BELOW = 0.25  # of a full segment's bytes still alive: rewriting costs at most a third of what it frees


class Segment:
    """One file. `end` is where the next frame goes, `live` the bytes of rows that still count."""

    def __init__(self, path: Path, number: int) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.path, self.number = path, number
        self.end = os.fstat(self._descriptor).st_size
        self.live = 0
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def want(self, offset: int, length: int) -> None:
        """Let the kernel begin to fetch these bytes, if they are not in memory."""
        os.posix_fadvise(self._descriptor, offset, length, os.POSIX_FADV_WILLNEED)

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes; fewer where the file ends, none where the disk fails."""
        try:
            return os.pread(self._descriptor, length, offset)
        except OSError:
            return b""

    def read_at_once(self, offset: int, length: int) -> bytes | None:
        """Return the bytes if the kernel has them in memory, else None: nothing waits for the disk."""
        data = bytearray(length)
        try:
            return bytes(data) if os.preadv(self._descriptor, (data,), offset, NOWAIT) == length else None
        except OSError:  # not in memory; or a file system that cannot tell, and disks that fail
            return None

    def append(self, head: bytes, rows: memoryview) -> int:
        """Write at the end and return where; OSError, with the file as it was, when it does not fit the disk."""
        start = at = self.end
        try:
            for part in (memoryview(head), rows):
                end = at + len(part)
                while at < end:
                    at += os.pwrite(self._descriptor, part[at - end :], at)
        except OSError:
            self.cut(start)
            raise
        self.end = at
        return start

    def cut(self, end: int) -> None:
        """Drop what lies beyond `end`, so that no later frame can seem to continue in it."""
        os.ftruncate(self._descriptor, end)
        self.end = end

    def frames(self) -> Iterator[tuple[Int64s, Places]]:
        """Yield slots and places frame by frame, and cut off what is torn or damaged."""
        at = 0
        while at < self.end:
            head = self.read(at, HEAD)
            if len(head) < HEAD or head[:2] != MAGIC:
                break
            _, form, rows, size = FRAME.unpack_from(head)
            first = at + HEAD + rows * ROW_TABLES
            if form != FORMAT or first + size > self.end:
                break
            tables = self.read(at + HEAD, rows * ROW_TABLES)
            if google_crc32c.value(head[: FRAME.size] + tables) != CRC.unpack_from(head, FRAME.size)[0]:
                break
            lengths = np.frombuffer(tables, "<u4", rows, rows * 8)
            yield np.frombuffer(tables, "<i8", rows), places(self.number, lengths, first)
            at = first + size
        self.cut(at)


def places(segment: int, lengths: npt.NDArray[np.uint32], first: int) -> Places:
    """Return the places of rows that lie end to end from `first`."""
    out = np.zeros(len(lengths), PLACE)
    out["segment"], out["length"] = segment, lengths
    out["offset"] = first + np.cumsum(lengths, dtype=np.int64) - lengths
    return out


def head_of(slots: Int64s, lengths: npt.NDArray[np.uint32]) -> bytes:
    """Return what a frame has before its rows."""
    head = FRAME.pack(MAGIC, FORMAT, len(slots), int(lengths.sum(dtype=np.int64)))
    tables = slots.astype("<i8").tobytes() + lengths.astype("<u4").tobytes()
    return b"".join((head, CRC.pack(google_crc32c.value(head + tables)), tables))


class SideFile:
    """The segments in `directory`, and where each slot lies in them."""

    def __init__(self, directory: Path, segment_bytes: int) -> None:
        self._directory, self._segment_bytes = directory, segment_bytes
        self._segments: dict[int, Segment] = {}
        self._number = 0
        self._slots = Slots()
        directory.mkdir(parents=True, exist_ok=True)
        self._scan()
        #: The highest slot ever seen here, so that none is given twice; -1 when there is none.
        self.slot_max = int(self._slots.live().max(initial=-1))

    def _scan(self) -> None:
        found: list[tuple[Int64s, Places]] = []
        for path in sorted(self._directory.glob("side-*.dat")):
            self._number = int(path.stem.removeprefix("side-"))
            segment = self._segments[self._number] = Segment(path, self._number)
            found += segment.frames()
        if found:
            slots, where = (np.concatenate(part) for part in zip(*found, strict=True))
            slots, last = np.unique(slots[::-1], return_index=True)  # of equal slots, the last frame's
            self._put(slots, where[::-1][last])

    # -- any thread --------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def size(self) -> int:
        """Bytes of all segments."""
        return sum(segment.end for segment in list(self._segments.values()))

    def slots(self) -> Int64s:
        """Return the slots of all rows, in growing order."""
        return self._slots.live()

    def read(self, slots: Int64s) -> list[bytes | None]:
        """Return each slot's packed row, unchecked; None: there is no such row; b"": it cannot be read here."""
        where = self._slots.find(slots).tolist()
        # Looked up after the places: a segment rewritten between the two is missing, and its row is read elsewhere.
        segments = [self._segments.get(number) for number, _, _ in where]
        if len(where) > 1:
            for segment, (_, length, offset) in zip(segments, where, strict=True):
                if segment:
                    segment.want(offset, length)
        return [
            segment.read(offset, length) if segment else (None if number == GONE else b"")
            for segment, (number, length, offset) in zip(segments, where, strict=True)
        ]

    def read_at_once(self, slots: Int64s) -> list[bytes] | None:
        """Return each slot's packed row, unchecked; None if one is not in memory, or all are more than some bytes."""
        if not NOWAIT:
            return None
        where = self._slots.find(slots)
        if int(where["length"].sum()) > AT_ONCE_BYTES:
            return None
        found: list[bytes] = []
        for number, length, offset in where.tolist():
            segment = self._segments.get(number)
            data = segment.read_at_once(offset, length) if segment else None
            if data is None:
                return None
            found.append(data)
        return found

    def sizes(self, slots: Int64s) -> Int64s:
        """Return the bytes of each slot's packed row, 0 where there is none."""
        return self._slots.find(slots)["length"].astype(np.int64)

    def gather(self, slots: Int64s) -> list[bytes]:
        """Return the packed rows of slots, unchecked, b"" where there is none; those that lie end to end in one read.

        What moves was mostly written together: a frame's rows are a megabyte or ten in one piece.
        """
        where = self._slots.find(slots)
        order = np.lexsort((where["offset"], where["segment"]))
        lies = where[order]
        ends = lies["offset"] + lies["length"]
        breaks = (lies["segment"][1:] != lies["segment"][:-1]) | (lies["offset"][1:] != ends[:-1])
        found = np.full(len(slots), b"", object)
        for run in np.split(np.arange(len(order)), np.flatnonzero(breaks) + 1) if len(order) else ():
            segment = self._segments.get(int(lies["segment"][run[0]]))
            if segment is not None:
                first = int(lies["offset"][run[0]])
                data = segment.read(first, int(ends[run[-1]]) - first)
                at = (lies["offset"][run] - first).tolist()
                cut = zip(at, (ends[run] - first).tolist(), strict=True)
                found[order[run]] = [data[start:end] for start, end in cut]
        return found.tolist()

    # -- the writer's thread -----------------------------------------------------------------------------------------

    def reconcile(self, slots: Int64s) -> Int64s:
        """Make `slots` the rows that exist: release all others; returns those that must be appended again."""
        known = self._slots.live()
        self.release(np.setdiff1d(known, slots, assume_unique=True))
        missing = np.setdiff1d(slots, known, assume_unique=True)
        self._put(missing, nowhere(len(missing), ABSENT))
        return missing

    def append(self, slots: Int64s, rows: pa.Array) -> int:
        """Write packed rows, again where a slot has one; returns how many the disk did not take: they are ABSENT."""
        lengths = packed.sizes(rows).astype(np.uint32)
        done = 0
        while done < len(rows):
            try:
                done += self._append(slots[done:], lengths[done:], rows.slice(done))
            except OSError:
                self._put(slots[done:], nowhere(len(rows) - done, ABSENT))
                break
        return len(rows) - done

    def _append(self, slots: Int64s, lengths: npt.NDArray[np.uint32], rows: pa.Array) -> int:
        """Write one frame of as many rows as the last segment takes, one at least; returns how many."""
        ends = HEAD + np.cumsum(lengths.astype(np.int64) + ROW_TABLES)
        segment = self._segments.get(self._number)
        if segment is None or (segment.end and segment.end + int(ends[0]) > self._segment_bytes):
            number = self._number + 1
            segment = Segment(self._directory / f"side-{number:08d}.dat", number)
            self._segments[number], self._number = segment, number
        count = max(1, int(np.searchsorted(ends, self._segment_bytes - segment.end, "right")))
        head = head_of(slots[:count], lengths[:count])
        start = segment.append(head, packed.content(rows.slice(0, count)))
        self._put(slots[:count], places(segment.number, lengths[:count], start + len(head)))
        return count

    def _put(self, slots: Int64s, where: Places) -> None:
        self._account(where, 1)
        self._account(self._slots.put(slots, where), -1)

    def _account(self, where: Places, sign: int) -> None:
        for number in np.unique(where["segment"][where["segment"] > ABSENT]).tolist():
            lengths = where["length"][where["segment"] == number]
            self._segments[number].live += sign * int(lengths.sum(dtype=np.int64))

    def release(self, slots: Int64s) -> int:
        """Forget rows; returns the bytes they had here. In memory only: `reconcile` does it again after a restart."""
        before = self._slots.drop(slots)
        self._account(before, -1)
        return int(before["length"].sum(dtype=np.int64))

    def shrink(self) -> None:
        """Unlink segments without a live row, and rewrite at most one full segment that has few."""
        for segment in list(self._segments.values()):
            if segment.end and not segment.live:
                self._unlink(segment)
        for segment in list(self._segments.values()):
            if segment.number != self._number and segment.live < REWRITE_BELOW * segment.end:
                slots, where = self._slots.of(segment.number)
                rows = [segment.read(offset, length) for _, length, offset in where.tolist()]
                self.append(slots, pa.array(rows, packed.BYTES))
                self._unlink(segment)
                return

    def _unlink(self, segment: Segment) -> None:
        del self._segments[segment.number]
        failpoint.reach("side.shrunk")
        segment.path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget and unlink everything."""
        self.release(self._slots.live())
        self.shrink()

    def close(self) -> None:
        """Let go of the files; readers that still read one keep it until they are done."""
        self._segments.clear()
