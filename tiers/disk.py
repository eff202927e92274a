"""A local directory as the archive's storage; cold's directory too.

Nothing here is durable before `sync`, but for what `put_new` writes: on a local disk a file needs an fsync of itself
and of the directory that names it. `fsync` is an argument so that a test can see the order, or end the process between
two steps.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa

from tiers import failpoint
from tiers.storage import Traffic

UNNAMED = ".unnamed"  # suffix of a file before it gets its name


def fsync(path: Path) -> None:
    """Wait until the file's content, or the directory's entries, are on stable storage."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Disk:
    """A directory; see Storage."""

    proof = "file, directory and Delta log entry fsynced and read back"
    readers = 2
    remote = False
    options: dict[str, str] | None = None

    def __init__(self, root: str | Path, fsync: Callable[[Path], None] = fsync) -> None:
        self.root = Path(root).absolute()
        self.uri = str(self.root)
        self.traffic = Traffic()
        self._fsync = fsync

    def prepare(self) -> None:
        """See Storage. What a crash left before it had a name goes."""
        self.make()
        for unnamed in self.root.glob(f"*/*{UNNAMED}"):
            unnamed.unlink(missing_ok=True)

    def make(self, path: str = "") -> None:
        """Create a directory if absent, and let its parent remember it durably."""
        folder = self.root / path
        missing = [level for level in (folder, *folder.parents) if not level.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for level in reversed(missing):
            self._fsync(level.parent)

    @contextmanager
    def create(self, path: str) -> Iterator[pa.NativeFile]:
        """See Storage. A number is never used twice: an existing file is never written over."""
        self.make(path.rpartition("/")[0])
        (self.root / path).open("xb").close()
        with pa.OSFile(str(self.root / path), "wb") as sink:
            yield sink

    def put_new(self, path: str, content: bytes) -> None:
        """See Storage. On stable storage before it has its name, so that no reader ever finds half of it."""
        self.make(path.rpartition("/")[0])
        unnamed = self.root / f"{path}.{uuid.uuid4().hex}{UNNAMED}"
        try:
            unnamed.write_bytes(content)
            failpoint.reach("archive.entry_written")
            self._fsync(unnamed)
            failpoint.reach("archive.entry_fsynced")
            os.link(unnamed, self.root / path)
        finally:
            unnamed.unlink(missing_ok=True)

    def open(self, path: str, size: int | None = None) -> pa.NativeFile:  # noqa: ARG002 - the protocol's
        """See Storage."""
        return pa.OSFile(str(self.root / path), "rb")

    def read(self, path: str) -> bytes:
        """See Storage."""
        return (self.root / path).read_bytes()

    def size(self, path: str) -> int:
        """See Storage."""
        return (self.root / path).stat().st_size

    def sync(self, paths: Iterable[str]) -> None:
        """See Storage: files first, then the directories that name them."""
        files = [self.root / path for path in paths]
        for file in files:
            self._fsync(file)
        for folder in dict.fromkeys(file.parent for file in files):
            self._fsync(folder)

    def list(self, folder: str, after: str = "") -> list[str]:
        """See Storage."""
        try:
            with os.scandir(self.root / folder) as found:
                paths = (f"{folder}/{each.name}" for each in found if each.is_file())
                return sorted(path for path in paths if path > after)
        except FileNotFoundError:
            return []

    def put_aside(self, path: str) -> None:
        """See Storage; durably."""
        with suppress(FileNotFoundError):
            (self.root / path).rename(self.root / f"{path}.torn")
        self._fsync((self.root / path).parent)

    def remove(self, paths: Iterable[str]) -> None:
        """See Storage."""
        for path in paths:
            (self.root / path).unlink(missing_ok=True)
