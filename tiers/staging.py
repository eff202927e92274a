"""Pinned memory that the device reads or writes while the host goes on; an event says when it is done.

The host touches a buffer only inside `turn`, which waits for that event at its beginning and records it at its end, or
once `ready` has waited. Two buffers in turn let the host fill one while the other is on its way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Pinned = npt.NDArray[Any]


class Library(NamedTuple):
    """CuPy, and its own way to make an array of pinned memory (cupyx.empty_pinned)."""

    xp: Any
    pinned: Callable[[tuple[int, ...], npt.DTypeLike], Pinned]


class Staging:
    """One pinned buffer, zero at the start. `spin`: wait without sleeping, for what somebody waits for."""

    def __init__(self, library: Library, shape: tuple[int, ...], dtype: npt.DTypeLike, *, spin: bool = False) -> None:
        self._array = library.pinned(shape, dtype)
        self._array[...] = 0
        self._event = library.xp.cuda.Event(block=not spin, disable_timing=True)

    def ready(self) -> Pinned:
        """Return the buffer once the device has done what was last sent."""
        self._event.synchronize()
        return self._array

    @contextmanager
    def turn(self, stream: Any) -> Iterator[Pinned]:
        """Hand out the buffer; what is put on the stream inside may use it until the next turn."""
        try:
            yield self.ready()
        finally:
            self._event.record(stream)


class Double:
    """Two buffers in turn."""

    def __init__(self, library: Library, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        self._buffers = cycle([Staging(library, shape, dtype) for _ in range(2)])
        self.rows = shape[0]

    def next(self) -> Staging:
        """Return the buffer that was sent longer ago."""
        return next(self._buffers)


def filled(array: Pinned, start: int, values: npt.NDArray[Any]) -> int:
    """Put whole words of values into a flat buffer as they are; returns where they end."""
    words = np.ascontiguousarray(values).reshape(-1).view(array.dtype)
    array[start : start + len(words)] = words
    return start + len(words)
