"""The commands for backup, restore, and looking whether all is well."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli_options import GATEWAY, Config, Json, Key, Set, Url, connect, settings_from

snapshot_app = typer.Typer(help="Back a node up, and restore it elsewhere.", no_args_is_help=True)


@snapshot_app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Letters, digits, dots, dashes and underscores.")],
    url: Url = GATEWAY,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Move everything to glacier and put its files aside, on the node's machine; the node stays in service.

    Example: isotherm snapshot create before-upgrade
    """
    with connect(url, key) as client:
        made = client.snapshot(name)
    if as_json:
        print(json.dumps(made))
        return
    size = f"{made['rows']:,} rows in {made['files']} files ({made['bytes']:,} bytes)"
    print(f"{made['path']}: {size}, {made['moved']:,} moved to glacier for it")
    print("Copy the directory to another machine: on this disk it shares its files with the archive.")


@snapshot_app.command("restore")
def restore(
    name: Annotated[str, typer.Argument(help="A snapshot's name, or its directory.")],
    to: Annotated[Path, typer.Option("--to", help="The data directory to make.")],
    config: Config = None,
    given: Set = None,
    as_json: Json = False,
) -> None:
    """Make a data directory from a snapshot; a node that opens it reads the rest from the log.

    Example: isotherm snapshot restore before-upgrade --to ./restored-data
    """
    from pipeline.restore import restore as make

    settings = settings_from(config, given)
    by_name = Path(settings.snapshot.path or Path(settings.data) / "snapshots") / name
    about = make(by_name if by_name.is_dir() else Path(name), to)
    rows = sum(file.rows for file in about.files)
    if as_json:
        print(json.dumps({"data": str(to), "rows": rows, "files": len(about.files), "offsets": about.offsets}))
        return
    print(f"{to}: {rows:,} rows in {len(about.files)} files, of {about.created_at}")
    print(
        f"Start it with `isotherm run -s data={to} -s glacier.path=`, and with a warm store of its own (warm.url or "
        f"warm.prefix): it reads {about.prefix}.memories from the noted offsets. Stop the node that it replaces first."
    )


def verify(
    repair: Annotated[bool, typer.Option("--repair", help="Put right what is derived: side file, index.")] = False,
    url: Url = GATEWAY,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Cross-check index, tiers, side file, archive and offsets of a live node; exit 1 when something is wrong.

    Example: isotherm verify --json
    """
    with connect(url, key) as client:
        found = client.verify(repair=repair)
    if as_json:
        print(json.dumps(found))
    else:
        _show(found)
    sys.exit(0 if found["ok"] else 1)


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if found["problems"]:
        table = Table("what", "tier", "id", "version", "detail", "repaired")
        for each in found["problems"]:
            repaired = "yes" if each["repaired"] else ""
            table.add_row(each["kind"], each["tier"], each["id"], each["version"], each["detail"], repaired)
        console.print(table)
    checked = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in found["checked"].items())
    console.print(f"{found['problems_total']} problems. Checked: {checked}")
