"""Named places in the order of effects where a test may end the process, hold it, or count that it came by.

`reach` does nothing: nothing in the product assigns `armed`, no setting and no environment variable is read, and the
code that kills is in tests/chaos, which is not shipped. The harness starts a node through a program of its own, which
assigns `armed` and then runs the command line as it is. Not armed, a point costs one comparison.
"""

from __future__ import annotations

from collections.abc import Callable

armed: Callable[[str], None] | None = None


def reach(name: str, *between: str) -> None:
    """Say that a step is done, or about to be: `name`, and the tiers that it is between."""
    if armed is not None:
        armed(":".join((name, "-".join(between))) if between else name)
