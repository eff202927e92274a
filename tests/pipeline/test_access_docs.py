"""docs/access.md says what is so: its commands run, its requests answer as told, its table is the gateway's own."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline import Query
from pipeline.auth import NEEDS
from pipeline.cli import app
from pipeline.settings import Settings
from tests.access import VECTOR, keyed, make_key

ACCESS = (Path(__file__).parents[2] / "docs" / "access.md").read_text()


@pytest.mark.unit
def test_the_table_of_scopes_is_the_gateways() -> None:
    """Every route that NEEDS names, and no other, with its scope."""
    rows = dict(re.findall(r"^\| `([A-Z]+ /\S*)` \| ([^|]+?) \|$", ACCESS.partition("## Namespaces")[0], re.MULTILINE))
    expected = {
        f"{method} {path.replace(':path', '')}": (need.scope or "none") + (", all namespaces" if need.whole else "")
        for (method, path), need in NEEDS.items()
        if method != "*"
    }

    assert expected == rows


@pytest.mark.unit
def test_the_commands_run_as_written(tmp_path: Path) -> None:
    """In their order, on a data directory; ID is that of the first key."""
    (block,) = re.findall(r"```sh\n(.*?)```", ACCESS, re.DOTALL)
    identifier = ""
    for line in block.strip().splitlines():
        words = shlex.split(line.replace("ID", identifier))[1:]
        done = CliRunner().invoke(app, [*words, "-s", f"data={tmp_path}"])
        assert 0 == done.exit_code, f"{line}: {done.output}"
        identifier = identifier or done.stdout.split("_")[1]


async def test_the_requests_are_answered_as_told(settings: Settings) -> None:
    """The status of each line; where there is an answer, it is of the key's own records."""
    key = make_key(settings, "agent-7", scopes=("read", "write"))
    table = ACCESS.partition("<!-- requests:")[2].partition("\n\n")[0]
    lines = re.findall(r"^\| `([A-Z]+) (\S+)(?: (\{.*\}))?` \| (\d+) \|$", table, re.MULTILINE)
    assert 11 == len(lines)
    async with keyed(settings) as node:
        memories = [(each, json.dumps({"vector": VECTOR}).encode()) for each in ("agent-7/1", "b/1")]
        await node.memory.retrieve(Query(ids=[], at_least=await node.memory.publish(memories)))
        for method, path, body, status in lines:
            content = body.replace('"text": "mine now"', f'"vector": {VECTOR}') or None
            headers = {"authorization": f"Bearer {key}"}
            answer = await node.http.request(method, path, content=content, headers=headers)
            assert int(status) == answer.status_code, (method, path, answer.text)
            if answer.is_success:
                assert "agent-7/1" in answer.text
                assert "b/1" not in answer.text
