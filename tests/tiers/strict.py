"""A stand-in for a GPU: CuPy's namespace over NumPy, so that hot's misuse of CuPy fails on any machine (R10).

`StrictCupy` is what `tiers.device` gets instead of the module. It has the names that CuPy 14 has (cupy_api.json, taken
from the package) and no other, and takes the parameters that CuPy takes. Its arrays are what CuPy's are to the host:
they cannot be converted, compared or computed with from there, except by what CuPy says aloud (`asnumpy`, `get`). It is
stricter where CuPy is silently different from NumPy: an index out of bounds (CuPy wraps), a scatter to one place twice
(CuPy's order is undefined), a bool or a float of an array (CuPy waits for the device), a value of another type written
into an array (CuPy converts).

`StrictDevice` is the product's own CudaDevice over it, with the rules of its use: memory is allocated at start only,
and holds NaN until it is written; one thread, never the loop's, uses it.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from tests.tiers import cupy_api
from tiers.device import CudaDevice
from tiers.record import Floats

API = cupy_api.load()
SIGNATURES = {name: cupy_api.signature(text) for name, text in API["functions"].items() if text is not None}
METHODS = {name: cupy_api.signature(text) for name, text in API["ndarray"]["methods"].items() if text is not None}
FROM_HOST = frozenset({"asarray", "array", "ascontiguousarray", "asfortranarray"})
Raw = npt.NDArray[Any]


def refuse(*_: object, **__: object) -> NoReturn:
    """Raise what CuPy raises when the host reaches for an array."""
    raise TypeError("the host touched an array that lies on the device; convert it aloud, with asnumpy")


class StrictArray:
    """An array on the device. `_array` is the stand-in's own."""

    __slots__ = ("_array",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, array: Raw) -> None:
        self._array = array

    __array__ = __iter__ = __bool__ = __float__ = __int__ = __index__ = __complex__ = __contains__ = refuse
    __buffer__ = __copy__ = __deepcopy__ = __reduce__ = refuse  # type: ignore[assignment]
    __array_ufunc__ = __array_function__ = refuse
    __array_priority__ = 100

    def __repr__(self) -> str:
        return f"<StrictArray {self._array.dtype}{list(self._array.shape)}>"

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, key: Any) -> StrictArray:
        return wrapped(self._array[checked(key, self._array.shape, scatter=False)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._array[checked(key, self._array.shape, scatter=True)] = written(value, self._array)

    def __getattr__(self, name: str) -> Any:
        if name in API["ndarray"]["attributes"]:
            return wrapped(getattr(self._array, name))
        if name not in METHODS:
            raise AttributeError(f"cupy.ndarray has no {name!r} ({API['cupy']})")
        return partial(_method, self, name)


def _method(array: StrictArray, name: str, *given: Any, **named: Any) -> Any:
    """Call a method of an array as CuPy would take it."""
    bound = METHODS[name].bind(*given, **named)
    if name == "get":
        return array._array.copy()
    if name in ("put", "take"):
        checked(bound.arguments["indices"], (array._array.size,), scatter=name == "put")
    return wrapped(getattr(array._array, name)(*map(unwrapped, given), **_unwrapped(named)))


def _operator(name: str) -> Callable[..., Any]:
    """Return an operator of arrays: what CuPy has, between device arrays and scalars only."""

    def apply(self: StrictArray, *others: Any) -> Any:
        result = getattr(self._array, name)(*map(unwrapped, others))
        if result is self._array:  # in place
            return self
        return result if result is NotImplemented else wrapped(result)

    return apply


ARITHMETIC = (
    "add",
    "sub",
    "mul",
    "matmul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
)
OPERATORS = [f"__{kind}{name}__" for name in ARITHMETIC for kind in ("", "r", "i")]
OPERATORS += [f"__{name}__" for name in ("eq", "ne", "lt", "le", "gt", "ge", "neg", "pos", "abs", "invert")]
for each in OPERATORS:
    setattr(StrictArray, each, _operator(each) if each in API["ndarray"]["operators"] else refuse)


def wrapped(result: Any) -> Any:
    """Return a result as the device has it: arrays, and the scalars that CuPy leaves on the device."""
    if isinstance(result, (np.ndarray, np.generic)):
        return StrictArray(np.asarray(result))
    if isinstance(result, tuple) and any(isinstance(each, np.ndarray) for each in result):
        return tuple(map(wrapped, result))
    return result


def unwrapped(value: Any) -> Any:
    """Return an argument for NumPy; an array of the host is refused, as CuPy does."""
    if isinstance(value, StrictArray):
        return value._array
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>: bring it to the device first, with asarray")
    if isinstance(value, (list, tuple)):
        return type(value)(map(unwrapped, value))
    return value


def _unwrapped(named: dict[str, Any]) -> dict[str, Any]:
    return {name: unwrapped(value) for name, value in named.items()}


def checked(key: Any, shape: tuple[int, ...], *, scatter: bool) -> Any:
    """Return an index for NumPy: in bounds, and where it is written to, each place once."""
    parts = key if isinstance(key, tuple) else (key,)
    plain = tuple(map(unwrapped, parts))
    if any(part is Ellipsis or part is None for part in plain):
        assert not any(isinstance(part, np.ndarray) for part in plain), "too clever an index for the stand-in"
        return plain
    for axis, part in enumerate(plain):
        if not isinstance(part, (np.ndarray, list)) or np.asarray(part).dtype == bool:
            continue
        places, size = np.asarray(part), shape[axis]
        if places.size and not (-size <= places.min() and places.max() < size):
            raise IndexError(f"an index is out of bounds for {size} places: CuPy would wrap it silently")
        if scatter and len(np.unique(places % max(size, 1))) != places.size:
            raise IndexError("a scatter writes one place twice: which value stays is undefined in CuPy")
    return plain if isinstance(key, tuple) else plain[0]


def written(value: Any, target: Raw) -> Any:
    """Return a value to write into an array; one of another type is refused."""
    plain = unwrapped(value)
    if isinstance(plain, np.ndarray) and plain.dtype != target.dtype:
        raise TypeError(f"{plain.dtype} written into {target.dtype} would be converted on the way")
    return plain


class StrictCupy:
    """CuPy's module, or one of its submodules."""

    def __init__(self, space: str = "") -> None:
        self._space = space

    def __getattr__(self, name: str) -> Any:
        full = f"{self._space}.{name}".lstrip(".")
        if full == "cuda.runtime.getDeviceCount":
            return lambda: 1
        if full in cupy_api.SPACES:
            return StrictCupy(full)
        if full in SIGNATURES:
            return partial(_call, full)
        if full in API["values"] and hasattr(np, full):
            return getattr(np, full)
        if full in API["functions"] or full in API["values"]:
            raise NotImplementedError(f"cupy.{full} exists, and the stand-in does not act it out")
        raise AttributeError(f"cupy {API['cupy']} has no {full!r}")


def _call(name: str, *given: Any, **named: Any) -> Any:
    """Call a function of CuPy: its parameters, device arrays or scalars, bounds and places checked."""
    bound = SIGNATURES[name].bind(*given, **named)  # TypeError for what CuPy does not take
    if name == "asnumpy":
        array = bound.arguments["a"]
        return array._array.copy() if isinstance(array, StrictArray) else np.asarray(array)
    if name in FROM_HOST:
        source = bound.arguments.get("a", bound.arguments.get("object", bound.arguments.get("obj")))
        plain = source._array if isinstance(source, StrictArray) else np.array(source)
        return StrictArray(np.asarray(plain, dtype=bound.arguments.get("dtype")))
    _check_places(name, bound)
    function = getattr(np, name, None)
    if function is None:
        raise NotImplementedError(f"cupy.{name} exists, and the stand-in does not act it out")
    result = function(*map(unwrapped, given), **_unwrapped(named))
    return wrapped(result)


def _check_places(name: str, bound: inspect.BoundArguments) -> None:
    """Check the indices of functions that gather and scatter."""
    if name == "put":
        checked(bound.arguments["ind"], (bound.arguments["a"]._array.size,), scatter=True)
        written(bound.arguments["v"], bound.arguments["a"]._array)
    elif name == "take":
        array, axis = bound.arguments["a"]._array, bound.arguments.get("axis")
        checked(bound.arguments["indices"], (array.size if axis is None else array.shape[axis],), scatter=False)
    elif name == "copyto":
        written(bound.arguments["src"], bound.arguments["dst"]._array)


class StrictDevice(CudaDevice):
    """The product's device over the stand-in. `allocations` counts its arrays, `uploads` its calls."""

    def __init__(self) -> None:
        super().__init__(StrictCupy())
        self._thread: int | None = None
        self.allocations = 0
        self.uploads = 0

    def matrix(self, rows: int, dim: int) -> Any:
        """See Device."""
        return self._poisoned(super().matrix(rows, dim))

    def vector(self, rows: int) -> Any:
        """See Device."""
        return self._poisoned(super().vector(rows))

    def _poisoned(self, array: StrictArray) -> StrictArray:
        assert self._thread is None, "device memory is allocated at start only"
        assert array._array.dtype == np.float32
        self.allocations += 1
        array._array.fill(np.nan)
        return array

    def _own(self) -> None:
        current = threading.get_ident()
        assert current != threading.main_thread().ident, "the loop's thread must not wait for the device"
        self._thread = self._thread or current
        assert current == self._thread, "one thread owns the device"

    def upload(self, target: Any, start: int, values: npt.NDArray[Any]) -> None:
        """See Device."""
        self._own()
        self.uploads += 1
        assert isinstance(target, StrictArray)
        assert isinstance(values, np.ndarray)
        assert values.shape[1:] == target.shape[1:]
        assert 0 <= start <= start + len(values) <= len(target), "an upload beyond the array"
        super().upload(target, start, values)

    def best(
        self, matrix: Any, scale: Any, ranges: list[tuple[int, int]], mask: npt.NDArray[np.bool_], query: Floats, k: int
    ) -> tuple[npt.NDArray[np.intp], Floats]:
        """See Device."""
        self._own()
        rows, dim = matrix.shape
        assert (rows,) == mask.shape
        assert (dim,) == query.shape
        assert query.dtype == np.float32
        assert k > 0
        edges = [edge for pair in sorted(ranges) for edge in pair]
        assert edges == sorted(edges), "ranges overlap"
        assert all(0 <= edge <= rows for edge in edges), "a range beyond the array"
        return super().best(matrix, scale, ranges, mask, query, k)
