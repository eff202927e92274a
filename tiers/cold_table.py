"""The DuckDB file of the cold tier: one table of physical rows by slot, owned by one thread, and its errors in our words.

No primary key and no secondary index: slots grow, so zone maps find a range, and DuckDB's index had most of its
corruption reports. Every commit goes through the WAL whole (`enable_optimistic_write` off: 0.27 s for 130,000 rows
instead of 1.6 s, and one file to be durable). DuckDB fdatasyncs the WAL at commit, but each checkpoint unlinks it and
the next commit makes a new one: the directory is fsynced after that commit, or a power loss could take the file's name.

A failed COMMIT rolls back by itself and leaves the file usable; a failed CHECKPOINT invalidates the whole instance
(both measured on a full disk). So DuckDB never checkpoints by itself here, and `checkpoint` first looks for room.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tiers.errors import (
    InvalidRecord,
    IsothermError,
    OutcomeUnknown,
    ServiceMissing,
    SettingsError,
    TierCorrupt,
    TierFull,
    TierUnavailable,
)
from tiers.record import Int64s
from tiers.tier import Location

STORAGE = "v1.5.0"  # the oldest DuckDB that can read the file: a way back from 2.0, at no cost that could be measured
NEVER = str(1 << 50)  # rows or bytes: DuckDB's own checkpoints never begin
FULL = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT))
TEMP_PER_MEMORY = 4  # what a query may spill to disk, in multiples of the memory limit
TYPES = {
    pa.string(): "VARCHAR",
    pa.int64(): "BIGINT",
    pa.float64(): "DOUBLE",
    pa.bool_(): "BOOLEAN",
    pa.timestamp("ms", "UTC"): "TIMESTAMPTZ",
    pa.binary(): "BLOB",
}


class Table:
    """The rows of one DuckDB file. Every method runs on the thread that owns it."""

    def __init__(self, directory: Path, shape: pa.Schema, *, memory_limit_mb: int, threads: int) -> None:
        self._directory, self.file = directory, directory / "cold.duckdb"
        self._wal = directory / "cold.duckdb.wal"
        has_attributes = shape.field("attributes").type.num_fields > 0  # DuckDB has no empty struct
        self._columns = [field for field in shape if field.name != "attributes" or has_attributes]
        self._shape = shape.append(pa.field("slot", pa.int64(), nullable=False))
        self._select = ", ".join(f'rows."{name}"' for name in [*(field.name for field in self._columns), "slot"])
        self._wal_is_new = True
        new = make(directory)
        self._lock = lock(directory / "cold.lock", self.file)
        try:
            self._connection = self._connect(memory_limit_mb, threads)
        except BaseException:
            os.close(self._lock)
            raise
        for path in [directory, *new]:
            sync(path)

    def _connect(self, memory_limit_mb: int, threads: int) -> duckdb.DuckDBPyConnection:
        config: dict[str, str | bool | int | float | list[str]] = {
            "storage_compatibility_version": STORAGE,
            "memory_limit": f"{memory_limit_mb}MiB",
            "threads": threads,
            "temp_directory": str(self._directory / "cold.tmp"),
            "max_temp_directory_size": f"{memory_limit_mb * TEMP_PER_MEMORY}MiB",
            "enable_external_access": False,
            "python_enable_replacements": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "enable_optimistic_write": False,
            "wal_autocheckpoint": f"{NEVER}B",
            "auto_checkpoint_skip_wal_threshold": NEVER,
        }
        try:
            connection = duckdb.connect(str(self.file), config=config)
        except duckdb.Error as error:
            raise ServiceMissing(
                f"DuckDB cannot open {self.file}: {first_line(error)}. End whoever has it open; if it is damaged, move it "
                "and its .wal aside together and restore both (a .wal holds committed rows: never delete it alone)"
            ) from error
        try:
            connection.execute("PRAGMA disable_checkpoint_on_shutdown")
            self._create(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _create(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Create the table in a new file; SettingsError where an old one was made for other records."""
        columns = ", ".join(
            f"{quoted(f.name)} {sql_type(f.type)}{'' if f.nullable else ' NOT NULL'}" for f in self._columns
        )
        wanted = f'slot BIGINT NOT NULL, "partition" INTEGER NOT NULL, {columns}'
        exists = connection.execute(
            "SELECT 1 FROM duckdb_tables() WHERE table_name = 'rows' AND NOT temporary"
        ).fetchall()
        if not exists:
            connection.execute(f"CREATE TABLE rows ({wanted})")
            connection.execute("CHECKPOINT")  # the WAL never holds more than inserts and deletes
            return
        connection.execute(f"CREATE TEMP TABLE wanted ({wanted})")
        asked, held = (
            connection.execute(f'SELECT column_name, column_type, "null" FROM (DESCRIBE {name})').fetchall()
            for name in ("wanted", "rows")
        )
        connection.execute("DROP TABLE wanted")
        if asked != held:
            different = [f"{name} {kind}" for name, kind, _ in sorted(set(held) - set(asked))]
            raise SettingsError(
                f"cold: {self.file} was made for other records (it has {', '.join(different) or 'fewer columns'}): "
                "set dimension and attributes as they were, or another cold.path"
            )

    # -- writing -----------------------------------------------------------------------------------------------------

    def insert(self, batch: pa.RecordBatch, slots: Int64s, partitions: npt.NDArray[np.int32]) -> None:
        """Insert rows in one durable transaction."""
        table = pa.RecordBatch.from_arrays(
            [pa.array(slots), pa.array(partitions), *(batch[field.name] for field in self._columns)],
            names=["slot", "partition", *(field.name for field in self._columns)],
        )
        with self._transaction(), self._given("incoming", table):
            self._connection.execute("INSERT INTO rows SELECT * FROM incoming")
        if self._wal_is_new:
            sync(self._directory)
            self._wal_is_new = False

    def delete(self, keys: Sequence[Location]) -> Int64s:
        """Delete exactly the rows that have this slot, version and id, in one transaction; returns their slots."""
        wanted = pa.table(
            {
                "slot": pa.array([key.slot for key in keys], pa.int64()),
                "version": pa.array([key.version for key in keys], pa.int64()),
                "id": pa.array([key.id for key in keys], pa.string()),
            }
        )
        with self._reading(), self._given("wanted", wanted):
            query = "SELECT DISTINCT rows.slot FROM rows JOIN wanted USING (slot, version, id)"
            found = self._connection.sql(query).to_arrow_table()
        if found.num_rows:
            # Two statements, because DELETE … RETURNING reads every column of the rows: 35 ms instead of 6.
            with self._transaction(), self._given("gone", found):
                self._connection.execute("DELETE FROM rows WHERE slot IN (SELECT slot FROM gone)")
        slots: Int64s = found["slot"].to_numpy()
        return slots

    def clear(self) -> None:
        """Delete every row in one transaction."""
        with self._transaction():
            self._connection.execute("DELETE FROM rows")

    def checkpoint(self) -> None:
        """Write the WAL into the file and give back what deleted rows held; nothing where the disk has no room for it.

        OutcomeUnknown when it fails all the same: committed rows are safe in the WAL, but only a restart reads them.
        """
        if self.free < 2 * self.wal_bytes:
            return
        try:
            self._connection.execute("CHECKPOINT")
        except duckdb.Error as error:
            raise OutcomeUnknown(
                f"{self.file} could not be checkpointed and needs a restart: {first_line(error)}"
            ) from error
        self._wal_is_new = True

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
            query = f"SELECT {self._select} FROM rows WHERE slot BETWEEN ? AND ?"
            return self._batch(self._connection.sql(query, params=[int(first), int(last)]).to_arrow_table())

    def pick(self, slots: Int64s) -> pa.RecordBatch:
        """Return the rows of these slots that exist, in slot order, with their slot as last column."""
        with self._reading(), self._given("wanted", pa.table({"slot": np.unique(slots)})):
            return self._batch(
                self._connection.sql(f"SELECT {self._select} FROM rows JOIN wanted USING (slot)").to_arrow_table()
            )

    def _batch(self, table: pa.Table) -> pa.RecordBatch:
        kinds = {field.name: field.type for field in self._shape}
        if "attributes" not in table.column_names:
            kind = kinds["attributes"]
            empty = pa.StructArray.from_buffers(kind, table.num_rows, [None], children=[])
            table = table.append_column("attributes", empty)
        columns = [table[name].combine_chunks().cast(kind) for name, kind in kinds.items()]
        batch = pa.RecordBatch.from_arrays(columns, schema=self._shape)
        order = np.argsort(batch["slot"].to_numpy(), kind="stable")
        return batch if (np.diff(order) == 1).all() else batch.take(pa.array(order))

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
            query = "SELECT block_size, used_blocks, free_blocks FROM pragma_database_size()"
            ((size, used, free),) = self._connection.execute(query).fetchall()
        return size * used + self.wal_bytes, size * free

    def close(self) -> None:
        """Close the file and give up the lock. What is in the WAL stays there and is read at the next open."""
        self._connection.close()
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
            self._connection.execute("COMMIT")
        except duckdb.Error as error:
            self._fail(error, committing=committing)

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


def make(directory: Path) -> list[Path]:
    """Create a directory with its parents; returns those whose entries must be synced for it to last."""
    missing = [path for path in [directory, *directory.parents] if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    return [path.parent for path in missing]


def sync(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(path: Path, what: Path) -> int:
    """Hold an exclusive lock; ServiceMissing names who has it. DuckDB's own lets the same process in twice."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise ServiceMissing(f"{what} is in use by process {holder}: end it, or set another cold.path") from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def quoted(name: str) -> str:
    """Return a name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def sql_type(kind: pa.DataType) -> str:
    """Return DuckDB's word for an Arrow type of the record schema."""
    if pa.types.is_fixed_size_list(kind):
        return f"FLOAT[{kind.list_size}]"
    if pa.types.is_struct(kind):
        return f"STRUCT({', '.join(f'{quoted(field.name)} {sql_type(field.type)}' for field in kind)})"
    return TYPES[kind]


def first_line(error: Exception) -> str:
    """Return what DuckDB says, without its advice."""
    return str(error).partition("\n")[0]


def reading_error(error: duckdb.Error, file: Path) -> IsothermError:
    """Return what a failed read means: unreadable blocks are corruption, the rest is an engine that cannot serve."""
    text = first_line(error)
    if isinstance(error, duckdb.IOException | duckdb.SerializationException | duckdb.InternalException):
        return TierCorrupt(f"{file} cannot be read: {text}")
    return TierUnavailable(f"{file} did not answer: {text}")
