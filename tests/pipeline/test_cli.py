"""The command line: exit codes, errors that say what to do, and the README's tour, run as it is written."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import typer
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.settings import Settings, load
from pipeline.stack import Stack
from tests.nodes import DIM, small

ROOT = Path(__file__).parents[2]
ISOTHERM = [sys.executable, "-m", "pipeline.cli"]
PROMISED = (
    "demo",
    "up",
    "run",
    "publish",
    "delete",
    "get",
    "search",
    "tiers",
    "changes",
    "why",
    "export",
    "mcp",
    "doctor",
    "stack",
    "dead-letters",
    "config",
    "keys",
)


def isotherm(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    full = {**os.environ, **environment}
    return subprocess.run([*ISOTHERM, *arguments], capture_output=True, text=True, timeout=60, env=full, check=False)


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words of every command that can be run."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


@pytest.mark.unit
def test_every_command_has_help_with_an_example_and_json() -> None:
    """--help of each command shows how it is used, as that very command, and every command takes --json."""
    found = list(commands(typer.main.get_command(app)))
    assert set(PROMISED) <= {words[0] for words in found}
    assert {("config", "show"), ("config", "schema")} <= set(found)
    for words in found:
        done = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "200"})
        assert 0 == done.exit_code, words
        assert re.search(rf"Example: .*isotherm {' '.join(words)}\b", done.output), words
        assert "--json" in done.output, words


@pytest.mark.unit
@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["config", "show", "-s", "hot.colour=blue"], 2, "hot.colour: no such setting"),
        (["config", "show", "-s", "dim=many"], 2, "dim: "),
        (["config", "show", "-s", "metric=l7"], 2, "metric = 'l7'"),
        (["run", "-s", "gateway.host=0.0.0.0"], 2, "isotherm keys create"),
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
        (["search", "--vector", "[1,"], 2, "--vector is a JSON list of floats"),
        (["search", "--vector", "7"], 2, "--vector is a JSON list of floats"),
        (["why", "x", "--url", "http://127.0.0.1:1"], 3, "the gateway does not answer at http://127.0.0.1:1"),
        (["delete", "x", "--url", "http://127.0.0.1:1"], 3, "start one with `isotherm up`"),
        (["tiers", "--url", "http://127.0.0.1:1"], 3, "or name it with --url"),
        (["changes", "--url", "http://127.0.0.1:1"], 3, "the gateway does not answer"),
        (["get"], 2, "─"),
        (["config", "show", "-s", "dim"], 2, "write it as key=value"),
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
    written = tomllib.loads((ROOT / "config" / "isotherm.toml").read_text())

    assert msgspec.to_builtins(Settings()) == written


@pytest.mark.unit
def test_the_configuration_file_is_what_the_schema_says() -> None:
    """Loaded it is the defaults; each key stands in the schema with its default, and nothing else may be set."""
    schema = json.loads(isotherm("config", "schema").stdout)
    written = tomllib.loads((ROOT / "config" / "isotherm.toml").read_text())

    assert Settings() == load(ROOT / "config" / "isotherm.toml", {})
    _holds(schema, schema, written)


def _holds(schema: dict[str, Any], at: dict[str, Any], written: dict[str, Any]) -> None:
    """Assert that a table has exactly the keys of its schema, each of the type and with the default that it says."""
    here = schema["$defs"][at["$ref"].rpartition("/")[2]] if "$ref" in at else at
    assert False is here["additionalProperties"]
    assert here["properties"].keys() == written.keys()
    kinds = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict}
    for key, value in written.items():
        of = here["properties"][key]
        if "type" not in of:
            _holds(schema, next(option for option in of.get("anyOf", [of]) if "$ref" in option), value)
            continue
        assert isinstance(value, kinds[of["type"]]), key
        assert value == of["default"], key


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


def test_the_commands_that_ask_say_what_they_found_and_exit_so(up: str) -> None:
    """0 with the answer as text or one JSON value; 1 for what is not there; 2 for what no gateway takes."""
    memories = "".join(json.dumps({"id": f"m/{n}", "text": f"word {n}", "payload": {"n": n}}) + "\n" for n in range(3))
    command = [*ISOTHERM, "publish", "--url", up, "--json"]
    done = subprocess.run(command, input=memories, capture_output=True, text=True, timeout=60, check=True)
    assert 3 == json.loads(done.stdout)["published"]
    with httpx.Client(base_url=up) as http:
        token = json.loads(done.stdout)["token"]
        assert 200 == http.get("/v1/memories/m/1", params={"at_least": token}).status_code

    def ask(*words: str, code: int = 0) -> str:
        asked = isotherm(*words, ISOTHERM_URL=up)
        assert code == asked.returncode, (words, asked.stdout, asked.stderr)
        assert "Traceback" not in asked.stderr
        return asked.stdout if code != 2 else asked.stderr

    assert {"n": 1} == json.loads(ask("get", "m/1", "--json"))["payload"]
    assert None is json.loads(ask("get", "m/9", "--json", code=1))
    assert "" == ask("get", "m/9", code=1)
    found = json.loads(ask("search", "word 2", "--k", "2", "--tiers", "hot", "--include", "attributes", "--json"))
    assert (2, False) == (len(found["hits"]), "payload" in found["hits"][0])
    assert "m/" in ask("search", "word 2", "--exact", "--deadline-ms", "5000")
    assert "lukewarm" in ask("search", "word", "--tiers", "lukewarm", code=2)
    assert "vector" in ask("search", "--vector", "[1, 2]", code=2)
    told = ask("why", "m/1")
    assert "m/1: in hot" in told
    assert "policy.hot_age_s" in told
    assert "hot" == json.loads(ask("why", "m/1", "--json"))["tier"]
    assert None is json.loads(ask("why", "m/9", "--json", code=1))
    assert 3 <= json.loads(ask("tiers", "--json"))["tiers"]["hot"]["records"]
    assert "hot" in ask("tiers")
    assert {"m/0"} == json.loads(ask("delete", "m/0", "--json")).keys()
    assert "cursor" in ask("changes", "--from", "nonsense", code=2)


def test_the_change_feed_ends_where_it_is_told_to(stack: Stack, prefix: str, tmp_path: Path) -> None:
    """--limit ends it with 0; each JSON line has the cursor to go on from; a gateway that stops is exit 3, with it."""
    settings = small(stack, prefix, tmp_path / "node", policy__hot_age_s=0.1)
    given = [part for key, value in _dotted(msgspec.to_builtins(settings)) for part in ("-s", f"{key}={value}")]
    environment = {**os.environ, "ISOTHERM_LOG__LEVEL": "error"}
    with subprocess.Popen(
        [*ISOTHERM, "run", "--json", *given], stdout=subprocess.PIPE, text=True, env=environment
    ) as node:
        assert node.stdout is not None
        url = json.loads(node.stdout.readline())["gateway"]
        with httpx.Client(base_url=url, timeout=30) as http:
            while http.get("/readyz").status_code != 200:
                pass
            http.post("/v1/memories", json=[{"id": f"c{n}", "vector": [1.0] * DIM} for n in range(8)])
        shown = isotherm("changes", "--from", "beginning", "--limit", "1", "--json", "--url", url)
        cursor = json.loads(shown.stdout)["cursor"]
        command = [*ISOTHERM, "changes", "--from", cursor, "--url", url, "--reconnect-s", "0.5"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as following:
            assert following.stdout is not None
            assert "hot -> " in following.stdout.readline()
            node.send_signal(signal.SIGTERM)
            assert 3 == following.wait(60)
            assert following.stderr is not None
            assert "--from" in following.stderr.read()
        assert 0 == node.wait(60)
    assert 0 == shown.returncode


def _dotted(values: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Yield settings as the command line takes them."""
    for key, value in values.items():
        if isinstance(value, dict) and key != "attributes":
            yield from _dotted(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", json.dumps(value) if isinstance(value, (dict, list)) else str(value)


def test_demo_help_and_json_are_what_the_documents_say() -> None:
    """The options that other programs rely on exist."""
    shown = isotherm("demo", "--help").stdout
    assert {"--records", "--keep", "--json"} <= set(re.findall(r"--\w+", shown))
    assert json.loads(isotherm("config", "show").stdout)["dim"] == 256
