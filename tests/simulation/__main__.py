"""python -m tests.simulation [SEED | FIRST:LAST]: replay one seed with its trace, or run many until one fails."""

# ruff: noqa: T201 - a program of its own

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback

from tests.simulation.plan import FOCUS
from tests.simulation.run import Outcome, simulated, spread, world


def replay(seed: int, broken: frozenset[str], focus: str) -> int:
    """Print what happens in one seed; 1 if a rule is broken."""
    one = world(seed, broken, focus)
    print(one.plan)
    failed = False
    with simulated():
        try:
            one.run()
        except BaseException:  # noqa: BLE001 - whatever it is, it is shown
            failed = True
            print("\n".join(one.trace))
            traceback.print_exc()
    if not failed:
        print("\n".join(one.trace))
        print("no rule was broken")
    return int(failed)


def main(argv: list[str]) -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seeds", nargs="?", default="0:10000", help="one seed, or first:last")
    parser.add_argument("--seconds", type=float, default=1e9, help="CPU seconds at most")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--without", action="append", default=[], help="a rule of the start or the stores to break")
    parser.add_argument("--focus", default="", choices=["", *FOCUS], help="plans of one kind only")
    given = parser.parse_args(argv)
    broken = frozenset(given.without)
    if ":" not in given.seeds:
        return replay(int(given.seeds), broken, given.focus)
    first, last = map(int, given.seeds.split(":"))
    began = time.monotonic()

    def progress(so_far: Outcome) -> None:
        rate = so_far.seeds / (time.monotonic() - began)
        print(f"{so_far.seeds} of {last - first} seeds, {rate:.0f} a second", file=sys.stderr, flush=True)

    found = spread(range(first, last), given.jobs, broken, given.focus, given.seconds, progress)
    wall_s = time.monotonic() - began
    if found.failed is not None:
        focus = f" --focus {given.focus!r}" if given.focus else ""
        print(f"{found.error}\nreplay: python -m tests.simulation {found.failed}{focus}")
    print(
        f"seeds={found.seeds} jobs={given.jobs} wall_s={wall_s:.1f} cpu_s={found.seconds:.1f} "
        f"per_s={found.seeds / wall_s:.0f} failed={found.failed}"
    )
    return int(found.failed is not None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
