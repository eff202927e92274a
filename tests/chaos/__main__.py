"""Kill the real system again and again, and check that nothing that was acknowledged is ever missing.

    python -m tests.chaos --kills 1000 [--seed 1] [--minutes 120] [--json out.json] [--break evict-before-store]

The last line says what came of it; exit 1 when one of the four counts is not 0, or the run did not go to its end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.chaos.broken import RULES
from tests.chaos.report import report, summary
from tests.chaos.run import run


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end earlier, and report what was done")
    parser.add_argument("--keep", type=Path, help="keep data and logs in this directory")
    parser.add_argument("--json", type=Path, help="write everything that was counted here")
    parser.add_argument("--break", dest="rule", choices=sorted(RULES), default="", help="break a rule of the product")
    parser.add_argument(
        "--after", type=Path, help="the --json of an earlier run: the points that it hit least come first"
    )
    given = parser.parse_args()
    before = Counter(json.loads(given.after.read_text())["points"]) if given.after else Counter[str]()
    with tempfile.TemporaryDirectory(prefix="chaos-") as scratch:
        directory = given.keep or Path(scratch)
        directory.mkdir(parents=True, exist_ok=True)
        outcome = asyncio.run(
            run(directory, kills=given.kills, seed=given.seed, minutes=given.minutes, rule=given.rule, before=before)
        )
    if given.json:
        given.json.write_text(json.dumps(summary(outcome, given.seed), indent=1))
    if given.after:
        least = (outcome.tally.points + before).most_common()[:-6:-1]
        print(f"points hit least in both runs: {least}")  # noqa: T201 - what it is for
    print(report(outcome, given.seed), flush=True)  # noqa: T201 - what it is for
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
