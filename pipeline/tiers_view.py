"""`isotherm tiers`: stub."""

from __future__ import annotations

import json
import time

from rich.console import Console

from pipeline.client import Client
from pipeline.looks import tier_table


def show(client: Client) -> None:
    """Print the tiers once."""
    Console().print(tier_table(client.tiers()))


def watch_json(client: Client, *, forever: bool) -> None:
    """Print one object, or one a second."""
    print(json.dumps(client.tiers()), flush=True)  # noqa: T201
    while forever:
        time.sleep(1)
        print(json.dumps(client.tiers()), flush=True)  # noqa: T201


def watch_live(client: Client) -> None:
    """Show live."""
    show(client)
