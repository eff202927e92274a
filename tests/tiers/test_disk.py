"""What everything durable on a local disk comes down to: one fsync, of the file or the directory that was named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tiers import disk

pytestmark = pytest.mark.unit


def test_a_file_is_put_aside_before_its_directory_is_synced(tmp_path: Path) -> None:
    """Else a power cut could bring the torn one back under its name, behind the one that took its place."""
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "checkpoint").write_bytes(b"torn")
    seen: list[tuple[Path, list[str]]] = []
    storage = disk.Disk(tmp_path, lambda path: seen.append((path, [each.name for each in path.iterdir()])))

    storage.put_aside("log/checkpoint")

    assert [(tmp_path / "log", ["checkpoint.torn"])] == seen


@pytest.mark.parametrize("name", ["file", "."])
def test_fsync_is_one_of_the_kernel_on_that_very_path(name: str, tmp_path: Path, monkeypatch) -> None:
    """The descriptor that is synced is the file's, or the directory's, and it is closed afterwards."""
    (tmp_path / "file").write_bytes(b"x")
    synced: list[tuple[int, int]] = []
    former = os.fsync

    def noted(handle: int) -> None:
        synced.append((os.fstat(handle).st_ino, handle))
        former(handle)

    monkeypatch.setattr(os, "fsync", noted)
    disk.fsync(tmp_path / name)

    assert [(tmp_path / name).stat().st_ino] == [inode for inode, _ in synced]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(synced[0][1])
