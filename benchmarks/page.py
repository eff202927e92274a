"""Draws the pages of the benchmarks and their plots from the committed results.

python -m benchmarks.page            # writes them
python -m benchmarks.page --check    # says whether they are what would be written
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.chapter import RESULTS, Chapter
from benchmarks.ingesting.figures import CHAPTER as INGEST
from benchmarks.moving.figures import CHAPTER as MOVES
from benchmarks.searching.figures import CHAPTER as SEARCH
from benchmarks.serving.figures import CHAPTER as GATEWAY

ROOT = Path(__file__).parent.parent
CHAPTERS: tuple[Chapter, ...] = (SEARCH, INGEST, MOVES, GATEWAY)


def files() -> dict[Path, str]:
    """Return every file of every page, by its path below the repository."""
    drawn: dict[Path, str] = {}
    for chapter in CHAPTERS:
        mine = chapter.files(json.loads((ROOT / RESULTS / chapter.result).read_text()))
        assert not drawn.keys() & mine.keys(), f"two chapters write {sorted(drawn.keys() & mine.keys())}"
        drawn |= mine
    return drawn


def main(arguments: list[str] | None = None) -> int:
    """Write the files, or check them; 1 when they differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 when a file is not what it should be")
    given = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    wanted = files()
    stale = [path for path, text in wanted.items() if not (ROOT / path).exists() or (ROOT / path).read_text() != text]
    for path in stale:
        print(f"{path} {'is not' if given.check else 'written:'} what the committed results say")
        if not given.check:
            (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
            (ROOT / path).write_text(wanted[path])
    return 1 if given.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
