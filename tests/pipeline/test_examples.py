"""Each example runs as its documentation says, against a live node, and does what it promises."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest

from pipeline import MemoryManager
from pipeline.client import AsyncClient
from pipeline.routes import Gateway
from pipeline.serve import HttpService
from pipeline.stack import Stack
from tests.nodes import small

ROOT = Path(__file__).parents[2]


class Running(NamedTuple):
    """A node: its gateway, and what a producer has to be told."""

    url: str
    environment: dict[str, str]


@pytest.fixture
async def node(stack: Stack, prefix: str, tmp_path: Path) -> AsyncIterator[Running]:
    """A ready node that takes words and ages fast."""
    ages = {"policy__hot_age_s": 1.0, "policy__warm_idle_s": 600.0}
    settings = small(stack, prefix, tmp_path / "node", dim=256, embedder="wordllama", **ages)
    service = HttpService(settings)
    async with MemoryManager.open(settings, service) as memory:
        service.gateway = Gateway(memory)
        await memory.ready()
        told = {"BOOTSTRAP": stack.kafka, "PREFIX": prefix, "PARTITIONS": "4"}
        yield Running(service.address, {f"ISOTHERM_KAFKA__{name}": value for name, value in told.items()})


async def run(example: str, *arguments: str, stdin: str = "", **environment: str) -> str:
    """Run an example to its end; returns what it printed."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        str(ROOT / "examples" / example),
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
    out, err = await asyncio.wait_for(child.communicate(stdin.encode()), 60)
    assert (0, b"") == (child.returncode, err), err.decode()
    return out.decode()


async def test_the_producer_streams_and_its_token_covers_all(node: Running, tmp_path: Path) -> None:
    """Every report is there once the token is; then the cache follows them down, and goes on where it stopped."""
    said = await run("streaming_producer.py", "--reports", "200", **node.environment)
    assert "200 reports are in the log" in said
    token = re.search(r"token (\S+)", said)
    assert token is not None
    async with AsyncClient(node.url) as client:
        assert await client.get("plant/19/199", at_least=token[1]) is not None
        assert 200 == len([memory async for memory in client.retrieve_all()])
        cursor = str(tmp_path / "cursor")
        first = await run("follow_changes.py", "--url", node.url, "--cursor", cursor, "--limit", "2")
        assert 2 == first.count("home hot -> ")
        assert "0 in the cache" in first
        for _ in range(4):  # reads heat it: it gets a copy in hot, which is announced
            await client.promote("plant/1/1")
        later = await run("follow_changes.py", "--url", node.url, "--cursor", cursor, "--limit", "3")
        while "copy" not in later:
            later = await run("follow_changes.py", "--url", node.url, "--cursor", cursor, "--limit", "1")
        assert re.search(r"copy \w+ -> hot: 1 memories .*; 1 in the cache", later)


async def test_the_agent_recalls_what_it_was_told(node: Running) -> None:
    """By meaning, at once; what it was not told it does not know; another agent's memories are its own."""
    told = "Ada drinks strong tea\nThe printer stands on the second floor\nWhat does Ada like to drink?\n"
    said = await run("remembering_agent.py", "--url", node.url, stdin=told)
    assert 2 == said.count("I will remember that.")
    assert re.search(r"drink\?\nAda drinks strong tea \(0\.\d+, \w+\)", said)
    other = await run("remembering_agent.py", "--url", node.url, "--name", "other", stdin="What does Ada drink?\n")
    assert "I know nothing about that." in other


@pytest.mark.unit
def test_examples_are_short() -> None:
    """Good to read: at most eighty lines each."""
    for file in (ROOT / "examples").glob("*.py"):
        assert len(file.read_text().splitlines()) <= 80, file
