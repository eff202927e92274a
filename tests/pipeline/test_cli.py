"""The command line: exit codes, errors that say what to do, and the README's tour, run as it is written."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.settings import Settings, load

ROOT = Path(__file__).parents[2]
ISOTHERM = [sys.executable, "-m", "pipeline.cli"]
COMMANDS = ("demo", "up", "run", "publish", "delete", "get", "search", "tiers", "changes", "dead-letters", "config")
GROUPS = {"dead-letters": ("list", "show", "replay")}


def isotherm(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    full = {**os.environ, **environment}
    return subprocess.run([*ISOTHERM, *arguments], capture_output=True, text=True, timeout=60, env=full, check=False)


@pytest.mark.unit
def test_every_command_has_help_with_an_example() -> None:
    """--help of the whole names every command; each command's shows how it is used."""
    whole = isotherm("--help")
    assert whole.returncode == 0
    for command in COMMANDS:
        assert command in whole.stdout
    for command in COMMANDS[:-1]:
        for words in [(command, inner) for inner in GROUPS.get(command, ())] or [(command,)]:
            assert re.search(r"Example: .*isotherm", isotherm(*words, "--help").stdout), words


@pytest.mark.unit
@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["config", "show", "-s", "hot.colour=blue"], 2, "hot.colour: no such setting"),
        (["config", "show", "-s", "dim=many"], 2, "dim: "),
        (["config", "show", "-s", "metric=l7"], 2, "metric = 'l7'"),
        (["config", "show", "-s", "gateway.host=0.0.0.0"], 2, "loopback"),
        (["config", "show", "--config", "/nowhere.toml"], 2, "nowhere.toml"),
        (
            ["run", "-s", "kafka.bootstrap=127.0.0.1:1", "-s", "gateway.port=0"],
            3,
            "Kafka does not answer at 127.0.0.1:1",
        ),
        (["get", "x", "--url", "http://127.0.0.1:1"], 3, "the gateway does not answer at http://127.0.0.1:1"),
        (["search"], 2, "give either words or --vector"),
        (["publish", "/nowhere.jsonl"], 2, "/nowhere.jsonl: No such file"),
        (["dead-letters", "replay"], 2, "name positions, or a --reason"),
        (["dead-letters", "list", "-s", "kafka.bootstrap=127.0.0.1:1"], 3, "Kafka does not answer at 127.0.0.1:1"),
    ],
)
def test_errors_are_one_line_with_their_exit_code(tmp_path: Path, arguments: list[str], code: int, says: str) -> None:
    """2 for usage, 3 for a missing service; the line names what and where."""
    done = isotherm(*arguments, ISOTHERM_DATA=str(tmp_path / "data"), ISOTHERM_LOG__LEVEL="error")

    assert code == done.returncode, done.stderr
    assert says in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.unit
def test_settings_come_from_command_line_then_environment_then_file(tmp_path: Path) -> None:
    """The later source wins, key by key."""
    file = tmp_path / "isotherm.toml"
    file.write_text("dim = 8\nmetric = 'dot'\n[hot]\nslab_rows = 128\n")
    environment = {"ISOTHERM_HOT__SLAB_ROWS": "256", "ISOTHERM_DIM": "9"}

    found = load(file, environment, {"dim": "10"})

    assert (found.dim, found.metric, found.hot.slab_rows) == (10, "dot", 256)


@pytest.mark.unit
def test_the_configuration_file_holds_every_key_with_its_default() -> None:
    """config/isotherm.toml is the defaults, all of them."""
    import tomllib

    import msgspec

    written = tomllib.loads((ROOT / "config" / "isotherm.toml").read_text())

    assert msgspec.to_builtins(Settings()) == written


@pytest.mark.unit
def test_passwords_are_never_shown() -> None:
    """Config show masks what a URL carries."""
    shown = isotherm("config", "show", "-s", "warm.url=redis://:canary@localhost:6379/0")

    assert shown.returncode == 0
    assert "canary" not in shown.stdout + shown.stderr


@pytest.fixture
def up(tmp_path: Path) -> Iterator[str]:
    """`isotherm up`, and its gateway's address."""
    environment = {**os.environ, "ISOTHERM_GATEWAY__PORT": "0", "ISOTHERM_LOG__LEVEL": "error"}
    command = [*ISOTHERM, "up", "--data", str(tmp_path / "data")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("gateway: "):
                yield line.split()[1]
                break
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_the_tour_of_the_readme_works_as_written(up: str) -> None:
    """Each shell line of the tour exits 0, and search finds what was published."""
    readme = (ROOT / "README.md").read_text()
    tour = re.search(r"<!-- tour.*?```sh\n(.*?)```", readme, re.DOTALL)
    assert tour is not None
    seen = ""
    for line in tour[1].strip().splitlines():
        command = line.replace(".venv/bin/isotherm", f"{sys.executable} -m pipeline.cli")
        environment = {**os.environ, "ISOTHERM_URL": up}
        for _ in range(50):  # what was just published is searchable within milliseconds, not at once
            done = subprocess.run(
                command, shell=True, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=60, check=False
            )
            if done.returncode == 0:
                break
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        seen += done.stdout
    assert "gzip" in seen


def test_demo_help_and_json_are_what_the_documents_say() -> None:
    """The options that other programs rely on exist."""
    shown = isotherm("demo", "--help").stdout
    assert {"--records", "--keep", "--json"} <= set(re.findall(r"--\w+", shown))
    assert json.loads(isotherm("config", "show").stdout)["dim"] == 256
