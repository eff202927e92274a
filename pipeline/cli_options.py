"""What commands share: options, settings, and running a coroutine."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from tiers.errors import SettingsError

Json = Annotated[bool, typer.Option("--json", help="One JSON value instead of text.")]
Config = Annotated[Path | None, typer.Option("--config", "-c", help="Settings file (TOML); see config/isotherm.toml.")]
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
