"""The unit holds: systemd reads it without a word, its hardening stays as good, and its environment is settings."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.settings import load
from tests.deployment.compose import COMPOSE

UNIT = COMPOSE / "systemd" / "isotherm.service"
EXPOSURE_MAX = 2.5  # of 10, by systemd's own count: it needs sockets, and namespaces for the SQL process
ANALYZE = shutil.which("systemd-analyze")
pytestmark = [pytest.mark.unit, pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")]


def service() -> configparser.SectionProxy:
    """Return the [Service] section; of an option given twice the last."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    parser.read(UNIT)
    return parser["Service"]


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze."""
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)


def test_systemd_has_nothing_to_say(tmp_path):
    """Verified with a program that is there in place of ours."""
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/isotherm/bin/isotherm", sys.executable))
    done = analyze("verify", str(unit))
    said = [line for line in (done.stdout + done.stderr).splitlines() if UNIT.name in line]

    assert [] == said


def test_it_stays_as_hard():
    """By systemd's own measure."""
    said = analyze("security", "--offline=yes", str(UNIT)).stdout
    level = re.search(r"Overall exposure level for isotherm\.service: ([\d.]+)", said)
    assert level is not None, said

    assert float(level[1]) <= EXPOSURE_MAX


def test_its_environment_is_settings_and_it_has_time_to_stop():
    """The data lie in the state directory; TimeoutStopSec is longer than both drains."""
    section = service()
    given = dict(word.split("=", 1) for word in shlex.split(section["Environment"]))
    settings = load(None, given)

    assert f"/var/lib/{section['StateDirectory']}" == settings.data == section["WorkingDirectory"]
    assert float(section["TimeoutStopSec"]) > settings.gateway.drain_s + settings.node.drain_s
    assert "2" == section["RestartPreventExitStatus"]
    assert Path(shlex.split(section["ExecStart"])[-1]).name == "isotherm.toml"
