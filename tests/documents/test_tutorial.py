"""docs/tutorial.md is run as it stands: block after block, on a node that ages as fast as it says."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from pipeline.client import Client
from pipeline.settings import _value
from pipeline.stack import Stack
from tests.live import Live, live
from tests.nodes import small, until

TEXT = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text()
BLOCKS = re.findall(r"^```(python|sh)\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
FIRST = re.search(r"^\$ (isotherm up .*?)^Valkey", TEXT, re.DOTALL | re.MULTILINE)
WORDS = shlex.split(FIRST[1]) if FIRST else []
GIVEN = dict(word.split("=", 1) for option, word in pairwise(WORDS) if option == "-s")
TRIES = 100  # of a line that asks for what is on its way

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="one line is curl's")


class Reader(NamedTuple):
    """Somebody at a terminal: a node, and what the environment has to say."""

    node: Live
    environment: dict[str, str]


@pytest.fixture
def reader(stack: Stack, prefix: str, tmp_path: Path) -> Iterator[Reader]:
    """The node of step 1, with exactly the settings of its command line."""
    told = {key.replace(".", "__"): _value(value) for key, value in GIVEN.items()}
    with live(small(stack, prefix, tmp_path / "node", dim=256, embedder="wordllama", **told)) as node:
        kafka = {"BOOTSTRAP": stack.kafka, "PREFIX": prefix}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        names = {f"ISOTHERM_KAFKA__{name}": value for name, value in kafka.items()}
        yield Reader(node, {**os.environ, "PATH": path, "ISOTHERM_URL": node.address, **names})


async def said(reader: Reader, *command: str) -> str:
    """Run a command until it ends with 0; returns what it printed."""
    out, err, code = b"", b"", None
    for _ in range(TRIES):
        child = await asyncio.create_subprocess_exec(
            *command, env=reader.environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = await asyncio.wait_for(child.communicate(), 60)
        if (code := child.returncode) == 0:
            break
    assert code == 0, (command, out, err)
    return out.decode()


async def test_it_works_as_written(reader: Reader, tmp_path: Path):
    """Every block succeeds, and shows what the text beside it says."""
    shown: list[str] = []
    for language, code in BLOCKS:
        if language == "python":
            (tmp_path / "stream.py").write_text(code)
            shown.append(await said(reader, sys.executable, str(tmp_path / "stream.py")))
            await until(lambda: 5 == len(reader.node.memory.node.index))
            continue
        for line in code.strip().splitlines():
            here = line.replace("localhost:8080", reader.node.address.removeprefix("http://"))
            if "SELECT" in line:  # a reader is slower than the log; a snapshot made too early would stay for a while
                await until(lambda: warmer(reader.node))
            shown.append(await said(reader, "bash", "-c", here))
    sent, swim, cold, damage, why, tiers, changes, again, published, got, deleted, table = shown

    assert 5 == sent.count("sent weather/")
    assert swim.index("weather/palermo") == min(swim.index(word) for word in re.findall(r"weather/\w+", swim))
    assert {"weather/reykjavik", "weather/bergen"} == set(re.findall(r"weather/\w+", cold))
    assert '"complete":true' in damage
    assert "weather/denver" in damage
    assert "weather/palermo: in " in why
    assert "hot" in tiers
    assert 3 == len(changes.strip().splitlines())
    assert "weather/palermo" in again
    assert "published 1, rejected 0" in published
    assert "weather/palermo" in got
    assert deleted is not None
    assert "22" in table
    assert "denver" not in table


def warmer(node: Live) -> bool:
    """Say whether what step 5 writes is applied."""
    with Client(node.address) as client:
        palermo = client.get("weather/palermo")
        return client.get("weather/denver") is None and palermo is not None and palermo.attributes["celsius"] == 22


@pytest.mark.unit
def test_the_command_line_of_the_first_step_is_read():
    """Else the test above would run another node than the page says."""
    assert ["isotherm", "up"] == WORDS[:2]
    assert {"policy.hot_age_s", "policy.warm_idle_s", "policy.cold_idle_s", "age.glacier_flush_s", "attributes"} == set(
        GIVEN
    )
    assert {"city": "string", "celsius": "float"} == _value(GIVEN["attributes"])
