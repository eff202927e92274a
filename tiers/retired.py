"""Files that the log does not name, any more or at all, until vacuum has removed them.

Since when is remembered here, from the moment this process saw it: when a file was replaced, when its commit failed, at
the start, which lists what the life before has left. So no times of files are needed, and no listing but that one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from tiers.parquet import DataFile, Key
from tiers.rewrite import Bools, none_of

VACUUM_FILES = 1000  # removed at one look, while the lane waits


class Retired:
    """Changed on the writer thread; `find` and `bytes` anywhere: the map they look in is never changed in place."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._held: dict[Key, tuple[DataFile, Bools]] = {}  # still read, and which of their rows were dropped
        self._since: dict[str, float] = {}  # path to when it was seen to be unnamed, s

    def __len__(self) -> int:
        return len(self._since)

    def find(self, key: Key, row: int) -> DataFile | None:
        """Return the replaced file that has a row, None if the row was dropped or the file is gone."""
        held = self._held.get(key)
        return None if held is None or row >= held[0].rows or held[1][row] else held[0]

    def bytes(self) -> int:
        """Return the bytes of replaced files."""
        return sum(file.bytes for file, _ in self._held.values())

    @contextmanager
    def replacing(self, sources: Sequence[DataFile], doomed: Mapping[Key, Bools]) -> Iterator[None]:
        """Hold these files from before their commit, so that no reader misses them; not if the block fails."""
        before = self._held
        self._held = {**before, **{file.key: (file, doomed.get(file.key, none_of(file))) for file in sources}}
        try:
            yield
        except BaseException:
            self._held = before
            raise
        self.note(file.path for file in sources)

    def note(self, paths: Iterable[str]) -> None:
        """Remember that from now on the log does not name these."""
        self._since |= dict.fromkeys(paths, self._clock())

    def due(self, after_s: float) -> list[str]:
        """Return the paths noted longer than `after_s` ago, VACUUM_FILES at most."""
        before_s = self._clock() - after_s
        return [path for path, since_s in self._since.items() if since_s <= before_s][:VACUUM_FILES]

    def forget(self, paths: Iterable[str]) -> None:
        """Drop these: they are removed, or named after all."""
        gone = set(paths)
        self._since = {path: since_s for path, since_s in self._since.items() if path not in gone}
        self._held = {key: held for key, held in self._held.items() if held[0].path not in gone}
