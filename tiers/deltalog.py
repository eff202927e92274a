"""The handle on the archive's Delta log: what delta-rs reads and writes of it, and nothing that decides.

A handle shows one version until `reload`. `append` writes the entry right after that version or not at all: delta-rs
is given no retries, since a retry would slip past whatever got in between.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, RemoveAction

from tiers import loghealth
from tiers.disk import Disk
from tiers.errors import IsothermError, OutcomeUnknown, TierCorrupt, TierUnavailable
from tiers.loghealth import ACTIONS, LAST, LOG
from tiers.parquet import DataFile

PATH = re.compile(r"partition=(\d+)/e(\d+)-(\d+)\.parquet")
CHECKPOINT_COMMITS = 50  # log entries that a load reads one by one, about 0.2 ms each
FACTS = "isotherm."  # prefix of our keys in the table's configuration
HOOKS = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)  # they would not be fsynced


def path_of(partition: int, epoch: int, number: int) -> str:
    """Return where a data file goes."""
    return f"partition={partition}/e{epoch}-{number}.parquet"


def parse(path: str) -> tuple[int, int] | None:
    """Return (partition, number) of a data file's path, None if it is no name of ours."""
    match = PATH.fullmatch(path)
    return (int(match[1]), int(match[3])) if match else None


def owner(partition: int) -> str:
    """Return the Delta application id whose transaction version is the partition's epoch."""
    return f"isotherm-owner-{partition}"


class DeltaLog:
    """One table's log, on one thread. Everything it has seen by `open` and `sync` is on stable storage."""

    def __init__(self, disk: Disk, schema: pa.Schema) -> None:
        self.disk, self._schema = disk, schema
        self._table = loghealth.load(disk)
        self._checkpoint = loghealth.checkpoint_version(disk)
        loghealth.sync_from(disk, self._checkpoint)
        self._synced = self.version

    @classmethod
    def open(cls, disk: Disk, schema: pa.Schema, facts: Mapping[str, str]) -> DeltaLog:
        """Open the log, healed and fsynced, creating the table if absent. DeltaError or OSError if that fails."""
        disk.make(LOG)
        loghealth.heal(disk)
        if not DeltaTable.is_deltatable(disk.uri):
            DeltaTable.create(
                disk.uri,
                schema=schema,
                partition_by=["partition"],
                name="isotherm",
                description="Isotherm's glacier tier: of an id the row with the highest version counts",
                configuration={
                    "delta.dataSkippingStatsColumns": "version,event_time",
                    **{FACTS + name: value for name, value in facts.items()},
                },
                raise_if_key_not_exists=False,
            )
        return cls(disk, schema)

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
        """Write the entry after the handle's version. The handle still shows the old one; not durable before `sync`."""
        actions = [_add(file) for file in add] + [_remove(file) for file in remove]
        self._table.create_write_transaction(
            actions,
            mode="append",
            schema=self._schema,
            partition_by=["partition"],
            commit_properties=CommitProperties(
                max_commit_retries=0,
                app_transactions=[Transaction(owner(partition), epoch) for partition, epoch in owners.items()],
                custom_metadata={ACTIONS: str(len(actions) + len(owners))},
            ),
            post_commithook_properties=HOOKS,
        )

    def sync(self) -> None:
        """Make every entry up to the handle's version durable."""
        self.disk.sync(f"{LOG}/{number:020}.json" for number in range(self._synced + 1, self.version + 1))
        self._synced = self.version

    def checkpoint_if_due(self) -> None:
        """Write a checkpoint every CHECKPOINT_COMMITS, durably, then drop entries it covers that are 30 days old.

        A stale owner that slept longer than these 30 days (delta.logRetentionDuration) would find its entry's number
        free again: the one hole in the fence, and wider than any pause.
        """
        if self.version - self._checkpoint < CHECKPOINT_COMMITS:
            return
        self._table.create_checkpoint()
        self.disk.sync([f"{LOG}/{self.version:020}.checkpoint.parquet", LAST])
        self._checkpoint = self.version
        self._table = DeltaTable(self.disk.uri)  # a handle that goes on from before reads all entries since then
        self._table.cleanup_metadata()


def _add(file: DataFile) -> AddAction:
    partition = {"partition": str(file.partition)}
    return AddAction(file.path, file.bytes, partition, file.touched_ms, data_change=True, stats=file.stats)


def _remove(file: DataFile) -> RemoveAction:
    partition: dict[str, str | None] = {"partition": str(file.partition)}
    return RemoveAction(
        file.path,
        data_change=True,
        deletion_timestamp=file.touched_ms,
        size=file.bytes,
        partition_values=partition,
    )


def line(error: Exception) -> str:
    """Return an error's first line: delta-rs appends a backtrace."""
    return str(error).partition("\n")[0]


def is_conflict(error: Exception) -> bool:
    """Say whether an `append` failed because an entry with that number exists."""
    return isinstance(error, CommitFailedError)


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
