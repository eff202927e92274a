"""The manifest: on disk when `save` returns, whole whenever the machine stops, and what it remembers of clearings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.manifest import Clearances, DataDirectory
from pipeline.settings import Settings
from tiers import record
from tiers.errors import SettingsError
from tiers.tier import TierName

pytestmark = pytest.mark.unit


def test_a_note_survives_the_process_and_ends_when_it_is_struck(tmp_path: Path) -> None:
    """What begin and remember wrote, the next start reads; after end it is gone."""
    with DataDirectory(tmp_path) as directory:
        notes = Clearances(directory, directory.manifest(Settings()))
        notes.begin(3, TierName.COLD, record.pack_version(2, 120))
        notes.remember(1, 77)
    with DataDirectory(tmp_path) as directory:
        notes = Clearances(directory, directory.manifest(Settings()))

        assert {3: (TierName.COLD, record.pack_version(2, 120))} == notes.unfinished()
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


def test_every_flipped_bit_and_every_cut_is_refused(tmp_path: Path) -> None:
    """The manifest says the log's epoch and what must not come back: none of its bytes is believed without proof."""
    with DataDirectory(tmp_path) as directory:
        notes = Clearances(directory, directory.manifest(Settings()))
        notes.remember(1, 77)
        file = tmp_path / "manifest.json"
        good = file.read_bytes()
        right = directory.manifest(Settings())
        believed = 0
        for bit in range(len(good) * 8):
            bad = bytearray(good)
            bad[bit // 8] ^= 1 << bit % 8
            file.write_bytes(bad)
            try:
                found = directory.manifest(Settings())
            except SettingsError:
                continue
            believed += 1  # white space, or the name of the checksum: the content is as it was
            assert (right.epoch, right.cleared_below, right.node) == (found.epoch, found.cleared_below, found.node), bit
        assert believed < len(good)
        for end in range(len(good) - 1):
            file.write_bytes(good[:end])
            with pytest.raises(SettingsError):
                directory.manifest(Settings())
