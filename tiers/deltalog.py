"""The archive's Delta log: written here, in the form that every engine reads, and nothing that decides.

A handle shows one version until `reload`. `append` writes the entry right after that version or not at all. That is a
file that must be new, and not delta-rs's commit: its retries would slip past whatever got in between, it makes no
difference between a commit that was refused and one that was not answered, and it reads the whole log for each look.

The log is bounded: a checkpoint (by delta-rs) every CHECKPOINT_COMMITS, and of what lies ENTRIES_KEPT before it nothing
stays. A writer that slept through all of these finds its number free, and writes an entry that nobody reads; it knows
when it reads back, since the newest version, which it is shown then, does not have its files (R4a).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable
from deltalake import Schema as DeltaSchema
from deltalake.exceptions import DeltaError

from tiers import failpoint, replay
from tiers.errors import IsothermError, OutcomeUnknown, TierUnavailable
from tiers.parquet import DataFile
from tiers.replay import FACTS, LAST, READER, WRITER, checkpoint_path, entry_path, seal_path
from tiers.storage import Storage

CHECKPOINT_COMMITS = 50  # entries that a load reads one by one
ENTRIES_KEPT = 500  # before a checkpoint: time travel, readers that are slow, and one page of a bucket's listing
STATS = "version,event_time"  # what the log says of a file; not ids, since that outlives the erasure of its rows


def folder_of(partition: int) -> str:
    """Return where the data files of a partition are."""
    return f"partition={partition}"


def path_of(partition: int, epoch: int, number: int) -> str:
    """Return where a data file goes."""
    return f"{folder_of(partition)}/e{epoch}-{number}.parquet"


def owner(partition: int) -> str:
    """Return the Delta application id whose transaction version is the partition's epoch."""
    return f"isotherm-owner-{partition}"


class DeltaLog:
    """One table's log, on one thread. Everything it has seen by `open` and `sync` is on stable storage."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._state = replay.read(storage)
        log = replay.named(storage)
        self.entries, self.checkpoint = len(log), max(replay.checkpoints(log), default=0)
        last = [LAST] if LAST in storage.list(replay.LOG) else []
        storage.sync([path for version, path in log if version >= self.checkpoint] + last)
        self._synced = self.version

    @classmethod
    def open(cls, storage: Storage, schema: pa.Schema, facts: Mapping[str, str]) -> DeltaLog:
        """Open the log, healed and synced, creating the table if absent. OSError or TierError if that cannot be."""
        storage.prepare()
        if not replay.named(storage):
            with suppress(FileExistsError):  # two may begin at once: both look at what the first has made
                storage.put_new(entry_path(0), replay.entry(_creation(schema, facts)))
        return cls(storage)

    @property
    def version(self) -> int:
        """The version of the handle: the number of its newest entry."""
        return self._state.version

    def reload(self) -> None:
        """Show the newest version."""
        self._state = replay.follow(self.storage, self._state)

    def fact(self, name: str) -> str | None:
        """Return what the table was created with."""
        return self._state.facts.get(name)

    def epoch(self, partition: int) -> int:
        """Return the partition's epoch, 0 if none was ever raised."""
        return self._state.epochs.get(owner(partition), 0)

    def files(self) -> Mapping[str, DataFile]:
        """Return every file that the version names, by path."""
        return self._state.files

    def append(self, owners: Mapping[int, int], add: Sequence[DataFile], remove: Sequence[DataFile]) -> None:
        """Write the entry after the handle's version; FileExistsError if another's has that number.

        The handle still shows the old version; not durable before `sync`.
        """
        now_ms = time.time_ns() // 1_000_000  # for people who read the log; nothing is decided by it
        actions = [
            {"txn": {"appId": owner(partition), "version": epoch, "lastUpdated": now_ms}}
            for partition, epoch in owners.items()
        ]
        actions += [_add(file) for file in add] + [_remove(file) for file in remove]
        self.storage.put_new(entry_path(self.version + 1), replay.entry([_information("WRITE", now_ms), *actions]))
        self.entries += 1

    def sync(self) -> None:
        """Make every entry up to the handle's version durable."""
        self.storage.sync(entry_path(number) for number in range(self._synced + 1, self.version + 1))
        self._synced = self.version

    def checkpoint_if_due(self) -> None:
        """Write a checkpoint every CHECKPOINT_COMMITS, durably, then remove what lies ENTRIES_KEPT before it."""
        if self.version - self.checkpoint < CHECKPOINT_COMMITS:
            return
        table = DeltaTable(self.storage.uri, storage_options=self.storage.options)
        table.create_checkpoint()
        failpoint.reach("archive.checkpoint_written")
        self.checkpoint = int(table.version())
        made, seal = checkpoint_path(self.checkpoint), seal_path(self.checkpoint)
        self.storage.put_new(seal, replay.seal(self.storage.read(made)))
        self.storage.sync([made, seal, LAST])
        failpoint.reach("archive.checkpoint_synced")
        log = replay.named(self.storage)
        old = [path for version, path in log if version < self.checkpoint - ENTRIES_KEPT]
        self.storage.remove([*old, *map(seal_path, replay.checkpoints((v, p) for v, p in log if p in old))])
        self.entries = len(log) - len(old)


def _creation(schema: pa.Schema, facts: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the first entry: a table that every reader and writer of Delta understands."""
    now_ms = time.time_ns() // 1_000_000
    table = {
        "id": str(uuid.uuid4()),
        "name": "isotherm",
        "description": "Isotherm's glacier tier: of an id the row with the highest version counts",
        "format": {"provider": "parquet", "options": {}},
        "schemaString": DeltaSchema.from_arrow(schema).to_json(),
        "partitionColumns": ["partition"],
        "createdTime": now_ms,
        "configuration": {
            "delta.dataSkippingStatsColumns": STATS,
            **{FACTS + name: value for name, value in facts.items()},
        },
    }
    protocol = {"minReaderVersion": READER, "minWriterVersion": WRITER}
    return [_information("CREATE TABLE", now_ms), {"protocol": protocol}, {"metaData": table}]


def _information(operation: str, now_ms: int) -> dict[str, Any]:
    """Return the action that says who wrote the entry; the random id makes it differ from every other's."""
    about = {"operation": operation, "operationParameters": {}, "timestamp": now_ms, "engineInfo": "isotherm"}
    return {"commitInfo": {**about, "isotherm.entry": uuid.uuid4().hex}}


def _add(file: DataFile) -> dict[str, Any]:
    return {
        "add": {
            "path": file.path,
            "partitionValues": {"partition": str(file.partition)},
            "size": file.bytes,
            "modificationTime": file.touched_ms,
            "dataChange": True,
            "stats": file.stats,
        }
    }


def _remove(file: DataFile) -> dict[str, Any]:
    return {
        "remove": {
            "path": file.path,
            "deletionTimestamp": file.touched_ms,
            "dataChange": True,
            "extendedFileMetadata": True,
            "partitionValues": {"partition": str(file.partition)},
            "size": file.bytes,
        }
    }


def line(error: Exception) -> str:
    """Return an error's first line: delta-rs appends a backtrace."""
    return str(error).partition("\n")[0]


@contextmanager
def unavailable() -> Iterator[None]:
    """Translate for a block before which, and in which, nothing is changed."""
    try:
        yield
    except (DeltaError, OSError) as error:
        raise TierUnavailable(f"the archive: {line(error)}") from error


@contextmanager
def unknown() -> Iterator[None]:
    """Translate for a block after an `append`: the entry may be in the log."""
    try:
        yield
    except (DeltaError, OSError, IsothermError) as error:
        raise OutcomeUnknown(f"a commit to the archive was sent and not confirmed: {line(error)}") from error
