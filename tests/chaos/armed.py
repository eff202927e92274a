"""The product's command line with one named point armed: what a node of the harness runs.

    CHAOS_POINT="move.stored:hot-warm 3 kill" python -m tests.chaos.armed run -s …

At the third time that the point is reached the process says so on its standard output and does the deed: `kill`
(SIGKILL to itself), `stop` (SIGSTOP), `raise` or `hang` (the thread never comes back). CHAOS_BREAK names a rule of the
product to be broken (broken.py): the checker must see what comes of it. Without either it is the product, but for what
is rare by design and is made frequent here: checkpoints of the archive's log and tidying the file of codes.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from itertools import count

from consumers import coding
from pipeline import cli
from tests.chaos import broken
from tiers import deltalog, failpoint

POINT, BREAK = "CHAOS_POINT", "CHAOS_BREAK"
REACHED = "point.reached"


def main() -> None:
    """Arm what the environment names, and be the command line."""
    if POINT in os.environ:
        point, hit, deed = os.environ[POINT].split(" ")
        failpoint.armed = watcher(point, int(hit), DEEDS[deed])
    if BREAK in os.environ:
        broken.RULES[os.environ[BREAK]]()
    deltalog.CHECKPOINT_COMMITS, coding.TIDY_ROWS = 8, 256
    cli.main()


def watcher(point: str, hit: int, deed: Callable[[], None]) -> Callable[[str], None]:
    """Return what counts how often a point is reached, by any thread, and does the deed at the `hit`-th time."""
    reached = count(1)

    def watch(name: str) -> None:
        if name == point and next(reached) == hit:
            os.write(1, json.dumps({"event": REACHED, "point": name}).encode() + b"\n")
            deed()

    return watch


def _raise() -> None:
    raise RuntimeError("the harness broke this on purpose")


DEEDS: dict[str, Callable[[], None]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "raise": _raise,
    "hang": lambda: threading.Event().wait() and None,
}


if __name__ == "__main__":
    main()
