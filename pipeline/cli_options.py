"""What commands share: options, settings, and running a coroutine."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pipeline.client import Client

from tiers.errors import SettingsError

Json = Annotated[bool, typer.Option("--json", help="One JSON value instead of text.")]
Config = Annotated[Path | None, typer.Option("--config", "-c", help="Settings file (TOML); see config/isotherm.toml.")]
Url = Annotated[str, typer.Option("--url", envvar="ISOTHERM_URL", help="The gateway.", show_default=True)]
Key = Annotated[
    str | None, typer.Option("--key", envvar="ISOTHERM_KEY", help="API key; better by environment.", show_default=False)
]
GATEWAY = "http://127.0.0.1:8080"
Set = Annotated[list[str] | None, typer.Option("--set", "-s", help="A setting, as in -s hot.capacity_rows=65536.")]


def run_async(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine on uvloop (ISOTHERM_LOOP=asyncio for the standard loop; not a setting of the node)."""
    if os.environ.pop("ISOTHERM_LOOP", "uvloop") == "asyncio":
        return asyncio.run(work)
    import uvloop

    return uvloop.run(work)


def settings_from(config: Path | None, given: list[str] | None) -> Any:
    """Return the settings from file, environment and --set."""
    from pipeline.settings import _value, load

    pairs = [item.partition("=") for item in given or []]
    for key, equals, _ in pairs:
        if not equals:
            raise SettingsError(f"--set {key}: write it as key=value")
    return load(config, os.environ, {key: _value(value) for key, _, value in pairs})


def connect(url: str, key: str | None) -> Client:
    """Return a client of the gateway; a person waits, so it gives up a gateway that is not there after one more try."""
    from pipeline.client import Client

    return Client(url, key=key, retries=1)
