"""A disk that tells what it was asked, refuses what a test wants refused, and forgets what nobody synced.

`preload.c` is compiled by the first test that asks for it and preloaded into a process of ours or of Valkey's. It logs
each operation below `root`, in the order in which they ended; `mark` writes between them, from the test or from the
process itself, so that "the fsync was before the receipt" is an order of lines. `cut` makes the directory that a power
cut at a line would have left, at its worst: of each file what its last fsync covered, of each directory the names that
its last fsync covered.
"""

from __future__ import annotations

import errno
import functools
import os
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import structlog

log = structlog.get_logger()

MARK, PRETEND = "mark", 0
SYNCS = ("fsync", "fdatasync", "syncdir")
CHANGES = ("write", "truncate", "rename", "link", "unlink")


@functools.cache
def library() -> Path:
    """Return the shim, compiled once a run."""
    made = Path(tempfile.mkdtemp(prefix="preload-")) / "preload.so"
    source = Path(__file__).with_name("preload.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", made, source, "-ldl"], check=True)
    return made


class Event(NamedTuple):
    """One operation, or a mark (`path` is its text). `facts` of a sync: identity, copy, errno; of a change: errno."""

    op: str
    path: str
    facts: Sequence[str]

    @property
    def done(self) -> bool:
        """Whether it did what it says."""
        return bool(self.facts) and self.facts[-1] == "0"


class Preload:
    """`root` is what is looked at; log, copies and rules lie in `folder`, outside of it."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.root = root.resolve()
        self.log, self.shadow, self.rules = folder / "preload.log", folder / "preload.copies", folder / "preload.rules"
        self.shadow.mkdir(parents=True)
        self.root.mkdir(parents=True, exist_ok=True)
        self.log.touch()
        assert not list(self.root.iterdir()), "what lies there before would be forgotten by a cut"

    @property
    def environment(self) -> dict[str, str]:
        """What a process must have in its environment."""
        return {
            "LD_PRELOAD": str(library()),
            "PRELOAD_ROOT": str(self.root),
            "PRELOAD_LOG": str(self.log),
            "PRELOAD_SHADOW": str(self.shadow),
            "PRELOAD_RULES": str(self.rules),
        }

    # -- breaking ----------------------------------------------------------------------------------------------------

    def fail(self, *rules: tuple[str, str, int]) -> None:
        """Let operations of a path fail from now on: (operation, part of the path, errno or PRETEND)."""
        fresh = self.rules.with_suffix(".new")
        fresh.write_text("".join(f"{op}\t{part}\t{number}\n" for op, part, number in rules))
        fresh.replace(self.rules)

    def fill(self, *parts: str) -> None:
        """Let the disk be full for these paths."""
        self.fail(*(("write", part, errno.ENOSPC) for part in parts))

    def mend(self) -> None:
        """Let everything be well again."""
        self.fail()

    # -- telling -----------------------------------------------------------------------------------------------------

    def mark(self, text: str) -> None:
        """Write a line between the operations."""
        mark(self.log, text)

    def events(self) -> list[Event]:
        """Return what was seen so far; AssertionError when that is nothing: then the shim was not there."""
        lines = self.log.read_text(errors="surrogateescape").splitlines()
        found = [Event(op, path, facts) for op, path, *facts in (line.split("\t") for line in lines)]
        assert any(each.op != MARK for each in found), "the shim has intercepted nothing"
        return found

    def report(self) -> Counter[str]:
        """Return, and tell, how many operations of each kind did what they say."""
        found = Counter(each.op for each in self.events() if each.op != MARK and each.done)
        log.info("preload.intercepted", **found)
        return found


def mark(log: Path, text: str) -> None:
    """Write a line into a shim's log, as one write."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(descriptor, f"{MARK}\t{text}\n".encode())
    finally:
        os.close(descriptor)


def unsynced(preload: Preload, events: Sequence[Event]) -> set[str]:
    """Return what a power cut after these events would take: files with unsynced bytes, names with "@" before them."""
    bytes_of, names, known = set[str](), set[str](), set[str]()
    for op, path, facts in (each for each in events if each.op != MARK and each.done):
        if op in ("fsync", "fdatasync"):
            bytes_of.discard(path)
        elif op == "syncdir":
            listed = {f"{path.rstrip('/')}/{name}" for _, _, name in _names(preload.shadow, facts[1])}
            names = {each for each in names if each.rpartition("/")[0] != path.rstrip("/")}  # listed, or gone
            known |= listed  # perhaps made, and not written yet
        elif op == "unlink":
            bytes_of.discard(path)
            names.discard(path)
            known.discard(path)
        else:
            if op in ("write", "truncate"):
                bytes_of.add(path)
            if op in ("rename", "link") or path not in known:
                names.add(path)
            known.add(path)
    return bytes_of | {f"@{each}" for each in names}


def cut(preload: Preload, events: Sequence[Event], target: Path) -> None:
    """Make in `target` what is left of the root when the power goes after these events."""
    contents, listings = dict[str, str](), dict[str, str]()
    for op, path, facts in events:
        if op in ("fsync", "fdatasync") and facts[-1] == "0":
            contents[facts[0]] = facts[1]
        elif op == "syncdir" and facts[-1] == "0":
            listings[facts[0]] = facts[1]
            if path == "/":
                listings["/"] = facts[1]
    target.mkdir(parents=True)
    _remember(preload.shadow, "/", target, contents, listings)


def _remember(shadow: Path, identity: str, target: Path, contents: dict[str, str], listings: dict[str, str]) -> None:
    for kind, each, name in _names(shadow, listings.get(identity)):
        if kind == "d":
            (target / name).mkdir()
            _remember(shadow, each, target / name, contents, listings)
        else:
            content = (shadow / contents[each]).read_bytes() if each in contents else b""
            (target / name).write_bytes(content)
            (target / name).chmod(0o600)


def _names(shadow: Path, listing: str | None) -> Iterator[tuple[str, str, str]]:
    for line in (shadow / listing).read_text().splitlines() if listing else ():
        kind, identity, name = line.split("\t", 2)
        yield kind, identity, name
