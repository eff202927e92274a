"""The directory of kept codes: one file a codebook, so that the next start need not code again what was coded.

    <data>/codebook              the codebook in use, its checksum first
    <data>/codes/<id>.codes      codes by it (tiers/saved.py)
    <data>/codes/<id>.book       a codebook that is to take over: a reindex is under way (consumers/reindex.py)

All derived. A file that cannot be written costs the next start time and nothing else: it is logged once, and no code is
kept any more in this life. Every method runs on the one thread that makes codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import structlog

from tiers import failpoint
from tiers.codes import Codebook
from tiers.saved import CodesFile, Frame, Saved

log = structlog.get_logger()


class Kept:
    """`file` is the codebook in use; codes lie beside it."""

    def __init__(self, file: Path) -> None:
        self._file, self._directory = file, file.with_name("codes")
        self._files: dict[str, CodesFile] = {}
        self._failed = False

    def open(self, dim: int) -> tuple[Codebook, Saved] | None:
        """Return the codebook in use and the codes kept by it; None where there is none, or not for this `dim`."""
        if not self._file.exists():
            return None
        codebook = read(self._file)
        if codebook is None or codebook.dim != dim:
            log.warning("codebook.unreadable", file=str(self._file))
            return None
        return codebook, self._codes(codebook).load()

    def coming(self, codebook: Codebook) -> tuple[Codebook, Saved] | None:
        """Return the codebook that was about to take over from this one, and what is coded by it already.

        Files that belong to neither are removed.
        """
        found: tuple[Codebook, Saved] | None = None
        wanted = {f"{codebook.id}.codes"}
        for path in sorted(self._directory.glob("*.book")):
            other = read(path) if found is None and path.stem != codebook.id else None
            if other is not None and other.dim == codebook.dim:
                found = other, self._codes(other).load()
                wanted |= {path.name, f"{other.id}.codes"}
        self._remove_all_but(wanted)
        return found

    def announce(self, codebook: Codebook) -> None:
        """Note that this codebook is to take over."""
        self._directory.mkdir(exist_ok=True)
        write(self._directory / f"{codebook.id}.book", codebook)

    def use(self, codebook: Codebook) -> None:
        """Make this the codebook in use, and forget all others and their codes."""
        write(self._file, codebook)
        self._remove_all_but({f"{codebook.id}.codes"})
        self._files = {name: file for name, file in self._files.items() if name == codebook.id}

    def append(self, codebook: Codebook, frame: Frame) -> None:
        """Keep these codes."""
        if not self._failed:
            try:
                self._codes(codebook).append(frame)
            except OSError as error:
                self._give_up(error)

    def rows(self, codebook: Codebook) -> int:
        """Return how many rows' codes are kept, those of dead rows too."""
        return 0 if self._failed else self._codes(codebook).rows

    def replace(self, codebook: Codebook, frames: Iterator[Frame]) -> None:
        """Keep these codes and no others of this codebook."""
        try:
            self._codes(codebook).replace(frames)
        except OSError as error:
            self._give_up(error)

    def _codes(self, codebook: Codebook) -> CodesFile:
        path = self._directory / f"{codebook.id}.codes"
        return self._files.setdefault(codebook.id, CodesFile(path, codebook.code_bytes))

    def _remove_all_but(self, names: set[str]) -> None:
        for path in self._directory.glob("*"):
            if path.name not in names:
                path.unlink()

    def _give_up(self, error: OSError) -> None:
        self._failed = True
        log.warning("codes.not_kept", error=str(error), hint="the next start codes anew what is not in the file")


def write(file: Path, codebook: Codebook) -> None:
    """Keep a codebook, with its checksum first: it is derived, so a crash may cost it but must not garble it."""
    data = codebook.to_bytes()
    fresh = file.with_suffix(".new")
    fresh.write_bytes(google_crc32c.value(data).to_bytes(4, "little") + data)
    failpoint.reach("codebook.written")
    fresh.replace(file)


def read(file: Path) -> Codebook | None:
    """Return the codebook kept in a file, None where its bytes are not what was written."""
    data = file.read_bytes()
    if len(data) < 4 or google_crc32c.value(data[4:]) != int.from_bytes(data[:4], "little"):
        return None
    return Codebook.from_bytes(data[4:])
