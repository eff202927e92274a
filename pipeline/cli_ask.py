"""The commands that ask a gateway: get, search, delete, tiers, changes, why."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from typing import Annotated, Any

import typer

from pipeline.cli_options import Json
from tiers.errors import InvalidRecord

Url = Annotated[str, typer.Option("--url", envvar="ISOTHERM_URL", help="The gateway.", show_default=True)]
GATEWAY = "http://127.0.0.1:8080"


def get(identifier: Annotated[str, typer.Argument(metavar="ID")], url: Url = GATEWAY, as_json: Json = False) -> None:
    """Show the newest version of a memory and the tier it is in; exit 1 when there is none.

    Example: isotherm get a
    """
    from pipeline.client import Client

    with Client(url) as client:
        found = client.get(identifier)
    _show(found, identifier, as_json)


def search(
    text: Annotated[str | None, typer.Argument(help="Words, where the node has an embedder.")] = None,
    vector: Annotated[str | None, typer.Option(help="A JSON list of floats instead of words.")] = None,
    k: Annotated[int, typer.Option(help="How many.")] = 10,
    where: Annotated[
        str | None, typer.Option("--filter", help="Only those for which this holds, as in \"user = 'u1'\".")
    ] = None,
    tiers: Annotated[str | None, typer.Option(help="Only in these, as in hot,warm.")] = None,
    include: Annotated[str | None, typer.Option(help="Of payload,attributes,vector.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Scan every vector.")] = False,
    deadline_ms: Annotated[float | None, typer.Option(help="Answer within this time, with what is there.")] = None,
    url: Url = GATEWAY,
    as_json: Json = False,
) -> None:
    """Find the nearest memories; exit 1 when there is none.

    Example: isotherm search "compress a file with gzip" --k 5 --tiers hot,warm
    """
    from pipeline.client import Client, table_of_hits

    if (text is None) == (vector is None):
        raise InvalidRecord("search", 'give either words or --vector, as in isotherm search "compress a file"')
    given = {
        "text": text,
        "vector": _floats(vector) if vector is not None else None,
        "filter": where,
        "tiers": tiers.split(",") if tiers is not None else None,
        "include": include.split(",") if include is not None else None,
        "exact": exact or None,
        "deadline_ms": deadline_ms,
    }
    with Client(url) as client:
        answer = client.search(k=k, **{name: value for name, value in given.items() if value is not None})
    if as_json:
        print(json.dumps(answer))
    else:
        table_of_hits(answer)
    sys.exit(0 if answer["hits"] else 1)


def _floats(text: str) -> list[float]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidRecord("vector", f"--vector is a JSON list of floats, as in '[0.1, 0.2]': {error}") from error
    if not isinstance(found, list):
        raise InvalidRecord("vector", "--vector is a JSON list of floats, as in '[0.1, 0.2]'")
    return found


def delete(ids: Annotated[list[str], typer.Argument(metavar="ID…")], url: Url = GATEWAY, as_json: Json = False) -> None:
    """Publish deletes for these ids.

    Example: isotherm delete a b
    """
    from pipeline.client import Client

    with Client(url) as client:
        tokens = {identifier: client.delete(identifier) for identifier in ids}
    print(json.dumps(tokens) if as_json else f"deleted {len(tokens)}")


def tiers(
    watch: Annotated[bool, typer.Option("--watch", help="Show it live until Ctrl-C.")] = False,
    url: Url = GATEWAY,
    as_json: Json = False,
) -> None:
    """Show what each tier holds and what moves between them.

    Example: isotherm tiers --watch
    """
    from pipeline.client import Client, show_tiers

    with Client(url) as client, suppress(KeyboardInterrupt):
        if as_json:
            print(json.dumps(client.tiers()))
        else:
            show_tiers(client, watch=watch)


def changes(
    start: Annotated[str, typer.Option("--from", help="beginning, end, or a cursor.")] = "end",
    limit: Annotated[int | None, typer.Option(min=1, help="End after so many.")] = None,
    url: Url = GATEWAY,
    as_json: Json = False,
) -> None:
    """Follow the change feed until Ctrl-C; each line begins with the cursor to go on after it.

    Example: isotherm changes --from beginning --limit 10
    """
    from pipeline.client import Client

    with Client(url) as client, suppress(KeyboardInterrupt):
        for number, (cursor, change) in enumerate(client.changes(start), 1):
            if as_json:
                print(json.dumps({"cursor": cursor, **change}), flush=True)
            else:
                move = f"{change['kind']} {change['from']} -> {change['to'] or 'gone'}"
                print(f"{cursor}  {move}  {len(change['ids'])} ({change['reason']})", flush=True)
            if number == limit:
                return


def why(identifier: Annotated[str, typer.Argument(metavar="ID")], url: Url = GATEWAY, as_json: Json = False) -> None:
    """Say where a memory is, which rule put it there, and what moves it next; exit 1 when there is none.

    Example: isotherm why a
    """
    from pipeline.client import Client

    with Client(url) as client:
        told = client.why(identifier)
    if told is None or as_json:
        _show(told, identifier, as_json)
    else:
        from rich.console import Console

        from pipeline.why_shown import why_shown

        Console(soft_wrap=True, highlight=False).print(why_shown(told))


def _show(found: dict[str, Any] | None, identifier: str, as_json: bool) -> None:
    """Print one object; where there is none say so and exit 1."""
    if found is None:
        if as_json:
            print("null")
        print(f"isotherm: no memory {identifier!r}", file=sys.stderr)
        raise typer.Exit(1)
    print(json.dumps(found) if as_json else json.dumps(found, indent=2))


COMMANDS = (get, search, delete, tiers, changes, why)
