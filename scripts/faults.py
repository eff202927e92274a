"""Write into docs/faults.md what a run of the tests says of those that it names: `python -m scripts.faults RUN.xml`.

RUN.xml is what `pytest --junitxml=RUN.xml` wrote. A row passed if all the tests that it names ran and passed, on the
day of the run; a test that failed makes it failed; a row whose tests did not all run keeps what it says.
"""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "faults.md"
TEST = re.compile(r"`(tests/[\w/]+)\.py::(\w+)`")
RESULT = re.compile(r"(?m)^(\| \d+ \|.*\| )((?:passed|failed|no wrong answer) [\d-]+|not run for this table)( \|)$")


def outcomes(run: Path) -> tuple[str, dict[tuple[str, str], list[bool]]]:
    """Return the day of the run, and for each (file, test) whether each of its cases passed."""
    found: defaultdict[tuple[str, str], list[bool]] = defaultdict(list)
    tree = ET.parse(run)  # noqa: S314 - see above
    for case in tree.iter("testcase"):
        file, name = case.get("classname", "").split(".Test")[0], case.get("name", "").partition("[")[0]
        if case.find("skipped") is None:
            bad = case.find("failure") is not None or case.find("error") is not None
            found[file.replace(".", "/"), name].append(not bad)
    suite = next(tree.iter("testsuite"))
    return suite.get("timestamp", "")[:10], found


def stamped(page: str, day: str, found: dict[tuple[str, str], list[bool]]) -> str:
    """Return the page with the results of this run. Pure."""

    def result(match: re.Match[str]) -> str:
        named = TEST.findall(match[1])
        ran = [found.get(each, []) for each in named]
        if any(not all(cases) for cases in ran):
            said = f"failed {day}"
        else:
            said = f"passed {day}" if named and all(ran) else match[2]
        return f"{match[1]}{said}{match[3]}"

    return RESULT.sub(result, page)


if __name__ == "__main__":
    PAGE.write_text(stamped(PAGE.read_text(), *outcomes(Path(sys.argv[1]))))
