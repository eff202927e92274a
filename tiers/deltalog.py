"""The archive's Delta log: read by delta-rs, written here, and nothing that decides.

A handle shows one version until `reload`. `append` writes the entry right after that version or not at all. The entry
is written as a file that must be new, not through delta-rs: its retries would slip past whatever got in between, and
it makes no difference between a commit that was refused and one that was not answered.

The log is bounded: a checkpoint every CHECKPOINT_COMMITS, and of what lies ENTRIES_KEPT before it nothing stays. A
writer that slept through all of these finds its number free, and writes an entry that nobody reads; it knows when it
reads back, since the handle then shows the newest version, without its files (R4a).
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable
from deltalake import Schema as DeltaSchema
from deltalake.exceptions import DeltaError

from tiers import loghealth
from tiers.errors import IsothermError, OutcomeUnknown, TierCorrupt, TierUnavailable
from tiers.loghealth import LAST, LOG, entry_path
from tiers.parquet import DataFile
from tiers.storage import Storage

PATH = re.compile(r"partition=(\d+)/e(\d+)-(\d+)\.parquet")
CHECKPOINT_COMMITS = 50  # log entries that a load reads one by one, about 0.2 ms each
ENTRIES_KEPT = 500  # before a checkpoint: time travel, readers that are slow, and one page of a bucket's listing
FACTS = "isotherm."  # prefix of our keys in the table's configuration
STATS = "version,event_time"  # what the log says of a file; not ids, since that outlives the erasure of its rows


def folder_of(partition: int) -> str:
    """Return where the data files of a partition are."""
    return f"partition={partition}"


def path_of(partition: int, epoch: int, number: int) -> str:
    """Return where a data file goes."""
    return f"{folder_of(partition)}/e{epoch}-{number}.parquet"


def parse(path: str) -> tuple[int, int] | None:
    """Return (partition, number) of a data file's path, None if it is no name of ours."""
    match = PATH.fullmatch(path)
    return (int(match[1]), int(match[3])) if match else None


def owner(partition: int) -> str:
    """Return the Delta application id whose transaction version is the partition's epoch."""
    return f"isotherm-owner-{partition}"


class DeltaLog:
    """One table's log, on one thread. Everything it has seen by `open` and `sync` is on stable storage."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._table = loghealth.load(storage)
        self.entries = len(log := loghealth.named(storage))
        self.checkpoint = max((version for version, _ in loghealth.checkpoints(log)), default=0)
        loghealth.sync_from(storage, self.checkpoint)
        self._synced = self.version

    @classmethod
    def open(cls, storage: Storage, schema: pa.Schema, facts: Mapping[str, str]) -> DeltaLog:
        """Open the log, healed and fsynced, creating the table if absent. DeltaError, OSError, TierError if not."""
        storage.prepare()
        if not loghealth.named(storage):
            with suppress(
                FileExistsError
            ):  # two may begin at once: the first makes the table, both look at what it made
                storage.put_new(entry_path(0), _lines(_creation(schema, facts)))
        return cls(storage)

    @property
    def version(self) -> int:
        """The version of the handle: the number of its newest entry."""
        return int(self._table.version())

    def reload(self) -> None:
        """Show the newest version."""
        self._table.update_incremental()

    def fact(self, name: str) -> str | None:
        """Return what the table was created with."""
        return self._table.metadata().configuration.get(FACTS + name)

    def epoch(self, partition: int) -> int:
        """Return the partition's epoch, 0 if none was ever raised."""
        return self._table.transaction_version(owner(partition)) or 0

    def files(self) -> Iterator[DataFile]:
        """Yield every file that the version names; TierCorrupt for one that is not of our making."""
        table = pa.table(self._table.get_add_actions(flatten=True))
        columns = (table[name].to_pylist() for name in ("path", "size_bytes", "num_records"))
        for path, size, rows in zip(*columns, strict=True):
            name = parse(path)
            if name is None or rows is None:
                raise TierCorrupt(
                    f"{path} in the archive was written by something else; glacier cannot number its rows"
                )
            yield DataFile(*name, path, rows, size)

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
        self.storage.put_new(entry_path(self.version + 1), _lines([_information("WRITE", now_ms), *actions]))
        self.entries += 1

    def sync(self) -> None:
        """Make every entry up to the handle's version durable."""
        self.storage.sync(entry_path(number) for number in range(self._synced + 1, self.version + 1))
        self._synced = self.version

    def checkpoint_if_due(self) -> None:
        """Write a checkpoint every CHECKPOINT_COMMITS, durably, then remove what lies ENTRIES_KEPT before it."""
        if self.version - self.checkpoint < CHECKPOINT_COMMITS:
            return
        self._table.create_checkpoint()
        self.storage.sync([f"{LOG}/{self.version:020}.checkpoint.parquet", LAST])
        self.checkpoint = self.version
        log = loghealth.named(self.storage)
        old = [path for version, path in log if version < self.checkpoint - ENTRIES_KEPT]
        self.storage.remove(old)
        self.entries = len(log) - len(old)
        # A handle that goes on from before reads all entries since then.
        self._table = DeltaTable(self.storage.uri, storage_options=self.storage.options)


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
    protocol = {"minReaderVersion": 1, "minWriterVersion": 2}
    return [_information("CREATE TABLE", now_ms), {"protocol": protocol}, {"metaData": table}]


def _information(operation: str, now_ms: int) -> dict[str, Any]:
    """Return the action that says who wrote the entry; the random id makes it differ from every other's."""
    about = {"operation": operation, "operationParameters": {}, "timestamp": now_ms, "engineInfo": "isotherm"}
    return {"commitInfo": {**about, "isotherm.entry": uuid.uuid4().hex}}


def _lines(actions: Sequence[Mapping[str, Any]]) -> bytes:
    return b"".join(json.dumps(action, separators=(",", ":")).encode() + b"\n" for action in actions)


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
