"""A stand-in for a GPU: NumPy behind a wall, so that hot's misuse of device memory fails on any machine (R10).

Its arrays are opaque: no indexing, iteration, conversion, comparison or arithmetic from the host. Memory is not
zeroed (it holds NaN), nothing may be allocated after start, and only one thread, never the loop's, may use it.
"""

from __future__ import annotations

import threading
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from tiers.device import HostDevice
from tiers.record import Floats


class Opaque:
    """An array on the device, as the host may hold it: by reference and not otherwise."""

    __slots__ = ("_array",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, array: Floats) -> None:
        self._array = array

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("the host touched an array that lies on the device")

    __array__ = __iter__ = __len__ = __getitem__ = __setitem__ = __bool__ = __float__ = __int__ = __index__ = _refuse
    __add__ = __sub__ = __mul__ = __matmul__ = __truediv__ = __neg__ = __radd__ = __rmul__ = __rmatmul__ = _refuse
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __and__ = __or__ = __invert__ = _refuse
    __buffer__ = __copy__ = __deepcopy__ = __reduce__ = _refuse  # type: ignore[assignment]
    __array_ufunc__ = __array_function__ = _refuse


class StrictDevice:
    """See tiers.device.Device. `allocations` counts arrays, `uploads` calls."""

    name = "strict"

    def __init__(self) -> None:
        self._host = HostDevice()
        self._thread: int | None = None
        self.allocations = 0
        self.uploads = 0

    def matrix(self, rows: int, dim: int) -> Opaque:
        """See Device."""
        return self._allocate((rows, dim))

    def vector(self, rows: int) -> Opaque:
        """See Device."""
        return self._allocate((rows,))

    def _allocate(self, shape: tuple[int, ...]) -> Opaque:
        assert self._thread is None, "device memory is allocated at start only"
        self.allocations += 1
        return Opaque(np.full(shape, np.nan, np.float32))

    def _own(self) -> None:
        current = threading.get_ident()
        assert current != threading.main_thread().ident, "the loop's thread must not wait for the device"
        self._thread = self._thread or current
        assert current == self._thread, "one thread owns the device"

    def upload(self, target: Any, start: int, values: npt.NDArray[Any]) -> None:
        """See Device."""
        self._own()
        self.uploads += 1
        assert isinstance(target, Opaque)
        assert isinstance(values, np.ndarray)
        assert values.dtype == np.float32, "an upload of another type would be converted on the way"
        assert values.shape[1:] == target._array.shape[1:]
        assert 0 <= start <= start + len(values) <= len(target._array), "an upload beyond the array"
        target._array[start : start + len(values)] = values

    def best(
        self, matrix: Any, scale: Any, ranges: list[tuple[int, int]], mask: npt.NDArray[np.bool_], query: Floats, k: int
    ) -> tuple[npt.NDArray[np.intp], Floats]:
        """See Device."""
        self._own()
        assert isinstance(matrix, Opaque)
        assert isinstance(scale, Opaque)
        rows, dim = matrix._array.shape
        assert (rows,) == mask.shape
        assert (dim,) == query.shape
        assert query.dtype == np.float32
        assert k > 0
        edges = [edge for pair in sorted(ranges) for edge in pair]
        assert edges == sorted(edges), "ranges overlap"
        assert all(0 <= edge <= rows for edge in edges), "a range beyond the array"
        return self._host.best(matrix._array, scale._array, ranges, mask, query, k)
