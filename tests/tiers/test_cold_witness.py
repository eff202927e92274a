"""The witness of DuckDB's WAL: less than what was answered is refused, more is a crash's, and a checkpoint ends it."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.tiers.rows import SHAPE, batch, row
from tiers.cold import ColdMemory
from tiers.cold_settings import ColdSettings
from tiers.cold_witness import Witness
from tiers.errors import ServiceMissing
from tiers.index import Index

STORES, ROWS = 6, 5


async def opened(path: Path) -> ColdMemory:
    settings = ColdSettings(path=str(path), memory_limit_mb=256)
    return await ColdMemory.open(settings, SHAPE, partitions=4, index=Index.of(SHAPE))


async def store(cold: ColdMemory, number: int) -> None:
    await cold.store(batch(*(row(f"id-{number}-{n}", number + 1) for n in range(ROWS))))


@pytest.fixture
async def left(tmp_path: Path) -> AsyncIterator[Path]:
    """What a killed process has left: a database whose rows are all in the WAL."""
    cold = await opened(tmp_path / "alive")
    for number in range(STORES):
        await store(cold, number)
    shutil.copytree(tmp_path / "alive", tmp_path / "left")
    yield tmp_path / "left"
    await cold.cleanup()


async def count(path: Path) -> int:
    """Open, count the rows, and close."""
    cold = await opened(path)
    try:
        return len((await cold.slots())[0])
    finally:
        await cold.cleanup()


async def refused(left: Path, tmp_path: Path, wal: bytes | None) -> None:
    """Hold that an open with this WAL (None: without) refuses, and that it changes nothing."""
    bad = tmp_path / "bad"
    shutil.rmtree(bad, ignore_errors=True)
    shutil.copytree(left, bad)
    file = bad / "cold.duckdb.wal"
    file.unlink()
    if wal is not None:
        file.write_bytes(wal)
    with pytest.raises(ServiceMissing, match="committed rows of the cold tier are missing"):
        await opened(bad)
    assert (file.read_bytes() if wal is not None else None) == wal


async def test_a_wal_that_is_less_than_what_was_answered_is_refused(left: Path, tmp_path: Path) -> None:
    """Cut at any length, any bit flipped, or gone: each would cost committed rows, which DuckDB does not mind."""
    wal = (left / "cold.duckdb.wal").read_bytes()

    await refused(left, tmp_path, None)
    for at in range(0, len(wal), len(wal) // 25):
        await refused(left, tmp_path, wal[:at])
        await refused(left, tmp_path, wal[:at] + bytes([wal[at] ^ 1 << at % 8]) + wal[at + 1 :])


async def test_a_torn_tail_behind_what_was_answered_costs_nothing(left: Path) -> None:
    """A crash in the middle of a commit: all answered rows are there, and what is stored after it, too."""
    wal = left / "cold.duckdb.wal"
    whole = wal.read_bytes()
    wal.write_bytes(whole + whole[-40:-7])

    cold = await opened(left)
    await store(cold, STORES)
    again = left.with_name("again")
    shutil.copytree(left, again)
    await cold.cleanup()

    assert (STORES + 1) * ROWS == await count(again)


async def test_a_checkpoint_takes_the_mark_back_first(left: Path) -> None:
    """After an orderly end there is no WAL, and the open does not miss it; nor after a kill right behind it."""
    cold = await opened(left)
    await cold._writer.run(cold._rows._table.checkpoint)
    killed = left.with_name("killed")
    shutil.copytree(left, killed)
    await cold.cleanup()

    assert STORES * ROWS == await count(killed)
    assert STORES * ROWS == await count(left)


def test_a_mark_is_taken_back_durably(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power cut leaves the mark of a WAL that a checkpoint has ended, and the open misses what is there."""
    wal = tmp_path / "cold.duckdb.wal"
    witness = Witness(tmp_path / "cold.duckdb", wal)
    witness.open()
    empty = (tmp_path / "cold.mark").read_bytes()
    wal.write_bytes(b"a commit")
    witness.follow()
    synced: list[bytes] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.pread(handle, 100, 0)))

    assert empty != (tmp_path / "cold.mark").read_bytes()

    witness.forget()
    witness.close()

    assert [empty] == synced


async def test_a_database_that_is_gone_or_cut_to_nothing_is_not_made_anew(left: Path) -> None:
    """The mark says that there was one: an empty one would answer that there are no rows."""
    file = left / "cold.duckdb"
    for damage in (lambda: file.write_bytes(b""), file.unlink):
        damage()
        with pytest.raises(ServiceMissing, match=r"cold\.duckdb is gone or cut short"):
            await opened(left)


async def test_without_a_witness_it_is_as_before(left: Path) -> None:
    """Moved aside, as an operator does who accepts the loss; and damaged, for a witness's damage is not the rows'."""
    mark = left / "cold.mark"
    mark.write_bytes(b"\0" * 20)
    assert STORES * ROWS == await count(left)
    wal = left / "cold.duckdb.wal"
    assert not wal.exists()
    mark.unlink()

    assert STORES * ROWS == await count(left)
