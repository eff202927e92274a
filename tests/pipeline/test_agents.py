"""An agent's own client speaks MCP to `isotherm mcp`, as a child process, over a live node with an embedder."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

from pipeline import MemoryManager, agents
from pipeline.routes import Gateway
from pipeline.serve import HttpService
from pipeline.stack import Stack
from tests.nodes import small
from tests.pipeline.test_cli import isotherm
from tiers.errors import SettingsError

READING = {"search", "get", "why", "tiers"}


@pytest.fixture
async def url(stack: Stack, prefix: str, tmp_path: Path) -> AsyncIterator[str]:
    """A ready node that turns words into vectors."""
    settings = small(stack, prefix, tmp_path / "node", dim=256, embedder="wordllama", policy__hot_age_s=3_600.0)
    service = HttpService(settings)
    async with MemoryManager.open(settings, service) as memory:
        service.gateway = Gateway(memory)
        await memory.ready()
        yield service.address


def agent(url: str, *more: str) -> Client:
    """Return an MCP client that starts `isotherm mcp` as any agent would."""
    arguments = ["-m", "pipeline.cli", "mcp", "--url", url, *more]
    root = str(Path(__file__).parents[2])
    return Client(StdioServerParameters(command=sys.executable, args=arguments, cwd=root, env={"PYTHONPATH": root}))


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """Call a tool and return its structured answer."""
    answer = await client.call_tool(tool, arguments)
    assert not answer.is_error, answer.content
    found: dict[str, Any] = answer.structured_content or {}
    return found


async def test_an_agent_remembers_recalls_and_forgets(url: str) -> None:
    """With --write: what was remembered is found by its meaning at once, read by id, explained, and forgotten."""
    async with agent(url, "--write", "--namespace", "notes") as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert READING | {"remember", "forget"} == tools.keys()
        assert tools["search"].annotations is not None
        assert tools["search"].annotations.read_only_hint
        assert all(tool.description for tool in tools.values())
        first = await call(client, "remember", text="Ada likes strong tea", attributes={"user": "ada"})
        await call(client, "remember", text="The printer is on the second floor", id="notes/printer")
        found = await call(client, "search", text="what does Ada drink", k=1)
        assert ([first["id"]], True) == ([hit["id"] for hit in found["hits"]], found["complete"])
        assert "Ada likes strong tea" == found["hits"][0]["payload"]["text"]
        assert first["id"].startswith("notes/")
        only = await call(client, "search", text="tea", filter="user = 'ada'", tiers=["hot"])
        assert 1 == len(only["hits"])
        assert "hot" == (await call(client, "why", id=first["id"]))["tier"]
        assert 2 == (await call(client, "tiers"))["tiers"]["hot"]["records"]
        await call(client, "forget", id=first["id"])
        assert {"found": False} == await call(client, "get", id=first["id"])
        assert {"found": False} == await call(client, "why", id="absent")


async def test_without_write_an_agent_can_only_read(url: str) -> None:
    """The writing tools do not exist; what is wrong with a question is told as the tool's answer, with the field."""
    async with agent(url) as client:
        assert READING == {tool.name for tool in (await client.list_tools()).tools}
        assert (await client.call_tool("remember", {"text": "x"})).is_error
        wrong = await client.call_tool("search", {"text": "x", "filter": "colour = 1"})
        assert wrong.is_error
        assert "colour" in wrong.content[0].text  # type: ignore[union-attr]
        assert (await client.call_tool("search", {"text": "x", "k": 0})).is_error


async def test_a_gateway_that_is_not_there_is_told_to_the_model() -> None:
    """The server starts all the same: the gateway may come later."""
    async with agent("http://127.0.0.1:1") as client:
        answer = await client.call_tool("get", {"id": "a"})
        assert answer.is_error
        assert "does not answer at http://127.0.0.1:1" in answer.content[0].text  # type: ignore[union-attr]


@pytest.mark.unit
def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """A SettingsError with the command; --json prints how a client starts it."""
    done = isotherm("mcp", "--write", "--json")
    assert "--write" in json.loads(done.stdout)["mcpServers"]["isotherm"]["args"]
    monkeypatch.setitem(sys.modules, "mcp.server.mcpserver", None)
    with pytest.raises(SettingsError, match=r"pip install 'isotherm\[mcp\]'"):
        agents.server("http://127.0.0.1:1", None, write=False, namespace="agent")
