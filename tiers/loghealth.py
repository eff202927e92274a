"""What a power cut can leave in a Delta log, and its cure: a torn last entry, a torn checkpoint, unsynced entries.

delta-rs names an entry or a checkpoint before its bytes are on the disk. A torn last entry was never confirmed to
anyone, and a checkpoint is derived from the entries, so both may go; either would make the table unreadable for good.
They are renamed, not deleted.
"""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from tiers.disk import Disk

LOG = "_delta_log"
LAST = f"{LOG}/_last_checkpoint"
ACTIONS = "isotherm.actions"  # in our entries' commitInfo: how many lines follow it
DIGITS = 20  # of the version in the name of an entry or checkpoint


def version_of(path: str) -> int:
    """Return the version that a file of the log belongs to."""
    return int(path.rpartition("/")[2][:DIGITS])


def _entries(disk: Disk) -> list[str]:
    return [found.path for found in disk.list(f"{LOG}/{'[0-9]' * DIGITS}.json")]


def _checkpoints(disk: Disk) -> list[str]:
    return [found.path for found in disk.list(f"{LOG}/{'[0-9]' * DIGITS}.checkpoint*.parquet")]


def checkpoint_version(disk: Disk) -> int:
    """Return the version of the newest checkpoint, 0 if there is none."""
    return max((version_of(path) for path in _checkpoints(disk)), default=0)


def heal(disk: Disk) -> None:
    """Put aside a last entry that is not whole. Only the last can be torn: each was fsynced before the next."""
    entries = _entries(disk)
    if entries and not whole(disk.read(entries[-1])):
        disk.rename(entries[-1], f"{entries[-1]}.torn")


def whole(entry: bytes) -> bool:
    """Say whether an entry has all its lines; of an entry that says how many (ours do) none may miss. Pure."""
    try:
        actions = [json.loads(line) for line in entry.decode().splitlines() if line]
    except ValueError:
        return False
    if not actions:
        return False
    declared = next((each["commitInfo"].get(ACTIONS) for each in actions if "commitInfo" in each), None)
    return declared is None or int(declared) == len(actions) - 1


def load(disk: Disk) -> DeltaTable:
    """Load the table, past a newest checkpoint that cannot be read."""
    try:
        return DeltaTable(disk.uri)
    except DeltaError:
        checkpoints = _checkpoints(disk)
        if not checkpoints or _readable(disk, checkpoints[-1]):
            raise
        if disk.exists(LAST):
            disk.rename(LAST, f"{LAST}.torn")
        disk.rename(checkpoints[-1], f"{checkpoints[-1]}.torn")
        return DeltaTable(disk.uri)


def _readable(disk: Disk, path: str) -> bool:
    try:
        with disk.open(path) as source:
            pq.read_table(source)
    except (OSError, pa.ArrowException):
        return False
    return True


def sync_from(disk: Disk, version: int) -> None:
    """Make durable what the life before may not have: the log from a version on. Data files were, before any entry."""
    paths = [path for path in (*_entries(disk), *_checkpoints(disk)) if version_of(path) >= version]
    disk.sync(paths + ([LAST] if disk.exists(LAST) else []))
