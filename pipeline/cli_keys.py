"""`isotherm keys`: create, list, rotate and revoke API keys, in the key file of a node's settings.

They change the file, not the gateway: it is done on the machine of the node, and a running one follows within a second.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli_options import Config, Json, Set, settings_from

keys_app = typer.Typer(help="API keys: who may do what.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="ID", help="The 12 digits after iso_, as `isotherm keys list` shows them.")]


@keys_app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Who or what the key is for.")],
    scope: Annotated[list[str], typer.Option("--scope", help="read, write or operate; may be given several times.")],
    namespace: Annotated[list[str] | None, typer.Option(help="A namespace that it sees; several times.")] = None,
    everything: Annotated[bool, typer.Option("--all-namespaces", help="It sees all namespaces.")] = False,
    expires: Annotated[str | None, typer.Option(help="24h, 30d, or a time such as 2030-01-31T12:00:00Z.")] = None,
    not_before: Annotated[str | None, typer.Option(help="Valid from then on, written likewise.")] = None,
    rate: Annotated[float | None, typer.Option(help="Requests a second, 0 for no limit; else the setting.")] = None,
    burst: Annotated[int | None, typer.Option(help="Of them, at once after a pause; else the setting.")] = None,
    concurrent: Annotated[
        int | None, typer.Option(help="Under way together, 0 for no limit; else the setting.")
    ] = None,
    config: Config = None,
    given: Set = None,
    as_json: Json = False,
) -> None:
    """Make a key and show it, this once; the first one closes the gateway to whoever has none.

    Example: isotherm keys create agent --scope read --scope write --namespace agent-7 --expires 90d
    """
    from pipeline.key_file import chance
    from pipeline.keys import Asked, moment
    from pipeline.keys import create as made
    from tiers.errors import InvalidRecord

    if bool(namespace) == everything:
        raise InvalidRecord("namespaces", "say which: --namespace NAME, once or more, or --all-namespaces")
    files, now = _files(config, given), datetime.now(UTC)
    ends, begins = (moment(text, now) if text is not None else None for text in (expires, not_before))
    asked = Asked(name, scope, None if everything else namespace, begins, ends, rate, burst, concurrent)
    with files.changing() as known:
        keys, token = made(known, asked, chance(), files.ensure_pepper(), now)
        files.write(keys)
    _print_new(keys[-1], token, as_json)


@keys_app.command("list")
def list_keys(config: Config = None, given: Set = None, as_json: Json = False) -> None:
    """Show the keys and whether they are live; never their secrets, which nobody has but their holders.

    Example: isotherm keys list
    """
    from rich.console import Console
    from rich.table import Column, Table

    files, now = _files(config, given), datetime.now(UTC)
    found = [_shown(key, now) for key in (files.read() if files.exist() else [])]
    if as_json:
        print(json.dumps(found))
        return
    table = Table(Column("id", no_wrap=True), "name", Column("state", no_wrap=True), "scopes", "namespaces", "expires")
    for each in found:
        spaces = "all" if each["namespaces"] is None else ", ".join(each["namespaces"])
        ends = (each["expires"] or "-").replace("+00:00", "Z")
        table.add_row(each["id"], each["name"], each["state"], ", ".join(each["scopes"]), spaces, ends)
    Console().print(table)


@keys_app.command("revoke")
def revoke(identifier: Id, config: Config = None, given: Set = None, as_json: Json = False) -> None:
    """End a key for good; a running gateway refuses it within a second. Exit 1 when there is none of this id.

    Example: isotherm keys revoke 3f9c0a17b2de
    """
    from pipeline.keys import named
    from pipeline.keys import revoke as revoked

    files, now = _files(config, given), datetime.now(UTC)
    with files.changing() as known:
        _check_known(known, identifier)
        keys = revoked(known, identifier, now)
        files.write(keys)
    shown = _shown(named(keys, identifier), now)
    print(json.dumps(shown) if as_json else f"revoked {identifier} ({shown['name']})")


@keys_app.command("rotate")
def rotate(
    identifier: Id,
    overlap: Annotated[str, typer.Option(help="How long the old key is valid beside the new one.")] = "24h",
    config: Config = None,
    given: Set = None,
    as_json: Json = False,
) -> None:
    """Make a successor that may do the same, and let the old key end after the overlap.

    Example: isotherm keys rotate 3f9c0a17b2de --overlap 24h
    """
    from pipeline.key_file import chance
    from pipeline.keys import duration
    from pipeline.keys import rotate as rotated

    files, now = _files(config, given), datetime.now(UTC)
    with files.changing() as known:
        _check_known(known, identifier)
        keys, token = rotated(known, identifier, duration(overlap), chance(), files.ensure_pepper(), now)
        files.write(keys)
    _print_new(keys[-1], token, as_json)


@keys_app.command("prune")
def prune(config: Config = None, given: Set = None, as_json: Json = False) -> None:
    """Forget the keys that are revoked or expired.

    Example: isotherm keys prune
    """
    from pipeline.keys import prune as pruned

    files = _files(config, given)
    if not files.exist():
        print(json.dumps({"forgotten": 0}) if as_json else "there are no keys")
        return
    with files.changing() as keys:
        left = pruned(keys, datetime.now(UTC))
        files.write(left)
    gone = len(keys) - len(left)
    print(json.dumps({"forgotten": gone}) if as_json else f"forgot {gone} keys; {len(left)} are left")


def _files(config: Path | None, given: list[str] | None) -> Any:
    from pipeline.key_file import KeyFiles

    settings = settings_from(config, given)
    return KeyFiles.under(settings.data, settings.gateway.keys_file, settings.gateway.pepper_file)


def _check_known(keys: list[Any], identifier: str) -> None:
    if all(key.id != identifier for key in keys):
        print("isotherm: there is no key of this id; `isotherm keys list` shows them", file=sys.stderr)
        raise typer.Exit(1)


def _shown(key: Any, now: datetime) -> dict[str, Any]:
    """Return a key as it may be seen: without its hash."""
    from pipeline.keys import state

    times = {name: getattr(key, name) for name in ("created", "not_before", "expires", "revoked")}
    return {
        "id": key.id,
        "name": key.name,
        "state": state(key, now),
        "scopes": key.scopes,
        "namespaces": key.namespaces,
        **{name: when.isoformat(timespec="seconds") if when is not None else None for name, when in times.items()},
        "replaces": key.replaces,
        "rate_per_s": key.rate_per_s,
        "burst": key.burst,
        "concurrent": key.concurrent,
    }


def _print_new(key: Any, token: Any, as_json: bool) -> None:
    """Print a new key: the one time that it is seen whole."""
    if as_json:
        print(json.dumps({**_shown(key, datetime.now(UTC)), "key": token.text()}))
        return
    print(token.text())
    ends = f", until {key.expires.isoformat(timespec='seconds')}" if key.expires is not None else ""
    spaces = "all namespaces" if key.namespaces is None else f"the namespaces {', '.join(key.namespaces)}"
    print(f"This is the only time it is shown. It may {', '.join(key.scopes)} in {spaces}{ends}.", file=sys.stderr)
    print("Send it as `Authorization: Bearer …`; the command line takes it from ISOTHERM_KEY.", file=sys.stderr)
