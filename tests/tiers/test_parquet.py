"""The archive's files: what is written comes back, and what was damaged never does."""

from __future__ import annotations

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tiers.rows import ATTRIBUTES, DIM, NOW_MS, SHAPE, batch, row, same
from tiers import parquet, record
from tiers.disk import Disk
from tiers.errors import TierCorrupt
from tiers.layout import Layout
from tiers.parquet import DataFile, Reader, Style
from tiers.record import Row
from tiers.rewrite import MERGE_FILES, is_small, regroup, small
from tiers.tier import Location

pytestmark = pytest.mark.unit

STYLE = Style(8, "zstd", 3)
ROWS = [
    row(f"ns/{at}", at + 1, deleted=at % 7 == 3, attributes={"rank": at} if at % 2 else {"user": "ü"})
    for at in range(20)
]


def written(disk: Disk, rows, shape=SHAPE, path="partition=0/e1-1.parquet") -> DataFile:
    """Write the rows as a file and prove it."""
    layout = Layout(shape)
    groups = regroup([layout.encode(batch(*rows, shape=shape))], STYLE)
    count = parquet.write(disk, path, layout.file, STYLE, groups)
    return parquet.prove(disk, DataFile(0, 1, path, count, 0), layout.file)


def read(disk: Disk, file: DataFile, rows, shape=SHAPE):
    """Return the rows of a file by row number."""
    wanted = [(at, Location(one.id, one.version, 0, at)) for at, one in enumerate(rows)]
    return Reader(disk, Layout(shape)).fetch(file, wanted)


def test_rows_come_back_as_they_were(tmp_path):
    """Times, nulls, tombstones, attributes and vectors survive the file, bit for bit."""
    rows = [
        *ROWS,
        Row("t", 99, -1, NOW_MS, np.full(DIM, 1e-38, np.float32), b"\x00" * 300, {"at": NOW_MS_TIME, "seen": False}),
    ]
    found = read(Disk(tmp_path), written(Disk(tmp_path), rows), rows)

    assert [True] * len(rows) == [same(*pair) for pair in zip(rows, found, strict=True)]


NOW_MS_TIME = pa.scalar(NOW_MS, pa.timestamp("ms", "UTC")).cast(pa.timestamp("us", "UTC")).as_py()


def test_records_without_attributes(tmp_path):
    """Parquet has no empty struct: the column is left out of the file and comes back."""
    shape = record.schema(DIM, {})
    rows = [row("a", 1), row("b", 2, deleted=True)]
    disk = Disk(tmp_path)
    file = written(disk, rows, shape)

    assert "attributes" not in pq.read_schema(tmp_path / file.path).names
    assert [same(*pair) for pair in zip(rows, read(disk, file, rows, shape), strict=True)] == [True, True]


def test_a_file_has_groups_checksums_and_bloom_filters(tmp_path):
    """Row groups are of the asked size, compressed with zstd, with a bloom filter on id."""
    file = written(Disk(tmp_path), ROWS)
    metadata = pq.read_metadata(tmp_path / file.path)
    columns = [metadata.row_group(0).column(at) for at in range(metadata.num_columns)]

    assert [metadata.row_group(at).num_rows for at in range(metadata.num_row_groups)] == [8, 8, 4]
    assert {column.compression for column in columns} == {"ZSTD"}

    probe = "SELECT bool_and(bloom_filter_excludes) FROM parquet_bloom_probe(?, 'id', ?)"
    answers = [
        duckdb.connect().execute(probe, [str(tmp_path / file.path), name]).fetchone()[0] for name in ("absent", "ns/5")
    ]

    assert answers == [True, False]


def test_statistics_leave_ids_out(tmp_path):
    """The log gets bounds of version and event time, and no id: it outlives the erasure of a row."""
    stats = written(Disk(tmp_path), ROWS).stats

    assert '"numRecords": 20' in stats
    assert '"version": 1' in stats
    assert '"version": 20' in stats
    assert "2023-11-14T22:13:20.000Z" in stats
    assert "ns/" not in stats


def test_a_time_that_iso_cannot_say_has_no_statistics(tmp_path):
    """A year of five digits would make the log unreadable to others; the file has no bounds then."""
    stats = written(Disk(tmp_path), [row("a", 1, event_time=400_000_000_000_000)]).stats

    assert stats == '{"numRecords": 1}'


def test_another_row_is_nothing(tmp_path):
    """A row is handed out only under its own id and version."""
    disk = Disk(tmp_path)
    file = written(disk, ROWS)
    wanted = [(0, Location("ns/0", 2, 0, 0)), (0, Location("ns/1", 1, 0, 0)), (1, Location("ns/1", 2, 0, 1))]

    assert [None, None, "ns/1"] == [one and one.id for one in Reader(disk, Layout(SHAPE)).fetch(file, wanted)]


def test_a_damaged_file_is_never_served(tmp_path):
    """With a bit flipped in any byte, a file reads as before or raises TierCorrupt; never other rows, never a crash."""
    disk = Disk(tmp_path)
    rows = ROWS[:6]
    file = written(disk, rows)
    good = (tmp_path / file.path).read_bytes()
    outcomes = {"same": 0, "corrupt": 0, "other": 0}
    for at in range(len(good)):
        damaged = bytearray(good)
        damaged[at] ^= 1 << (at % 8)
        (tmp_path / file.path).write_bytes(damaged)
        try:
            found = read(disk, file, rows)
        except TierCorrupt:
            outcomes["corrupt"] += 1
        else:
            equal = all(one and same(one, want) for one, want in zip(found, rows, strict=True))
            outcomes["same" if equal else "other"] += 1

    assert outcomes["other"] == 0
    assert outcomes["corrupt"] > 0


def test_a_short_file_is_corrupt(tmp_path):
    """A file cut at any place is refused."""
    disk = Disk(tmp_path)
    file = written(disk, ROWS)
    good = (tmp_path / file.path).read_bytes()
    for size in (0, 3, 100, len(good) // 2, len(good) - 1):
        (tmp_path / file.path).write_bytes(good[:size])
        with pytest.raises(TierCorrupt):
            read(disk, file, ROWS)


def test_a_file_is_proven_before_the_log_names_it(tmp_path):
    """A footer with other rows than were written, or of other columns, is refused."""
    disk = Disk(tmp_path)
    file = written(disk, ROWS)

    with pytest.raises(TierCorrupt):
        parquet.prove(disk, DataFile(0, 1, file.path, 19, 0), Layout(SHAPE).file)
    with pytest.raises(TierCorrupt):
        parquet.prove(disk, file, Layout(record.schema(DIM, {**ATTRIBUTES, "more": "int"})).file)


@given(sizes=st.lists(st.integers(0, 30), max_size=8), rows=st.integers(1, 12), bytes_max=st.integers(1, 200))
def test_regroup_keeps_rows_and_order(sizes, rows, bytes_max):
    """Whatever batches come, no group has too many rows, nor bytes (but a single row may); all rows stay in order."""
    starts = np.cumsum([0, *sizes])
    batches = [
        pa.record_batch({"at": pa.array(np.arange(start, start + size))})
        for start, size in zip(starts.tolist(), sizes, strict=False)
    ]
    groups = list(regroup(batches, Style(rows, "zstd", 3, group_bytes=bytes_max)))

    assert [at for group in groups for at in group["at"].to_pylist()] == list(range(sum(sizes)))
    assert all(0 < group.num_rows <= rows for group in groups)
    assert all(group.nbytes <= bytes_max or group.num_rows == 1 for group in groups)
    assert bytes_max < 8 * rows or all(group.num_rows == rows for group in groups[:-1])


@given(
    sizes=st.lists(st.tuples(st.integers(1, 100), st.integers(1, 150)), max_size=40),
    below=st.one_of(st.none(), st.integers(0, 100)),
)
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_small_files_are_merged_only_when_that_makes_them_fewer(sizes, below):
    """Only files under half of both bounds are chosen, never one alone, never more than two full files' worth."""
    files = [DataFile(0, at, f"f{at}", rows, size) for at, (rows, size) in enumerate(sizes)]
    style = Style(8, "zstd", 3, file_rows=100, file_bytes=100)
    chosen = small(files, below, style)
    fit = [file for file in files if (is_small(file, style) if below is None else file.rows < below)]

    assert set(chosen) <= set(fit)
    assert sum(file.rows for file in chosen) <= 200
    assert sum(file.bytes for file in chosen) <= 200
    assert len(chosen) != 1
    assert below is not None or bool(chosen) == (len(fit) >= MERGE_FILES)


def test_files_and_row_groups_end_at_their_bounds(tmp_path):
    """Large payloads make small row groups and files: of bytes, not only of rows; each row is read where it lies."""
    rows = [Row(f"id-{at}", at + 1, NOW_MS, None, np.ones(DIM, np.float32), bytes(2_000)) for at in range(40)]
    layout, disk = Layout(SHAPE), Disk(tmp_path)
    style = Style(8, "none", 3, group_bytes=5_000, file_rows=24, file_bytes=20_000)
    groups = regroup([layout.encode(batch(*rows))], style)
    sizes, start = [], 0
    for number in range(20):
        if (count := parquet.write(disk, f"partition=0/e1-{number}.parquet", layout.file, style, groups)) == 0:
            break
        path = f"partition=0/e1-{number}.parquet"
        file = parquet.prove(disk, DataFile(0, number, path, count, 0), layout.file)
        found = read(disk, file, rows[start : start + count])
        assert [one.id for one in rows[start : start + count]] == [one.id for one in found]
        start += count
        sizes.append(file.bytes)
        assert pq.read_metadata(tmp_path / path).row_group(0).num_rows == 2

    assert start == 40
    assert len(sizes) > 3
    assert max(sizes) < 20_000 + 10_000


def test_a_file_that_is_there_is_never_written_over(tmp_path):
    """A number is used once: creating it again fails."""
    disk = Disk(tmp_path)
    written(disk, ROWS)
    before = (tmp_path / "partition=0/e1-1.parquet").read_bytes()
    with pytest.raises(FileExistsError):
        written(disk, ROWS[:2])

    assert before == (tmp_path / "partition=0/e1-1.parquet").read_bytes()
