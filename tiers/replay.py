"""What a Delta log says: its entries and checkpoints read into one state, by as few requests as that takes.

A newest checkpoint that cannot be read is put aside: a power cut can tear it, since delta-rs names it before its bytes
are on the disk. It is derived from the entries, which are ours and whole (Storage.put_new), so nothing is lost.

JSON has no checksum, and an entry cut off at the end of a line is still one. So the first action of an entry, which
says who wrote it, has the crc32c of the others; a checkpoint's is in a file beside it. Other engines read past both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import google_crc32c
import pyarrow as pa
import pyarrow.parquet as pq

from tiers.errors import TierCorrupt
from tiers.parquet import DataFile
from tiers.storage import Storage

LOG = "_delta_log"
LAST = f"{LOG}/_last_checkpoint"
CHECKSUM = "isotherm.crc32c"  # in an entry's commit information; one that an older program wrote has none
FACTS = "isotherm."  # prefix of our keys in the table's configuration
READER, WRITER = 1, 2  # the protocol versions of a table that is ours
NAME = re.compile(rf"{LOG}/(\d{{20}})\.(json|checkpoint\.parquet)")
PATH = re.compile(r"partition=(\d+)/e(\d+)-(\d+)\.parquet")
ACTIONS = ("protocol", "metaData", "txn", "add")  # of a checkpoint; removals in it are for vacuum by others


def entry_path(version: int) -> str:
    """Return where the entry of a version is."""
    return f"{LOG}/{version:020}.json"


def checkpoint_path(version: int) -> str:
    """Return where the checkpoint at a version is."""
    return f"{LOG}/{version:020}.checkpoint.parquet"


def seal_path(version: int) -> str:
    """Return where the checksum of the checkpoint at a version is."""
    return f"{LOG}/{version:020}.checkpoint.crc32c"


def seal(content: bytes) -> bytes:
    """Return a checkpoint's checksum as it is kept."""
    return b"%08x" % google_crc32c.value(content)


def entry(actions: Sequence[dict[str, Any]]) -> bytes:
    """Return an entry's content: its first action is the commit information, and gets the checksum of the others."""
    about, *others = actions
    lines = b"".join(_line(action) for action in others)
    about["commitInfo"][CHECKSUM] = google_crc32c.value(lines)
    return _line(about) + lines


def _line(action: Mapping[str, Any]) -> bytes:
    return json.dumps(action, separators=(",", ":")).encode() + b"\n"


def parse(path: str) -> tuple[int, int] | None:
    """Return (partition, number) of a data file's path, None if it is no name of ours."""
    match = PATH.fullmatch(path)
    return (int(match[1]), int(match[3])) if match else None


def named(storage: Storage, after: str = "") -> list[tuple[int, str]]:
    """Return (version, path) of every entry and checkpoint, by version."""
    return [(int(match[1]), path) for path in storage.list(LOG, after) if (match := NAME.fullmatch(path))]


def checkpoints(log: Iterable[tuple[int, str]]) -> list[int]:
    """Return the versions of those that are checkpoints."""
    return [version for version, path in log if path == checkpoint_path(version)]


@dataclass(slots=True)
class State:
    """The table at one version. `epochs` are the versions of application transactions, by their id."""

    version: int = -1
    epochs: dict[str, int] = field(default_factory=dict)
    files: dict[str, DataFile] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)

    def apply(self, entry: bytes) -> None:
        """Take in the entry after this version. TierCorrupt if it is none, or not of our making."""
        try:
            actions = [json.loads(line) for line in entry.splitlines() if line]
            _check(actions[0], entry)
            for action in actions:
                for kind, values in action.items():
                    self.act(kind, values)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise TierCorrupt(f"entry {self.version + 1} of the archive's log is damaged: {error}") from error
        self.version += 1

    def act(self, kind: str, values: Mapping[str, Any]) -> None:
        """Take in one action."""
        if kind == "add":
            self.files[values["path"]] = _file(values)
        elif kind == "remove":
            self.files.pop(values["path"], None)
        elif kind == "txn":
            self.epochs[values["appId"]] = values["version"]
        elif kind == "metaData":
            given = dict(values["configuration"])
            self.facts = {key.removeprefix(FACTS): text for key, text in given.items() if key.startswith(FACTS)}
        elif kind == "protocol" and (values["minReaderVersion"], values["minWriterVersion"]) != (READER, WRITER):
            raise TierCorrupt("something else has changed the protocol of the archive's table: it is not glacier's now")


def _check(first: Mapping[str, Any], entry: bytes) -> None:
    """Raise ValueError where the checksum in an entry's first action is not that of the others."""
    if first.get("commitInfo", {}).get(CHECKSUM) not in (None, google_crc32c.value(entry.partition(b"\n")[2])):
        raise ValueError("its checksum does not match")


def _file(values: Mapping[str, Any]) -> DataFile:
    name = parse(values["path"])
    rows = json.loads(values["stats"])["numRecords"] if name and values.get("stats") else None
    if name is None or rows is None or values.get("deletionVector"):
        raise TierCorrupt(
            f"{values['path']} in the archive was written by something else; glacier cannot number its rows"
        )
    return DataFile(*name, values["path"], rows, values["size"])


def read(storage: Storage) -> State:
    """Return the newest state. TierCorrupt if entries are missing."""
    log = named(storage)
    state = State()
    for version in reversed(checkpoints(log)):
        found = _checkpoint(storage, version)
        if found is not None:
            state = found
            break
    _take(storage, state, log)
    return state


def follow(storage: Storage, state: State) -> State:
    """Return the newest state: the given one brought on, or, past a gap, one read anew."""
    log = named(storage, entry_path(state.version))
    entries, next_one = [version for version, path in log if path == entry_path(version)], state.version + 1
    if entries != list(range(next_one, next_one + len(entries))):
        return read(storage)  # what lies between was removed, under a checkpoint
    _take(storage, state, log)
    return state


def _take(storage: Storage, state: State, log: Iterable[tuple[int, str]]) -> None:
    """Apply the entries after the state's version."""
    for version, path in log:
        if version > state.version and path == entry_path(version):
            if version != state.version + 1:
                raise TierCorrupt(f"entry {state.version + 1} of the archive's log is missing")
            state.apply(storage.read(path))


def _checkpoint(storage: Storage, version: int) -> State | None:
    """Return the state at a checkpoint; None, and it is put aside, if it is torn."""
    state = State(version)
    try:
        content = storage.read(checkpoint_path(version))
        whole = _sealed(storage, version) in (None, seal(content))
        table = pq.read_table(pa.BufferReader(content), columns=list(ACTIONS), use_threads=False) if whole else None
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        table = None
    if table is None:
        for path in (LAST, checkpoint_path(version), seal_path(version)):
            storage.put_aside(path)
        return None
    for kind in ACTIONS:
        for values in table[kind].drop_null().to_pylist():
            state.act(kind, values)
    return state


def _sealed(storage: Storage, version: int) -> bytes | None:
    """Return the checksum that a checkpoint must have, None where none was kept."""
    try:
        return storage.read(seal_path(version))
    except FileNotFoundError:
        return None
