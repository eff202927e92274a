"""The rows of the cold tier by slot: DuckDB's table, which is the truth, and the side file beside it, kept in step.

One thread writes (every method but `read` and `slots`); a few may `read`. Order of a write: room -> COMMIT (durable)
-> side file. A kill between the two is healed at open. After OutcomeUnknown no write is tried again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import compress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import structlog

from tiers import codec, failpoint, packed, record
from tiers.cold_settings import ColdSettings
from tiers.cold_table import Table
from tiers.errors import OutcomeUnknown, TierCorrupt, TierFull, TierUnavailable
from tiers.listed import Known, all_known
from tiers.record import Bools, Floats, Int64s, Row
from tiers.side import SideFile
from tiers.tier import Location, Places, Usage

PAGE_ROWS = 8_192  # read from DuckDB at once: 12 MB at 256 dimensions

log = structlog.get_logger()


class ColdRows:
    """Opens both in `settings.path` and appends to the side file what it lacks."""

    def __init__(self, settings: ColdSettings, shape: pa.Schema) -> None:
        self._limits, self._shape = settings, shape
        directory = Path(settings.path)
        self._table = Table(directory, shape, memory_limit_mb=settings.memory_limit_mb, threads=settings.threads)
        try:
            self._side = SideFile(directory / "cold.side", settings.segment_bytes)
            slots = self._table.slots()
            self._next = max(self._side.slot_max, int(slots.max(initial=-1))) + 1
            self._rebuild(self._side.reconcile(slots))
        except BaseException:
            self._table.close()
            raise
        self._evicted_bytes = 0  # since the last checkpoint
        self._unknown: OutcomeUnknown | None = None

    def _rebuild(self, missing: Int64s) -> None:
        lost = 0
        for start in range(0, len(missing), PAGE_ROWS):
            batch = self._table.pick(missing[start : start + PAGE_ROWS])
            lost += self._side.append(batch["slot"].to_numpy(), packed.pack(batch))
        self._side.shrink()
        if len(missing):
            log.info("side.rebuilt", rows=len(missing), lost=lost)

    def __len__(self) -> int:
        return len(self._side)

    def close(self) -> None:
        """Checkpoint if that can be, and close both; what stays in the WAL is read at the next open."""
        try:
            if self._unknown is None:
                self._table.checkpoint()
        except OutcomeUnknown as error:
            log.warning("cold.checkpoint_failed", error=str(error))
        finally:
            self._side.close()
            self._table.close()

    # -- writing -----------------------------------------------------------------------------------------------------

    def add(self, batch: pa.RecordBatch, partitions: npt.NDArray[np.int32], rows: pa.Array) -> Int64s:
        """Write a batch, `rows` in packed form, durably; returns the slots.

        TierFull, TierUnavailable, InvalidRecord: nothing was changed.
        """
        self._upkeep()
        self._make_sure_of_room(batch.num_rows, rows.nbytes)
        slots = np.arange(self._next, self._next + batch.num_rows, dtype=np.int64)
        try:
            self._table.insert(batch, slots, partitions)
        except OutcomeUnknown as error:
            self._unknown = error
            raise
        failpoint.reach("cold.committed")
        self._next += batch.num_rows
        lost = self._side.append(slots, rows)
        failpoint.reach("side.appended")
        if lost:
            log.warning("side.append_failed", rows=lost)
        return slots

    def remove(self, keys: Places) -> int:
        """Delete exactly these (slot, id, version), durably; returns how many there were."""
        self._upkeep()
        try:
            slots = self._table.delete(keys)
        except OutcomeUnknown as error:
            self._unknown = error
            raise
        failpoint.reach("cold.deleted")
        self._evicted_bytes += self._side.release(slots)
        self._side.shrink()
        return len(slots)

    def clear(self) -> None:
        """Delete everything, durably."""
        self._upkeep()
        try:
            self._table.clear()
        except OutcomeUnknown as error:
            self._unknown = error
            raise
        self._side.clear()
        self._evicted_bytes = self._limits.checkpoint_bytes
        self._upkeep()

    def copy(self, target: Path, bytes_max: int) -> int:
        """Checkpoint and copy the DuckDB file; returns the slot that the next row will get.

        TierFull when it is larger than `bytes_max`; TierUnavailable where the disk has no room; OutcomeUnknown.
        """
        if self._unknown is not None:
            raise OutcomeUnknown(str(self._unknown)) from self._unknown
        size = self._table.file.stat().st_size + self._table.wal_bytes
        if size > bytes_max:
            raise TierFull(f"cold's file has {size:,} bytes, and {bytes_max:,} may be copied")
        if self._table.free < self._limits.reserve_bytes + size:
            raise TierUnavailable(f"the disk of {self._table.file} has no room for a copy of it")
        try:
            if self._table.wal_bytes and not self._table.checkpoint():
                raise TierUnavailable(f"the disk of {self._table.file} has no room to checkpoint it")
        except OutcomeUnknown as error:
            self._unknown = error
            raise
        try:
            self._table.copy(target)
        except OSError as error:
            raise TierUnavailable(str(error)) from error
        return self._next

    def _make_sure_of_room(self, rows: int, size: int) -> None:
        """Raise TierFull when a limit would be passed; `size` counts twice, in DuckDB and beside it."""
        limits = self._limits
        if limits.rows_limit and len(self) + rows > limits.rows_limit:
            raise TierFull(f"cold holds {len(self)} rows of {limits.rows_limit}: no room for {rows} more")
        used, spare = self._table.bytes()
        if limits.bytes_limit and used + self._side.size + 2 * size > limits.bytes_limit:
            raise TierFull(f"cold holds {used + self._side.size:,} bytes of {limits.bytes_limit:,}: no room")
        if self._table.free + spare < limits.reserve_bytes + 2 * size:
            raise TierFull(f"the disk of {self._table.file} has {self._table.free:,} bytes left: no room")

    def _upkeep(self) -> None:
        """Checkpoint when due; before a write, so that its failure is not taken for the write's."""
        if self._unknown is not None:
            raise OutcomeUnknown(str(self._unknown)) from self._unknown
        if self._table.wal_bytes + self._evicted_bytes < self._limits.checkpoint_bytes:
            return
        try:
            if self._table.checkpoint():
                self._evicted_bytes = 0
        except OutcomeUnknown as error:
            self._unknown = error
            raise

    # -- reading -----------------------------------------------------------------------------------------------------

    def slots(self) -> Int64s:
        """Return the slots of all rows, in growing order. Any thread."""
        return self._side.slots()

    def read(self, locations: Sequence[Location]) -> tuple[list[Row | None], list[int]]:
        """Return rows from the side file, and the positions of those that it cannot show rightly. Any thread."""
        held = self._side.read(np.array([where.slot for where in locations], np.int64))
        rows: list[Row | None] = [None] * len(locations)
        doubtful: list[int] = []
        for at, (where, data) in enumerate(zip(locations, held, strict=True)):
            rows[at] = None if data is None else shown(data, where)
            if rows[at] is None and data is not None:
                doubtful.append(at)
        return rows, doubtful

    def read_at_once(self, locations: Sequence[Location]) -> list[Row | None] | None:
        """Return rows from the side file; None if one is not in memory, or cannot be shown rightly. Any thread."""
        held = self._side.read_at_once(np.array([where.slot for where in locations], np.int64))
        if held is None:
            return None
        rows = [row for where, data in zip(locations, held, strict=True) if (row := shown(data, where)) is not None]
        return list(rows) if len(rows) == len(locations) else None

    def sizes(self, places: Places) -> Int64s:
        """Return the bytes of packed rows, as the side file has them. Any thread."""
        return self._side.sizes(places.slots)

    def gather(self, places: Places) -> tuple[pa.RecordBatch, Bools]:
        """Return rows from the side file, and which of them it shows rightly. Any thread."""
        held = self._side.gather(places.slots)
        there = packed.whole(held)
        found = packed.trusted(list(compress(held, there.tolist())), self._shape)
        asked = places.those(there)
        same = record.versions_of(found) == asked.versions
        same &= np.array(pc.equal(found["id"], pa.array(asked.ids, pa.string())), bool)
        there[there] = same
        return (found if same.all() else found.filter(pa.array(same))), there

    def vectors(self, places: Places) -> tuple[list[Floats | None], list[int]]:
        """Return vectors from the side file, and the positions of those that it cannot show rightly. Any thread."""
        found: list[Floats | None] = [None] * len(places.ids)
        doubtful: list[int] = []
        for at, (data, identifier, version) in enumerate(zip(self._side.read(places.slots), *places.keys, strict=True)):
            if data is None:
                continue
            with suppress(TierCorrupt):
                found[at] = codec.decode_vector(data, identifier, version)
            if found[at] is None:
                doubtful.append(at)
        return found, doubtful

    def vectors_at_once(self, places: Places) -> list[Floats | None] | None:
        """Return vectors from the side file; None if one is not in memory, or cannot be shown rightly. Any thread."""
        held = self._side.read_at_once(places.slots)
        if held is None:
            return None
        try:
            found = list(map(codec.decode_vector, held, *places.keys))
        except TierCorrupt:
            return None
        return None if any(vector is None for vector in found) else found

    def recover(self, locations: Sequence[Location]) -> list[Row | None]:
        """Return rows from DuckDB, and append again what the side file shows otherwise; TierCorrupt: unreadable."""
        batch = self._table.pick(np.array([where.slot for where in locations], np.int64))
        slots, rows = batch["slot"].to_numpy(), packed.pack(batch)
        wrong = self._otherwise(slots, rows)
        if wrong:
            lost = self._side.append(slots[wrong], rows.take(pa.array(wrong)))
            log.warning("side.repaired", rows=len(wrong), lost=lost)
        by_slot = {slot: record.row_at(batch, at) for at, slot in enumerate(slots.tolist())}
        found = [by_slot.get(where.slot) for where in locations]
        return [row if row and matches(row, where) else None for row, where in zip(found, locations, strict=True)]

    def page(self, first: int, last: int) -> pa.RecordBatch:
        """Return the rows of slots first to last, from DuckDB."""
        return self._table.between(first, last)

    def survey(self, first: int, last: int) -> tuple[pa.RecordBatch, list[int]]:
        """Return the rows of slots first to last, and the positions of those that the side file has otherwise."""
        batch = self._table.between(first, last)
        return batch, self._otherwise(batch["slot"].to_numpy(), packed.pack(batch))

    def _otherwise(self, slots: Int64s, rows: pa.Array) -> list[int]:
        """Return the positions of packed rows that the side file has otherwise."""
        held = self._side.read(slots)
        return [at for at, row in enumerate(rows.to_pylist()) if row != held[at]]

    def both_slots(self) -> tuple[Int64s, Int64s]:
        """Return the slots of all rows as DuckDB has them, and those that only the side file has; in growing order."""
        slots = self._table.slots()
        return slots, np.setdiff1d(self._side.slots(), slots)

    def release(self, slots: Int64s) -> None:
        """Forget slots that only the side file has."""
        self._side.release(slots)

    def entries(self, first: int, last: int, known: Known) -> pa.RecordBatch:
        """Return the rows of slots first to last without vectors, or with them where one is not known by its code."""
        found = self._table.entries(first, last, vectors=False)
        return found if all_known(found, known) else self._table.entries(first, last, vectors=True)

    def usage(self) -> Usage:
        """Return rows and bytes, both files counted."""
        size = self._table.bytes()[0] + self._side.size
        return Usage(len(self), size, self._limits.rows_limit, self._limits.bytes_limit)


def shown(data: bytes, where: Location) -> Row | None:
    """Return the packed row; None where its bytes are damaged, or it is not the one that was asked for."""
    try:
        row = codec.decode(data)
    except TierCorrupt:
        return None
    return row if matches(row, where) else None


def matches(row: Row, where: Location) -> bool:
    """Say whether this is the row that was asked for."""
    return row.version == where.version and row.id == where.id
