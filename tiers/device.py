"""The only module that knows which array library runs hot: CuPy on a GPU, NumPy elsewhere.

`choose("cuda")` refuses to fall back; `choose("auto")` uses a GPU where one answers, and the log says which it took and
why. A device gives hot one `Arena`: the memory of all its slabs, allocated once, and the scans of it. All else in hot
is bookkeeping on the host.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Protocol

import structlog

from tiers.arrays import Floats, Int64s
from tiers.cuda import CudaArena
from tiers.cuda_budget import Budget
from tiers.errors import ServiceMissing
from tiers.host import HostArena
from tiers.part import Ask, Nearest, Shape
from tiers.staging import Library

log = structlog.get_logger()

__all__ = ["Arena", "Ask", "CudaDevice", "Device", "HostDevice", "Nearest", "Shape", "choose"]


class Arena(Protocol):
    """The memory of hot's slabs, and scans of it."""

    #: Asks about other rows that one call answers together.
    asks_max: int

    @property
    def chunk_rows(self) -> int | None:
        """How many vectors one `put` should bring, so that no scan waits for more; None: any number."""

    def put(self, start: int, vectors: Floats) -> None:
        """Copy float32[rows, dim] to the slots from `start` on, all of one slab. Scans asked later see them."""

    def best(self, asks: Sequence[Ask]) -> list[list[Nearest]]:
        """Return, for each question of each ask, the k best of its rows. TierUnavailable, DeviceLost.

        ValueError where k is more than the scratch memory has places for.
        """

    def vectors(self, slots: Int64s) -> Floats | None:
        """Return copies of the vectors in these slots, from any thread; None where the host cannot read them."""

    def memory(self) -> dict[str, int]:
        """Return bytes of device memory by kind: total, free, used and held by hot's pool; empty on a host."""


class Device(Protocol):
    """What runs hot."""

    name: str

    def arena(self, shape: Shape) -> Arena:
        """Allocate hot's memory, once. ServiceMissing where it does not fit, SettingsError where it cannot be."""

    def check(self, shape: Shape) -> None:
        """Raise what `arena` would raise about room and settings, without allocating."""


class HostDevice:
    """NumPy."""

    name = "numpy"

    def arena(self, shape: Shape) -> Arena:
        """See Device."""
        return HostArena(shape)

    def check(self, shape: Shape) -> None:
        """See Device; the kernel decides, and `doctor` counts what may be."""


class CudaDevice:
    """CuPy."""

    name = "cupy"

    def __init__(self, library: Library) -> None:
        self._library = library

    def arena(self, shape: Shape) -> Arena:
        """See Device."""
        return CudaArena(self._library, shape)

    def check(self, shape: Shape) -> None:
        """See Device."""
        Budget.of(shape).check(*self._library.xp.cuda.runtime.memGetInfo())


def choose(kind: str) -> Device:
    """Return the device for setting `hot.device`: "cpu", "cuda" (never falls back) or "auto"; says in the log which."""
    device, reason = _found(kind)
    log.info("device.chosen", device=device.name, setting=kind, reason=reason)
    return device


def _found(kind: str) -> tuple[Device, str]:
    if kind == "cpu":
        return HostDevice(), "the setting"
    try:
        library = Library(importlib.import_module("cupy"), importlib.import_module("cupyx").empty_pinned)
        count = library.xp.cuda.runtime.getDeviceCount()
        return CudaDevice(library), f"GPUs that answer: {count}"
    except Exception as error:  # an absent wheel, driver or device all fail in ways of their own
        if kind == "cuda":
            raise ServiceMissing(
                f"hot.device = 'cuda', but no GPU answers ({error}); install isotherm[gpu-cuda12] and a driver, "
                "or set hot.device = 'cpu'"
            ) from error
        return HostDevice(), f"no GPU answers: {error}"
