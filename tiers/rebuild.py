"""Making the index anew at start, from every physical row of the tiers below hot (R3, design §5).

A tier that can (`Sparse`) lists rows without their vectors where their codes were kept; it still is the tier that says
which rows there are. What is not known by its code comes with its vector, page by page.

Measured on one core of two shared ones, 256 dimensions: see `python -m benchmarks.rebuild`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tiers import record
from tiers.adopting import Adopting
from tiers.index import Coded, Index
from tiers.listed import Known, Sparse
from tiers.record import Int64s
from tiers.saved import Saved
from tiers.tier import Location, Tier, TierName
from tiers.worker import SerialExecutor

Bools = npt.NDArray[np.bool_]


async def nothing() -> None:
    """Do nothing between two batches."""


async def load(
    index: Index,
    tier: Tier,
    partitions: int,
    now_ms: int = 0,
    between: Callable[[], Awaitable[None]] = nothing,
    saved: Saved | None = None,
    pool: SerialExecutor | None = None,
) -> list[tuple[TierName, Location]]:
    """Take in every physical row of a tier; call it top down, warm first.

    Highest version wins; of equal ones the lowest tier is home; every other row is queued (R3, §5). Returned are
    (tier it was known in, where it is) for rows also found above at the same version: their move was stored but
    perhaps never announced, so the caller announces it again. `between` batches is when codes are made, so that
    vectors do not pile up. `saved` are codes of `index.codebook`; they are packed on the `pool`.
    """
    twice: list[tuple[TierName, Location]] = []
    if saved is not None and not len(saved):
        saved = None
    adopting = Adopting(index, pool)
    sparse = saved is not None and isinstance(tier, Sparse)
    listing = cast(Sparse, tier).entries(_known(cast(Saved, saved))) if sparse else tier.retrieve_all()
    async for found in listing:
        twice += _admit(index, tier.name, found, _partition(found, partitions), now_ms, saved)
        adopting.begin()
        await between()
    await adopting.finish()
    return twice


def _known(saved: Saved) -> Known:
    return lambda partitions, versions: saved.find(partitions, versions) >= 0


def _partition(found: pa.RecordBatch, partitions: int) -> npt.NDArray[np.int32]:
    """Return the partition of each row, computed where the tier does not say."""
    if "partition" in found.schema.names:
        said: npt.NDArray[np.int32] = found["partition"].to_numpy().astype(np.int32, copy=False)
        return said
    return record.partitions(found["id"], partitions)


def _admit(
    index: Index,
    tier: TierName,
    found: pa.RecordBatch,
    partition: npt.NDArray[np.int32],
    now_ms: int,
    saved: Saved | None,
) -> list[tuple[TierName, Location]]:
    ids, versions, slots = found["id"].to_pylist(), record.versions_of(found), found["slot"].to_numpy()
    claimed = index.claim(ids)
    if claimed is not None:  # nothing was known of any: the common case, with one look at the map
        index.put(found, partition, tier, slots, now_ms, _coded(saved, found, partition), claimed)
        return []
    best = _newest(found, ids) & index.newer(ids, versions)
    twice = _beaten(index, tier, found, np.flatnonzero(~best), partition)
    if best.any():
        rows = np.flatnonzero(best)
        chosen = found if len(rows) == len(ids) else found.take(pa.array(rows))
        coded = _coded(saved, chosen, partition[rows])
        for name, location in index.put(chosen, partition[rows], tier, slots[rows], now_ms, coded):
            index.queue.add(name, location)
    return twice


def _newest(found: pa.RecordBatch, ids: list[str]) -> Bools:
    """Return which rows are the newest of their id in this batch."""
    best = np.ones(len(ids), bool)
    if len(set(ids)) < len(ids):
        places = pa.RecordBatch.from_arrays(
            [found["id"], found["version"], pa.array(np.arange(len(ids)))], names=["id", "version", "at"]
        )
        best[:] = False
        best[record.newest(places)["at"].to_numpy()] = True
    return best


def _coded(saved: Saved | None, chosen: pa.RecordBatch, partition: npt.NDArray[np.int32]) -> Coded | None:
    """Return the codes that are known of these rows; a tombstone has none."""
    if saved is None:
        return None
    at = saved.find(partition, record.versions_of(chosen))
    mask = (at >= 0) & ~record.deleted_of(chosen)
    return Coded(mask, saved.codes(at[mask]))


def _beaten(
    index: Index, tier: TierName, found: pa.RecordBatch, rows: Int64s, partition: npt.NDArray[np.int32]
) -> list[tuple[TierName, Location]]:
    """Queue rows that are not the newest known, or the row above where it is the very same one; returns the latter."""
    twice: list[tuple[TierName, Location]] = []
    ids, versions, slots = found["id"], found["version"], found["slot"]
    for at in rows.tolist():
        where = Location(ids[at].as_py(), versions[at].as_py(), int(partition[at]), slots[at].as_py())
        entry = index.find(where.id)
        if entry is not None and entry.version == where.version and tier > entry.home:
            above = TierName(entry.home)
            index.queue.add(above, Location(where.id, where.version, where.partition, entry.slot))
            index.relocate(tier, [where.id], np.array([where.version]), np.array([where.slot]), None)
            twice.append((above, where))
        else:
            index.queue.add(tier, where)
    return twice
