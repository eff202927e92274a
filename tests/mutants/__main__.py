"""python -m tests.mutants [NAME…]: make each mutant, and see whether its tests, or the simulation, notice.

Libraries are imported once; each mutant is a fork of that process, which imports the product from the mutated source.
The exit status is 1 when a mutant survives. `--findings` runs those that the simulation is to find, `--quick` those
whose tests are a moment's work.
"""

# ruff: noqa: T201 - a program of its own

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import shlex
import sys
import time
from pathlib import Path

from tests.mutants.mutant import ROOT, Mutant, Mutated
from tests.mutants.table import MUTANTS, QUICK

LIBRARIES = ("aiokafka", "deltalake", "duckdb", "faiss", "msgspec", "numpy", "opentelemetry.trace")
LIBRARIES += ("pyarrow.compute", "pyarrow.parquet", "pytest", "redis.asyncio", "structlog")
KILLED, SURVIVED, BROKEN = 0, 1, 2  # a child's exit status


class Failure:
    """What a run of tests failed by first: a plugin of pytest. A mutant that does not even run proves nothing."""

    test = reason = ""

    def pytest_runtest_logreport(self, report) -> None:
        """Take note of a test that failed, or could not be set up."""
        if report.failed and not self.test:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.test, self.reason = report.nodeid, crash.message.partition("\n")[0] if crash else "?"

    @property
    def misspelt(self) -> bool:
        """Whether it was a name that the mutant had wrong."""
        return self.reason.startswith(("NameError", "UnboundLocalError", "ImportError"))


def notice(mutant: Mutant, quiet: int) -> int:
    """Return whether the mutant is killed. In a process of its own."""
    if mutant.file:
        Mutated(mutant).install()
    if mutant.finding:
        from tests.simulation.run import search

        found = search(range(mutant.first, mutant.first + mutant.within), mutant.broken, mutant.focus)
        os.write(quiet, f"seeds={found.seeds} seed={found.failed} {found.error}".encode())
        return SURVIVED if found.failed is None else KILLED
    import pytest

    for tests in mutant.tests:
        failure = Failure()
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            try:
                status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *shlex.split(tests)], plugins=[failure])
            except BaseExceptionGroup:  # what a failed test has left open; pytest looks after the last one
                status = pytest.ExitCode.TESTS_FAILED if failure.test else pytest.ExitCode.INTERNAL_ERROR
        if status == pytest.ExitCode.TESTS_FAILED:
            os.write(quiet, f"{failure.test}: {failure.reason[:120]}".encode())
            return BROKEN if failure.misspelt else KILLED
        if status != pytest.ExitCode.OK:
            os.write(quiet, f"{tests}: pytest ended with {status!r}".encode())
            return BROKEN
    return SURVIVED


def run(mutant: Mutant) -> int:
    """Make a mutant in a fork of this process, and print what came of it."""
    began = time.monotonic()
    read, write = os.pipe()
    child = os.fork()
    if not child:
        status = BROKEN
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            status = notice(mutant, write)
        except BaseException as error:  # noqa: BLE001 - told to the parent
            os.write(write, repr(error).encode())
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    word = {KILLED: "killed", SURVIVED: "SURVIVED"}.get(status, "BROKEN")
    print(f"{word:8} {mutant.name} [{mutant.rule}] {time.monotonic() - began:.1f} s: {said}", flush=True)
    return status


def main(argv: list[str]) -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names; all if none is given")
    parser.add_argument("--findings", action="store_true")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args(argv)
    chosen = [one for one in MUTANTS if not given.names or any(part in one.name for part in given.names)]
    if given.findings:
        chosen = [one for one in chosen if one.finding]
    if given.quick:
        chosen = [one for one in chosen if one.name in QUICK]
    os.chdir(ROOT)
    for library in LIBRARIES:
        importlib.import_module(library)
    statuses = [run(one) for one in chosen]
    killed = statuses.count(KILLED)
    print(f"mutants={len(chosen)} killed={killed} survived={len(chosen) - killed}")
    return int(killed != len(chosen) or not chosen)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
