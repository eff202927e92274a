"""What a data directory was made for, frozen on first start, and the lock that keeps a second process out of it."""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import google_crc32c
import msgspec

from pipeline.settings import Settings
from tiers import failpoint, record
from tiers.errors import ServiceMissing, SettingsError
from tiers.tier import TierName

FROZEN = ("prefix", "partitions", "dim", "metric", "attributes")


class Unfinished(msgspec.Struct, frozen=True):
    """A clearing that has begun: homes in `tier` below offset `below` of log epoch `epoch`, and of older epochs."""

    tier: str
    below: int
    epoch: int = 0


class Manifest(msgspec.Struct, kw_only=True):
    """`epoch` names the incarnation of the log, `topic` is its id in Kafka ("" until a start has seen it).

    By partition: `cleared_below` are offsets below which a replay leaves out what an operator cleared from hot;
    `clearing` are clearings of other tiers that have begun and not ended; `replay_from` are offsets at which the log
    goes on, in a directory just restored or that has adopted another log. `crc32c` is of all the other fields.
    """

    node: str
    prefix: str
    partitions: int
    dim: int
    metric: str
    attributes: dict[str, str]
    epoch: int = 0
    topic: str = ""
    cleared_below: dict[str, int] = {}
    clearing: dict[str, Unfinished] = {}
    replay_from: dict[str, int] = {}
    crc32c: str | None = None  # None: made before there were checksums

    def checksum(self) -> str:
        """Return what `crc32c` must be."""
        return f"{google_crc32c.value(msgspec.json.encode(msgspec.structs.replace(self, crc32c=None))):08x}"


class DataDirectory:
    """A locked data directory and its manifest. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = -1

    def __enter__(self) -> Self:
        """Create the directory and lock it; ServiceMissing when another process holds it."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise ServiceMissing(
                f"the data directory {self.path} is in use by another node; stop it, or name another with `data`"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lock."""
        os.close(self._lock)

    def manifest(self, settings: Settings) -> Manifest:
        """Return the manifest, made now if there is none; SettingsError when a frozen setting has changed."""
        found = held(self.path, settings)
        if found is None:
            found = _made(settings)
            self.save(found)
        return found

    def save(self, manifest: Manifest) -> None:
        """Write the manifest so that a crash leaves the old or the new one."""
        file, fresh = self.path / "manifest.json", self.path / "manifest.json.new"
        with fresh.open("wb") as out:
            whole = msgspec.structs.replace(manifest, crc32c=manifest.checksum())
            out.write(msgspec.json.format(msgspec.json.encode(whole)))
            out.flush()
            failpoint.reach("manifest.written")
            os.fsync(out.fileno())
        fresh.replace(file)
        failpoint.reach("manifest.renamed")
        directory = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _made(settings: Settings) -> Manifest:
    return Manifest(
        node=str(uuid.uuid4()),
        prefix=settings.kafka.prefix,
        partitions=settings.kafka.partitions,
        dim=settings.dim,
        metric=settings.metric,
        attributes=dict(settings.attributes),
    )


def held(path: Path, settings: Settings) -> Manifest | None:
    """Return the manifest of a data directory, None without one; SettingsError when a frozen setting has changed."""
    file, made = path / "manifest.json", _made(settings)
    if not file.exists():
        return None
    found = _read(file)
    for name in FROZEN:
        if getattr(found, name) != getattr(made, name):
            raise SettingsError(
                f"{name} = {getattr(made, name)!r}, but {path} was made with {getattr(found, name)!r}; it is "
                "frozen on first start: restore it, or start with an empty data directory and another prefix"
            )
    return found


def _read(file: Path) -> Manifest:
    """Return the manifest in a file; SettingsError for bytes that are not what was written."""
    try:
        found = msgspec.json.decode(file.read_bytes(), type=Manifest)
        fault = None if found.crc32c in (None, found.checksum()) else "its checksum does not match"
    except ValueError as error:
        fault = str(error)
    if fault:
        raise SettingsError(
            f"{file} is not a manifest ({fault}): the disk or someone changed it; restore it from a backup of the data "
            "directory (a copy of another node's will not do)"
        )
    return found


class Clearances:
    """What the manifest says of clearings (see consumers.clearing.Notes); every change is on disk at return.

    The write holds the loop for two fsyncs: an operator's command, a few a partition, and nothing may come between.
    """

    def __init__(self, directory: DataDirectory, manifest: Manifest) -> None:
        self._directory, self._manifest = directory, manifest

    def cleared_below(self, partition: int) -> int:
        """Return the offset below which a replay leaves out what is only in the log."""
        return self._manifest.cleared_below.get(str(partition), 0)

    def remember(self, partition: int, offset: int) -> None:
        """Set that offset."""
        self._manifest.cleared_below[str(partition)] = offset
        self._directory.save(self._manifest)

    def begin(self, partition: int, tier: TierName, below: int) -> None:
        """Note that a clearing of a lower tier begins: of homes whose version is lower than `below`."""
        epoch, offset, _ = record.unpack_version(below)
        self._manifest.clearing[str(partition)] = Unfinished(tier.word, offset, epoch)
        self._directory.save(self._manifest)

    def end(self, partition: int) -> None:
        """Note that it has ended."""
        self._manifest.clearing.pop(str(partition), None)
        self._directory.save(self._manifest)

    def unfinished(self) -> Mapping[int, tuple[TierName, int]]:
        """Return the clearings that have begun and not ended, by partition: (tier, below)."""
        notes = self._manifest.clearing.items()
        return {
            int(partition): (TierName[note.tier.upper()], record.pack_version(note.epoch, note.below))
            for partition, note in notes
        }
