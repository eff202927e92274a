"""Makes a snapshot for SQL: every live record at one moment, each once, without holding up the node.

    copy the cold file -> one look at the index (the moment) -> take out the archive's files that it names
    -> read the rest, as any reader does -> count through the views

A record at home in cold is in the copy if its slot is below the one that the copy ended with; the few that came later
are read like those of hot and warm: at their newest, wherever they are by then (R6). Where a file was vacuumed in
between, or the count is not right, everything begins again.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import duckdb
import numpy as np
import pyarrow as pa

from pipeline.sql_process import SqlFailed
from pipeline.sql_tables import COLD_FILE, GLACIER, Made, Tables, prove
from tiers import image, record
from tiers.cold import ColdMemory
from tiers.errors import TierFull, TierUnavailable
from tiers.glacier import GlacierMemory
from tiers.image import Part
from tiers.index import Index
from tiers.parquet import ROW_BITS, DataFile
from tiers.reading import Reading
from tiers.record import Row
from tiers.segment import NO_COPY
from tiers.tier import Location, Query, Tier, TierName
from tiers.worker import SerialExecutor

TRIES = 3
FETCH_ROWS = 128  # read together: some ms of the loop
WRITE_ROWS = 8_192


class Maker:
    """Makes whole snapshots, one at a time, with `thread` for DuckDB and files."""

    def __init__(
        self,
        index: Index,
        tiers: Mapping[TierName, Tier],
        shape: pa.Schema,
        bytes_max: int,
        thread: SerialExecutor,
        now_ms: Callable[[], int],
    ) -> None:
        self._index, self._tiers = index, tiers
        self._cold = cast("ColdMemory", tiers[TierName.COLD])
        self._glacier = cast("GlacierMemory", tiers[TierName.GLACIER])
        self._shape, self._bytes_max, self._thread, self._now_ms = shape, bytes_max, thread, now_ms
        self._attributes: pa.StructType = shape.field("attributes").type

    async def make(self, directory: Path, before: Made | None) -> Made:
        """Make a snapshot in a new directory; `before` may lend it files. SqlFailed, TierUnavailable."""
        for attempt in range(TRIES):
            await self._thread.run(_empty, directory)
            try:
                return await self._make(directory, before)
            except TierUnavailable:
                if attempt == TRIES - 1:
                    raise
            except TierFull as error:
                raise self._too_large(str(error)) from error
            except (duckdb.Error, OSError) as error:
                if isinstance(error, FileNotFoundError) and attempt < TRIES - 1:
                    continue  # vacuumed since the index named it
                detail = f"no snapshot could be made: {str(error).partition(chr(10))[0]}"
                raise SqlFailed(503, "sql-snapshot", detail) from error
        raise AssertionError("unreachable")

    def _too_large(self, why: str) -> SqlFailed:
        detail = f"the snapshot would have more than sql.snapshot_bytes_max ({self._bytes_max:,} bytes): {why}"
        return SqlFailed(503, "sql-snapshot-too-large", detail)

    async def _make(self, directory: Path, before: Made | None) -> Made:
        left = self._bytes_max
        ends = 0
        if self._index.rows(TierName.COLD):
            ends = await self._cold.copy(directory / COLD_FILE, left)
            left -= (directory / COLD_FILE).stat().st_size
        at_ms = self._now_ms()
        parts = image.take(self._index, at_ms)
        files = await self._files(parts)
        for file in files:
            left -= await self._take_out(file, directory, before)
            if left < 0:
                raise self._too_large(f"{file.path} no longer fits")
        tables = await self._thread.run(Tables, directory, self._attributes, self._dim)
        try:
            for part in parts:
                await self._thread.run(_add_homes, tables, part, ends)
                left -= await self._others(tables, part, ends, left)
        except BaseException:
            await self._thread.run(tables.abandon)
            raise
        made = Made(
            directory=directory,
            at_ms=at_ms,
            attributes=tuple(one.name for one in self._attributes),
            records=await self._thread.run(tables.close),
            files=tuple(place(file) for file in files),
            has_cold=bool(ends),
        )
        await self._thread.run(prove, made)
        return made

    @property
    def _dim(self) -> int:
        return int(self._shape.field("vector").type.list_size)

    # -- the archive -------------------------------------------------------------------------------------------------

    async def _files(self, parts: Sequence[Part]) -> list[DataFile]:
        """Return the files that hold the records at home in glacier, or have until they were replaced a moment ago."""
        found: dict[tuple[int, int], DataFile] = {}
        for where in await self._thread.run(_one_a_file, parts):
            file = self._glacier.file_of(where)
            if file is None:
                raise TierUnavailable("glacier was rewritten and vacuumed while a snapshot began")
            found[file.key] = file
        return [found[key] for key in sorted(found)]

    async def _take_out(self, file: DataFile, directory: Path, before: Made | None) -> int:
        """Put a file of the archive into the snapshot, from the one before if it is there; returns the bytes copied."""
        target = directory / place(file)
        if before is not None and place(file) in before.files:
            return await self._thread.run(_link, before.directory / place(file), target, file.bytes)
        return await self._glacier.take_out(file, target)

    # -- the tables --------------------------------------------------------------------------------------------------

    async def _others(self, tables: Tables, part: Part, ends: int, left: int) -> int:
        """Copy the other records, payload and all; returns the bytes of payload."""
        size = 0
        ids = await self._thread.run(_others, part, ends)
        waiting: list[tuple[Row, TierName, bool]] = []
        for start in range(0, len(ids), FETCH_ROWS):
            waiting += await self._read(ids[start : start + FETCH_ROWS])
            if len(waiting) >= WRITE_ROWS or start + FETCH_ROWS >= len(ids):
                size += sum(len(row.payload) for row, _, _ in waiting)
                if size > left:
                    raise self._too_large("the records of hot and warm no longer fit")
                await self._thread.run(self._add_rows, tables, waiting)
                waiting = []
            await asyncio.sleep(0)  # hot answers at once: others must come to their turn
        return size

    async def _read(self, ids: Sequence[str]) -> list[tuple[Row, TierName, bool]]:
        """Return (row, home, whether it is copied) of these ids at their newest; those that are gone are left out."""
        reading = Reading(self._index, self._tiers, Query(), self._now_ms())
        rows = await reading.resolve(ids)
        if reading.missed:
            raise TierUnavailable(f"{', '.join(name.word for name in reading.missed)} did not answer")
        found: list[tuple[Row, TierName, bool]] = []
        for identifier, (row, tier) in rows.items():
            entry = self._index.find(identifier)
            same = entry is not None and entry.version == row.version
            home = TierName(entry.home) if entry is not None and same else tier
            found.append((row, home, entry is not None and same and entry.copy != NO_COPY))
        return found

    def _add_rows(self, tables: Tables, rows: Sequence[tuple[Row, TierName, bool]]) -> None:
        batch = record.to_batch([row for row, _, _ in rows], self._shape)
        homes = np.array([home for _, home, _ in rows], np.int8)
        columns = {
            "id": batch["id"],
            "version": batch["version"],
            "partition": pa.array(record.partitions(batch["id"], self._glacier.partitions)),
            "home": pa.array(homes),
            "copied": pa.array([copied for _, _, copied in rows], pa.bool_()),
            "slot": pa.nulls(len(rows), pa.int64()),
            "event_time": batch["event_time"],
            "expires_at": batch["expires_at"],
            **{f"attribute {one.name}": batch["attributes"].field(at) for at, one in enumerate(self._attributes)},
            "payload": batch["payload"],
            "vector": record.vector_array(record.vectors_of(batch), homes < TierName.COLD),
        }
        tables.add("_rows", pa.table(columns))


def place(file: DataFile) -> str:
    """Return where a file lies in a snapshot: partition and number are columns to DuckDB by these names."""
    return f"{GLACIER}/partition={file.partition}/number={file.number}/data.parquet"


def _one_a_file(parts: Sequence[Part]) -> list[Location]:
    """Return a location in each file of the archive that holds a record."""
    found: set[tuple[int, int]] = set()
    for part in parts:
        rows = part.rows([TierName.GLACIER])
        number = part.slot[rows] >> ROW_BITS
        for partition in np.unique(part.partition[rows]).tolist():
            found |= {(partition, each) for each in np.unique(number[part.partition[rows] == partition]).tolist()}
    return [Location("", 0, partition, number << ROW_BITS) for partition, number in found]


def _add_homes(tables: Tables, part: Part, ends: int) -> None:
    """Note which rows of the cold copy and of the archive's files are records."""
    cold = part.rows([TierName.COLD])
    cold = cold[part.slot[cold] < ends]
    for table, rows in (("_cold", cold), ("_glacier", part.rows([TierName.GLACIER]))):
        if len(rows):
            tables.add(table, image.table(part, rows))


def _others(part: Part, ends: int) -> list[str]:
    """Return the ids of the other records: in hot and warm, and in cold since the copy."""
    rows = part.rows([TierName.HOT, TierName.WARM, TierName.COLD])
    rows = rows[(part.home[rows] != TierName.COLD) | (part.slot[rows] >= ends)]
    return part.ids(rows) if len(rows) else []


def _empty(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


def _link(source: Path, target: Path, size: int) -> int:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
        return size
    return 0
