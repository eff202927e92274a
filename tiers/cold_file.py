"""Opening the cold tier's DuckDB file: its lock, its configuration, its one table, and names that outlast a power loss.

A checkpoint writes every row group anew that has gained or lost a row since the last one. With DuckDB's 122,880 rows
each that was two to three times the rows that had changed, 16 µs a row; with GROUP_ROWS it is 8, and the file two
thirds as large (98,304 rows, half of them new and as many gone since the last one). Only an attached file can be told.

Every commit goes through the WAL whole (`enable_optimistic_write` off: 0.27 s for 130,000 rows instead of 1.6 s, and
one file to be durable). DuckDB never checkpoints by itself: see cold_table for why.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow as pa

from tiers.errors import ServiceMissing, SettingsError

GROUP_ROWS = 16_384
STORAGE = "v1.5.0"  # the oldest DuckDB that can read the file: a way back from 2.0, at no cost that could be measured
NAME = "cold"  # of the attached file; in-memory tables are beside it
NEVER = 1 << 50  # rows or bytes: DuckDB's own checkpoints never begin
TEMP_PER_MEMORY = 4  # what a query may spill to disk, in multiples of the memory limit
TYPES = {
    pa.string(): "VARCHAR",
    pa.int64(): "BIGINT",
    pa.float64(): "DOUBLE",
    pa.bool_(): "BOOLEAN",
    pa.timestamp("ms", "UTC"): "TIMESTAMPTZ",
    pa.binary(): "BLOB",
}


def connect(file: Path, fields: Sequence[pa.Field], memory_limit_mb: int, threads: int) -> duckdb.DuckDBPyConnection:
    """Open or create the file and its table; ServiceMissing or SettingsError says what to do when that cannot be."""
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{memory_limit_mb}MiB",
        "threads": threads,
        "temp_directory": str(file.with_suffix(".tmp")),
        "max_temp_directory_size": f"{memory_limit_mb * TEMP_PER_MEMORY}MiB",
        "python_enable_replacements": False,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "enable_optimistic_write": False,
        "wal_autocheckpoint": f"{NEVER}B",
        "auto_checkpoint_skip_wal_threshold": str(NEVER),
    }
    try:
        connection = duckdb.connect(config=config)
        try:
            given = f"ROW_GROUP_SIZE {GROUP_ROWS}, STORAGE_VERSION '{STORAGE}'"
            connection.execute(f"ATTACH {literal(str(file))} AS {NAME} ({given})")
            connection.execute(f"USE {NAME}")
            # Not in `config`: DuckDB applies that in an order of its own, and this one forbids setting temp_directory.
            connection.execute("SET enable_external_access = false")
            connection.execute("PRAGMA disable_checkpoint_on_shutdown")
            _create(connection, file, fields)
        except BaseException:
            connection.close()
            raise
    except duckdb.Error as error:
        raise ServiceMissing(
            f"DuckDB cannot open {file}: {first_line(error)}. End whoever has it open. If it is damaged, move it and "
            "its .wal aside together and restore both: a .wal holds committed rows, never delete it alone"
        ) from error
    return connection


def _create(connection: duckdb.DuckDBPyConnection, file: Path, fields: Sequence[pa.Field]) -> None:
    """Create the table in a new file; SettingsError where an old one was made for other records."""
    columns = (f"{quoted(f.name)} {sql_type(f.type)}{'' if f.nullable else ' NOT NULL'}" for f in fields)
    wanted = f'(slot BIGINT NOT NULL, "partition" INTEGER NOT NULL, {", ".join(columns)})'
    if not connection.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'rows' AND NOT temporary").fetchall():
        connection.execute("CREATE TABLE rows " + wanted)
        connection.execute("CHECKPOINT")  # the WAL never holds more than inserts and deletes
        return
    connection.execute("CREATE TEMP TABLE wanted " + wanted)
    asked = connection.execute("DESCRIBE wanted").fetchall()
    held = connection.execute("DESCRIBE rows").fetchall()
    connection.execute("DROP TABLE wanted")
    if asked != held:
        different = ", ".join(f"{name} {kind}" for name, kind, *_ in held if (name, kind) not in [a[:2] for a in asked])
        raise SettingsError(
            f"cold: {file} was made for other records (it has {different or 'fewer columns'}): set dimension and "
            "attributes as they were, or another cold.path"
        )


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


def literal(text: str) -> str:
    """Return a text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


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
