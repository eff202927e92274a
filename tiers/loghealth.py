"""What a power cut can leave in a Delta log, and its cure: a torn checkpoint, entries that are not synced.

delta-rs names a checkpoint before its bytes are on the disk. It is derived from the entries, so it may go; it would
make the table unreadable for good. It is renamed, not deleted. Entries are ours and whole (see Storage.put_new).
"""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from tiers.storage import Storage

LOG = "_delta_log"
LAST = f"{LOG}/_last_checkpoint"
NAME = re.compile(rf"{LOG}/(\d{{20}})\.(json|checkpoint(?:\..*)?\.parquet)")


def entry_path(version: int) -> str:
    """Return where the entry of a version is."""
    return f"{LOG}/{version:020}.json"


def named(storage: Storage) -> list[tuple[int, str]]:
    """Return (version, path) of every entry and checkpoint, by version."""
    return [(int(match[1]), path) for path in storage.list(LOG) if (match := NAME.fullmatch(path))]


def checkpoints(log: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Return those that are checkpoints."""
    return [(version, path) for version, path in log if not path.endswith(".json")]


def load(storage: Storage) -> DeltaTable:
    """Load the table, past a newest checkpoint that cannot be read."""
    try:
        return DeltaTable(storage.uri, storage_options=storage.options)
    except DeltaError:
        found = checkpoints(named(storage))
        if not found or _readable(storage, found[-1][1]):
            raise
        if LAST in storage.list(LOG):
            storage.put_aside(LAST)
        storage.put_aside(found[-1][1])
        return DeltaTable(storage.uri, storage_options=storage.options)


def _readable(storage: Storage, path: str) -> bool:
    try:
        with storage.open(path) as source:
            pq.read_table(source)
    except (OSError, pa.ArrowException):
        return False
    return True


def sync_from(storage: Storage, version: int) -> None:
    """Make durable what the life before may not have: the log from a version on. Data files were, before any entry."""
    last = [LAST] if LAST in storage.list(LOG) else []
    storage.sync([path for at, path in named(storage) if at >= version] + last)
