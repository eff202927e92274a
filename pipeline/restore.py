"""Makes a data directory from a snapshot: an archive of its own, and a manifest that says where the log goes on.

Every file is held against its checksum before anything is made; the directory gets its name when it is whole. A node
that opens it reads the log from the noted offsets, whatever the consumer group had committed since.
"""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from pipeline.manifest import DataDirectory, Manifest
from pipeline.snapshot import ABOUT, About, checksum, decode
from tiers import parquet, record
from tiers.archive import Archive
from tiers.disk import Disk, fsync
from tiers.errors import InvalidRecord, TierCorrupt
from tiers.layout import Layout
from tiers.parquet import DataFile

EPOCH = 1  # of the restored archive; the first start raises it


def restore(snapshot: Path, data: Path) -> About:
    """Make `data` from a snapshot's directory; returns what the snapshot is.

    InvalidRecord when there is no snapshot, or `data` is there already; TierCorrupt names the file that is damaged.
    """
    if not (snapshot / ABOUT).is_file():
        raise InvalidRecord(
            "name", f"there is no snapshot in {snapshot}: name one that `isotherm snapshot create` made"
        )
    if data.exists() and (not data.is_dir() or any(data.iterdir())):
        raise InvalidRecord("to", f"{data} is there already: restore makes a new directory, and replaces nothing")
    about = check(snapshot)
    unnamed = data.with_name(f".{data.name}.part")
    shutil.rmtree(unnamed, ignore_errors=True)
    try:
        _archive(snapshot, unnamed / "glacier", about)
        with DataDirectory(unnamed) as directory:
            directory.save(_manifest(about))
        (unnamed / "lock").unlink()
        if data.is_dir():
            data.rmdir()
        unnamed.rename(data)
        fsync(data.absolute().parent)
    finally:
        shutil.rmtree(unnamed, ignore_errors=True)
    return about


def check(snapshot: Path) -> About:
    """Return what a snapshot is, all of it proven against its checksums; TierCorrupt names what is damaged."""
    about = decode((snapshot / ABOUT).read_bytes(), snapshot / ABOUT)
    for file in about.files:
        path = snapshot / file.path
        if not path.is_file():
            raise TierCorrupt(f"{path} is missing: the snapshot is not whole, and nothing was restored")
        if path.stat().st_size != file.bytes or checksum(path) != file.crc32c:
            raise TierCorrupt(f"{path} is damaged: it is not the file that was put aside; nothing was restored")
    return about


def _archive(snapshot: Path, place: Path, about: About) -> None:
    """Copy the files, and name them in a new Delta table, in one commit."""
    layout = Layout(record.schema(about.dim, about.attributes))
    storage = Disk(place)
    archive = Archive.open(storage, layout.table, about.partitions, layout.facts(about.partitions))
    owners = {int(partition): EPOCH for partition in about.offsets}
    archive.raise_epochs(owners)
    added: list[DataFile] = []
    for file in about.files:
        target = place / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(snapshot / file.path, target)  # not a link: the snapshot must outlive what happens here
        whole = DataFile(file.partition, file.number, file.path, file.rows, file.bytes)
        added.append(parquet.prove(storage, whole, layout.file))
    storage.sync(file.path for file in added)
    if added:
        archive.commit(owners, add=added)


def _manifest(about: About) -> Manifest:
    return Manifest(
        node=str(uuid.uuid4()),
        prefix=about.prefix,
        partitions=about.partitions,
        dim=about.dim,
        metric=about.metric,
        attributes=about.attributes,
        epoch=about.epoch,
        topic=about.topic,
        cleared_below=about.cleared_below,
        replay_from=about.offsets,
    )
