"""The GPU that is measured, and the tests' stand-in for one: their own speeds, and arenas on them."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from tiers import device
from tiers.cuda_budget import Budget
from tiers.part import Shape

GIB = 1 << 30
Took = Callable[[Callable[[], object]], float]


class Machine(Protocol):
    """What the benchmark asks of either."""

    rehearsal: bool

    def told(self) -> dict[str, Any]:
        """Return name, driver and versions."""

    def copy_bytes_per_s(self, took_s: Took) -> float:
        """Return bytes read and written a second by a copy of device memory."""

    def matrix_flop_per_s(self, took_s: Took, dim: int) -> float:
        """Return operations a second of a bare float32 product of 1,024 questions, without TF32."""

    def pinned_bytes_per_s(self, took_s: Took) -> float:
        """Return bytes a second from pinned memory to the device."""

    def rows_that_fit(self, share: float, dim: int) -> int:
        """Return how many rows take this share of the memory that is free."""

    def arena(self, shape: Shape) -> Any:
        """Return hot's memory there."""

    def free(self) -> None:
        """Give back what nobody holds any more."""


class Gpu:
    """CuPy's current device. Everything is measured to the end of its stream."""

    rehearsal = False

    def __init__(self) -> None:
        self._device = device.choose("cuda")
        self._xp = importlib.import_module("cupy")

    def _done(self, job: Callable[[], object]) -> Callable[[], object]:
        return lambda: (job(), self._xp.cuda.get_current_stream().synchronize())

    def told(self) -> dict[str, Any]:
        """See Machine."""
        runtime = self._xp.cuda.runtime
        about = runtime.getDeviceProperties(0)
        free, total = runtime.memGetInfo()
        return {
            "name": about["name"].decode(), "compute_capability": f"{about['major']}.{about['minor']}",
            "processors": about["multiProcessorCount"], "memory_gib": total / GIB, "free_gib": free / GIB,
            "driver": runtime.driverGetVersion(), "runtime": runtime.runtimeGetVersion(),
            "cublas": self._xp.cuda.cublas.getVersion(self._xp.cuda.get_cublas_handle()),
            "nvrtc": list(self._xp.cuda.nvrtc.getVersion()), "cupy": self._xp.__version__,
        }  # fmt: skip

    def copy_bytes_per_s(self, took_s: Took) -> float:
        """See Machine; 2 GiB, so that no cache holds it."""
        source = self._xp.ones(2 * GIB // 4, self._xp.float32)
        target = self._xp.empty_like(source)
        return 2 * source.nbytes / took_s(self._done(lambda: self._xp.copyto(target, source)))

    def matrix_flop_per_s(self, took_s: Took, dim: int) -> float:
        """See Machine."""
        rows, questions = 262_144, 1_024
        left = self._xp.ones((questions, dim), self._xp.float32)
        right = self._xp.ones((rows, dim), self._xp.float32)
        out = self._xp.empty((questions, rows), self._xp.float32)
        return 2 * questions * rows * dim / took_s(self._done(lambda: self._xp.matmul(left, right.T, out=out)))

    def pinned_bytes_per_s(self, took_s: Took) -> float:
        """See Machine; pieces as large as hot's."""
        host = importlib.import_module("cupyx").empty_pinned((4 << 20,), np.uint8)
        target = self._xp.empty((4 << 20,), self._xp.uint8)
        stream = self._xp.cuda.Stream(non_blocking=True)
        pieces = 64

        def copy() -> None:
            for _ in range(pieces):
                target.set(host, stream=stream)
            stream.synchronize()

        return pieces * host.nbytes / took_s(copy)

    def rows_that_fit(self, share: float, dim: int) -> int:
        """See Machine."""
        self.free()
        free, _ = self._xp.cuda.runtime.memGetInfo()
        return int(free * share) // Budget.of(Shape(1, 32, dim, "cosine")).row_bytes

    def arena(self, shape: Shape) -> Any:
        """See Machine."""
        return self._device.arena(shape)

    def free(self) -> None:
        """See Machine."""
        gc.collect()
        self._xp.get_default_memory_pool().free_all_blocks()


class Rehearsal:
    """The tests' stand-in: the code is the product's, the speeds are nobody's."""

    rehearsal = True

    def __init__(self) -> None:
        self._strict = importlib.import_module("tests.tiers.strict")

    def told(self) -> dict[str, Any]:
        """See Machine."""
        return {"name": "a stand-in for rehearsals"}

    def copy_bytes_per_s(self, took_s: Took) -> float:
        """See Machine."""
        source = np.ones(1 << 20, np.float32)
        target = np.empty_like(source)
        return 2 * source.nbytes / took_s(lambda: np.copyto(target, source))

    def matrix_flop_per_s(self, took_s: Took, dim: int) -> float:
        """See Machine."""
        left, right = np.ones((32, dim), np.float32), np.ones((512, dim), np.float32)
        return 2 * 32 * 512 * dim / took_s(lambda: left @ right.T)

    def pinned_bytes_per_s(self, took_s: Took) -> float:
        """See Machine."""
        return self.copy_bytes_per_s(took_s) / 2

    def rows_that_fit(self, share: float, dim: int) -> int:
        """See Machine."""
        raise NotImplementedError("a rehearsal names its rows")

    def arena(self, shape: Shape) -> Any:
        """See Machine."""
        cuda = importlib.import_module("tiers.cuda")
        library = self._strict.StrictDevice()._library  # noqa: SLF001 - the stand-in's
        return cuda.CudaArena(library, shape._replace(scratch_bytes=1 << 20))

    def free(self) -> None:
        """See Machine."""


def machine_of(*, rehearse: bool) -> Machine:
    """Return the machine to measure; ServiceMissing without a GPU."""
    return Rehearsal() if rehearse else Gpu()
