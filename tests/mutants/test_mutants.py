"""The table of mutants does not rot, and a slice of it is run: a mutant that survives is a rule that nothing holds."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.mutants.mutant import ROOT, Mutant
from tests.mutants.table import MUTANTS, QUICK


@pytest.mark.unit
@pytest.mark.parametrize("mutant", [one for one in MUTANTS if one.file], ids=lambda one: one.name)
def test_each_place_to_mutate_is_there_once(mutant: Mutant) -> None:
    """What it would change stands exactly once in its file, and what it becomes is still Python."""
    assert mutant.source() != (ROOT / mutant.file).read_text()


@pytest.mark.unit
def test_each_mutant_says_what_must_notice() -> None:
    """Names are different, and each has tests that exist, or a finding that the simulation looks for."""
    assert len(MUTANTS) == len({one.name for one in MUTANTS})
    assert QUICK < {one.name for one in MUTANTS}
    assert [] == [one.name for one in MUTANTS if bool(one.tests) == bool(one.finding)]
    files = {test.split("::")[0].split(" ")[0] for one in MUTANTS for test in one.tests}
    assert [] == [file for file in files if not (ROOT / file).exists()]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("which", ["--quick", "--findings"])
def test_a_slice_is_killed(which: str) -> None:
    """The quickest mutants by their tests, and each finding of the model check by the simulation."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.mutants", which],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-4_000:] + done.stderr[-2_000:]
