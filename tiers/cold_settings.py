"""What cold can be told."""

from __future__ import annotations

import msgspec

from tiers.errors import SettingsError


class ColdSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`path` is a directory ("" = the wiring's choice). Limits 0 = none. The last three are for the file's upkeep.

    `checkpoint_bytes`: WAL or evicted bytes after which the next write first checkpoints (1 s for 256 MiB).
    `reserve_bytes`: disk left free for checkpoints and evictions. `segment_bytes`: side file, one descriptor each.
    """

    path: str = ""
    rows_limit: int = 0
    bytes_limit: int = 0
    memory_limit_mb: int = 1_024
    threads: int = 1
    checkpoint_bytes: int = 256 * 1024 * 1024
    reserve_bytes: int = 512 * 1024 * 1024
    segment_bytes: int = 256 * 1024 * 1024

    def __post_init__(self) -> None:
        """Raise SettingsError for what cannot work."""
        if self.memory_limit_mb < 64 or self.threads < 1:
            raise SettingsError("cold: memory_limit_mb is at least 64 and threads at least 1")
        if min(self.checkpoint_bytes, self.segment_bytes) < 1 or self.segment_bytes >= 1 << 31:
            raise SettingsError("cold: checkpoint_bytes and segment_bytes are at least 1, segment_bytes below 2 GiB")
        if min(self.rows_limit, self.bytes_limit, self.reserve_bytes) < 0:
            raise SettingsError("cold: rows_limit, bytes_limit and reserve_bytes are at least 0")
