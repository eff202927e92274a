"""A remote file as a file object: each read is one request for a range."""

from __future__ import annotations

import io
from collections.abc import Callable


class Ranges(io.RawIOBase):
    """`read_range` returns `length` bytes from `start`; within the file's size, never empty."""

    def __init__(self, size: int, read_range: Callable[[int, int], bytes]) -> None:
        super().__init__()
        self._size, self._read, self._at = size, read_range, 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Return where the next read begins."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to where the next read begins."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, fewer at the end of the file."""
        left = max(0, self._size - self._at)
        length = left if size < 0 else min(size, left)
        found = self._read(self._at, length) if length else b""
        self._at += len(found)
        return found
