"""A witness of DuckDB's WAL: how long it was when its last commit was answered, and the checksum of that much of it.

DuckDB takes a WAL that ends early for one that a crash cut short, and goes on without the rest; a flipped bit in a
length looks just like that (both measured). What is in the WAL was acknowledged and is nowhere else. So after each
commit its size and checksum go into `cold.mark`, and an open that finds less, or other bytes, refuses. That the file
exists says that there is a database, too.

A commit's mark is not fsynced: a power cut may leave an older one, which speaks of a shorter part of the same WAL. Only
a checkpoint, which ends the WAL, first takes the mark back durably. Reading back what a commit has appended costs
0.5 ms of processor time for 1,000 rows of 256 floats; the commit costs 28.

    magic "ICM1" | WAL bytes u64 | crc32c of them u32 | crc32c of the fields before u32          little-endian, 20 bytes
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import google_crc32c
import structlog

from tiers.errors import ServiceMissing

FIELDS = struct.Struct("<4sQI")
SEAL = struct.Struct("<I")
MAGIC = b"ICM1"
HEADERS = 3 * 4096  # of a DuckDB file: one without them is none
CHUNK = 1 << 20

log = structlog.get_logger()


class Witness:
    """`check` before DuckDB opens, `follow` after each commit, `forget` before each checkpoint."""

    def __init__(self, database: Path, wal: Path) -> None:
        self._database, self._wal, self._file = database, wal, database.with_suffix(".mark")
        self._size, self._crc = 0, 0
        self._handle = -1

    def check(self) -> None:
        """Raise ServiceMissing where database or WAL are less than what was answered."""
        mark = self._read()
        if mark is None:
            return
        size, crc = mark
        if not self._database.exists() or self._database.stat().st_size < HEADERS:
            raise self._lost(f"{self._database} is gone or cut short")
        if not size:
            return
        held = self._wal.stat().st_size if self._wal.exists() else 0
        if held < size:
            raise self._lost(f"{self._wal} has {held:,} bytes of {size:,}")
        if self._checksum(0, size, 0) != crc:
            raise self._lost(f"{self._wal} is damaged")

    def _lost(self, what: str) -> ServiceMissing:
        return ServiceMissing(
            f"{what}: committed rows of the cold tier are missing. Restore both from a copy of the same moment; or, to "
            f"go on without these rows, move {self._file} aside"
        )

    def _read(self) -> tuple[int, int] | None:
        """Return the mark, None where there is none, or it is damaged: then there is no witness, and nothing else."""
        try:
            data = self._file.read_bytes()
        except FileNotFoundError:
            return None
        if len(data) != FIELDS.size + SEAL.size or SEAL.unpack_from(data, FIELDS.size)[0] != _seal(data[: FIELDS.size]):
            log.warning("cold.mark_damaged", file=str(self._file))
            return None
        magic, size, crc = FIELDS.unpack_from(data)
        return (size, crc) if magic == MAGIC else None

    def open(self) -> None:
        """Begin; the mark that is there stays until the next commit. A new one is made durable with its directory."""
        held = self._read()  # before the file is made: an empty one is no damage
        self._handle = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if held is None:
            self.forget()

    def close(self) -> None:
        """End; the mark stays."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def follow(self) -> None:
        """Take in what a commit has added. What cannot be written costs the witness, not the commit."""
        try:
            size = self._wal.stat().st_size
            start, crc = (self._size, self._crc) if size >= self._size else (0, 0)
            self._size, self._crc = size, self._checksum(start, size, crc)
            self._write()
        except OSError as error:
            log.warning("cold.mark_not_written", error=str(error))

    def forget(self) -> None:
        """Take the mark back, durably: the WAL is about to end. OSError."""
        self._size, self._crc = 0, 0
        self._write()
        os.fsync(self._handle)

    def _write(self) -> None:
        fields = FIELDS.pack(MAGIC, self._size, self._crc)
        os.pwrite(self._handle, fields + SEAL.pack(_seal(fields)), 0)

    def _checksum(self, start: int, end: int, crc: int) -> int:
        """Return the checksum `crc` of the bytes before `start`, extended to `end`."""
        with self._wal.open("rb") as wal:
            wal.seek(start)
            while start < end:
                chunk = wal.read(min(CHUNK, end - start))
                if not chunk:
                    raise OSError(f"{self._wal} ends early")
                crc, start = google_crc32c.extend(crc, chunk), start + len(chunk)
        return crc


def _seal(fields: bytes) -> int:
    return int(google_crc32c.value(fields))
