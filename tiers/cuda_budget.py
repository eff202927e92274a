"""What hot takes on a GPU, counted before any of it is allocated. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np

from tiers import tiling
from tiers.errors import ServiceMissing, SettingsError
from tiers.masks import Masks
from tiers.part import Shape

GIB = 1 << 30
LOAD_BYTES = 16  # a thread's load: rows are padded to whole ones
WORD_ROWS = 32  # rows of a word of a mask: slabs are padded to whole ones
SPARE_BYTES = 256 << 20  # left alone: the kernels, cuBLAS' own work space, other processes' small change
ROUNDING_BYTES = 16 << 10  # the pool hands out multiples of 512 bytes
DTYPES = ("float32", "float16")
ROWS_MAX = (1 << 31) - (1 << 24)  # kernels count rows in 31 bits, and go a grid beyond the last


class Budget(NamedTuple):
    """Rows as they lie in memory, and the bytes of each part."""

    shape: Shape
    dtype: np.dtype[Any]
    columns: int
    slab_stride: int

    @classmethod
    def of(cls, shape: Shape) -> Self:
        """Return the budget of a shape; SettingsError."""
        if shape.dtype not in DTYPES:
            raise SettingsError(f"hot.dtype = {shape.dtype!r}: there are {', '.join(DTYPES)}")
        if shape.dtype == "float16" and shape.metric != "cosine":
            raise SettingsError("hot.dtype = 'float16' needs metric = 'cosine': other vectors may lie beyond 65,504")
        dtype = np.dtype(shape.dtype)
        width = LOAD_BYTES // dtype.itemsize
        budget = cls(shape, dtype, -(-shape.dim // width) * width, -(-shape.slab_rows // WORD_ROWS) * WORD_ROWS)
        if budget.rows > ROWS_MAX:
            raise SettingsError(f"hot.capacity_rows: a GPU takes {ROWS_MAX:,} rows at most")
        smallest = tiling.least(1)
        if shape.scratch_bytes < smallest:
            raise SettingsError(f"hot.scratch_bytes = {shape.scratch_bytes}: a search needs {smallest}")
        return budget

    @property
    def rows(self) -> int:
        """Rows of all slabs, padding included."""
        return self.shape.slabs * self.slab_stride

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, padding included."""
        return self.columns * self.dtype.itemsize

    @property
    def slab_words(self) -> int:
        """Words of a slab's mask."""
        return self.slab_stride // WORD_ROWS

    @property
    def asked_words(self) -> int:
        """Words of what a pass sends: floors, mask numbers and questions."""
        return tiling.QUESTIONS * (2 + self.columns) + LOAD_BYTES

    @property
    def found_words(self) -> int:
        """Words of what a pass brings back."""
        return min(tiling.FOUND_PLACES * 2, self.scratch_words)

    @property
    def scratch_words(self) -> int:
        """Words of a pass's scores and places."""
        return self.shape.scratch_bytes // 4

    def parts(self) -> dict[str, int]:
        """Return the bytes of each part."""
        return {
            "vectors": self.rows * self.row_bytes,
            "masks": Masks.COUNT * self.shape.slabs * self.slab_words * 4,
            "scratch": self.scratch_words * 4,
            "questions": self.asked_words * 4,
        }

    @property
    def pool_bytes(self) -> int:
        """Return what the pool may hold: all parts and nothing else."""
        return sum(self.parts().values()) + ROUNDING_BYTES

    def check(self, free: int, total: int) -> None:
        """Raise ServiceMissing where it does not fit, with what would."""
        need = self.pool_bytes + SPARE_BYTES
        if need <= free:
            return
        rest = need - self.rows * self.row_bytes
        fit = max(0, (free - rest) // self.row_bytes // self.slab_stride) * self.shape.slab_rows
        listed = ", ".join(f"{name} {size / GIB:.2f}" for name, size in self.parts().items())
        other = "" if self.dtype == np.float16 else ", set hot.dtype = 'float16'"
        raise ServiceMissing(
            f"hot needs {need / GIB:.2f} GiB on the GPU ({listed}, spare {SPARE_BYTES / GIB:.2f}), and {free / GIB:.2f}"
            f" of its {total / GIB:.2f} are free: lower hot.capacity_rows (about {fit:,} fit){other}, or free the GPU"
        )
