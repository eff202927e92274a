"""The key file and the pepper: two files of mode 0600, replaced whole, so that a reader meets the old or the new.

    <data>/keys          JSON: every key, hashed
    <data>/keys.pepper   32 random bytes, made with the first key; another place is `gateway.pepper_file`

A file that others could read is refused. Whoever changes the file holds a lock on its directory meanwhile.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import msgspec

from pipeline.keys import ID_BYTES, KEYS_MAX, PEPPER_BYTES, SECRET_BYTES, Key
from tiers.errors import SettingsError

FORMAT = 1
BYTES_MAX = 64 * 1024 * 1024
PRIVATE = 0o600


class _Content(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file. `crc32c` is of the rest; a file that was written by hand has none."""

    format: int
    keys: list[Key]
    crc32c: str | None = None

    def checksum(self) -> str:
        """Return what `crc32c` must be."""
        return f"{google_crc32c.value(msgspec.json.encode(msgspec.structs.replace(self, crc32c=None))):08x}"


@dataclass(frozen=True, slots=True)
class KeyFiles:
    """Where the keys of an installation lie."""

    keys: Path
    pepper: Path

    @classmethod
    def under(cls, data: str, keys_file: str, pepper_file: str) -> KeyFiles:
        """Return the places that the settings name, or those in the data directory."""
        keys = Path(keys_file or Path(data) / "keys")
        return cls(keys, Path(pepper_file) if pepper_file else keys.with_name(f"{keys.name}.pepper"))

    def exist(self) -> bool:
        """Say whether keys were ever made: from then on nobody comes in without one."""
        return self.signature() is not None

    def signature(self) -> tuple[int, ...] | None:
        """Return what changes whenever the file does; None when it is not there. SettingsError."""
        try:
            found = self.keys.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SettingsError(
                f"gateway.keys_file = {str(self.keys)!r} cannot be looked at: {error.strerror}"
            ) from None
        return (found.st_ino, found.st_mtime_ns, found.st_size)

    def read(self) -> list[Key]:
        """Return the keys; SettingsError names the file that does not do, never what is in it."""
        try:
            content = msgspec.json.decode(_read(self.keys, BYTES_MAX), type=_Content)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            kind = type(error).__name__
            raise SettingsError(f"gateway.keys_file = {str(self.keys)!r}: not a key file ({kind})") from None
        if content.crc32c not in (None, content.checksum()):
            raise SettingsError(
                f"gateway.keys_file = {str(self.keys)!r}: not the key file that was written (its checksum does not "
                "match); if you have changed it by hand, take its crc32c out"
            )
        ids = {key.id for key in content.keys}
        if content.format != FORMAT or len(ids) != len(content.keys) or len(ids) > KEYS_MAX:
            raise SettingsError(f"gateway.keys_file = {str(self.keys)!r}: not a key file of format {FORMAT}")
        for key in content.keys:
            _check(key, self.keys)
        return content.keys

    def read_pepper(self) -> bytes:
        """Return the pepper; SettingsError when it is not there or not one."""
        found = _read(self.pepper, PEPPER_BYTES + 1)
        if len(found) != PEPPER_BYTES:
            raise SettingsError(f"gateway.pepper_file = {str(self.pepper)!r}: not {PEPPER_BYTES} bytes")
        return found

    @contextmanager
    def changing(self) -> Iterator[list[Key]]:
        """Hold the lock; yields the keys there are, for `write`."""
        self.keys.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.keys.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield self.read() if self.exist() else []
        finally:
            os.close(lock)

    def ensure_pepper(self) -> bytes:
        """Return the pepper, made now if there is none and no key was hashed with one."""
        if not self.pepper.exists():
            if self.exist() and self.read():
                raise SettingsError(
                    f"gateway.pepper_file = {str(self.pepper)!r}: it is not there, and without it no key of "
                    f"{str(self.keys)!r} is valid; bring it back, or remove the key file and make new keys"
                )
            self.pepper.parent.mkdir(parents=True, exist_ok=True)
            _replace(self.pepper, secrets.token_bytes(PEPPER_BYTES))
        return self.read_pepper()

    def write(self, keys: Sequence[Key]) -> None:
        """Replace the key file, durably."""
        content = _Content(format=FORMAT, keys=list(keys))
        content = msgspec.structs.replace(content, crc32c=content.checksum())
        _replace(self.keys, msgspec.json.format(msgspec.json.encode(content)))


def chance() -> bytes:
    """Return the random bytes of one token."""
    return secrets.token_bytes(ID_BYTES + SECRET_BYTES)


def _check(key: Key, file: Path) -> None:
    """Refuse a key that was written by hand and cannot be meant: it must fail closed, and say which."""
    times = (key.created, key.not_before, key.expires, key.revoked)
    if len(key.hash) != 64 or any(moment is not None and moment.tzinfo is None for moment in times):
        raise SettingsError(f"gateway.keys_file = {str(file)!r}: key {key.id[:16]!r} has a bad hash or time")
    try:
        bytes.fromhex(key.hash)
    except ValueError:
        raise SettingsError(f"gateway.keys_file = {str(file)!r}: key {key.id[:16]!r} has a bad hash") from None


def _read(file: Path, limit: int) -> bytes:
    """Return a private file's bytes, at most `limit`."""
    try:
        with file.open("rb") as opened:
            mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            if mode & 0o077:
                raise SettingsError(f"{str(file)!r} can be read by others (mode {mode:04o}): chmod 600 {file}")
            return opened.read(limit)
    except OSError as error:
        raise SettingsError(f"{str(file)!r} cannot be read: {error.strerror}") from None


def _replace(file: Path, content: bytes) -> None:
    """Put a file in place whole: written beside, synced, renamed, and the directory synced."""
    beside = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    opened = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE)
    try:
        with os.fdopen(opened, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        beside.replace(file)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    directory = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
