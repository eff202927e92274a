"""When an answer must be there."""

from __future__ import annotations

import time


class Deadline:
    """A moment on the monotonic clock, `after_ms` from now; None is never. Threads may ask it too."""

    def __init__(self, after_ms: float | None) -> None:
        self._at_s = time.monotonic() + after_ms / 1000 if after_ms is not None else None

    @property
    def left_s(self) -> float | None:
        """Seconds left, at least 0; None when there is no deadline."""
        return max(0.0, self._at_s - time.monotonic()) if self._at_s is not None else None

    @property
    def passed(self) -> bool:
        """Whether it is over."""
        return self._at_s is not None and time.monotonic() >= self._at_s
