"""A process that writes everything that a node keeps on its disk, and says after each answer what must be there.

    python -m tests.tiers.power_child ROOT LOG

The marks in the shim's log are JSON: {"cold": {id: version}, "glacier": {...}, "cleared": offset, "keys": count}.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from pipeline.key_file import KeyFiles
from pipeline.manifest import Clearances, DataDirectory
from pipeline.settings import Settings
from tests.preload import mark
from tests.tiers.rows import DIM, SHAPE, batch, row
from tiers import record
from tiers.cold import ColdMemory
from tiers.cold_settings import ColdSettings
from tiers.glacier import GlacierMemory
from tiers.glacier_settings import GlacierSettings
from tiers.index import Index
from tiers.tier import Location, Receipt

PARTITIONS = 4
SETTINGS = Settings(dim=DIM)
STEPS = 12


def cold_settings(root: Path) -> ColdSettings:
    """A WAL that is checkpointed every few stores."""
    return ColdSettings(path=str(root / "cold"), memory_limit_mb=256, checkpoint_bytes=60_000, reserve_bytes=0)


def where(receipt: Receipt, at: int) -> Location:
    """Return where a row of a receipt lies."""
    identifier = receipt.ids[at]
    partition = record.partition(identifier, PARTITIONS)
    return Location(identifier, int(receipt.versions[at]), partition, int(receipt.slots[at]))


async def main(root: Path, log: Path) -> None:
    """Store, evict, rewrite and note, with a mark after each answer."""
    state: dict[str, object] = {"cold": {}, "glacier": {}, "cleared": 0, "keys": 0}
    cold_rows, glacier_rows = dict[str, int](), dict[str, int]()

    def say(**news: object) -> None:
        state.update(news)
        mark(log, json.dumps(state))

    with DataDirectory(root) as directory:
        notes = Clearances(directory, directory.manifest(SETTINGS))
        say()
        cold = await ColdMemory.open(cold_settings(root), SHAPE, partitions=PARTITIONS, index=Index.of(SHAPE))
        glacier = await GlacierMemory.open(
            GlacierSettings(path=str(root / "glacier")), SHAPE, partitions=PARTITIONS, index=Index.of(SHAPE)
        )
        for partition in range(PARTITIONS):
            await glacier.raise_epoch(partition, 1)
        say()
        keys = KeyFiles.under(str(root), "", "")
        for step in range(STEPS):
            rows = [row(f"id-{step}-{n}", step * 10 + 1) for n in range(20)]
            stored = await cold.store(batch(*rows))
            cold_rows |= {each.id: each.version for each in rows}
            say(cold=dict(cold_rows))
            await cold.evict([where(stored, 0), where(stored, 1)], None)
            cold_rows = {name: v for name, v in cold_rows.items() if name not in stored.ids[:2]}
            say(cold=dict(cold_rows))
            if step % 3 == 0:
                archived = await glacier.store(batch(*rows[:8]))
                glacier_rows |= {each.id: each.version for each in rows[:8]}
                say(glacier=dict(glacier_rows))
                gone = where(archived, 3)
                await glacier.rewrite(gone.partition, [gone])
                glacier_rows.pop(gone.id)
                say(glacier=dict(glacier_rows))
            if step % 4 == 0:
                notes.remember(0, step + 1)
                say(cleared=step + 1)
                with keys.changing() as present:
                    keys.ensure_pepper()
                    keys.write(present)
                say(keys=1)
        await cold.cleanup()
        await glacier.cleanup()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
