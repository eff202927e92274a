"""Making the index anew at start, from every physical row of the tiers below hot (R3, design §5)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tiers import record
from tiers.index import Index
from tiers.record import Int64s
from tiers.tier import Location, Tier, TierName


async def nothing() -> None:
    """Do nothing between two batches."""


async def load(
    index: Index, tier: Tier, partitions: int, now_ms: int = 0, between: Callable[[], Awaitable[None]] = nothing
) -> list[tuple[TierName, Location]]:
    """Take in every physical row of a tier; call it top down, warm first.

    Highest version wins; of equal ones the lowest tier is home; every other row is queued (R3, §5). Returned are
    (tier it was known in, where it is) for rows also found above at the same version: their move was stored but
    perhaps never announced, so the caller announces it again. `between` batches is when codes are made, so that
    vectors do not pile up.
    """
    twice: list[tuple[TierName, Location]] = []
    async for found in tier.retrieve_all():
        slots = found["slot"].to_numpy()
        batch = found.drop_columns(["slot"])
        twice += _admit(index, tier.name, batch, record.partitions(batch["id"], partitions), slots, now_ms)
        await between()
    return twice


def _admit(
    index: Index, tier: TierName, batch: pa.RecordBatch, partition: npt.NDArray[np.int32], slots: Int64s, now_ms: int
) -> list[tuple[TierName, Location]]:
    unique = record.newest(batch.append_column("at", pa.array(np.arange(batch.num_rows))))
    ids, versions = batch["id"].to_pylist(), record.versions_of(batch)
    best = np.zeros(batch.num_rows, bool)
    best[unique["at"].to_numpy()] = True
    best &= index.newer(ids, versions)
    twice: list[tuple[TierName, Location]] = []
    for at in np.flatnonzero(~best).tolist():
        where = Location(ids[at], int(versions[at]), int(partition[at]), int(slots[at]))
        entry = index.find(where.id)
        if entry is not None and entry.version == where.version and tier > entry.home:
            above = TierName(entry.home)
            index.queue.add(above, Location(where.id, where.version, where.partition, entry.slot))
            vector = record.vectors_of(batch.slice(at, 1))
            index.relocate(tier, [where.id], versions[at : at + 1], slots[at : at + 1], vector)
            twice.append((above, where))
        else:
            index.queue.add(tier, where)
    rows = np.flatnonzero(best)
    if len(rows):
        chosen = batch if len(rows) == batch.num_rows else batch.take(pa.array(rows))
        for name, location in index.put(chosen, partition[rows], tier, slots[rows], now_ms):
            index.queue.add(name, location)
    return twice
