"""Where the archive lies: the one seam between glacier and a file system. A local directory now; S3 answers these too.

Nothing here is durable before `sync`: on a local disk a file needs an fsync of itself and of the directory that names
it. `fsync` is an argument so that a test can see the order, or end the process between two steps.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa


class Found(NamedTuple):
    """A file: its path below the root, and when it was written or last touched."""

    path: str
    modified_s: float


def fsync(path: Path) -> None:
    """Wait until the file's content, or the directory's entries, are on stable storage."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Disk:
    """A directory; every path is relative to `root` and has "/" between its parts."""

    def __init__(self, root: str | Path, fsync: Callable[[Path], None] = fsync) -> None:
        self.root = Path(root).absolute()
        self._fsync = fsync

    @property
    def uri(self) -> str:
        """The address that delta-rs opens."""
        return str(self.root)

    def make(self, path: str = "") -> None:
        """Create a directory if absent, and let its parent remember it durably."""
        folder = self.root / path
        missing = [level for level in (folder, *folder.parents) if not level.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for level in reversed(missing):
            self._fsync(level.parent)

    def create(self, path: str) -> pa.NativeFile:
        """Open a new file for writing; FileExistsError if there is one (a number is never used twice)."""
        self.make(path.rpartition("/")[0])
        (self.root / path).open("xb").close()
        return pa.OSFile(str(self.root / path), "wb")

    def open(self, path: str) -> pa.NativeFile:
        """Open a file for reading; FileNotFoundError if it is gone."""
        return pa.OSFile(str(self.root / path), "rb")

    def read(self, path: str) -> bytes:
        """Return a small file whole."""
        return (self.root / path).read_bytes()

    def size(self, path: str) -> int:
        """Return the bytes of a file."""
        return (self.root / path).stat().st_size

    def exists(self, path: str) -> bool:
        """Say whether there is such a file."""
        return (self.root / path).exists()

    def sync(self, paths: Iterable[str]) -> None:
        """Make these files durable, then the directories that name them."""
        files = [self.root / path for path in paths]
        for file in files:
            self._fsync(file)
        for folder in dict.fromkeys(file.parent for file in files):
            self._fsync(folder)

    def list(self, pattern: str) -> list[Found]:
        """Return the files that match a glob, sorted by path; one that goes away meanwhile is left out."""
        found: list[Found] = []
        for file in sorted(self.root.glob(pattern)):
            with suppress(FileNotFoundError):
                found.append(Found(file.relative_to(self.root).as_posix(), file.stat().st_mtime))
        return found

    def touch(self, path: str, now_s: float) -> None:
        """Say that the file was last needed now."""
        os.utime(self.root / path, (now_s, now_s))

    def rename(self, source: str, target: str) -> None:
        """Rename a file and make that durable."""
        (self.root / source).rename(self.root / target)
        self._fsync((self.root / target).parent)

    def remove(self, path: str) -> None:
        """Unlink a file; one that is not there is fine."""
        (self.root / path).unlink(missing_ok=True)
