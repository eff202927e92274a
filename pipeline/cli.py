"""The `isotherm` command. Exit codes: 0 fine, 1 not found or a check failed, 2 usage, 3 a service is unreachable."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy: our own threads share the cores, BLAS must not
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from tiers.errors import InvalidRecord, IsothermError, ServiceMissing, SettingsError

app = typer.Typer(
    name="isotherm", help="Memory for streams of vectors.", no_args_is_help=True, pretty_exceptions_enable=False
)
config_app = typer.Typer(help="Look at the settings.", no_args_is_help=True)
app.add_typer(config_app, name="config")

Json = Annotated[bool, typer.Option("--json", help="One JSON value instead of text.")]
Config = Annotated[Path | None, typer.Option("--config", "-c", help="Settings file (TOML); see config/isotherm.toml.")]
Set = Annotated[list[str] | None, typer.Option("--set", "-s", help="A setting, as in -s hot.capacity_rows=65536.")]
Url = Annotated[str, typer.Option("--url", envvar="ISOTHERM_URL", help="The gateway.", show_default=True)]
GATEWAY = "http://127.0.0.1:8080"


def main() -> None:
    """Run the command line and turn our errors into one line and an exit code."""
    try:
        app()
    except BaseExceptionGroup as group:
        fail(_first(group))
    except (IsothermError, TimeoutError) as error:
        fail(error)


def _first(error: BaseException) -> BaseException:
    """Return the error that a group of errors is about."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def fail(error: BaseException) -> None:
    """Print one line and exit: 2 for settings and bad input, 3 for a missing service, 1 for the rest."""
    print(f"isotherm: {error or type(error).__name__}", file=sys.stderr)
    usage = isinstance(error, SettingsError | InvalidRecord)
    sys.exit(2 if usage else 3 if isinstance(error, ServiceMissing) else 1)


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
    environment = {name: value for name, value in os.environ.items() if name not in ("ISOTHERM_URL", "ISOTHERM_LOOP")}
    return load(config, environment, {key: _value(value) for key, _, value in pairs})


@app.command()
def demo(
    records: Annotated[
        int | None, typer.Option(min=500, help="How many texts; all (about 7,000) if not given.")
    ] = None,
    keep: Annotated[Path | None, typer.Option(help="Keep the data in this directory.")] = None,
    as_json: Json = False,
) -> None:
    """Real records through all four tiers on local servers, asked for while they move, and checked.

    Example: isotherm demo --records 2000
    """
    from pipeline.demo import run

    sys.exit(0 if run_async(run(records, keep, as_json)) else 1)


@app.command()
def up(
    data: Annotated[Path, typer.Option(help="Where everything is kept.")] = Path("isotherm-data"),
    config: Config = None,
    given: Set = None,
) -> None:
    """Run local servers and a node, in the foreground; data is kept.

    Example: isotherm up --data ./isotherm-data
    """
    from pipeline.log import configure
    from pipeline.serve import serve
    from pipeline.stack import Stack

    async def work() -> None:
        async with Stack(data / "stack") as stack:
            local = [f"data={data}", f"kafka.bootstrap={stack.kafka}", f"warm.url={stack.redis}", "embedder=wordllama"]
            settings = settings_from(config, local + (given or []))
            configure(settings.log)
            await serve(settings, lambda _, address: _print_up(stack, address))

    run_async(work())


def _print_up(stack: Any, address: str) -> None:
    for service in stack.services:
        print(f"{service.software} {service.version}: {service.address}")
    print(f"gateway: {address}\nCtrl-C stops everything; the data stays.", flush=True)


@app.command()
def run(config: Config = None, given: Set = None) -> None:
    """Run a node against the configured services.

    Example: isotherm run --config config/isotherm.toml -s kafka.bootstrap=broker:9092
    """
    from pipeline.log import configure
    from pipeline.serve import serve

    settings = settings_from(config, given)
    configure(settings.log)
    run_async(serve(settings))


@app.command()
def publish(
    file: Annotated[
        str, typer.Argument(help="JSON lines, each with id, text or vector, …; - for standard input.")
    ] = "-",
    url: Url = GATEWAY,
    as_json: Json = False,
) -> None:
    """Publish JSON lines to the log through a gateway; says how many were rejected.

    Example: echo '{"id": "a", "text": "hello"}' | isotherm publish
    """
    from pipeline.client import publish_lines

    with sys.stdin if file == "-" else Path(file).open() as lines:
        outcome = publish_lines(url, lines, quiet=as_json)
    print(json.dumps(outcome) if as_json else f"published {outcome['published']}, rejected {outcome['rejected']}")
    sys.exit(1 if outcome["rejected"] else 0)


@app.command()
def delete(ids: Annotated[list[str], typer.Argument()], url: Url = GATEWAY, as_json: Json = False) -> None:
    """Publish deletes for these ids.

    Example: isotherm delete a b
    """
    from pipeline.client import Client

    with Client(url) as client:
        tokens = {identifier: client.delete(identifier) for identifier in ids}
    print(json.dumps(tokens) if as_json else f"deleted {len(tokens)}")


@app.command()
def get(identifier: Annotated[str, typer.Argument(metavar="ID")], url: Url = GATEWAY, as_json: Json = False) -> None:
    """Show the newest version of a memory and the tier it is in; exit 1 when there is none.

    Example: isotherm get a
    """
    from pipeline.client import Client

    with Client(url) as client:
        found = client.get(identifier)
    if found is None:
        raise typer.Exit(1)
    print(json.dumps(found) if as_json else json.dumps(found, indent=2))


@app.command()
def search(
    text: Annotated[str | None, typer.Argument(help="Words, where the node has an embedder.")] = None,
    vector: Annotated[str | None, typer.Option(help="A JSON list of floats instead of words.")] = None,
    k: Annotated[int, typer.Option(help="How many.")] = 10,
    url: Url = GATEWAY,
    as_json: Json = False,
) -> None:
    """Find the nearest memories.

    Example: isotherm search "compress a file with gzip" --k 5
    """
    from pipeline.client import Client, table_of_hits

    if (text is None) == (vector is None):
        raise InvalidRecord("search", "give either words or --vector")
    asked = {"text": text} if vector is None else {"vector": json.loads(vector)}
    with Client(url) as client:
        answer = client.search(k=k, **asked)
    if as_json:
        print(json.dumps(answer))
    else:
        table_of_hits(answer)


@app.command()
def tiers(
    watch: Annotated[bool, typer.Option("--watch", help="Show it live until Ctrl-C.")] = False,
    url: Url = GATEWAY,
    as_json: Json = False,
) -> None:
    """Show what each tier holds and what moves between them.

    Example: isotherm tiers --watch
    """
    from pipeline.client import Client, show_tiers

    with Client(url) as client:
        if as_json:
            print(json.dumps(client.tiers()))
        else:
            show_tiers(client, watch=watch)


@app.command()
def changes(
    start: Annotated[str, typer.Option("--from", help="beginning, end, or a cursor.")] = "end",
    url: Url = GATEWAY,
    as_json: Json = False,
) -> None:
    """Follow the change feed until Ctrl-C.

    Example: isotherm changes --from beginning
    """
    from pipeline.client import Client

    with Client(url) as client:
        for cursor, change in client.changes(start):
            if as_json:
                print(json.dumps({"cursor": cursor, **change}), flush=True)
            else:
                move = f"{change['kind']} {change['from']} -> {change['to'] or 'gone'}"
                print(f"{cursor}  {move}  {len(change['ids'])} ({change['reason']})", flush=True)


@config_app.command("show")
def config_show(config: Config = None, given: Set = None) -> None:
    """Print the settings in force as JSON, passwords masked.

    Example: isotherm config show -s dim=384
    """
    from pipeline.settings import shown

    print(json.dumps(shown(settings_from(config, given)), indent=2))


if __name__ == "__main__":
    main()
