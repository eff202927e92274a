"""What SQL may take of the machine."""

from __future__ import annotations

import msgspec

from tiers.errors import SettingsError


class SqlSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`snapshot_s` is how old a snapshot may be when a statement begins; `deadline_ms` bounds every statement.

    `memory_bytes` is of one child process, of which `processes_max` run; `rows_max` and `bytes_max` cut an answer.
    """

    enabled: bool = True
    snapshot_s: float = 30.0
    snapshot_bytes_max: int = 17_179_869_184
    deadline_ms: float = 10_000.0
    memory_bytes: int = 1_073_741_824
    rows_max: int = 10_000
    bytes_max: int = 16_777_216
    processes_max: int = 4

    def __post_init__(self) -> None:
        """Raise SettingsError for what cannot work."""
        if self.memory_bytes < 1 << 27:
            raise SettingsError(f"sql.memory_bytes = {self.memory_bytes}: at least {1 << 27}, or DuckDB does not start")
        if min(self.rows_max, self.bytes_max, self.processes_max) < 1 or min(self.deadline_ms, self.snapshot_s) < 0:
            raise SettingsError("sql: rows_max, bytes_max and processes_max are at least 1, times at least 0")
