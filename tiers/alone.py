"""What lets each tier be used alone: put-if-newer over an index of its own, and its eviction of what it supersedes.

In the whole system the mover and ingest do this with the one shared index; a tier then only calls `choose`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import compress

import numpy as np
import pyarrow as pa

from tiers import read, record
from tiers.index import Index
from tiers.rebuild import load
from tiers.record import Int64s
from tiers.steps import looks, turn
from tiers.tier import Query, Receipt, Result, Tier, TierName


@dataclass(frozen=True, slots=True)
class Choice:
    """`winners`: rows to write, one an id. `held`: for the other ids the (version, slot) that the tier keeps."""

    batch: pa.RecordBatch
    winners: pa.RecordBatch
    held: Mapping[str, tuple[int, int]]

    def receipt(self, tier: TierName, winner_slots: Int64s, proof: str) -> Receipt:
        """Return the receipt for every distinct id of the batch, once the winners are durable."""
        ids, versions = self.batch["id"].to_pylist(), record.versions_of(self.batch)
        if not self.held:
            return Receipt(tier, ids, versions, winner_slots, versions, proof)
        kept = np.array([identifier in self.held for identifier in ids], bool)
        slots, held = np.empty(len(ids), np.int64), versions.copy()
        slots[~kept] = winner_slots
        there = [self.held[identifier] for identifier in compress(ids, kept.tolist())]
        held[kept], slots[kept] = np.array(there, np.int64).reshape(-1, 2).T
        return Receipt(tier, ids, versions, slots, held, proof)


async def choose(index: Index, tier: TierName, batch: pa.RecordBatch) -> Choice:
    """Reduce the batch to its newest rows and decide which of them the tier does not hold in that version or newer.

    In steps: what the tier holds of these ids changes in their lane only, which waits for this.
    """
    unique = record.newest(batch)
    held: dict[str, tuple[int, int]] = {}
    write = np.ones(unique.num_rows, bool)
    ids, versions = unique["id"].to_pylist(), record.versions_of(unique)
    for some in looks(len(ids)):
        if some.start:
            await turn()
        for at in (some.start + np.flatnonzero(index.holding(tier, ids[some]))).tolist():
            highest = max(index.held(tier, ids[at]), default=None)
            if highest is not None and highest[0] >= versions[at]:
                held[ids[at]], write[at] = highest, False
    winners = unique if write.all() else unique.filter(pa.array(write))
    return Choice(unique, winners, held)


async def settle(tier: Tier, index: Index, partitions: int, receipt: Receipt, batch: pa.RecordBatch) -> None:
    """Enter what was stored into the tier's own index and evict what it supersedes."""
    unique = record.newest(batch)
    new = index.newer(receipt.ids, receipt.versions)
    partition = record.partitions(unique["id"], partitions)
    chosen = unique.filter(pa.array(new))
    masked = index.put(chosen, partition[new], tier.name, receipt.slots[new], 0)
    await tier.evict([where for _, where in masked], None)


async def open_alone(tier: Tier, index: Index, partitions: int) -> None:
    """Fill a tier's own index from what it holds, and evict what a newer row supersedes."""
    await load(index, tier, partitions)
    for partition in range(partitions):
        while waiting := index.queue.list(partition, tier.name, 1000):
            await tier.evict(waiting, None)
            for where in waiting:
                index.queue.remove(tier.name, where)


async def find(tier: Tier, index: Index, query: Query) -> Result:
    """Answer a query from one tier alone."""
    return await read.retrieve(index, {tier.name: tier}, query)
