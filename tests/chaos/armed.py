"""The product's command line with one named point armed: what a node of the harness runs.

    CHAOS_POINT="move.stored:hot-warm 3 kill" python -m tests.chaos.armed run -s …

At the third time that the point is reached the process says so on its standard output and does the deed: `kill`
(SIGKILL to itself), `stop` (SIGSTOP), `raise` or `hang` (the thread never comes back). CHAOS_BREAK names a rule of the
product to be broken (broken.py), which the checker must notice. CHAOS_CRASH names a service of the node that fails.
Without any it is the product, but for what is rare by design and is made frequent here: checkpoints of the archive's
log and tidying the file of codes. SIGUSR1 shows where all threads are.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Sequence
from itertools import count

from consumers import coding
from pipeline import app, cli, manager
from tests.chaos import broken
from tiers import deltalog, failpoint

POINT, BREAK, CRASH = "CHAOS_POINT", "CHAOS_BREAK", "CHAOS_CRASH"
REACHED, SERVICES = "point.reached", "services.named"


def main() -> None:
    """Arm what the environment names, and be the command line."""
    faulthandler.register(signal.SIGUSR1)
    if POINT in os.environ:
        point, hit, deed = os.environ[POINT].split(" ")
        failpoint.armed = watcher(point, int(hit), DEEDS[deed])
    if BREAK in os.environ:
        broken.RULES[os.environ[BREAK]]()
    if CRASH in os.environ:
        manager.supervise = crashing(os.environ[CRASH])
    deltalog.CHECKPOINT_COMMITS, coding.TIDY_ROWS = 8, 256
    cli.main()


def watcher(point: str, hit: int, deed: Callable[[], None]) -> Callable[[str], None]:
    """Return what counts how often a point is reached, by any thread, and does the deed at the `hit`-th time."""
    reached = count(1)

    def watch(name: str) -> None:
        if name == point and next(reached) == hit:
            say(REACHED, point=name)
            deed()

    return watch


def crashing(name: str) -> Callable[..., Awaitable[None]]:
    """Return a supervisor under which the service of this name breaks as soon as it runs."""

    class Broken:
        def __init__(self, name: str) -> None:
            self.name = name

        async def run(self, _: asyncio.Event) -> None:
            await asyncio.sleep(0.1)
            raise RuntimeError(f"{self.name} was broken on purpose")

    async def supervised(services: Sequence[app.Service], stop: asyncio.Event, drain_s: float) -> None:
        say(SERVICES, names=[service.name for service in services])
        given = [Broken(name) if service.name == name else service for service in services]
        await app.supervise(given, stop, drain_s)

    return supervised


def say(event: str, **more: object) -> None:
    """Write a line to standard output, at once."""
    os.write(1, json.dumps({"event": event, **more}).encode() + b"\n")


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
