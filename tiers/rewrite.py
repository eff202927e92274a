"""What a rewritten archive says, and the pure parts of rewriting: which rows stay, which files merge, row groups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tiers import record
from tiers.parquet import DataFile, Key, Style, place
from tiers.record import Int64s
from tiers.tier import Location

Bools = npt.NDArray[np.bool_]
#: Yields a file as it is stored, some columns or all, with the row that each batch starts at.
Batches = Callable[[DataFile, list[str] | None], Iterable[tuple[int, pa.RecordBatch]]]

MERGE_FILES = 16  # small files of a partition that a rewrite takes along unasked; bounds their number
MERGED_MAX = 2  # of the largest file's rows and bytes: what one rewrite merges at most when asked;…
MERGED_UNASKED = 1  # …else into one file, which leaves no small rest
KEYS = ["id", "version"]  # the columns that tell rows apart


@dataclass(frozen=True, slots=True)
class Rewrite:
    """How many rows went, and where each other row of the rewritten files lay and lies; columns of equal length."""

    dropped: int
    ids: Sequence[str]
    versions: Int64s
    old_slots: Int64s
    new_slots: Int64s

    @classmethod
    def nothing(cls) -> Rewrite:
        """Return the answer when no file was touched."""
        none = np.zeros(0, np.int64)
        return cls(0, [], none, none, none)


@dataclass(slots=True)
class Kept:
    """Collects the rows that stay, in the order in which they are written again."""

    ids: list[str] = field(default_factory=list)
    versions: list[Int64s] = field(default_factory=list)
    slots: list[Int64s] = field(default_factory=list)

    def add(self, batch: pa.RecordBatch, slots: Int64s) -> None:
        """Take in the rows of a batch and where they lay."""
        self.ids += batch["id"].to_pylist()
        self.versions.append(record.versions_of(batch))
        self.slots.append(slots)

    def rewrite(self, dropped: int, new_slots: Sequence[Int64s]) -> Rewrite:
        """Return the answer, given the slots of the written files in order."""
        none = np.zeros(0, np.int64)
        done = Rewrite(
            dropped,
            self.ids,
            np.concatenate([none, *self.versions]),
            np.concatenate([none, *self.slots]),
            np.concatenate([none, *new_slots]),
        )
        assert len(done.ids) == len(done.old_slots) == len(done.new_slots), "every row that stays is written once"
        return done


def none_of(file: DataFile) -> Bools:
    """Return a mask of none of a file's rows."""
    return np.zeros(file.rows, bool)


def doomed(files: Mapping[Key, DataFile], drop: Sequence[Location], batches: Batches) -> dict[Key, Bools]:
    """Return, by file, which rows are to go: those that really are the id and version asked for."""
    asked: defaultdict[Key, list[tuple[int, Location]]] = defaultdict(list)
    for where in drop:
        key, row = place(where)
        if key in files:
            asked[key].append((row, where))
    masks = {key: _matching(files[key], rows, batches(files[key], KEYS)) for key, rows in asked.items()}
    return {key: mask for key, mask in masks.items() if mask.any()}


def survivors(
    sources: Iterable[DataFile], doomed: Mapping[Key, Bools], kept: Kept, batches: Batches
) -> Iterator[pa.RecordBatch]:
    """Yield what stays of the files, and let `kept` know of it."""
    for file in sources:
        for start, batch in batches(file, None):
            slots = file.slots()[start : start + batch.num_rows]
            stay = ~doomed.get(file.key, none_of(file))[start : start + batch.num_rows]
            part = batch if stay.all() else batch.filter(pa.array(stay))
            kept.add(part, slots[stay])
            yield part


def _matching(
    file: DataFile, asked: Sequence[tuple[int, Location]], batches: Iterable[tuple[int, pa.RecordBatch]]
) -> Bools:
    """Return which rows of a file are among those asked for; `batches` are its KEYS, each with its first row."""
    mask = none_of(file)
    rows = np.array([row for row, _ in asked], np.int64)
    ids = np.array([where.id for _, where in asked], object)
    versions = np.array([where.version for _, where in asked], np.int64)
    for start, batch in batches:
        here = np.flatnonzero((rows >= start) & (rows < start + batch.num_rows))
        part = batch.take(pa.array(rows[here] - start))
        same = np.array(part["id"].to_pylist(), object) == ids[here]
        mask[rows[here[same & (record.versions_of(part) == versions[here])]]] = True
    return mask


def is_small(file: DataFile, style: Style) -> bool:
    """Say whether a file is less than half full, by rows and by bytes."""
    return file.rows < style.file_rows // 2 and file.bytes < style.file_bytes // 2


def small(files: Sequence[DataFile], below_rows: int | None, style: Style) -> list[DataFile]:
    """Return the files to merge, fewest rows first; none where merging would not lessen their number.

    `below_rows` None: of those that are small, once there are MERGE_FILES of them.
    """
    fit = [file for file in files if (is_small(file, style) if below_rows is None else file.rows < below_rows)]
    if len(fit) < (MERGE_FILES if below_rows is None else 2):
        return []
    most = MERGED_UNASKED if below_rows is None else MERGED_MAX
    chosen: list[DataFile] = []
    rows = size = 0
    for file in sorted(fit, key=lambda file: (file.rows, file.number)):
        rows, size = rows + file.rows, size + file.bytes
        if rows > most * style.file_rows or size > most * style.file_bytes:
            break
        chosen.append(file)
    return chosen if len(chosen) > 1 else []


def regroup(batches: Iterable[pa.RecordBatch], style: Style) -> Iterator[pa.RecordBatch]:
    """Yield the same rows as row groups: of `group_rows`, the last of what is left, halved until `group_bytes` fit."""
    for batch in _by_rows(batches, style.group_rows):
        yield from _halved(batch, style.group_bytes)


def _halved(batch: pa.RecordBatch, bytes_max: int) -> Iterator[pa.RecordBatch]:
    if batch.num_rows == 1 or batch.nbytes <= bytes_max:
        yield batch
    else:
        half = batch.num_rows // 2
        yield from _halved(batch.slice(0, half), bytes_max)
        yield from _halved(batch.slice(half), bytes_max)


def _by_rows(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    waiting: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        waiting.append(batch)
        count += batch.num_rows
        if count >= rows:
            whole = waiting[0] if len(waiting) == 1 else pa.concat_batches(waiting)
            done = count - count % rows
            yield from (whole.slice(start, rows) for start in range(0, done, rows))
            waiting, count = [whole.slice(done)], count - done
    if count:
        yield pa.concat_batches(waiting)
