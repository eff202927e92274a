"""The rows of the cold tier's DuckDB file, owned by one thread, and its errors in our words.

No primary key and no secondary index: slots grow, so zone maps find a range, and DuckDB's indexes had most of its
corruption reports. DuckDB fdatasyncs the WAL at commit, but each checkpoint unlinks it and the next commit makes a new
one: the directory is fsynced after that commit, or a power loss could take the new file's name.

A failed COMMIT rolls back by itself and leaves the file usable; a failed CHECKPOINT invalidates the whole instance
(both measured on a full disk). So DuckDB never checkpoints by itself here, and `checkpoint` first looks for room.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tiers import cold_file, failpoint, record
from tiers.cold_file import first_line
from tiers.cold_witness import Witness
from tiers.disk import Disk, fsync
from tiers.errors import InvalidRecord, IsothermError, OutcomeUnknown, TierCorrupt, TierFull, TierUnavailable
from tiers.record import Int64s
from tiers.tier import Places

FULL = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT))
COPY = "import shutil, sys; shutil.copyfile(sys.argv[1], sys.argv[2])"


class Table:
    """The rows of one DuckDB file. Every method runs on the thread that owns it."""

    def __init__(self, directory: Path, shape: pa.Schema, *, memory_limit_mb: int, threads: int) -> None:
        self._directory, self.file = directory, directory / "cold.duckdb"
        self._wal = directory / "cold.duckdb.wal"
        has_attributes = shape.field("attributes").type.num_fields > 0  # DuckDB has no empty struct
        self._columns = [field for field in shape if field.name != "attributes" or has_attributes]
        self._shape = shape.append(pa.field("slot", pa.int64(), nullable=False))
        names = ", ".join(f"rows.{field.name}" for field in self._columns)
        self._select = f"SELECT {names}, rows.slot FROM rows"  # noqa: S608 - the schema's own names
        self._entries = record.entries(shape)
        self._wal_is_new = True
        Disk(directory).make()
        self._lock = cold_file.lock(directory / "cold.lock", self.file)
        self._witness = Witness(self.file, self._wal)
        try:
            self._witness.check()
            self._connection = cold_file.connect(self.file, self._columns, memory_limit_mb, threads)
            self._witness.open()
        except BaseException:
            os.close(self._lock)
            raise
        fsync(directory)

    # -- writing -----------------------------------------------------------------------------------------------------

    def insert(self, batch: pa.RecordBatch, slots: Int64s, partitions: npt.NDArray[np.int32]) -> None:
        """Insert rows in one durable transaction."""
        table = pa.RecordBatch.from_arrays(
            [pa.array(slots), pa.array(partitions), *(batch[field.name] for field in self._columns)],
            names=["slot", "partition", *(field.name for field in self._columns)],
        )
        with self._given("incoming", table), self._transaction():
            self._connection.execute("INSERT INTO rows SELECT * FROM incoming")

    def delete(self, keys: Places) -> Int64s:
        """Delete exactly the rows that have this slot, version and id, in one transaction; returns their slots."""
        wanted = pa.table({"slot": keys.slots, "version": keys.versions, "id": pa.array(keys.ids, pa.string())})
        with self._reading(), self._given("wanted", wanted):
            query = "SELECT DISTINCT rows.slot FROM rows JOIN wanted USING (slot, version, id)"
            found = self._connection.sql(query).to_arrow_table()
        if found.num_rows:
            # Two statements, because DELETE … RETURNING reads every column of the rows: 35 ms instead of 6.
            with self._given("gone", found), self._transaction():
                self._connection.execute("DELETE FROM rows WHERE slot IN (SELECT slot FROM gone)")
        slots: Int64s = found["slot"].to_numpy()
        return slots

    def clear(self) -> None:
        """Delete every row in one transaction."""
        with self._transaction():
            self._connection.execute("DELETE FROM rows")

    def checkpoint(self) -> bool:
        """Write the WAL into the file and free what deleted rows held; False where the disk has no room for that.

        OutcomeUnknown when it fails all the same: committed rows are safe in the WAL, but only a restart reads them.
        """
        if self.free < 2 * self.wal_bytes:
            return False
        failpoint.reach("cold.checkpoint_due")
        try:
            self._witness.forget()
            self._connection.execute("CHECKPOINT")
        except OSError as error:
            raise OutcomeUnknown(f"{self.file} could not be checkpointed and needs a restart: {error}") from error
        except duckdb.Error as error:
            raise OutcomeUnknown(
                f"{self.file} could not be checkpointed and needs a restart: {first_line(error)}"
            ) from error
        self._wal_is_new = True
        failpoint.reach("cold.checkpointed")
        return True

    # -- reading -----------------------------------------------------------------------------------------------------

    def slots(self) -> Int64s:
        """Return the slots of all rows, in growing order."""
        with self._reading():
            slots: Int64s = (
                self._connection.sql("SELECT slot FROM rows ORDER BY slot").to_arrow_table()["slot"].to_numpy()
            )
        return slots

    def between(self, first: int, last: int) -> pa.RecordBatch:
        """Return the rows of slots first to last, in slot order, with their slot as last column."""
        with self._reading():
            query = self._select + " WHERE slot BETWEEN ? AND ?"
            return _batch(self._connection.sql(query, params=[int(first), int(last)]).to_arrow_table(), self._shape)

    def entries(self, first: int, last: int, *, vectors: bool) -> pa.RecordBatch:
        """Return the rows of slots first to last as `record.entries` has them, in slot order."""
        shape = self._entries.append(self._shape.field("vector")) if vectors else self._entries
        names = ", ".join(f"rows.{field.name}" for field in shape if field in self._columns)
        query = f"SELECT {names}, rows.slot, rows.partition FROM rows WHERE slot BETWEEN ? AND ?"  # noqa: S608 - as above
        with self._reading():
            return _batch(self._connection.sql(query, params=[int(first), int(last)]).to_arrow_table(), shape)

    def pick(self, slots: Int64s) -> pa.RecordBatch:
        """Return the rows of these slots that exist, in slot order, with their slot as last column."""
        with self._reading(), self._given("wanted", pa.table({"slot": np.unique(slots)})):
            return _batch(
                self._connection.sql(self._select + " JOIN wanted USING (slot)").to_arrow_table(), self._shape
            )

    # -- size --------------------------------------------------------------------------------------------------------

    @property
    def wal_bytes(self) -> int:
        """Bytes of the WAL."""
        return self._wal.stat().st_size if self._wal.exists() else 0

    @property
    def free(self) -> int:
        """Bytes that the disk could still take."""
        return shutil.disk_usage(self._directory).free

    def bytes(self) -> tuple[int, int]:
        """Return the bytes in use (blocks and WAL), and those of free blocks inside the file."""
        with self._reading():
            query = "SELECT block_size, used_blocks, free_blocks FROM pragma_database_size() WHERE database_name = ?"
            ((size, used, free),) = self._connection.execute(query, [cold_file.NAME]).fetchall()
        return size * used + self.wal_bytes, size * free

    def copy(self, target: Path) -> None:
        """Copy the file, which was just checkpointed, byte by byte. OSError.

        By another process: this one would lose DuckDB's own lock on the file when it closed its second handle.
        """
        done = subprocess.run(  # noqa: S603 - our own two paths
            [sys.executable, "-I", "-S", "-c", COPY, str(self.file), str(target)], capture_output=True, check=False
        )
        if done.returncode:
            raise OSError(f"{self.file} could not be copied: {done.stderr.decode(errors='replace').strip()[-200:]}")

    def close(self) -> None:
        """Close the file and give up the lock. What is in the WAL stays there and is read at the next open."""
        self._connection.close()
        self._witness.close()
        os.close(self._lock)

    # -- inside ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _given(self, name: str, table: pa.Table | pa.RecordBatch) -> Iterator[None]:
        self._connection.register(name, table)
        try:
            yield
        finally:
            self._connection.unregister(name)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except duckdb.Error as error:
            raise reading_error(error, self.file) from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Commit at the end. Any error means that nothing was changed, except OutcomeUnknown."""
        committing = False
        try:
            self._connection.execute("BEGIN")
            yield
            committing = True
            failpoint.reach("cold.written")
            self._connection.execute("COMMIT")
            if self._wal_is_new:
                fsync(self._directory)
                self._wal_is_new = False
            self._witness.follow()
        except duckdb.Error as error:
            self._fail(error, committing=committing)
        except OSError as error:
            raise OutcomeUnknown(f"the name of {self._wal} may not outlast a power loss: {error}") from error

    def _fail(self, error: duckdb.Error, *, committing: bool) -> NoReturn:
        text = first_line(error)
        full = isinstance(error, duckdb.OutOfMemoryException) or any(reason in text for reason in FULL)
        if not self._rolled_back(error) or (committing and not full):
            raise OutcomeUnknown(f"{self.file} failed in the middle of a write: {text}") from error
        if full:
            raise TierFull(f"no room for {self.file}; nothing was changed: {text}") from error
        if isinstance(error, duckdb.ConversionException):
            raise InvalidRecord("cold_range", f"a value has no place in the cold tier: {text}") from error
        raise TierUnavailable(f"{self.file} did not take a write: {text}") from error

    def _rolled_back(self, error: duckdb.Error) -> bool:
        if isinstance(error, duckdb.FatalException | duckdb.InternalException):
            return False
        try:
            self._connection.execute("ROLLBACK")
        except duckdb.TransactionException:
            return True  # no transaction is active: a COMMIT that fails has rolled back already
        except duckdb.Error:
            return False
        return True


def _batch(table: pa.Table, shape: pa.Schema) -> pa.RecordBatch:
    """Return what DuckDB answered with these columns, in slot order."""
    if "attributes" not in table.column_names:
        empty = pa.StructArray.from_buffers(shape.field("attributes").type, table.num_rows, [None], children=[])
        table = table.append_column("attributes", empty)
    columns = [table[field.name].combine_chunks().cast(field.type) for field in shape]
    batch = pa.RecordBatch.from_arrays(columns, schema=shape)
    order = np.argsort(batch["slot"].to_numpy(), kind="stable")
    return batch if (np.diff(order) == 1).all() else batch.take(pa.array(order))


def reading_error(error: duckdb.Error, file: Path) -> IsothermError:
    """Return what a failed read means: unreadable blocks are corruption, the rest is an engine that cannot serve."""
    text = first_line(error)
    if isinstance(error, duckdb.IOException | duckdb.SerializationException) or text.startswith("Corrupt"):
        return TierCorrupt(f"{file} cannot be read: {text}")
    return TierUnavailable(f"{file} did not answer: {text}")
