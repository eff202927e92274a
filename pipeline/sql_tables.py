"""The tables and views of a snapshot: what a statement reads, and how it is put together. Runs on one thread.

`snapshot.duckdb` holds `_cold` and `_glacier` (which rows of the cold file and of the archive's files are the newest,
as the index had it at one moment) and `_rows` (the other records, whole). The views join these, so that what is
superseded, deleted or expired is never seen, wherever it physically still lies. A snapshot for certain namespaces has
one table, with their records and no others, and no file beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from tiers.cold_file import quoted, sql_type
from tiers.errors import TierUnavailable
from tiers.image import COLUMNS
from tiers.parquet import FILE_ROWS_MAX, ROW_BITS
from tiers.tier import TierName

DATABASE, COLD_FILE, GLACIER = "snapshot.duckdb", "cold.duckdb", "glacier"
MEMORY_LIMIT = "512MiB"  # while it is made
BUILT_IN = ("id", "namespace", "version", "version_number", "tier", "home", "partition", "event_time", "expires_at")
RESERVED = frozenset({*BUILT_IN, "payload", "payload_bytes", "vector"})
TEXT = "try(decode(payload))"
HEAD = f"""id,
    CASE WHEN contains(id, '/') THEN split_part(id, '/', 1) ELSE 'default' END AS namespace,
    (version >> 57)::VARCHAR || '.' || ((version >> 16) & 2199023255551)::VARCHAR || '.' || (version & 65535)::VARCHAR
        AS version,
    version AS version_number,
    CASE WHEN copied THEN 'hot' ELSE ['hot', 'warm', 'cold', 'glacier'][home + 1] END AS tier,
    ['hot', 'warm', 'cold', 'glacier'][home + 1] AS home,
    partition, event_time, expires_at,
    CASE WHEN json_valid({TEXT}) THEN {TEXT}::JSON END AS payload,
    payload AS payload_bytes"""


@dataclass(frozen=True, slots=True)
class Made:
    """A snapshot on disk: its directory, the moment it shows (ms since 1970), the views' SQL, and its records."""

    directory: Path
    at_ms: int
    attributes: tuple[str, ...]
    records: int
    files: tuple[str, ...] = ()  # Parquet, relative to the directory
    has_cold: bool = False
    namespaces: frozenset[str] | None = None

    def setup(self, root: str = "") -> list[str]:
        """Return the statements that make the views, for whoever sees the directory at `root`."""
        if self.namespaces is not None:
            return _narrow_views()
        attach = [f"ATTACH '{_text(root + COLD_FILE)}' AS cold_file (READ_ONLY)"] if self.has_cold else []
        return attach + _views(self, root)


def shown(attributes: Iterable[str]) -> list[tuple[str, str]]:
    """Return (attribute, the column it is shown as): its name, unless another column has that."""
    return [(name, f"attribute_{name}" if name.lower() in RESERVED else name) for name in attributes]


def column_types(attributes: pa.StructType, dim: int) -> list[tuple[str, str]]:
    """Return the columns of `_rows` and their types."""
    plain = [
        (name, "SMALLINT" if kind == pa.int8() else "INTEGER" if kind == pa.int32() else sql_type(kind))
        for name, kind in COLUMNS.items()
    ]
    typed = [(f"attribute {one.name}", sql_type(one.type)) for one in attributes]
    return [*plain, *typed, ("payload", "BLOB"), ("vector", f"FLOAT[{dim}]")]


class Tables:
    """`snapshot.duckdb` while it is made."""

    def __init__(self, directory: Path, attributes: pa.StructType, dim: int) -> None:
        self._connection = duckdb.connect(str(directory / DATABASE), config=_config())
        columns = ", ".join(f"{quoted(name)} {kind}" for name, kind in column_types(attributes, dim))
        homes = ", ".join(f"{quoted(name)} {kind}" for name, kind in column_types(attributes, dim)[:-2])
        self._connection.execute(f"CREATE TABLE _rows ({columns})")
        for table in ("_cold", "_glacier"):
            self._connection.execute(f"CREATE TABLE {table} ({homes})")

    def add(self, table: str, rows: pa.Table) -> None:
        """Append rows, with all the table's columns."""
        self._connection.register("incoming", rows)
        self._connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM incoming")
        self._connection.unregister("incoming")

    def close(self) -> int:
        """Write everything to the file; returns the records."""
        query = "SELECT (SELECT count(*) FROM _rows) + (SELECT count(*) FROM _cold) + (SELECT count(*) FROM _glacier)"
        ((records,),) = self._connection.execute(query).fetchall()
        self.abandon()
        return int(records)

    def abandon(self) -> None:
        """Close the file."""
        self._connection.close()


def prove(made: Made) -> None:
    """Count the records through the views: each must be found where the index said. TierUnavailable: begin again."""
    connection = _reading(made)
    try:
        ((found,),) = connection.execute("SELECT count(*) FROM memories").fetchall()
    finally:
        connection.close()
    if found != made.records:
        raise TierUnavailable(f"the snapshot shows {found} of {made.records} records")


def narrow(made: Made, directory: Path, namespaces: frozenset[str]) -> Made:
    """Make the snapshot of certain namespaces from the whole one: their rows, copied, and nothing else."""
    connection = duckdb.connect(str(directory / DATABASE), config=_config())
    try:
        connection.execute(f"ATTACH '{_text(made.directory / DATABASE)}' AS whole (READ_ONLY)")
        for table in ("_rows", "_cold", "_glacier"):
            connection.execute(f"CREATE TEMP VIEW {table} AS SELECT * FROM whole.main.{table}")
        for statement in made.setup(f"{made.directory}/"):
            connection.execute(statement)
        chosen = " UNION ALL BY NAME ".join(
            f"SELECT * FROM {tier.word} WHERE namespace IN (SELECT unnest(?))" for tier in TierName
        )
        connection.execute(f"CREATE TABLE _all AS {chosen}", [sorted(namespaces)] * len(TierName))
        ((records,),) = connection.execute("SELECT count(*) FROM _all").fetchall()
    finally:
        connection.close()
    return Made(directory, made.at_ms, made.attributes, int(records), namespaces=namespaces)


def _reading(made: Made) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(str(made.directory / DATABASE), read_only=True, config=_config())
    try:
        for statement in made.setup(f"{made.directory}/"):
            connection.execute(statement)
    except BaseException:
        connection.close()
        raise
    return connection


def _config() -> dict[str, str | bool | int | float | list[str]]:
    return {"threads": 1, "memory_limit": MEMORY_LIMIT, "python_enable_replacements": False}


# -- views -------------------------------------------------------------------------------------------------------------


def _views(made: Made, root: str) -> list[str]:
    """Return the views over the tables, the cold file and the archive's files."""
    attributes = "".join(f", {quoted(f'attribute {name}')} AS {quoted(out)}" for name, out in shown(made.attributes))
    rows = {tier: f"SELECT {HEAD}{attributes}, vector FROM _rows WHERE home = {int(tier)}" for tier in TierName}
    select = f"SELECT {HEAD}{attributes}, vector FROM"
    if made.has_cold:
        rows[TierName.COLD] += (
            f" UNION ALL {select} (SELECT _cold.*, c.payload, c.vector"
            " FROM _cold JOIN cold_file.main.rows c ON c.slot = _cold.slot)"
        )
    if made.files:
        paths = ", ".join(f"'{_text(root + path)}'" for path in made.files)
        rows[TierName.GLACIER] += (
            f" UNION ALL {select} (SELECT _glacier.*, g.payload, g.vector FROM _glacier JOIN read_parquet([{paths}],"
            " hive_partitioning = true, hive_types = {'partition': INTEGER, 'number': BIGINT},"
            " file_row_number = true) g"
            f" ON g.partition = _glacier.partition AND g.number = _glacier.slot >> {ROW_BITS}"
            f" AND g.file_row_number = _glacier.slot & {FILE_ROWS_MAX - 1})"
        )
    vectors = (TierName.COLD, TierName.GLACIER)
    views = [_view(tier.word, rows[tier] if tier in vectors else _without_vector(rows[tier])) for tier in TierName]
    return [*views, _memories()]


def _narrow_views() -> list[str]:
    views = [
        _view(
            tier.word,
            f"SELECT *{'' if tier >= TierName.COLD else ' EXCLUDE (vector)'} FROM _all WHERE home = '{tier.word}'",
        )
        for tier in TierName
    ]
    return [*views, _memories()]


def _without_vector(select: str) -> str:
    return select.replace(", vector FROM", " FROM", 1)


def _view(name: str, select: str) -> str:
    return f"CREATE TEMP VIEW {name} AS {select}"


def _memories() -> str:
    tiers: Sequence[str] = [
        f"SELECT *{'' if tier < TierName.COLD else ' EXCLUDE (vector)'} FROM {tier.word}" for tier in TierName
    ]
    return _view("memories", " UNION ALL ".join(tiers))


def _text(value: object) -> str:
    """Return a value inside an SQL string."""
    return str(value).replace("'", "''")


def directory_name(number: int, namespaces: frozenset[str] | None) -> str:
    """Return the name of a snapshot's directory."""
    if namespaces is None:
        return str(number)
    return f"{number}-{hashlib.blake2b(repr(sorted(namespaces)).encode(), digest_size=8).hexdigest()}"
