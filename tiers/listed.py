"""What a listing without vectors asks of its caller: which rows need none, because their codes were kept."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tiers import record
from tiers.record import Int64s

Partitions = npt.NDArray[np.int16] | npt.NDArray[np.int32]
Known = Callable[[Partitions, Int64s], npt.NDArray[np.bool_]]  # of partitions and versions


@runtime_checkable
class Sparse(Protocol):
    """A tier that lists rows without vectors."""

    def entries(self, known: Known) -> AsyncIterator[pa.RecordBatch]:
        """Yield every physical row as `record.entries` has it; with a page's vectors where one is not `known`."""


def all_known(found: pa.RecordBatch, known: Known) -> bool:
    """Say whether every record of a listing needs no vector; a tombstone has none."""
    partitions, versions = found["partition"].to_numpy(), record.versions_of(found)
    return bool((known(partitions, versions) | record.deleted_of(found)).all())
