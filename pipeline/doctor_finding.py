"""What the doctor says of one thing."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`fix` says what to do, in one line; `unreachable`: a service that does not answer at all."""

    check: str
    level: Level
    text: str
    fix: str = ""
    unreachable: bool = False

    @classmethod
    def ok(cls, check: str, text: str) -> Finding:
        """Return that something is as it should be."""
        return cls(check=check, level=Level.OK, text=text)

    @classmethod
    def warning(cls, check: str, text: str, fix: str) -> Finding:
        """Return that something works, until it does not."""
        return cls(check=check, level=Level.WARNING, text=text, fix=fix)

    @classmethod
    def error(cls, check: str, text: str, fix: str = "", *, unreachable: bool = False) -> Finding:
        """Return that something does not work; without `fix` the text says what to do."""
        return cls(check=check, level=Level.ERROR, text=text, fix=fix, unreachable=unreachable)
