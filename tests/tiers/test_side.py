"""SideFile and Slots on real files: what is torn, flipped, released, rewritten or read meanwhile."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiers.side import CRC, FRAME, HEAD, SideFile
from tiers.slots import ABSENT, GONE, Slots, nowhere

pytestmark = pytest.mark.unit

SEGMENT = 4_096


@pytest.fixture
def side(tmp_path: Path) -> Iterator[SideFile]:
    file = SideFile(tmp_path, SEGMENT)
    yield file
    file.close()


def data(slot: int, size: int = 100) -> bytes:
    """Return a row that only this slot has."""
    return str(slot).encode().ljust(size, b".")


def column(rows: list[bytes]) -> pa.Array:
    """Return packed rows as the side file takes them."""
    return pa.array(rows, pa.large_binary())


def fill(side: SideFile, *slots: int, size: int = 100) -> None:
    """Append these slots as one batch."""
    assert side.append(np.array(slots, np.int64), column([data(slot, size) for slot in slots])) == 0


@settings(max_examples=60, deadline=None)
@given(drawn=st.data())
def test_many_rows_are_gathered_as_they_are_read_alone(drawn, tmp_path_factory):
    """Wherever rows lie, end to end or not, released or never there, `gather` gives what `read` gives."""
    side = SideFile(tmp_path_factory.mktemp("side"), SEGMENT)
    slots = list(range(60))
    for start in range(0, 60, 12):
        fill(side, *slots[start : start + 12], size=drawn.draw(st.integers(10, 120)))
    side.release(np.array(drawn.draw(st.lists(st.sampled_from(slots), max_size=20)), np.int64))
    asked = drawn.draw(st.lists(st.integers(0, 70), max_size=60))

    alone = read(side, *asked)
    assert [row or b"" for row in alone] == side.gather(np.array(asked, np.int64))
    assert side.read_at_once(np.array(asked, np.int64)) == (None if None in alone else alone)
    side.close()


def test_what_is_not_in_memory_is_not_waited_for(side, monkeypatch):
    """A read that the kernel would have to wait for is refused whole, as is one that the file is too short for."""
    fill(side, 1, 2)
    slots = np.array([1, 2], np.int64)
    assert side.read_at_once(slots) == [data(1), data(2)]
    size = len(data(1)) + len(data(2))
    monkeypatch.setattr("tiers.side.AT_ONCE_BYTES", size - 1)
    assert side.read_at_once(slots) is None
    monkeypatch.setattr("tiers.side.AT_ONCE_BYTES", size)
    assert side.read_at_once(slots) == [data(1), data(2)]

    def waits(descriptor, buffers, offset, flags):
        assert flags == os.RWF_NOWAIT
        raise BlockingIOError

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", waits)
        assert side.read_at_once(slots) is None
    os.truncate(next(side._directory.glob("side-*.dat")), 200)
    assert side.read_at_once(slots) is None


def read(side: SideFile, *slots: int) -> list[bytes | None]:
    return side.read(np.array(slots, np.int64))


def files(directory: Path) -> list[Path]:
    return sorted(directory.glob("side-*.dat"))


def test_a_slot_reads_as_appended_and_an_unknown_one_as_none(side: SideFile) -> None:
    """Each slot gives its own row, in the order asked."""
    fill(side, 3, 4, 7)

    assert [data(7), None, data(3), None] == read(side, 7, 5, 3, -1)


def test_no_slot_is_asked(side: SideFile) -> None:
    """No slots, no rows."""
    assert read(side) == []


def test_rows_fill_segments_and_survive_a_reopening(side: SideFile, tmp_path: Path) -> None:
    """A batch larger than a segment is cut at rows; no segment passes its size."""
    fill(side, *range(200))
    side.close()
    again = SideFile(tmp_path, SEGMENT)

    assert len(files(tmp_path)) > 3
    assert max(path.stat().st_size for path in files(tmp_path)) <= SEGMENT
    assert [data(slot) for slot in range(200)] == read(again, *range(200))
    assert again.slot_max == 199
    fill(again, 200)
    assert read(again, 0, 200) == [data(0), data(200)]


def test_a_row_larger_than_a_segment_has_one_for_itself(side: SideFile, tmp_path: Path) -> None:
    """Nothing is too large to be appended."""
    fill(side, 1)
    fill(side, 2, size=3 * SEGMENT)
    fill(side, 3)

    assert len(files(tmp_path)) == 3
    assert read(side, 1, 2, 3) == [data(1), data(2, 3 * SEGMENT), data(3)]


def test_of_one_slot_the_last_row_counts(side: SideFile, tmp_path: Path) -> None:
    """A row appended again (repaired, rewritten) replaces the older one, after a reopening too."""
    fill(side, 1, 2)
    side.append(np.array([1]), column([b"repaired"]))

    assert read(side, 1, 2) == [b"repaired", data(2)]
    assert read(SideFile(tmp_path, SEGMENT), 1, 2) == [b"repaired", data(2)]


@pytest.mark.parametrize("cut", [1, 50, 100, 111, 112, 113, 120, 129, 130, 131, 132])
def test_a_torn_frame_is_dropped_whole(side: SideFile, tmp_path: Path, cut: int) -> None:
    """A frame that the file ends in never counts, the ones before it do, and the next is appended in its place."""
    fill(side, 1)
    fill(side, 2)
    (path,) = files(tmp_path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - cut)
    again = SideFile(tmp_path, SEGMENT)

    assert read(again, 1, 2) == [data(1), None]
    assert again.reconcile(np.array([1, 2])).tolist() == [2]
    fill(again, 2)
    assert read(SideFile(tmp_path, SEGMENT), 1, 2) == [data(1), data(2)]


@given(at=st.integers(0, 3 * (HEAD + 12 + 100) - 1), bit=st.integers(0, 7))
@settings(max_examples=150, deadline=None)
def test_a_flipped_bit_costs_rows_but_never_tells_another_slots_row(
    tmp_path_factory: pytest.TempPathFactory, at: int, bit: int
) -> None:
    """Whatever bit flips, a slot gives its row, damaged bytes in its place, or nothing."""
    directory = tmp_path_factory.mktemp("side")
    side = SideFile(directory, SEGMENT)
    for slot in range(3):
        fill(side, slot)
    (path,) = files(directory)
    damaged = bytearray(path.read_bytes())
    damaged[at] ^= 1 << bit
    path.write_bytes(damaged)

    found = read(SideFile(directory, SEGMENT), 0, 1, 2)
    hit, inside = divmod(at, HEAD + 12 + 100)
    if inside < HEAD + 12:
        assert found == [data(slot) if slot < hit else None for slot in range(3)]
    else:
        assert [row == data(slot) for slot, row in enumerate(found)] == [slot != hit for slot in range(3)]
    shutil.rmtree(directory)


def test_a_forged_frame_in_a_payload_is_not_believed(side: SideFile, tmp_path: Path) -> None:
    """Bytes that look like a frame count for nothing inside a row, nor behind a frame that was torn."""
    slots, lengths = np.array([9], "<i8").tobytes(), np.array([3], "<u4").tobytes()
    head = FRAME.pack(b"IF", 1, 1, 3)
    forged = head + CRC.pack(0) + slots + lengths + b"bad"
    side.append(np.array([1]), column([forged * 10]))
    (path,) = files(tmp_path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    again = SideFile(tmp_path, SEGMENT)
    fill(again, 2)

    assert read(SideFile(tmp_path, SEGMENT), 1, 2, 9) == [None, data(2), None]


def test_reconcile_releases_what_the_table_lacks_and_names_what_the_file_lacks(side: SideFile) -> None:
    """After it the file knows exactly the table's slots; what is to be appended again is not read as None."""
    fill(side, 1, 2, 3)

    assert side.reconcile(np.array([2, 3, 4, 5])).tolist() == [4, 5]
    assert read(side, 1, 2, 4) == [None, data(2), b""]
    assert side.slots().tolist() == [2, 3, 4, 5]
    fill(side, 4)
    assert read(side, 4) == [data(4)]


def test_a_segment_without_live_rows_is_unlinked(side: SideFile, tmp_path: Path) -> None:
    """Releasing all rows gives back all bytes."""
    fill(side, *range(200))
    freed = side.release(np.arange(200))
    side.shrink()

    assert freed == 200 * 100
    assert (files(tmp_path), side.size, len(side)) == ([], 0, 0)
    fill(side, 200)
    assert read(side, 0, 200) == [None, data(200)]


def test_a_full_segment_with_few_live_rows_is_rewritten(side: SideFile, tmp_path: Path) -> None:
    """One full segment a call, oldest first; every row stays readable, and disk use follows the live rows."""
    fill(side, *range(400))
    kept = list(range(0, 400, 10))
    side.release(np.setdiff1d(np.arange(400), kept))
    before = len(files(tmp_path))
    side.shrink()
    assert before - len(files(tmp_path)) in (0, 1)
    for _ in range(before):
        side.shrink()

    assert side.size <= len(kept) * 130 / 0.25 + 2 * SEGMENT
    assert read(side, *kept) == [data(slot) for slot in kept]
    assert read(SideFile(tmp_path, SEGMENT), *kept) == [data(slot) for slot in kept]


def test_a_reader_meanwhile_gets_the_row_or_is_sent_to_the_table(tmp_path: Path) -> None:
    """While another thread appends, releases, rewrites and unlinks, no read gives a wrong row or fails."""
    side = SideFile(tmp_path, SEGMENT)
    fixed = list(range(0, 4_000, 40))
    fill(side, *range(4_000))
    done, wrong, elsewhere = threading.Event(), [], []

    def watch() -> None:
        while not done.is_set():
            found = read(side, *fixed)
            wrong.extend(row for slot, row in zip(fixed, found, strict=True) if row not in (data(slot), b""))
            elsewhere.append(found.count(b""))

    threads = [threading.Thread(target=watch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for start in range(0, 4_000, 50):
        side.release(np.setdiff1d(np.arange(start, start + 50), fixed))
        fill(side, *range(4_000 + start, 4_050 + start))
        side.shrink()
    done.set()
    for thread in threads:
        thread.join()

    assert wrong == []
    assert len(files(tmp_path)) < 4_000 * 130 // SEGMENT * 2
    assert sum(elsewhere) < len(elsewhere)


def test_the_directory_may_vanish(side: SideFile, tmp_path: Path) -> None:
    """What lies in open files stays readable; what needs a new file is absent, and counted."""
    fill(side, *range(30))
    shutil.rmtree(tmp_path)
    lost = side.append(np.arange(30, 90), column([data(slot) for slot in range(30, 90)]))

    assert lost > 0
    assert read(side, 0, 89) == [data(0), b""]
    assert len(side) == 90
    side.release(np.arange(90))
    side.shrink()
    assert len(side) == 0


FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
import pyarrow as pa
from tiers.side import SideFile
directory = Path(sys.argv[1])
side = SideFile(directory, 1 << 20)
side.append(np.arange(10), pa.array([b"a" * 100] * 10, pa.large_binary()))
limit = side.size + 500
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
assert side.append(np.arange(10, 20), pa.array([b"b" * 100] * 10, pa.large_binary())) == 10
assert (directory / "side-00000001.dat").stat().st_size == side.size < limit
assert side.read(np.arange(20)) == [b"a" * 100] * 10 + [b""] * 10
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert side.append(np.arange(10, 20), pa.array([b"b" * 100] * 10, pa.large_binary())) == 0
assert SideFile(directory, 1 << 20).read(np.arange(20)) == [b"a" * 100] * 10 + [b"b" * 100] * 10
"""


def test_a_full_disk_costs_only_the_new_rows(tmp_path: Path) -> None:
    """A frame that does not fit leaves the file as it was; its rows are absent until they are appended again."""
    subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], check=True, timeout=60)


CHANGES = st.lists(
    st.tuples(st.booleans(), st.lists(st.integers(0, 60), min_size=1, max_size=20, unique=True)), max_size=30
)


@given(CHANGES)
@settings(deadline=None)
def test_slots_agree_with_a_dict(changes: list[tuple[bool, list[int]]]) -> None:
    """Put and drop in any order: find, live, of, len and what was there before are those of a dict."""
    slots, model = Slots(), {}
    for number, (put, keys) in enumerate(changes):
        wanted = np.array(keys, np.int64)
        if put:
            where = nowhere(len(keys), number)
            where["offset"] = keys
            before = slots.put(wanted, where)
            assert before["segment"].tolist() == [model.get(key, GONE) for key in keys]
            model.update(dict.fromkeys(keys, number))
        else:
            there = sorted(key for key in keys if key in model)
            assert slots.drop(wanted)["segment"].tolist() == [model.pop(key) for key in there]
        assert len(slots) == len(model)
        assert slots.live().tolist() == sorted(model)
        assert slots.find(np.arange(62))["segment"].tolist() == [model.get(key, GONE) for key in range(62)]
        assert slots.of(number)[0].tolist() == sorted(key for key, value in model.items() if value == number)


def test_memory_follows_the_live_rows() -> None:
    """A million slots come and go while one old row stays; what is kept is bounded by the live rows."""
    slots = Slots()
    slots.put(np.array([0]), nowhere(1, ABSENT))
    for start in range(1, 1_000_000, 10_000):
        page = np.arange(start, start + 10_000)
        slots.put(page, nowhere(len(page), 1))
        slots.drop(page)

    assert slots.live().tolist() == [0]
    assert len(slots._slot) < 50_000
