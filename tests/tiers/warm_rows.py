"""Warm's rows for tests, in the fewest words, and the tier as the system opens it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pyarrow as pa

from tiers import record
from tiers.index import Index
from tiers.record import Row
from tiers.tier import Location
from tiers.warm import WarmMemory
from tiers.warm_settings import WarmSettings

DIM, PARTITIONS = 8, 4
SHAPE = record.schema(DIM, {"user": "string", "score": "float", "seen": "timestamp"})


@asynccontextmanager
async def opened(settings: WarmSettings, epoch: int = 1) -> AsyncIterator[WarmMemory]:
    tier = await WarmMemory.open(settings, SHAPE, partitions=PARTITIONS, index=Index.of(SHAPE))
    try:
        for partition in range(PARTITIONS):
            await tier.raise_epoch(partition, epoch)
        yield tier
    finally:
        await tier.cleanup()


def row(identifier: str, version: int = 1, payload: bytes = b"{}", *, deleted: bool = False) -> Row:
    vector = None if deleted else np.full(DIM, 1 + len(identifier), np.float32)
    return Row(identifier, version, 1_700_000_000_000, None, vector, payload, {} if deleted else {"user": "u"}, deleted)


def batch(*rows: Row) -> pa.RecordBatch:
    return record.to_batch(rows, SHAPE)


def rows(number: int, version: int = 1, payload: bytes = b"{}") -> pa.RecordBatch:
    return batch(*(row(f"ns/{at}", version, payload) for at in range(number)))


def at(identifier: str, version: int = 1) -> Location:
    return Location(identifier, version, record.partition(identifier, PARTITIONS))


async def versions(tier: WarmMemory) -> dict[str, int]:
    """What the tier physically holds; fails when an id comes twice."""
    found = [pair async for part in tier.retrieve_all() for pair in pairs(part)]
    assert len(found) == len(dict(found))
    return dict(found)


def pairs(part: pa.RecordBatch) -> Sequence[tuple[str, int]]:
    return list(zip(part["id"].to_pylist(), part["version"].to_pylist(), strict=True))
