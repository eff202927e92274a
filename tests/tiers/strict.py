"""A stand-in for a GPU: CuPy's names over the CPU, so that hot's misuse of CuPy fails on any machine (R10).

`StrictCupy` is what the product's CudaDevice gets instead of the module. It has names that CuPy 14 has (cupy_api.json,
taken from the package) and no other, with the parameters that CuPy takes; those that hot does not use say so. Kernels
are the product's own file, run thread by thread on the CPU (shim.py). It is stricter than a GPU, which is silent:

- work runs when the host waits for it, and the host must not meet it in the same memory (strict_stream.py);
- nothing happens on the default stream, on the loop's thread, or on two threads;
- nothing is allocated once hot has started, nor ever outside of a pool with a limit;
- arrays cannot be converted, compared or computed with from the host, and only the same type is copied into them;
- a kernel gets arguments of exactly the types that it declares, and writes inside of its memory.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from types import SimpleNamespace
from typing import Any, NoReturn, Self

import numpy as np

from tests.tiers import cupy_api, shim
from tests.tiers.strict_stream import Block, Bytes, Event, Order, OrderError, Pinned, Stream, Window, Work, pinned
from tiers.device import Arena, CudaDevice, Shape
from tiers.staging import Library

API = cupy_api.load()
SIGNATURES = {name: cupy_api.signature(text) for name, text in API["functions"].items() if text is not None}
METHODS = {name: cupy_api.signature(text) for name, text in API["ndarray"]["methods"].items() if text is not None}
PROCESSORS = 2  # so few that blocks of a kernel take several turns
KINDS = {np.dtype(np.int32): "i", np.dtype(np.int64): "l"}


def refuse(*_: object, **__: object) -> NoReturn:
    """Raise what CuPy raises when the host reaches for an array."""
    raise TypeError("the host touched an array that lies on the device; convert it aloud, with get")


class CudaError(RuntimeError):
    """What CUDA says, by number."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


class CUDARuntimeError(CudaError):
    pass


class CUDADriverError(CudaError):
    pass


class CUBLASError(CudaError):
    pass


class OutOfMemoryError(MemoryError):
    pass


class StrictArray:
    """An array on the device: memory of a block from `offset` on, without gaps."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, owner: Machine, block: Block, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._owner, self._block, self._offset = owner, block, offset
        self.shape, self.dtype = shape, dtype
        self.size = int(np.prod(shape))
        self.nbytes = self.size * dtype.itemsize
        self.data = SimpleNamespace(ptr=block.address + offset)

    __array__ = __iter__ = __bool__ = __float__ = __int__ = __index__ = __complex__ = __contains__ = refuse
    __buffer__ = __copy__ = __deepcopy__ = __reduce__ = refuse  # type: ignore[assignment]
    __array_ufunc__ = __array_function__ = __setitem__ = refuse
    __array_priority__ = 100

    def __repr__(self) -> str:
        return f"<StrictArray {self.dtype}{list(self.shape)}>"

    def __len__(self) -> int:
        return self.shape[0]

    def __getattr__(self, name: str) -> Any:
        if name in METHODS or name in API["ndarray"]["attributes"] or name in API["ndarray"]["operators"]:
            raise NotImplementedError(f"cupy.ndarray.{name} exists, and hot has had no need of it")
        raise AttributeError(f"cupy.ndarray has no {name!r} ({API['cupy']})")

    def __getitem__(self, key: Any) -> StrictArray:
        """Return a part without gaps; beyond the end CuPy would cut it short, as NumPy does."""
        places = np.arange(self.size).reshape(self.shape)
        for part, size in zip(key if isinstance(key, tuple) else (key,), self.shape, strict=False):
            assert isinstance(part, (int, np.integer, slice)), "too clever an index"
            edges = [part.start, part.stop] if isinstance(part, slice) else [part]
            if any(edge is not None and not 0 <= edge <= size for edge in edges):
                raise IndexError(f"{part} of {size} places")
        found = places[key]
        first = int(found.reshape(-1)[0]) if found.size else 0
        if found.size and not np.array_equal(found.reshape(-1), np.arange(first, first + found.size)):
            raise IndexError("a part with gaps")
        where = self._offset + first * self.dtype.itemsize
        return StrictArray(self._owner, self._block, where, found.shape, self.dtype)

    def set(self, *given: Any, **named: Any) -> None:
        """Copy from the host, when the stream comes to it."""
        bound = METHODS["set"].bind(*given, **named).arguments
        host, stream = bound["arr"], self._owner.stream(bound.get("stream"))
        self._matches(host)
        with self._owner.used():
            target, source = self._address(), host.window()
            stream.put(Work("set", lambda: _copy(target, source), [host.span(writes=False)]))

    def get(self, *given: Any, **named: Any) -> Any:
        """Copy to the host, when the stream comes to it."""
        bound = METHODS["get"].bind(*given, **named).arguments
        host, stream = bound.get("out"), self._owner.stream(bound.get("stream"))
        assert bound.get("blocking") is False, "a copy that blocks"
        self._matches(host)
        with self._owner.used():
            source, target = self._address(), host.window()
            stream.put(Work("get", lambda: _copy(target, source), [host.span(writes=True)]))
        return host

    def _matches(self, host: Any) -> None:
        if not isinstance(host, Pinned):
            raise TypeError("pageable memory: the copy would not be asynchronous")
        if host.dtype != self.dtype:
            raise TypeError(f"{host.dtype} copied into {self.dtype} would be converted on the way")
        if host.shape != self.shape or not host.flags.c_contiguous:
            raise ValueError(f"{host.shape} copied into {self.shape}")

    def _address(self) -> Window:
        block, start, end = weakref.ref(self._block), self._offset, self._offset + self.nbytes

        def found() -> Bytes:
            memory = block()
            if memory is None:
                raise OrderError("device memory was let go before the work on it ran")
            return memory.bytes[start:end]

        return found


def _copy(target: Window, source: Window) -> None:
    target()[...] = source()


class Pool:
    """A memory pool; its limit is what CuPy's would be."""

    def __init__(self, owner: Machine) -> None:
        self._owner, self._limit, self._used = owner, 0, 0

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        """Set the limit in bytes."""
        assert size, "a limit of some bytes"
        self._limit = size

    def used_bytes(self) -> int:
        """Return what was taken."""
        return self._used

    total_bytes = used_bytes

    def malloc(self, size: int) -> Block:
        """Take memory, in units of 512 bytes."""
        assert self._limit, "a pool without a limit"
        taken = -(-size // 512) * 512
        if self._used + taken > self._limit:
            raise OutOfMemoryError(f"{taken} bytes more than {self._limit}")
        self._used += taken
        return self._owner.block(size)


class Machine:
    """A GPU with its state: what is allocated and on its way, and what shall go wrong."""

    def __init__(self, free: int = 1 << 30) -> None:
        self.order = Order()
        self.free, self.total = free, 2 * free
        self.allocations = self.launches = self.products = 0
        self.started = False
        self.fault: Exception | None = None  # raised by the next launch
        self._thread: int | None = None
        self._streams: list[Stream] = []
        self._allocators: list[Callable[[int], Block]] = []
        self.cupy = StrictCupy(self)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Check who uses it."""
        current = threading.get_ident()
        if self.started:
            assert current != threading.main_thread().ident, "the loop's thread must not wait for the device"
            self._thread = self._thread or current
            assert current == self._thread, "one thread owns the device"
        yield

    def stream(self, given: Stream | None) -> Stream:
        """Return the stream that work goes to."""
        if given is None and not self._streams:
            raise OrderError("work on the default stream")
        return given if given is not None else self._streams[-1]

    @contextmanager
    def streaming(self, stream: Stream) -> Iterator[None]:
        """Work on this one."""
        self._streams.append(stream)
        try:
            yield
        finally:
            self._streams.pop()

    @contextmanager
    def allocating(self, allocator: Callable[[int], Block]) -> Iterator[None]:
        """Allocate from there."""
        self._allocators.append(allocator)
        try:
            yield
        finally:
            self._allocators.pop()

    def block(self, size: int) -> Block:
        """Allocate."""
        block = Block(size)
        self.allocations += 1
        self.order.blocks.append(weakref.ref(block))
        return block

    def array(self, shape: Any, dtype: Any, fill: int) -> StrictArray:
        """Return a new array, every byte `fill`."""
        assert not self.started, "device memory is allocated at start only"
        assert self._allocators, "an allocation outside of hot's pool"
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        kind = np.dtype(dtype)
        block = self._allocators[-1](int(np.prod(shape)) * kind.itemsize)
        block.bytes.fill(fill)
        return StrictArray(self, block, 0, shape, kind)

    def launch(self, kernels: shim.Kernels, name: str, grid: Any, block: Any, args: Any, **named: Any) -> None:
        """Put a kernel on the stream."""
        assert not named
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        kinds = "".join("p" if isinstance(each, StrictArray) else KINDS[each.dtype] for each in args)
        assert kernels.kinds(name) == kinds, f"{name} takes {kernels.kinds(name)}, and gets {kinds}"
        assert all(size > 0 for size in (*grid, *block)), "an empty launch is an error in CUDA"
        with self.used():
            self.launches += 1
            turn = self.launches % shim.ORDERS
            held = [each._address() if isinstance(each, StrictArray) else each for each in args]

            def run() -> None:
                words = [each().ctypes.data if callable(each) else int(each) for each in held]
                kernels.launch(name, grid, block[0], words, turn)

            self.stream(None).put(Work(name, run, []))

    def gemm(self, *given: Any) -> None:
        """Act out gemmEx for what hot asks: C = A^T B, column by column, summed in float32."""
        bound = SIGNATURES["cuda.cublas.gemmEx"].bind(*given).arguments
        blas = self.cupy.cuda.cublas
        assert (blas.CUBLAS_OP_T, blas.CUBLAS_OP_N) == (bound["transa"], bound["transb"])
        assert blas.CUBLAS_COMPUTE_32F == bound["computeType"], "TF32, or another type"
        assert bound["Atype"] == bound["Btype"]
        assert bound["Ctype"] == 0
        m, n, k, lda, ldb, ldc = (bound[name] for name in ("m", "n", "k", "lda", "ldb", "ldc"))
        kind = {0: np.float32, 2: np.float16}[bound["Atype"]]

        def run() -> None:
            size = np.dtype(kind).itemsize
            left = self.order.at(bound["A"], m * lda * size).view(kind).reshape(m, lda)[:, :k]
            right = self.order.at(bound["B"], n * ldb * size).view(kind).reshape(n, ldb)[:, :k]
            out = self.order.at(bound["C"], ((n - 1) * ldc + m) * 4).view(np.float32)
            product = right.astype(np.float32) @ left.astype(np.float32).T
            for at in range(n):
                out[at * ldc : at * ldc + m] = product[at]

        with self.used():
            self.products += 1
            self.stream(None).put(Work("gemmEx", run, []))


@cache
def compiled(code: str) -> shim.Kernels:
    """Return a compiled source, once a run."""
    return shim.Kernels(code)


class StrictCupy:
    """CuPy's module, or one of its submodules."""

    def __init__(self, machine: Machine, space: str = "") -> None:
        self._machine, self._space = machine, space

    def __getattr__(self, name: str) -> Any:
        full = f"{self._space}.{name}".lstrip(".")
        if full in cupy_api.SPACES:
            return StrictCupy(self._machine, full)
        acted = _acted(self._machine).get(full)
        known = full in API["functions"] or full in API["values"] or full in API["classes"]
        if not known:
            raise AttributeError(f"cupy {API['cupy']} has no {full!r}")
        if acted is not None:
            return acted
        if isinstance(getattr(np, full, None), type):
            return getattr(np, full)
        raise NotImplementedError(f"cupy.{full} exists, and hot has had no need of it")


def _acted(machine: Machine) -> dict[str, Any]:
    """Return what of CuPy is acted out."""

    def known(name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given, **named: (SIGNATURES[name].bind(*given, **named), act(*given, **named))[1]

    def stream(**named: Any) -> Any:
        assert named == {"non_blocking": True}, "the default stream would wait for it, and it for that"
        return _Streaming(machine)

    def module(code: str, options: tuple[str, ...] = ()) -> Any:
        kernels = compiled(code)
        return SimpleNamespace(get_function=lambda name: partial(machine.launch, kernels, name))

    return {
        "zeros": known("zeros", lambda shape, dtype: machine.array(shape, dtype, 0)),
        "empty": known("empty", lambda shape, dtype: machine.array(shape, dtype, 0xFF)),
        "RawModule": module,
        "cuda.Stream": stream,
        "cuda.Event": lambda block=False, disable_timing=False: Event(),
        "cuda.MemoryPool": lambda: Pool(machine),
        "cuda.using_allocator": machine.allocating,
        "cuda.Device": lambda: SimpleNamespace(attributes={"MultiProcessorCount": PROCESSORS}),
        "cuda.get_cublas_handle": lambda: 1,
        "cuda.runtime.memGetInfo": lambda: (machine.free, machine.total),
        "cuda.runtime.getDeviceCount": lambda: 1,
        "cuda.runtime.CUDARuntimeError": CUDARuntimeError,
        "cuda.driver.CUDADriverError": CUDADriverError,
        "cuda.memory.OutOfMemoryError": OutOfMemoryError,
        "cuda.cublas.CUBLASError": CUBLASError,
        "cuda.cublas.gemmEx": machine.gemm,
        "cuda.cublas.CUBLAS_OP_N": 0,
        "cuda.cublas.CUBLAS_OP_T": 1,
        "cuda.cublas.CUBLAS_COMPUTE_32F": 68,
        "cuda.cublas.CUBLAS_GEMM_DEFAULT": -1,
    }


class _Streaming(Stream):
    """A stream that `with` makes the current one."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine.order)
        self._machine = machine
        self._entered: list[Any] = []

    def __enter__(self) -> Self:
        self._entered.append(self._machine.streaming(self))
        self._entered[-1].__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._entered.pop().__exit__(*error)

    def synchronize(self) -> None:
        with self._machine.used():
            super().synchronize()


class StrictDevice(CudaDevice):
    """The product's device over the stand-in, one machine each."""

    def __init__(self, machine: Machine | None = None) -> None:
        self.machine = machine if machine is not None else Machine()
        super().__init__(Library(self.machine.cupy, partial(pinned, self.machine.order)))

    def arena(self, shape: Shape) -> Arena:
        """See Device; small scratch memory, as tests have few rows."""
        arena = super().arena(shape._replace(scratch_bytes=min(shape.scratch_bytes, 1 << 20)))
        self.machine.started = True
        return arena
