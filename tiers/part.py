"""What hot asks of a device: the shape of its memory, the part of a slab that a scan reads, and the questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tiers.arrays import Floats


class Shape(NamedTuple):
    """`slabs` of `slab_rows` rows of `dim` floats each. A slot is slab * slab_rows + row.

    `dtype` is what a GPU stores, `scratch_bytes` what its scans may use beside; NumPy stores float32, and needs none.
    """

    slabs: int
    slab_rows: int
    dim: int
    metric: str
    dtype: str = "float32"
    scratch_bytes: int = 256 << 20


class Part(NamedTuple):
    """The rows of one slab that a scan may find: those of the first `fill` where `wanted`, `size` of them.

    `wanted` is never changed: a device may take an array that it has seen for the same rows.
    """

    slab: int
    fill: int
    wanted: npt.NDArray[np.bool_]
    size: int


class Ask(NamedTuple):
    """Questions float32[questions, dim] about these parts, by growing slab; the k best are wanted for each."""

    parts: Sequence[Part]
    questions: Floats
    k: int


class Nearest(NamedTuple):
    """The best slots for one question, best first, ties by slot; values lack the question's own factor."""

    slots: npt.NDArray[np.intp]
    values: Floats
