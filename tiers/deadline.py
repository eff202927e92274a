"""When an answer must be there."""

from __future__ import annotations

import math
import time


class Deadline:
    """A moment on the monotonic clock, `after_ms` from now; None is never. Threads may ask it too."""

    def __init__(self, after_ms: float | None) -> None:
        #: On the monotonic clock; infinity where there is none.
        self.at_s = time.monotonic() + after_ms / 1000 if after_ms is not None else math.inf

    @property
    def left_s(self) -> float | None:
        """Seconds left, at least 0; None when there is no deadline."""
        return None if self.at_s == math.inf else max(0.0, self.at_s - time.monotonic())

    @property
    def passed(self) -> bool:
        """Whether it is over."""
        return self.at_s != math.inf and time.monotonic() >= self.at_s
