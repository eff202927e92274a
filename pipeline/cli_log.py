"""`isotherm log`: what to do when the log is not the one that was read."""

from __future__ import annotations

import json
from typing import Annotated

import msgspec
import typer

from pipeline.cli_options import Config, Json, Set, run_async, settings_from

log_app = typer.Typer(help="Go on with another log.", no_args_is_help=True)


@log_app.command("adopt")
def adopt(
    start: Annotated[
        str, typer.Option("--from", help="begin, end, or a time such as 2026-11-28T10:00:00Z; else as is found.")
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and change nothing.")] = False,
    config: Config = None,
    given: Set = None,
    as_json: Json = False,
) -> None:
    """Take the log that is there as a new epoch, after its topic was made again, truncated, or lost its beginning.

    The node is stopped meanwhile. What lies in the tiers stays; what the log says of an id from here on is newer.

    Example: isotherm log adopt --dry-run --config config/isotherm.toml
    """
    from pipeline.adopt import adopt as make

    done = run_async(make(settings_from(config, given), start, write=not dry_run))
    if as_json:
        print(json.dumps(msgspec.to_builtins(done)))
        return
    for reason in done.reasons:
        print(reason)
    where = ", ".join(f"{partition} from {offset}" for partition, offset in done.replay_from.items())
    print(f"{done.topic} {'would be' if dry_run else 'is'} epoch {done.epoch} of the log; partitions are read: {where}")
