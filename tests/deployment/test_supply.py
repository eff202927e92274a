"""What a node installs is listed, and what is known of it is never made up."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from scripts import audit, sbom
from tests.deployment.compose import ROOT

pytestmark = pytest.mark.unit


def answer(*packages: dict) -> str:
    """Return what pip-audit prints."""
    return json.dumps({"dependencies": list(packages), "fixes": []})


FINE = {"name": "duckdb", "version": "2.0.1", "vulns": []}
BAD = {"name": "uvicorn", "version": "0.54.0", "vulns": [{"id": "PYSEC-0-1"}]}
SKIPPED = {"name": "typer", "skip_reason": "Dependency not found and could not be audited"}


def test_the_bill_is_the_locks():
    """The committed one is what the lock says now: each package once, at its version, and no address of anything."""
    text = sbom.BILL.read_text()
    listed = {(each["name"], each["version"]) for each in json.loads(text)["components"]}
    locked = re.findall(r"^([\w.-]+)(?:\[.*\])?==([\w.]+)", sbom.LOCK.read_text(), re.MULTILINE)

    assert set(locked) == listed
    assert json.loads(text) == sbom.bill()
    assert "://" not in text


def test_another_bill_fails_the_check(monkeypatch):
    """`make check` ends with what to do."""
    monkeypatch.setattr(sbom, "bill", lambda: {"components": []})
    monkeypatch.setattr(sys, "argv", ["sbom", "--check"])

    with pytest.raises(SystemExit, match="make sbom"):
        sbom.main()


@pytest.mark.parametrize(
    ("given", "code", "text", "known"),
    [
        (answer(FINE), 0, "audited: 1 packages, no known", []),
        (answer(FINE, BAD), 1, "uvicorn 0.54.0: PYSEC-0-1", ["uvicorn 0.54.0: PYSEC-0-1"]),
        (answer(SKIPPED, BAD), 1, "uvicorn", ["uvicorn 0.54.0: PYSEC-0-1"]),
        (answer(FINE, SKIPPED), 3, "not audited: the service has no answer for 1 of 2", None),
        (answer(), 3, "not audited: the service has no answer for no package", None),
        ("", 3, r"not audited: the service did not answer \(no route\)", None),
    ],
)
def test_an_answer_comes_to_what_it_says(given, code, text, known):
    """Silence, and an answer about some of the packages, are not an audit."""
    verdict = audit.judge(given, "Traceback\nno route\n")

    assert (code, known) == (verdict.code, verdict.known)
    assert re.search(text, verdict.text)


def test_a_note_counts_for_its_own_lock():
    """Another lock is not audited, and a vulnerability that is noted fails the check until the lock changes."""
    note = {"lock_sha256": "a", "asked": "2026-11-28", "known": []}

    assert (0, "audited on 2026-11-28: no known vulnerability", []) == audit.noted(note, "a")
    assert (0, None) == (audit.noted(note, "b").code, audit.noted(note, "b").known)
    assert "not audited: the lock has changed since 2026-11-28" in audit.noted(note, "b").text
    assert "not audited: never asked" in audit.noted(None, "a").text
    assert 1 == audit.noted(note | {"known": ["x 1: CVE"]}, "a").code


def test_what_make_check_runs_says_one_of_both():
    """On this checkout, as a program: no network is needed, and the word is there."""
    done = subprocess.run(
        [sys.executable, "-m", "scripts.audit", "--noted"], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert re.search("not audited: |audited on |known vulnerabilities on ", done.stderr), done.stderr


def pinned(name: str) -> dict[str, str]:
    """Return the packages of a lock and their versions."""
    return dict(re.findall(r"^([\w.-]+)(?:\[.*\])?==([\w.]+)", (ROOT / "locks" / name).read_text(), re.MULTILINE))


def test_an_image_installs_the_versions_that_are_tested():
    """The backend that builds the wheel is the tests' own, and the GPU's lock is core's with CuPy and CUDA."""
    core, gpu, build, dev = (pinned(name) for name in ("core.txt", "gpu.txt", "build.txt", "dev.txt"))

    assert {} == {name: version for name, version in core.items() if gpu.get(name) != version}
    assert {} == {name: version for name, version in build.items() if dev.get(name, version) != version}
    assert "hatchling" in build
    assert "cupy-cuda12x" in gpu
