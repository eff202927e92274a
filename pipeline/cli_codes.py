"""`isotherm reindex`: a new codebook for all codes."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli_options import GATEWAY, Json, Key, Url, connect

if TYPE_CHECKING:
    from pipeline.client import Client

LOOK_S = 0.5


def reindex(
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Show the progress until it is done.")] = True,
    url: Url = GATEWAY,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Train the codebook anew with what is stored now, and code everything by it while searches go on.

    Worth it when the records have become others than those that the codebook was trained with: the recall in
    `isotherm tiers --json` says so. It goes on without this command, and after a restart; exit 1 while there is no
    codebook yet.

    Example: isotherm reindex
    """
    with connect(url, key) as client:
        said = client.reindex()
        while wait and said["reindex"] is not None:
            if not as_json:
                print(f"{said['reindex']['segments']} of {said['reindex']['of']} segments", flush=True)
            time.sleep(LOOK_S)
            said = _codes(client)
    print(json.dumps(said) if as_json else _told(said))


def _codes(client: Client) -> dict[str, Any]:
    return dict(client.tiers()["codes"])


def _told(said: dict[str, Any]) -> str:
    if said["reindex"] is not None:
        return "under way; `isotherm tiers --json` shows how far it is"
    return f"codebook {said['codebook']}: {said['coded']:,} rows coded, {said['bytes']:,} bytes"
