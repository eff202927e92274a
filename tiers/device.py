"""The only module that knows which array library runs hot: CuPy on a GPU, NumPy elsewhere.

`choose("cuda")` refuses to fall back; `choose("auto")` uses a GPU where one answers, and says in the log which it is.
Only the calls of `Device` touch device memory; everything else in hot is host bookkeeping.
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tiers import score
from tiers.errors import ServiceMissing
from tiers.record import Floats

NO_ROWS, NO_VALUES = np.zeros(0, np.intp), np.zeros(0, np.float32)


class Device(Protocol):
    """What hot asks of an array library. Arrays named `device_*` live on the device and are opaque to callers."""

    name: str

    def matrix(self, rows: int, dim: int) -> Any:
        """Allocate float32[rows, dim], once, at start."""

    def vector(self, rows: int) -> Any:
        """Allocate float32[rows], once, at start."""

    def memory(self) -> dict[str, int]:
        """Return bytes of device memory by kind: total, free, used and held by the library's pool; empty on a host."""

    def upload(self, target: Any, start: int, values: npt.NDArray[Any]) -> None:
        """Copy host values into target[start:start+len], complete at return."""

    def best(
        self, matrix: Any, scale: Any, ranges: list[tuple[int, int]], mask: npt.NDArray[np.bool_], query: Floats, k: int
    ) -> tuple[npt.NDArray[np.intp], Floats]:
        """Return the rows and scores of the k best in these [start, end) ranges where the host's `mask` is set."""


class HostDevice:
    """NumPy."""

    name = "numpy"

    def matrix(self, rows: int, dim: int) -> Floats:
        """See Device."""
        return np.zeros((rows, dim), np.float32)

    def vector(self, rows: int) -> Floats:
        """See Device."""
        return np.zeros(rows, np.float32)

    def memory(self) -> dict[str, int]:
        """See Device."""
        return {}

    def upload(self, target: npt.NDArray[Any], start: int, values: npt.NDArray[Any]) -> None:
        """See Device."""
        target[start : start + len(values)] = values

    def best(
        self,
        matrix: Floats,
        scale: Floats,
        ranges: list[tuple[int, int]],
        mask: npt.NDArray[np.bool_],
        query: Floats,
        k: int,
    ) -> tuple[npt.NDArray[np.intp], Floats]:
        """See Device. What is no better than the k best so far is left out before anything is sorted."""
        rows, found = NO_ROWS, NO_VALUES
        for start, end in ranges:
            wanted = mask[start:end]
            if np.count_nonzero(wanted) * score.SPARSE < len(wanted):
                at, values = score.nearest(matrix[start:end], scale[start:end], wanted, query, k)
            else:
                values = np.vecdot(matrix[start:end], query)
                values *= scale[start:end]
                better = wanted & (values > found[k - 1]) if len(found) >= k else wanted
                at = score.top(values, better, k)
                values = values[at]
            rows, found = _merge([rows, at + start], [found, values], k)
        return rows, found


class CudaDevice:
    """CuPy. One matrix-vector product a slab range, masked on the device; k candidates cross to the host."""

    def __init__(self, xp: Any) -> None:
        self.xp = xp
        self.name = "cupy"

    def matrix(self, rows: int, dim: int) -> Any:
        """See Device."""
        return self.xp.zeros((rows, dim), self.xp.float32)

    def vector(self, rows: int) -> Any:
        """See Device."""
        return self.xp.zeros(rows, self.xp.float32)

    def memory(self) -> dict[str, int]:
        """See Device."""
        free, total = self.xp.cuda.runtime.memGetInfo()
        pool = self.xp.get_default_memory_pool()
        return {"total": total, "free": free, "pool_used": pool.used_bytes(), "pool_held": pool.total_bytes()}

    def upload(self, target: Any, start: int, values: npt.NDArray[Any]) -> None:
        """See Device."""
        target[start : start + len(values)] = self.xp.asarray(np.ascontiguousarray(values))

    def best(
        self, matrix: Any, scale: Any, ranges: list[tuple[int, int]], mask: npt.NDArray[np.bool_], query: Floats, k: int
    ) -> tuple[npt.NDArray[np.intp], Floats]:
        """See Device. CuPy's argpartition is a full sort; a select-k of our own comes with issue G."""
        xp = self.xp
        device_query = xp.asarray(query)
        rows: list[npt.NDArray[np.intp]] = []
        found: list[Floats] = []
        for start, end in ranges:
            device_mask = xp.asarray(mask[start:end])
            values = xp.where(device_mask, (matrix[start:end] @ device_query) * scale[start:end], -xp.inf)
            at = xp.argsort(-values)[:k]
            values = self._host(values[at])
            keep = np.isfinite(values)
            rows.append(self._host(at)[keep].astype(np.intp) + start)
            found.append(values[keep])
        return _merge(rows, found, k)

    def _host(self, device_array: Any) -> npt.NDArray[Any]:
        return np.asarray(self.xp.asnumpy(device_array))


def _merge(rows: list[npt.NDArray[np.intp]], found: list[Floats], k: int) -> tuple[npt.NDArray[np.intp], Floats]:
    """Return the k best of several best lists, ties by row number."""
    if not rows:
        return np.zeros(0, np.intp), np.zeros(0, np.float32)
    at, values = np.concatenate(rows), np.concatenate(found)
    order = np.lexsort((at, -values))[:k]
    return at[order], np.asarray(values[order], np.float32)


def choose(kind: str) -> Device:
    """Return the device for setting `hot.device`: "cpu", "cuda" (never falls back) or "auto"."""
    if kind == "cpu":
        return HostDevice()
    try:
        xp = importlib.import_module("cupy")
        xp.cuda.runtime.getDeviceCount()
        return CudaDevice(xp)
    except Exception as error:  # an absent wheel, driver or device all fail in ways of their own
        if kind == "cuda":
            raise ServiceMissing(
                f"hot.device = 'cuda', but no GPU answers ({error}); install isotherm[gpu-cuda12] and a driver, "
                "or set hot.device = 'cpu'"
            ) from error
        return HostDevice()
