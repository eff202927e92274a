"""The `isotherm` command. Exit codes: 0 fine, 1 not found or a check failed, 2 usage, 3 a service is unreachable."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy: our own threads share the cores, BLAS must not
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from pipeline import cli_ask, cli_sql
from pipeline.cli_agents import mcp
from pipeline.cli_codes import reindex
from pipeline.cli_doctor import doctor
from pipeline.cli_keys import keys_app
from pipeline.cli_letters import letters_app
from pipeline.cli_log import log_app
from pipeline.cli_options import GATEWAY, Config, Json, Key, Set, Url, connect, run_async, settings_from
from pipeline.cli_snapshot import snapshot_app, verify
from pipeline.cli_stack import stack_app
from tiers.errors import InvalidRecord, IsothermError, ServiceMissing, SettingsError

app = typer.Typer(
    name="isotherm", help="Memory for streams of vectors.", no_args_is_help=True, pretty_exceptions_enable=False
)
config_app = typer.Typer(help="Look at the settings.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(letters_app, name="dead-letters")
app.add_typer(keys_app, name="keys")
app.add_typer(stack_app, name="stack")
app.add_typer(log_app, name="log")
app.add_typer(snapshot_app, name="snapshot")


def main() -> None:
    """Run the command line and turn our errors into one line and an exit code."""
    try:
        app(prog_name="isotherm")  # also as `python -m pipeline.cli`: help and completion name what is installed
    except BaseExceptionGroup as group:
        fail(_first(group))
    except BrokenPipeError:  # `isotherm changes | head`: nobody listens any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (IsothermError, TimeoutError) as error:
        fail(error)


def _first(error: BaseException) -> BaseException:
    """Return the error that a group of errors is about."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def fail(error: BaseException) -> None:
    """Print one line and exit: 2 for settings and bad input, 3 for a service that does not answer, 1 for the rest."""
    print(f"isotherm: {error or type(error).__name__}", file=sys.stderr)
    usage = isinstance(error, SettingsError | InvalidRecord)
    unreachable = isinstance(error, ServiceMissing) or getattr(error, "retriable", False)
    sys.exit(2 if usage else 3 if unreachable else 1)


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
    as_json: Json = False,
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
            await serve(settings, lambda _, address: _print_up(stack, address, as_json))

    run_async(work())


def _print_up(stack: Any, address: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"gateway": address, **{each.name: each.address for each in stack.services}}), flush=True)
        return
    for service in stack.services:
        print(f"{service.software} {service.version}: {service.address}")
    print(f"gateway: {address}\ndashboard: {address}/ui\nCtrl-C stops everything; the data stays.", flush=True)


@app.command()
def run(
    roles: Annotated[str, typer.Option(help="all: a node has every role today.")] = "all",
    config: Config = None,
    given: Set = None,
    as_json: Json = False,
) -> None:
    """Run a node against the configured services; --json prints its gateway's address once it listens.

    Example: isotherm run --config config/isotherm.toml -s kafka.bootstrap=broker:9092
    """
    from pipeline.log import configure
    from pipeline.serve import serve

    if roles != "all":
        raise SettingsError(
            f"--roles {roles}: only `all` is possible: ingest, movement and gateway share one index in one process; "
            "leave --roles out"
        )
    settings = settings_from(config, given)
    configure(settings.log)
    run_async(
        serve(settings, lambda _, address: print(json.dumps({"gateway": address}), flush=True) if as_json else None)
    )


@app.command()
def publish(
    file: Annotated[
        str,
        typer.Argument(help="JSON lines (each with id, vector or text, …), Parquet or Arrow; - for standard input."),
    ] = "-",
    rejects: Annotated[Path | None, typer.Option(help="Write what was refused here, a JSON line each.")] = None,
    url: Url = GATEWAY,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Publish a file of memories to the log through a gateway; exit 1 when some were rejected.

    Example: echo '{"id": "a", "text": "hello"}' | isotherm publish
    """
    from pipeline.publish import publish_file

    with connect(url, key) as client:
        done = publish_file(client, file, rejects, quiet=as_json)
    if as_json:
        said = {"published": done.published, "rejected": done.rejected, "errors": done.errors, "token": done.token}
        print(json.dumps(said))
    else:
        print(f"published {done.published}, rejected {done.rejected}")
    sys.exit(1 if done.rejected else 0)


for command in (*cli_ask.COMMANDS, *cli_sql.COMMANDS, mcp, doctor, verify, reindex):
    app.command()(command)


@config_app.command("show")
def config_show(config: Config = None, given: Set = None, as_json: Json = False) -> None:
    """Print the settings in force as JSON, secrets masked; --json on one line.

    Example: isotherm config show -s dim=384
    """
    from pipeline.settings import shown

    print(json.dumps(shown(settings_from(config, given)), indent=None if as_json else 2))


@config_app.command("schema")
def config_schema(as_json: Json = False) -> None:
    """Print the JSON Schema of the settings, for editors and for checking a file; --json on one line.

    Example: isotherm config schema > isotherm.schema.json
    """
    from pipeline.settings import schema

    print(json.dumps(schema(), indent=None if as_json else 2))


@config_app.command("openapi")
def config_openapi(config: Config = None, given: Set = None, as_json: Json = False) -> None:
    """Print the OpenAPI document of a gateway with these settings, as /openapi.json has it; --json on one line.

    Example: isotherm config openapi > openapi.json
    """
    from pipeline.openapi import document

    print(json.dumps(document(settings_from(config, given)), indent=None if as_json else 2))


@config_app.command("asyncapi")
def config_asyncapi(config: Config = None, given: Set = None, as_json: Json = False) -> None:
    """Print the AsyncAPI document of the topics, for whoever publishes or subscribes; --json on one line.

    Example: isotherm config asyncapi -s kafka.prefix=isotherm > asyncapi.json
    """
    from producers.asyncapi import document

    settings = settings_from(config, given)
    print(json.dumps(document(settings.kafka, settings.dim, settings.attributes), indent=None if as_json else 2))


if __name__ == "__main__":
    main()
