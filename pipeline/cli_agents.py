"""`isotherm mcp`: the memory as tools for agents."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from pipeline.cli_options import GATEWAY, Json, Key, Url, run_async


def mcp(
    write: Annotated[bool, typer.Option("--write", help="Also remember and forget; else it only reads.")] = False,
    namespace: Annotated[str, typer.Option(help="What is remembered without an id gets one that begins so.")] = "agent",
    url: Url = GATEWAY,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Serve agents over the Model Context Protocol, on standard input and output; needs the extra `mcp`.

    --json prints how a client of MCP starts it ("mcpServers"), and serves nothing.

    Example: isotherm mcp --write
    """
    from pipeline.agents import serve, server

    if as_json:
        server(url, key, write=write, namespace=namespace)  # says what is missing
        arguments = ["mcp", "--url", url, "--namespace", namespace, *(["--write"] if write else [])]
        print(json.dumps({"mcpServers": {"isotherm": {"command": "isotherm", "args": arguments}}}))
        return
    run_async(serve(url, key, write=write, namespace=namespace))
