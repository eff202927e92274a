"""The manifest: on disk when `save` returns, whole whenever the machine stops, and what it remembers of clearings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.manifest import Clearances, DataDirectory
from pipeline.settings import Settings
from tiers.errors import SettingsError
from tiers.tier import TierName

pytestmark = pytest.mark.unit


def test_a_note_survives_the_process_and_ends_when_it_is_struck(tmp_path: Path) -> None:
    """What begin and remember wrote, the next start reads; after end it is gone."""
    with DataDirectory(tmp_path) as directory:
        notes = Clearances(directory, directory.manifest(Settings()))
        notes.begin(3, TierName.COLD, 120)
        notes.remember(1, 77)
    with DataDirectory(tmp_path) as directory:
        notes = Clearances(directory, directory.manifest(Settings()))

        assert {3: (TierName.COLD, 120)} == notes.unfinished()
        assert (77, 0) == (notes.cleared_below(1), notes.cleared_below(2))

        notes.end(3)
        notes.end(3)  # again does nothing
    with DataDirectory(tmp_path) as directory:
        assert {} == Clearances(directory, directory.manifest(Settings())).unfinished()


def test_a_write_is_synced_before_it_counts_and_in_its_place_after(tmp_path: Path, monkeypatch) -> None:
    """The new file is on disk before it replaces the old one, and the directory after: file, rename, directory."""
    done: list[str] = []
    sync, replace = os.fsync, Path.replace

    def synced(number: int) -> None:
        done.append("directory" if Path(f"/proc/self/fd/{number}").resolve() == tmp_path.resolve() else "file")
        sync(number)

    def replaced(self: Path, target: Path) -> Path:
        done.append("rename")
        return replace(self, target)

    with DataDirectory(tmp_path) as directory:
        notes = Clearances(directory, directory.manifest(Settings()))
        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(Path, "replace", replaced)
        notes.remember(0, 5)

    assert ["file", "rename", "directory"] == done


def test_a_write_that_is_cut_short_leaves_the_old_manifest(tmp_path: Path, monkeypatch) -> None:
    """Whatever half a file lies beside it, the manifest is the one that was complete."""

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with DataDirectory(tmp_path) as directory:
        notes = Clearances(directory, directory.manifest(Settings()))
        notes.remember(0, 5)
        monkeypatch.setattr(Path, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            notes.remember(0, 9)
    monkeypatch.undo()
    (tmp_path / "manifest.json.new").write_text('{"half')
    with DataDirectory(tmp_path) as directory:
        assert 5 == Clearances(directory, directory.manifest(Settings())).cleared_below(0)


def test_a_manifest_that_is_none_stops_the_start_with_its_name(tmp_path: Path) -> None:
    """A damaged file is named, and what to do; nothing is made anew over the data."""
    (tmp_path / "manifest.json").write_text('{"node": 3')
    with DataDirectory(tmp_path) as directory, pytest.raises(SettingsError, match=r"manifest\.json is not a manifest"):
        directory.manifest(Settings())
