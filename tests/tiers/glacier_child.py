"""A process that stores one row in glacier and is killed at a step of the commit: python -m tests.tiers.glacier_child.

Arguments: the archive's path, and what the fsync that it dies at is for: "file", "folder" or "entry".
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from tests.tiers.rows import SHAPE, batch, row
from tiers.glacier import GlacierMemory
from tiers.glacier_settings import GlacierSettings

PARTITIONS = 4


def killer(step: str, armed: list[bool]):
    """Return an fsync that kills this process at the step, before anything is synced."""

    def fsync(path: Path) -> None:
        found = "entry" if path.suffix == ".json" else "file" if path.suffix == ".parquet" else "folder"
        if armed and found == step and path.name != "archive":
            os.kill(os.getpid(), signal.SIGKILL)

    return fsync


async def main(path: str, step: str) -> None:
    """Store version 2 of the row, and die on the way."""
    armed: list[bool] = []
    tier = await GlacierMemory.open(GlacierSettings(path=path), SHAPE, partitions=PARTITIONS, fsync=killer(step, armed))
    armed.append(True)
    await tier.store(batch(row("a", 2)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
