"""Backup of a live node: everything goes to glacier, and glacier's files of one version are put aside.

    note each partition's applied offset -> move every home below it to glacier, in its lane (the product's own moves)
    -> one version's files, linked or copied, with their checksums -> what the directory is, as its last file

A replay from the noted offsets brings back everything that came later, so the two together are whole (R1): what lies
below an offset is in the files, at its newest or with the newer one in the log above. `restore` is in its own module.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c
import msgspec

from tiers import record
from tiers.disk import fsync
from tiers.errors import InvalidRecord, Replaying, TierCorrupt, TierUnavailable
from tiers.index import Index
from tiers.parquet import DataFile
from tiers.tier import TierName
from tiers.worker import SerialExecutor

if TYPE_CHECKING:
    from pipeline.app import Node

FORMAT = 1
ABOUT = "snapshot.json"
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
MOVE_ROWS = 2_000  # together: a lane does other work in between
STEP_BYTES = 1 << 20
TRIES = 3  # listings whose files were vacuumed before they were put aside


class File(msgspec.Struct, frozen=True):
    """One file of the archive; `path` as in the archive, `crc32c` of its bytes."""

    path: str
    partition: int
    number: int
    rows: int
    bytes: int
    crc32c: int


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What a snapshot is. `offsets`: by partition, where a replay goes on; the other fields as in the manifest."""

    format: int = FORMAT
    name: str
    created_at: str
    prefix: str
    partitions: int
    dim: int
    metric: str
    attributes: dict[str, str]
    epoch: int
    topic: str = ""
    cleared_below: dict[str, int]
    offsets: dict[str, int]
    archive: str
    delta_version: int
    files: list[File]


def encode(about: About) -> bytes:
    """Return the content of ABOUT: one JSON object and, on a line of its own, its crc32c."""
    body = msgspec.json.format(msgspec.json.encode(about))
    return body + b"\n%08x\n" % google_crc32c.value(body)


def decode(content: bytes, where: Path) -> About:
    """Return what a snapshot is; TierCorrupt names the file when it was damaged, or is of another format."""
    body, _, checksum = content.rstrip(b"\n").rpartition(b"\n")
    if checksum != b"%08x" % google_crc32c.value(body):
        raise TierCorrupt(f"{where} is damaged, or no snapshot: its checksum does not match")
    try:
        about = msgspec.json.decode(body, type=About)
    except msgspec.DecodeError as error:
        raise TierCorrupt(f"{where} is no snapshot that this program reads: {error}") from error
    if about.format != FORMAT:
        raise TierCorrupt(f"{where} has format {about.format}, and this program reads {FORMAT}")
    return about


class Snapshots:
    """`create` makes one, one at a time. `directory` holds them by name."""

    def __init__(self, node: Node, directory: Path) -> None:
        self._node, self._directory = node, directory
        self._turn = asyncio.Lock()

    async def create(self, name: str) -> dict[str, Any]:
        """Move everything to glacier and put its files aside; returns what was made.

        InvalidRecord for a name that cannot be, or is taken; Replaying; what a move may raise, with nothing lost.
        """
        if not NAME.fullmatch(name):
            raise InvalidRecord("name", "a name has 1 to 64 letters, digits, dots, dashes or underscores")
        target, unnamed = self._directory / name, self._directory / f".{name}.part"
        async with self._turn:
            if target.exists():
                raise InvalidRecord("name", f"there is a snapshot {name!r} already, in {self._directory}")
            if behind := self._node.replaying():
                raise Replaying(f"partitions {behind} are replaying the log; make it when they are done")
            ends, moved = await self._evacuate()
            pool = SerialExecutor("snapshot")
            try:
                await pool.run(_begin, unnamed)
                version, files, copied = await self._put_aside(unnamed, pool)
                about = self._about(name, version, files, self._offsets(ends))
                await pool.run(_finish, unnamed, target, encode(about))
            finally:
                await pool.run(shutil.rmtree, unnamed, ignore_errors=True)
                pool.close()
        return {
            "name": name,
            "path": str(target),
            "moved": moved,
            "files": len(files),
            "rows": sum(file.rows for file in files),
            "bytes": sum(file.bytes for file in files),
            "copied_bytes": copied,
            "delta_version": version,
            "offsets": about.offsets,
        }

    # -- inside ------------------------------------------------------------------------------------------------------

    async def _evacuate(self) -> tuple[dict[int, int], int]:
        """Move every home below the offsets applied now to glacier; returns these offsets, and how many moved."""
        node, moved = self._node, 0
        ends = {partition: node.ingest.applied(partition) for partition in node.lanes}
        below = {partition: record.pack_version(node.manifest.epoch, end) for partition, end in ends.items()}
        for partition, lane in node.lanes.items():
            for tier in (TierName.HOT, TierName.WARM, TierName.COLD):
                while keys := homes(node.index, tier, partition, below[partition], MOVE_ROWS):
                    job = partial(node.mover.move, partition, tier, TierName.GLACIER, "snapshot", keys)
                    await lane.perform(job)
                    moved += len(keys)
        await node.commit.step()
        return ends, moved

    def _offsets(self, ends: dict[int, int]) -> dict[str, int]:
        """Return where replays go on: at the offsets evacuated to, or lower, where a dead letter is not written yet."""
        marks = self._node.ingest.watermarks
        return {str(partition): min(end, marks[partition].value) for partition, end in ends.items()}

    async def _put_aside(self, directory: Path, pool: SerialExecutor) -> tuple[int, list[File], int]:
        """Link or copy the files of one version; returns it, them, and the bytes that were copied."""
        glacier = self._node.glacier
        for _ in range(TRIES):
            version, found = await glacier.state()
            mine = [file for file in found if file.partition in self._node.lanes]
            try:
                copied = sum([await glacier.take_out(file, directory / file.path) for file in mine])
            except FileNotFoundError:
                continue
            sums = [await pool.run(checksum, directory / file.path) for file in mine]
            return version, [_file(file, crc) for file, crc in zip(mine, sums, strict=True)], copied
        raise TierUnavailable("glacier's files were vacuumed as fast as they could be put aside; ask again")

    def _about(self, name: str, version: int, files: list[File], offsets: dict[str, int]) -> About:
        manifest = self._node.manifest
        return About(
            name=name,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            prefix=manifest.prefix,
            partitions=manifest.partitions,
            dim=manifest.dim,
            metric=manifest.metric,
            attributes=manifest.attributes,
            epoch=manifest.epoch,
            topic=manifest.topic,
            cleared_below=manifest.cleared_below,
            offsets=offsets,
            archive=self._node.glacier.uri,
            delta_version=version,
            files=files,
        )


def homes(index: Index, tier: TierName, partition: int, below: int, limit: int) -> Sequence[tuple[str, int]]:
    """Return up to `limit` (id, version) at home in a tier, oldest first, lower than version `below`."""
    found: list[tuple[int, str]] = []
    for segment in index.segments():
        n = segment.count
        mask = segment.alive[:n] & (segment.home[:n] == tier) & (segment.partition[:n] == partition)
        mask &= segment.version[:n] < below
        found += [(int(segment.version[row]), segment.ids[row]) for row in mask.nonzero()[0].tolist()]
    return [(identifier, version) for version, identifier in sorted(found)[:limit]]


def _file(file: DataFile, crc: int) -> File:
    return File(file.path, file.partition, file.number, file.rows, file.bytes, crc)


def checksum(path: Path) -> int:
    """Return the crc32c of a file's bytes."""
    crc = 0
    with path.open("rb") as source:
        while block := source.read(STEP_BYTES):
            crc = google_crc32c.extend(crc, block)
    return crc


def _begin(unnamed: Path) -> None:
    shutil.rmtree(unnamed, ignore_errors=True)
    unnamed.mkdir(parents=True)


def _finish(unnamed: Path, target: Path, about: bytes) -> None:
    """Make everything durable, and only then give it its name."""
    (unnamed / ABOUT).write_bytes(about)
    for path in sorted(unnamed.rglob("*"), reverse=True):  # files, then the directories that name them
        fsync(path)
    fsync(unnamed)
    unnamed.rename(target)
    fsync(target.parent)
