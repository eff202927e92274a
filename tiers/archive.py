"""The archive's commit path: a Delta table whose every commit is fenced, durable and read back.

A commit is, in this order:

1. the data files are already durable (on a disk: they and their directories fsynced), and their footers read back;
2. the partition's epoch is looked up on a handle that is already loaded: not ours, `Fenced`;
3. the log entry is written as a new file, the one right after that handle's version: an entry of anyone else's in
   between, a newer owner's above all, makes it fail; then reload, and from 2 again (R4a). Where the answer to this
   write is lost, the storage finds out which it was (Storage.put_new), or the outcome is unknown;
4. the entry is durable, and the table reloaded must list every file with its size.

The epoch of a partition is the version of the Delta application transaction `isotherm-owner-<partition>`, which every
commit that touches the partition carries. A commit costs 10 to 20 ms, most of it delta-rs reading its log.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa
from deltalake.exceptions import DeltaError

from tiers import failpoint
from tiers.deltalog import DeltaLog, line, unavailable, unknown
from tiers.errors import Fenced, OutcomeUnknown, ServiceMissing, TierError, TierUnavailable
from tiers.parquet import DataFile
from tiers.storage import Storage

TRIES = 8  # entries of others that may get in between one commit's look and its write


class Archive:
    """The table, on one thread. `files`: the live data files by (partition, number); `epochs`: as last seen.

    `files` is never changed in place, so that other threads may look.
    """

    def __init__(self, log: DeltaLog, partitions: int) -> None:
        self.storage, self.log = log.storage, log
        self.files: dict[tuple[int, int], DataFile] = {}
        self.epochs: dict[int, int] = {}
        self._relist(range(partitions))

    @classmethod
    def open(cls, storage: Storage, schema: pa.Schema, partitions: int, facts: Mapping[str, str]) -> Archive:
        """Open the table, creating it if absent; ServiceMissing if it is another table than `facts` describe.

        What the life before left in the log without an fsync is made durable before it is believed.
        """
        try:
            log = DeltaLog.open(storage, schema, facts)
        except (DeltaError, OSError, TierError) as error:
            raise ServiceMissing(f"the archive at {storage.uri} does not open: {line(error)}") from error
        for name, value in facts.items():
            if log.fact(name) != value:
                raise ServiceMissing(
                    f"the archive at {storage.uri} was made for {name} {log.fact(name)}, not {value}: "
                    "name another glacier.path, or set what it was made for"
                )
        return cls(log, partitions)

    def __repr__(self) -> str:
        return f"<Archive {self.storage.uri} at version {self.log.version}: {len(self.files)} files>"

    def raise_epochs(self, epochs: Mapping[int, int]) -> None:
        """Make this life the owner of partitions, durably; Fenced if one has a higher epoch.

        Then look again: only from here on is it sure that nothing of the life before can still land.
        """
        self._commit(epochs, (), (), raising=True)
        failpoint.reach("archive.raised")
        self._relist(epochs)

    def commit(self, owners: Mapping[int, int], add: Sequence[DataFile] = (), remove: Sequence[DataFile] = ()) -> None:
        """Name new files and drop old ones in one commit. `owners`: our epoch of every partition touched.

        Fenced, TierUnavailable: nothing was changed. OutcomeUnknown: the log may or may not have it.
        """
        self._commit(owners, add, remove, raising=False)
        gone = {file.key for file in remove}
        kept = {key: file for key, file in self.files.items() if key not in gone}
        self.files = {**kept, **{file.key: file for file in add}}  # one assignment: other threads look here

    def _commit(
        self, owners: Mapping[int, int], add: Sequence[DataFile], remove: Sequence[DataFile], *, raising: bool
    ) -> None:
        with unavailable():
            self.log.checkpoint_if_due()
        for _ in range(TRIES):
            with unavailable():
                self._admit(owners, remove, raising=raising)
            failpoint.reach("archive.admitted")
            if self._append(owners, add, remove):
                self._prove(owners, add, remove)
                return
        raise TierUnavailable(f"{TRIES} commits of others came first; ask again")

    def _admit(self, owners: Mapping[int, int], remove: Sequence[DataFile], *, raising: bool = False) -> None:
        """Refuse what is not ours, as the handle shows it; the handle's version is the one the entry will follow."""
        for partition, epoch in owners.items():
            known = self.log.epoch(partition)
            if known > epoch or (known < epoch and not raising):
                raise Fenced(f"partition {partition} belongs to epoch {known}, this process has {epoch}")
        for file in remove:
            if file.path not in self.log.files():
                raise Fenced(f"another writer took {file.path} out of the archive; start again")

    def _append(self, owners: Mapping[int, int], add: Sequence[DataFile], remove: Sequence[DataFile]) -> bool:
        """Write the entry; False when another's has its number, which the handle then shows."""
        try:
            self.log.append(owners, add, remove)
        except FileExistsError:
            with unavailable():
                self.log.reload()
            return False
        except OSError as error:
            raise TierUnavailable(f"the archive took no commit: {line(error)}") from error
        return True

    def _landed(self, owners: Mapping[int, int], add: Sequence[DataFile], remove: Sequence[DataFile]) -> bool:
        """Say whether the handle shows what the commit wanted."""
        there = self.log.files()
        return (
            all(self.log.epoch(partition) == epoch for partition, epoch in owners.items())
            and all(file.path in there and there[file.path].bytes == file.bytes for file in add)
            and not any(file.path in there for file in remove)
        )

    def _prove(self, owners: Mapping[int, int], add: Sequence[DataFile], remove: Sequence[DataFile]) -> None:
        """Make the entry durable and read it back."""
        failpoint.reach("archive.entered")
        with unknown():
            self.log.reload()
            self.log.sync()
            failpoint.reach("archive.synced")
            landed = self._landed(owners, add, remove)
        if not landed:
            raise OutcomeUnknown(f"version {self.log.version} of the archive does not show what was committed")

    def _relist(self, partitions: Iterable[int]) -> None:
        """Take the files and epochs of these partitions from the handle."""
        chosen = set(partitions)
        with unavailable():
            self.epochs.update((partition, self.log.epoch(partition)) for partition in chosen)
            files = {file.key: file for file in self.log.files().values() if file.partition in chosen}
        kept = {key: file for key, file in self.files.items() if key[0] not in chosen}
        self.files = {**kept, **files}

    def unnamed(self, owners: Mapping[int, int], paths: Iterable[str]) -> list[str]:
        """Return those of our paths that no version names any more, as the newest shows it; Fenced if not ours."""
        with unavailable():
            self.log.reload()
            self._admit(owners, ())
        return [path for path in paths if path not in self.log.files()]
