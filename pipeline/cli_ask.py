"""The commands that ask a gateway: get, search, delete, tiers, changes, why."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from typing import Annotated, Any

import msgspec
import typer

from pipeline.cli_options import GATEWAY, Json, Key, Url, connect
from tiers.errors import InvalidRecord, IsothermError


def get(
    identifier: Annotated[str, typer.Argument(metavar="ID")], url: Url = GATEWAY, key: Key = None, as_json: Json = False
) -> None:
    """Show the newest version of a memory and the tier it is in; exit 1 when there is none.

    Example: isotherm get a
    """
    with connect(url, key) as client:
        found = client.get(identifier)
    _show(msgspec.to_builtins(found), identifier, as_json)


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
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Find the nearest memories; exit 1 when there is none.

    Example: isotherm search "compress a file with gzip" --k 5 --tiers hot,warm
    """
    from pipeline.client_questions import Searching
    from pipeline.looks import table_of_hits

    if (text is None) == (vector is None):
        raise InvalidRecord("search", 'give either words or --vector, as in isotherm search "compress a file"')
    asked: Searching = {
        "text": text,
        "vector": _floats(vector) if vector is not None else None,
        "k": k,
        "filter": where,
        "tiers": tiers.split(",") if tiers is not None else None,
        "include": include.split(",") if include is not None else None,
        "exact": exact,
        "deadline_ms": deadline_ms,
    }
    with connect(url, key) as client:
        answer = client.search(**asked)
    if as_json:
        print(msgspec.json.encode(answer).decode())
    else:
        table_of_hits(answer)
    sys.exit(0 if answer.hits else 1)


def _floats(text: str) -> list[float]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidRecord("vector", f"--vector is a JSON list of floats, as in '[0.1, 0.2]': {error}") from error
    if not isinstance(found, list):
        raise InvalidRecord("vector", "--vector is a JSON list of floats, as in '[0.1, 0.2]'")
    return found


def delete(
    ids: Annotated[list[str], typer.Argument(metavar="ID…", help="- reads them from standard input, one a line.")],
    url: Url = GATEWAY,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Publish deletes for these ids, with progress; says how far it came where it could not go on.

    Example: isotherm delete a b
    """
    from pipeline.looks import progress

    wanted = [line.rstrip("\n") for line in sys.stdin] if ids == ["-"] else ids
    tokens: dict[str, str] = {}
    with connect(url, key) as client, progress("deleting", len(wanted), quiet=as_json) as advance:
        for identifier in wanted:
            try:
                tokens[identifier] = client.delete(identifier)
            except IsothermError:
                print(f"isotherm: {len(tokens)} of {len(wanted)} were deleted before {identifier!r}", file=sys.stderr)
                raise
            advance(1)
    print(json.dumps(tokens) if as_json else f"deleted {len(tokens)}")


def tiers(
    watch: Annotated[bool, typer.Option("--watch", help="Show it live until Ctrl-C.")] = False,
    url: Url = GATEWAY,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Show what each tier holds against its limits, what moves between them, and how fresh it is.

    With --watch and --json: one object a second, a line each.

    Example: isotherm tiers --watch
    """
    from pipeline.tiers_view import show, watch_json, watch_live

    with connect(url, key) as client, suppress(KeyboardInterrupt):
        if as_json:
            watch_json(client, forever=watch)
        elif watch:
            watch_live(client)
        else:
            show(client)


def changes(
    start: Annotated[str, typer.Option("--from", help="beginning, end, or a cursor.")] = "end",
    limit: Annotated[int | None, typer.Option(min=1, help="End after so many.")] = None,
    reconnect_s: Annotated[float, typer.Option(min=0, help="How long to wait for a gateway that went away.")] = 10.0,
    url: Url = GATEWAY,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Follow the change feed until Ctrl-C, across short outages; each line begins with the cursor to go on after it.

    Example: isotherm changes --from beginning --limit 10
    """
    with connect(url, key) as client, suppress(KeyboardInterrupt):
        for number, told in enumerate(client.changes(start, reconnect_s=reconnect_s), 1):
            change = told.change
            if as_json:
                print(json.dumps({"cursor": told.cursor, **msgspec.to_builtins(change)}), flush=True)
            else:
                move = f"{change.kind} {change.source or '-'} -> {change.target or 'gone'}"
                print(f"{told.cursor}  {move}  {len(change.ids)} ({change.reason})", flush=True)
            if number == limit:
                return


def why(
    identifier: Annotated[str, typer.Argument(metavar="ID")], url: Url = GATEWAY, key: Key = None, as_json: Json = False
) -> None:
    """Say where a memory is, which rule put it there, and what moves it next; exit 1 when there is none.

    Example: isotherm why a
    """
    with connect(url, key) as client:
        told = client.why(identifier)
    if told is None or as_json:
        _show(told, identifier, as_json)
    else:
        from rich.console import Console

        from pipeline.why_shown import why_shown

        Console(soft_wrap=True, highlight=False).print(why_shown(told))


def export(
    file: Annotated[str, typer.Argument(help=".parquet, .arrow or .jsonl; - writes JSON lines to standard output.")],
    where: Annotated[str | None, typer.Option("--filter", help="Only those for which this holds.")] = None,
    tiers: Annotated[str | None, typer.Option(help="Only from these, as in cold,glacier.")] = None,
    include: Annotated[str | None, typer.Option(help="Of payload,attributes,vector; all if not given.")] = None,
    url: Url = GATEWAY,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Write every memory to a file that `isotherm publish` reads again, with progress.

    Parquet and Arrow keep every byte; JSON lines leave out when a memory expires.

    Example: isotherm export memories.parquet --filter "event_time >= '2026-01-01'"
    """
    from pipeline.client_questions import Criteria
    from pipeline.export import export as write

    asked: Criteria = {
        "filter": where,
        "tiers": tiers.split(",") if tiers is not None else None,
        "include": include.split(",") if include is not None else None,
    }
    with connect(url, key) as client:
        count = write(client, file, asked, quiet=as_json)
    said = json.dumps({"exported": count, "file": file}) if as_json else f"exported {count}"
    print(said, file=sys.stderr if file == "-" else sys.stdout)


def _show(found: dict[str, Any] | None, identifier: str, as_json: bool) -> None:
    """Print one object; where there is none say so and exit 1."""
    if found is None:
        if as_json:
            print("null")
        print(f"isotherm: no memory {identifier!r}", file=sys.stderr)
        raise typer.Exit(1)
    print(json.dumps(found) if as_json else json.dumps(found, indent=2))


COMMANDS = (get, search, delete, export, tiers, changes, why)
