"""`isotherm mcp`: the memory as tools of the Model Context Protocol, for agents. A client of a gateway, nothing more.

Read-only unless told otherwise: `remember` and `forget` exist only with `write`. What went wrong is told to the model
as the tool's answer, with what to do. A search sees what this agent remembered before (read-your-writes).
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from pipeline.client import AsyncClient
from pipeline.client_questions import Searching
from pipeline.client_results import Result
from tiers.errors import InvalidRecord, IsothermError, SettingsError

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer

INSTRUCTIONS = """\
A memory of texts and vectors that are searched by meaning. `search` first, with words and a filter where you know one;
`get` reads a memory by its id; `why` says in which tier it is and what moved it there; `tiers` how much there is.
An answer whose `complete` is false has not looked everywhere: `missed` says where not."""
K_MAX = 100


class Memories:
    """The tools, on one client. `namespace` is where what is remembered without an id goes."""

    def __init__(self, client: AsyncClient, namespace: str) -> None:
        self._client, self._namespace = client, namespace
        self._token: str | None = None

    async def search(
        self,
        text: str | None = None,
        vector: list[float] | None = None,
        k: int = 5,
        filter: str | None = None,  # noqa: A002 - the gateway's name for it
        tiers: list[str] | None = None,
    ) -> dict[str, Any]:
        """Find the memories nearest in meaning to a text (or a vector), best first, with payload and attributes.

        `filter` is a SQL condition over id, event_time and the attributes, such as "user = 'u1' AND score > 0.5".
        `tiers` limits it to some of hot, warm, cold, glacier.
        """
        with told():
            if not 1 <= k <= K_MAX:
                raise InvalidRecord("k", f"k is 1 to {K_MAX}")
            asked: Searching = {
                "text": text,
                "vector": vector,
                "k": k,
                "filter": filter,
                "tiers": tiers,
                "at_least": self._token,
            }
            found: Result = await self._client.search(**asked)
        keep = {"hits", "complete", "missed", "scanned", "of", "took_ms"}
        plain: dict[str, Any] = msgspec.to_builtins(found)
        return {"complete": True, **{name: value for name, value in plain.items() if name in keep}}

    async def get(self, id: str) -> dict[str, Any]:  # noqa: A002 - likewise
        """Read the newest version of one memory by its id; `found` is false where there is none."""
        with told():
            memory = await self._client.get(id, at_least=self._token)
        return {"found": memory is not None, **(msgspec.to_builtins(memory) if memory is not None else {})}

    async def why(self, id: str) -> dict[str, Any]:  # noqa: A002 - likewise
        """Say where a memory is, which rule put it there, how often it is read, and what moves it next."""
        with told():
            reasons = await self._client.why(id)
        return {"found": reasons is not None, **(reasons or {})}

    async def tiers(self) -> dict[str, Any]:
        """Say how many memories each tier holds, and how far behind the log the answers are."""
        with told():
            found = await self._client.tiers()
        return {name: found[name] for name in ("tiers", "freshness") if name in found}

    async def remember(
        self,
        text: str,
        id: str | None = None,  # noqa: A002 - likewise
        attributes: dict[str, Any] | None = None,
        ttl_s: float | None = None,
    ) -> dict[str, Any]:
        """Remember a text, so that it is found by its meaning; returns its id. With an id that exists it replaces it.

        `attributes` are those that the memory declares; `ttl_s` forgets it by itself after so many seconds.
        """
        identifier = id or f"{self._namespace}/{uuid.uuid4()}"
        with told():
            self._token = await self._client.publish(
                identifier, text=text, payload={"text": text}, attributes=attributes, ttl_s=ttl_s
            )
        return {"id": identifier}

    async def forget(self, id: str) -> dict[str, Any]:  # noqa: A002 - likewise
        """Delete one memory for good."""
        with told():
            self._token = await self._client.delete(id)
        return {"id": id}


@contextmanager
def told() -> Iterator[None]:
    """Turn our errors into what the model reads."""
    from mcp.server.mcpserver.exceptions import ToolError  # noqa: PLC0415 - an optional extra

    try:
        yield
    except IsothermError as error:
        raise ToolError(str(error)) from error


def server(url: str, key: str | None, *, write: bool, namespace: str) -> MCPServer:
    """Return the server over a gateway; SettingsError without the extra."""
    try:
        from mcp.server.mcpserver import MCPServer  # noqa: PLC0415 - an optional extra
        from mcp.types import ToolAnnotations  # noqa: PLC0415
    except ImportError as error:
        raise SettingsError("isotherm mcp needs the extra: pip install 'isotherm[mcp]'") from error
    client = AsyncClient(url, key=key)
    memories = Memories(client, namespace)

    @asynccontextmanager
    async def lifespan(_: MCPServer) -> AsyncIterator[None]:
        async with client:
            yield

    made = MCPServer("isotherm", instructions=INSTRUCTIONS, log_level="WARNING", lifespan=lifespan)
    reads = ToolAnnotations(read_only_hint=True, open_world_hint=False)
    for tool in (memories.search, memories.get, memories.why, memories.tiers):
        made.add_tool(tool, annotations=reads)
    if write:
        made.add_tool(memories.remember, annotations=ToolAnnotations(destructive_hint=True, open_world_hint=False))
        made.add_tool(memories.forget, annotations=ToolAnnotations(destructive_hint=True, idempotent_hint=True))
    return made


async def serve(url: str, key: str | None, *, write: bool, namespace: str) -> None:
    """Speak MCP on standard input and output until the client closes them."""
    await server(url, key, write=write, namespace=namespace).run_stdio_async()
