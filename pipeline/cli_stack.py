"""`isotherm stack`: Kafka, Valkey and, asked for, S3, without Docker and without a node."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from pipeline.cli_options import Json, run_async

if TYPE_CHECKING:
    from pipeline.keeper import Kept

stack_app = typer.Typer(help="The local servers alone: Kafka, Valkey and, asked for, S3.", no_args_is_help=True)

Data = Annotated[Path, typer.Option(help="Where their data and logs are kept.")]
DATA = Path("isotherm-stack")


@stack_app.command("up")
def stack_up(
    data: Data = DATA,
    s3: Annotated[bool, typer.Option("--s3", help="SeaweedFS too, for an archive in a bucket.")] = False,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay, and stop them at Ctrl-C.")] = False,
    as_json: Json = False,
) -> None:
    """Start the servers and return; prints the environment with which `isotherm run` uses them.

    Example: isotherm stack up --data ./isotherm-stack
    """
    from pipeline import keeper

    if foreground:
        run_async(keeper.keep(data, s3=s3))
        return
    kept, fresh = keeper.up(data.absolute(), s3=s3)
    _print(kept, as_json)
    if s3 and "glacier.path" not in kept.settings:
        print("isotherm: they run without S3; `isotherm stack down` first, then up --s3", file=sys.stderr)
        raise typer.Exit(1)
    if not fresh:
        print(f"isotherm: they were running already (process {kept.pid})", file=sys.stderr)


@stack_app.command("down")
def stack_down(data: Data = DATA, as_json: Json = False) -> None:
    """Stop the servers in order; their data stays. Exit 1 when none were running.

    Example: isotherm stack down --data ./isotherm-stack
    """
    from pipeline import keeper

    kept = keeper.down(data.absolute())
    stopped = [service.name for service in kept.services] if kept is not None else []
    print(json.dumps({"stopped": stopped}) if as_json else f"stopped {', '.join(stopped) or 'nothing'}")
    if kept is None:
        print(f"isotherm: no servers run in {data}; is --data right?", file=sys.stderr)
        raise typer.Exit(1)


@stack_app.command("status")
def stack_status(data: Data = DATA, as_json: Json = False) -> None:
    """Say what runs where; exit 1 when nothing does, 3 when a server does not answer.

    Example: isotherm stack status
    """
    from pipeline import keeper

    kept = keeper.running(data.absolute())
    if kept is None:
        print(json.dumps({"services": []}) if as_json else f"nothing runs in {data}; `isotherm stack up` starts it")
        raise typer.Exit(1)
    silent = run_async(_silent(kept))
    _print(kept, as_json, silent)
    sys.exit(3 if silent else 0)


async def _silent(kept: Kept) -> list[str]:
    from urllib.parse import urlsplit

    from pipeline.doctor_machine import anyone

    found = []
    for service in kept.services:
        url = urlsplit(service.address if "://" in service.address else f"//{service.address}")
        if not await anyone(url.hostname or "", url.port or 0):
            found.append(service.name)
    return found


def _print(kept: Kept, as_json: bool, silent: list[str] | None = None) -> None:
    if as_json:
        print(json.dumps({**msgspec.to_builtins(kept), "silent": silent or []}))
        return
    for service in kept.services:
        state = "  does not answer" if silent and service.name in silent else ""
        print(f"# {service.software} {service.version}: {service.address} (process {service.pid}){state}")
    for name, value in kept.settings.items():
        print(f"export ISOTHERM_{name.upper().replace('.', '__')}={shlex.quote(value)}")
