"""When things happen on a stand-in's stream: as late as a GPU may let them, and in order.

Work put on a stream runs when the host waits for it, at the stream's or an event's `synchronize`, and not before. Until
then the pinned memory that it reads must not be written, and what it writes must not be touched: either is an error,
said where it happens. Memory that was let go before its work has run is an error too, and so is a write outside of it.
"""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib import array_utils

GUARD_BYTES = 256
GUARD = 0x7B  # as a float 1.3e36: whoever reads it as a score finds it the best of all
LET_GO = "pinned memory was let go before the device's work on it has run"

Bytes = npt.NDArray[np.uint8]
Window = Callable[[], Bytes]  # memory, looked up when it is needed


class OrderError(AssertionError):
    """The host and the device would meet in the same memory, or the memory is gone."""


class Block:
    """One allocation on the device, with guards before and behind it."""

    def __init__(self, nbytes: int) -> None:
        self.raw = np.full(nbytes + 2 * GUARD_BYTES + 16, GUARD, np.uint8)
        self.start = GUARD_BYTES + -(self.raw.ctypes.data + GUARD_BYTES) % 16
        self.nbytes = nbytes
        self.address = self.raw.ctypes.data + self.start
        self.bytes = self.raw[self.start : self.start + nbytes]

    def check(self) -> None:
        """Say that something was written outside."""
        if (self.raw[: self.start] != GUARD).any() or (self.raw[self.start + self.nbytes :] != GUARD).any():
            raise OrderError("a kernel wrote outside of its memory")


class Span(NamedTuple):
    """Bytes of pinned memory that work on a stream reads or writes."""

    owner: weakref.ref[Any]
    low: int
    high: int
    writes: bool


class Work(NamedTuple):
    """Something put on a stream."""

    what: str
    run: Callable[[], None]
    spans: Sequence[Span]


class Order:
    """All streams of a stand-in, and the pinned memory that their work is about."""

    def __init__(self) -> None:
        self.pending: dict[int, Span] = {}
        self._numbers = itertools.count()
        self.blocks: list[weakref.ref[Block]] = []

    def touched(self, array: npt.NDArray[Any], *, write: bool) -> None:
        """The host reads or writes pinned memory."""
        if not array.size:
            return
        low, high = array_utils.byte_bounds(array.view(np.ndarray))
        for span in self.pending.values():
            if span.owner() is None:
                raise OrderError(LET_GO)
            if span.low < high and low < span.high and (write or span.writes):
                doing = "written" if write else "read"
                by = "writes it" if span.writes else "reads it"
                raise OrderError(f"pinned memory is {doing} by the host before the device's work that {by} is done")

    def expect(self, spans: Sequence[Span]) -> list[int]:
        """Note what work is about until it has run."""
        numbers = [next(self._numbers) for _ in spans]
        self.pending |= zip(numbers, spans, strict=True)
        return numbers

    def at(self, address: int, nbytes: int) -> Bytes:
        """Return device memory by its address."""
        for each in self.blocks:
            block = each()
            if block is not None and block.address <= address and address + nbytes <= block.address + block.nbytes:
                start = address - block.address
                return block.bytes[start : start + nbytes]
        raise OrderError("a pointer to memory that is not allocated (any more), or not so much of it")

    def check(self) -> None:
        """Look at all guards."""
        self.blocks = [each for each in self.blocks if each() is not None]
        for each in self.blocks:
            block = each()
            if block is not None:
                block.check()


class Stream:
    """What `cuda.Stream(non_blocking=True)` gives."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._queue: deque[tuple[int, Work, list[int]]] = deque()
        self.put_count = self.done_count = 0

    def put(self, work: Work) -> None:
        """Put work at the end."""
        self.put_count += 1
        self._queue.append((self.put_count, work, self._order.expect(work.spans)))

    def synchronize(self) -> None:
        """Do all of it."""
        self.run(self.put_count)

    def run(self, until: int) -> None:
        """Do what was put first, up to this one."""
        while self._queue and self._queue[0][0] <= until:
            number, work, spans = self._queue.popleft()
            for each in spans:
                span = self._order.pending.pop(each)
                if span.owner() is None:
                    raise OrderError(LET_GO)
            work.run()
            self._order.check()
            self.done_count = number


class Event:
    """What `cuda.Event` gives; one that was never recorded is not waited for."""

    def __init__(self) -> None:
        self._at: tuple[Stream, int] | None = None

    def record(self, stream: Stream) -> None:
        """Mark the end of what is on the stream now."""
        self._at = stream, stream.put_count

    def synchronize(self) -> None:
        """Wait for the mark."""
        if self._at is not None:
            stream, number = self._at
            stream.run(number)


class Pinned(np.ndarray):
    """Pinned memory that says when it is touched. A plain view of it (np.asarray) does not."""

    order: Order | None
    root: weakref.ref[Any] | None

    def __array_finalize__(self, source: Any) -> None:
        """A view is of the same memory."""
        self.order = getattr(source, "order", None)
        self.root = getattr(source, "root", None)

    def _told(self, *, write: bool) -> None:
        if self.order is not None:
            self.order.touched(self, write=write)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **named: Any) -> Any:
        """Arithmetic reads and writes; its results are plain arrays."""
        for each in inputs:
            if isinstance(each, Pinned):
                each._told(write=False)
        for each in out or ():
            if isinstance(each, Pinned):
                each._told(write=True)
        if out is not None:
            named["out"] = tuple(map(_plain, out))
        return getattr(ufunc, method)(*map(_plain, inputs), **named)

    def __array_function__(self, function: Any, types: Any, given: Any, named: Any) -> Any:
        """NumPy's functions read, and may write."""
        for each in [*given, *named.values()]:
            if isinstance(each, Pinned):
                each._told(write=True)
        return function(*map(_plain, given), **{name: _plain(value) for name, value in named.items()})

    def __setitem__(self, key: Any, value: Any) -> None:
        """Write."""
        np.ndarray.__getitem__(self, key)._told(write=True) if isinstance(key, (slice, tuple)) else self._told(
            write=True
        )
        np.ndarray.__setitem__(self, key, _plain(value))

    def __getitem__(self, key: Any) -> Any:
        """A part is a view; one number is read."""
        found = super().__getitem__(key)
        if not isinstance(found, Pinned):
            self._told(write=False)
        return found

    def copy(self, order: Any = "C") -> npt.NDArray[Any]:
        """Read all of it."""
        self._told(write=False)
        return self.view(np.ndarray).copy(order)

    def tolist(self) -> Any:
        """Read all of it."""
        self._told(write=False)
        return self.view(np.ndarray).tolist()

    def window(self) -> Window:
        """Return how to find this memory later, should it still be there."""
        assert self.root is not None
        root, nbytes = self.root, self.nbytes
        whole = root()
        start = self.ctypes.data - whole.ctypes.data

        def found() -> Bytes:
            memory = root()
            assert memory is not None, "looked at before"
            plain: Bytes = memory.view(np.ndarray).reshape(-1).view(np.uint8)[start : start + nbytes]
            return plain

        return found

    def span(self, *, writes: bool) -> Span:
        """Return what work about this memory is noted with."""
        assert self.root is not None
        low, high = array_utils.byte_bounds(self.view(np.ndarray))
        return Span(self.root, low, high, writes)


def _plain(value: Any) -> Any:
    return value.view(np.ndarray) if isinstance(value, Pinned) else value


def pinned(order: Order, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Pinned:
    """Return pinned memory, filled with garbage."""
    array = np.empty(shape, dtype).view(Pinned)
    array.view(np.ndarray).view(np.uint8)[...] = GUARD
    array.order, array.root = order, weakref.ref(array)
    return array
