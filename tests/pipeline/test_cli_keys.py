"""`isotherm keys` as it is run: a key is shown once, works on a gateway, and every mistake says what to do."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.key_file import KeyFiles
from pipeline.keys import parse_token
from pipeline.settings import Settings
from tests.access import VECTOR, keyed, make_key
from tiers.errors import InvalidRecord

MAKE = ("create", "agent", "--scope", "read", "--scope", "write", "--namespace", "a")


def run(data: Path | str, *words: str) -> Any:
    """Run `isotherm keys …` on a data directory; returns typer's result."""
    return CliRunner().invoke(app, ["keys", *words, "-s", f"data={data}"])


def made(data: Path | str, *words: str) -> dict[str, Any]:
    """Run a command that answers with one JSON value."""
    done = run(data, *words, "--json")
    assert 0 == done.exit_code, done.output
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.unit
def test_a_key_is_shown_once(tmp_path: Path) -> None:
    """`create` prints it alone on standard output; `list` has the rest of it, and never the hash."""
    done = run(tmp_path, *MAKE, "--expires", "30d", "--rate", "5", "--concurrent", "2")
    token = parse_token(done.stdout.strip())
    assert token is not None
    assert "only time" in done.stderr
    (listed,) = json.loads(run(tmp_path, "list", "--json").stdout)
    assert (token.id, "agent", "live", ["read", "write"], ["a"], 5.0, 2) == tuple(
        listed[name] for name in ("id", "name", "state", "scopes", "namespaces", "rate_per_s", "concurrent")
    )
    shown = run(tmp_path, "list").output + json.dumps(listed)
    assert token.secret not in shown
    assert KeyFiles.under(str(tmp_path), "", "").read()[0].hash not in shown
    assert token.id in run(tmp_path, "list").output


@pytest.mark.unit
def test_keys_are_rotated_revoked_and_pruned(tmp_path: Path) -> None:
    """Each answers with what became of the key."""
    first = made(tmp_path, *MAKE)
    second = made(tmp_path, "rotate", first["id"], "--overlap", "2h")
    assert (first["id"], first["scopes"], first["namespaces"]) == (
        second["replaces"],
        second["scopes"],
        second["namespaces"],
    )
    assert first["key"] != second["key"]
    old, new = json.loads(run(tmp_path, "list", "--json").stdout)
    assert ("live", "live", None) == (old["state"], new["state"], new["expires"])
    assert old["expires"]
    assert "revoked" == made(tmp_path, "revoke", old["id"])["state"]
    assert {"forgotten": 1} == made(tmp_path, "prune")
    assert [new["id"]] == [each["id"] for each in json.loads(run(tmp_path, "list", "--json").stdout)]


@pytest.mark.unit
def test_where_keys_lie_is_a_setting(tmp_path: Path) -> None:
    """The pepper may lie elsewhere, so that who takes one file has not both."""
    keys, pepper = tmp_path / "etc" / "keys.json", tmp_path / "run" / "pepper"
    run(tmp_path, *MAKE, "-s", f"gateway.keys_file={keys}", "-s", f"gateway.pepper_file={pepper}")

    assert (True, True) == (keys.exists(), pepper.exists())


@pytest.mark.unit
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("create", "a", "--scope", "read"), "--all-namespaces"),
        (("create", "a", "--scope", "read", "--namespace", "a", "--all-namespaces"), "--all-namespaces"),
        (("create", "a", "--scope", "root", "--all-namespaces"), "some of read, write, operate"),
        (("create", "a", "--scope", "read", "--namespace", "a/b"), "slash"),
        (("create", "a", "--scope", "read", "--all-namespaces", "--expires", "soon"), "30d"),
        (("create", "a", "--scope", "read", "--all-namespaces", "--expires", "2001-01-01T00:00:00Z"), "ahead"),
    ],
)
def test_a_mistake_says_what_to_write(tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    """And makes no key and no file."""
    done = run(tmp_path, *words)

    assert isinstance(done.exception, InvalidRecord), done.output
    assert says in str(done.exception)
    assert not (tmp_path / "keys").exists()


@pytest.mark.unit
def test_an_unknown_id_is_exit_1_and_changes_nothing(tmp_path: Path) -> None:
    """For revoke and rotate alike."""
    made(tmp_path, *MAKE)
    before = (tmp_path / "keys").read_bytes()
    for words in (("revoke", "0" * 12), ("rotate", "0" * 12)):
        done = run(tmp_path, *words)
        assert 1 == done.exit_code
        assert "isotherm keys list" in done.stderr
    assert before == (tmp_path / "keys").read_bytes()


async def test_the_command_line_sends_the_key(settings: Settings) -> None:
    """From ISOTHERM_KEY or --key: publish and get work with it; without it, and beyond it, they say what is missing."""
    key = make_key(settings, "a", scopes=("read", "write"))
    async with keyed(settings) as node:

        async def isotherm(*words: str, given: bytes = b"", **environment: str) -> tuple[int, str]:
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "pipeline.cli", *words, "--url", str(node.http.base_url).rstrip("/")),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env={**os.environ, **environment},
            )
            out, _ = await child.communicate(given)
            return await child.wait(), out.decode()

        lines = [json.dumps({"id": each, "vector": VECTOR}) for each in ("a/1", "b/1", "a/2")]
        code, said = await isotherm("publish", given="\n".join(lines).encode(), ISOTHERM_KEY=key)
        assert (1, True, True) == (code, "published 2, rejected 1" in said, "namespace 'b'" in said), said
        code, said = await isotherm("tiers", "--key", key)
        assert (0, True) == (code, "memories of a" in said), said
        code, said = await isotherm("get", "a/1")
        assert (1, True) == (code, "Authorization: Bearer" in said), said
        assert key[17:] not in said


@pytest.mark.unit
def test_a_key_in_the_environment_is_no_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ISOTHERM_KEY is for clients: it stops no node, and is not in what a node shows."""
    monkeypatch.setenv("ISOTHERM_KEY", "iso_canary")
    done = CliRunner().invoke(app, ["config", "show", "-s", f"data={tmp_path}"])

    assert (0, False) == (done.exit_code, "iso_canary" in done.output)
