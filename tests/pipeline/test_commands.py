"""Every command: help whose example can be run, --json, and what it says where nobody answers; and what they do."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from pipeline import MemoryManager, cli, keeper
from pipeline.client import Client
from pipeline.routes import Gateway
from pipeline.serve import HttpService
from pipeline.settings import Settings
from tests.command import Done, command
from tests.nodes import DIM
from tests.pipeline.test_cli import ISOTHERM, commands

APP = typer.main.get_command(cli.app)
COMMANDS = list(commands(APP))
ELSEWHERE = {"mcp"}  # starts without a gateway, and tells the model: test_agents.py


def command_of(words: tuple[str, ...]) -> Any:
    """Return a command by its words."""
    found: Any = APP
    for word in words:
        found = found.commands[word]
    return found


def example_of(words: tuple[str, ...]) -> list[str]:
    """Return the arguments that the help's example gives to `isotherm`."""
    text = re.search(r"Example: (.*)", command_of(words).help)
    assert text is not None, words
    return shlex.split(text[1].partition("isotherm ")[2].partition(" > ")[0])


@pytest.mark.unit
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_example_of_a_command_can_be_run(words: tuple[str, ...]) -> None:
    """It names that command, and its options and arguments are ones that it takes; --json is one; all have a help."""
    example = example_of(words)
    assert list(words) == example[: len(words)]
    found = command_of(words)
    found.make_context("isotherm", list(example[len(words) :]))  # click's error otherwise
    assert "--json" in {name for parameter in found.params for name in parameter.opts}
    assert [] == [p.name for p in found.params if p.param_type_name == "option" and not p.help]


ASKING = [w for w in COMMANDS if "url" in {p.name for p in command_of(w).params} and w[0] not in ELSEWHERE]


@pytest.mark.unit
@pytest.mark.parametrize("words", ASKING, ids=" ".join)
def test_where_no_gateway_answers_each_command_exits_3_and_says_what_to_do(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The last line names the address, the command that starts a gateway and the option that names another."""
    monkeypatch.chdir(tmp_path)
    done = command(*example_of(words), stdin=b'{"id": "a", "vector": [1]}\n', ISOTHERM_URL="http://127.0.0.1:1")
    assert 3 == done.code, done
    last = done.err.strip().splitlines()[-1]
    assert "the gateway does not answer at http://127.0.0.1:1" in last
    assert "isotherm up" in last
    assert "--url" in last
    assert "Traceback" not in done.err
    assert [] == list(tmp_path.iterdir()), "nothing half done is left"


LINES = (("isotherm sea", "search"), ("isotherm stack s", "status"), ("isotherm search --ti", "--tiers"))


@pytest.mark.unit
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_the_commands(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a shell asks at `isotherm sea<TAB>` and `isotherm stack <TAB>` is answered; the script can be shown."""
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")  # tests may run below no shell at all
    shown = CliRunner().invoke(cli.app, ["--show-completion", shell], prog_name="isotherm")
    assert shown.exit_code == 0
    assert "_ISOTHERM_COMPLETE" in shown.output
    for line, expected in LINES:
        asked = {"_ISOTHERM_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": line, "COMP_WORDS": line}
        asked |= {"COMP_CWORD": str(len(line.split()) - 1), "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
        done = command(**asked)
        assert expected in done.out, (shell, line, done)


@pytest.mark.unit
def test_roles_are_what_is_true() -> None:
    """A node cannot be split today: anything but `all` is refused with the reason, before anything starts."""
    done = command("run", "--roles", "gateway")
    assert 2 == done.code
    assert "only `all` is possible" in done.err


@pytest.fixture
def stacked(tmp_path: Path) -> Iterator[Path]:
    """A directory whose servers are stopped at the end, whatever a test leaves."""
    data = tmp_path / "stack"
    yield data
    keeper.down(data)


def test_the_stack_outlives_its_command_and_is_stopped_by_another(stacked: Path) -> None:
    """Up returns with what a node needs; status sees it from elsewhere; up again changes nothing; down stops it."""
    assert 1 == command("stack", "status", "--data", str(stacked)).code
    up = [*ISOTHERM, "stack", "up", "--data", str(stacked), "--json"]
    first = subprocess.run(up, capture_output=True, text=True, timeout=170, check=False)
    assert 0 == first.returncode, first.stderr
    told = json.loads(first.stdout)
    assert {"kafka", "valkey"} == {service["name"] for service in told["services"]}
    again = command("stack", "up", "--data", str(stacked))
    assert (0, True) == (again.code, "already" in again.err)
    assert f"export ISOTHERM_KAFKA__BOOTSTRAP={told['settings']['kafka.bootstrap']}" in again.out
    assert 0 == command("stack", "status", "--data", str(stacked)).code
    valkey = next(service["pid"] for service in told["services"] if service["name"] == "valkey")
    os.kill(valkey, signal.SIGKILL)
    while Path(f"/proc/{valkey}").exists():  # until its keeper has buried it, its socket may still listen
        time.sleep(0.01)
    silent = command("stack", "status", "--data", str(stacked), "--json")
    assert (3, ["valkey"]) == (silent.code, json.loads(silent.out)["silent"])
    assert 0 == command("stack", "down", "--data", str(stacked)).code
    for service in told["services"]:
        with pytest.raises(ProcessLookupError):
            os.kill(service["pid"], 0)
    assert 1 == command("stack", "down", "--data", str(stacked)).code


def test_a_stack_that_cannot_start_says_why(stacked: Path) -> None:
    """Exit 3 with the last words; a state file of the dead is not believed, whoever has its process id now."""
    path = stacked / "bin"
    path.mkdir(parents=True)
    (stacked / "keeper.lock").write_bytes(b"")
    note = {"pid": os.getpid(), "data": str(stacked), "services": [], "settings": {}}
    (stacked / "keeper.json").write_text(json.dumps(note))
    assert keeper.running(stacked) is None
    assert 1 == command("stack", "down", "--data", str(stacked)).code
    done = command("stack", "up", "--data", str(stacked), PATH=str(path))
    assert 3 == done.code
    assert "java" in done.err


@pytest.fixture
async def url(settings: Settings) -> AsyncIterator[str]:
    """A ready node."""
    service = HttpService(settings)
    async with MemoryManager.open(settings, service) as memory:
        service.gateway = Gateway(memory)
        await memory.ready()
        yield service.address


def objects(done: Done) -> list[Any]:
    """Return the JSON objects of an output; the node's log lines beside them are those of this very process."""
    return [json.loads(line) for line in done.out.splitlines() if line.startswith("{")]


async def test_what_is_exported_can_be_published_again(url: str, tmp_path: Path) -> None:
    """Each form brings every memory back; a filter holds; many are deleted from standard input; nothing half stays."""

    def work() -> None:
        with Client(url) as client:
            some = [{"id": f"e/{n}", "vector": [1.0 + n] * DIM, "payload": {"n": n}} for n in range(25)]
            token = client.store([{**each, "attributes": {"user": f"u{at % 2}"}} for at, each in enumerate(some)])
            assert client.get("e/24", at_least=token) is not None
            for name in ("all.parquet", "all.arrow", "all.jsonl"):
                file = str(tmp_path / name)
                assert 25 == objects(command("export", file, "--url", url, "--json"))[0]["exported"]
                ids = "".join(f"e/{n}\n" for n in range(25)).encode()
                assert "deleted 25" in command("delete", "-", "--url", url, stdin=ids).out
                (back,) = objects(command("publish", file, "--url", url, "--json"))
                assert (25, 0) == (back["published"], back["rejected"]), back
                kept = client.get("e/7", at_least=back["token"], include=["vector", "payload", "attributes"])
                assert kept is not None
                assert ([8.0] * DIM, {"n": 7}, {"user": "u1"}) == (kept.vector, kept.payload, kept.attributes)
        few = command("export", "-", "--filter", "\"user\" = 'u0'", "--include", "payload", "--url", url)
        lines = objects(few)
        assert {f"e/{n}" for n in range(0, 25, 2)} == {line["id"] for line in lines}
        assert {"id", "event_time", "payload"} == set(lines[0])
        assert 25 == pq.read_table(tmp_path / "all.parquet").num_rows
        wrong = command("export", str(tmp_path / "all.csv"), "--url", url)
        assert (2, True) == (wrong.code, ".parquet, .arrow or .jsonl" in wrong.err)
        nowhere = command("export", str(tmp_path / "absent" / "all.arrow"), "--url", url)
        assert (2, True) == (nowhere.code, "No such file" in nowhere.err)
        assert {"all.parquet", "all.arrow", "all.jsonl", "node"} == {path.name for path in tmp_path.iterdir()}

    await asyncio.to_thread(work)
