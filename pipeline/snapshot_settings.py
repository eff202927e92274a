"""Where snapshots lie."""

from __future__ import annotations

import msgspec


class SnapshotSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`path` is the directory of the snapshots ("" = <data>/snapshots)."""

    path: str = ""
