"""`isotherm dead-letters`: what could not be applied, why, and sending it again."""

from __future__ import annotations

import base64
import json
import sys
from typing import Annotated, Any

import typer

from pipeline.cli_options import Config, Json, Set, run_async, settings_from
from tiers.errors import InvalidRecord

letters_app = typer.Typer(help="Look at what was refused, and send it again.", no_args_is_help=True)

Reason = Annotated[str | None, typer.Option(help="Only letters with this reason, such as vector_dim.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="The newest so many.")]
Scan = Annotated[int, typer.Option(min=1, help="Messages of the topic looked at, newest first.")]
SCAN = 10_000


@letters_app.command("list")
def list_letters(
    limit: Limit = 20,
    reason: Reason = None,
    scan: Scan = SCAN,
    config: Config = None,
    given: Set = None,
    as_json: Json = False,
) -> None:
    """Show the newest letters: position, reason, where it came from, and whether it was sent again.

    Example: isotherm dead-letters list --reason vector_dim
    """
    from pipeline.dead_letters import newest, shown

    found = run_async(newest(settings_from(config, given), limit, scan, reason))
    if as_json:
        print(json.dumps([shown(listed) for listed in found]))
        return
    for listed in found:
        letter = listed.letter
        row = "whole" if letter.row is None else letter.row
        again = "  sent again" if listed.replayed else ""
        place = f"{letter.topic}[{letter.partition}]@{letter.offset} row {row}"
        print(f"{listed.position}  {letter.reason}  {place}  {letter.error[:100]!r}{again}")
    print(f"{len(found)} letters")


@letters_app.command("show")
def show_letter(
    position: Annotated[str, typer.Argument(help="partition:offset, as `list` shows it.")],
    raw: Annotated[
        bool, typer.Option("--raw", help="Write the value's bytes to standard output, and nothing else.")
    ] = False,
    config: Config = None,
    given: Set = None,
    as_json: Json = False,
) -> None:
    """Show one letter whole; exit 1 when there is none at that position.

    Example: isotherm dead-letters show 0:42
    """
    from pipeline.dead_letters import one, shown

    listed = run_async(one(settings_from(config, given), position))
    if listed is None:
        print(f"isotherm: no letter at {position}; `isotherm dead-letters list` shows where they are", file=sys.stderr)
        raise typer.Exit(1)
    if raw:
        sys.stdout.buffer.write(listed.letter.value or b"")
        return
    whole = shown(listed) | {"value": _readable(listed.letter.value)}
    print(json.dumps(whole) if as_json else json.dumps(whole, indent=2, ensure_ascii=False))


@letters_app.command("replay")
def replay_letters(
    positions: Annotated[list[str] | None, typer.Argument(help="partition:offset of each.")] = None,
    reason: Reason = None,
    limit: Limit = 1_000,
    scan: Scan = SCAN,
    again: Annotated[bool, typer.Option("--again", help="Also what was sent again before.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent, send nothing.")] = False,
    config: Config = None,
    given: Set = None,
    as_json: Json = False,
) -> None:
    """Send letters again after what was wrong is right; what would still be refused stays where it is.

    A record sent again becomes the newest of its id: an update made in between is overwritten. Exit 1 when some could
    not be sent.

    Example: isotherm dead-letters replay --reason attribute_unknown
    """
    from pipeline.dead_letters import newest, parse_position, replay

    if not positions and reason is None:
        raise InvalidRecord("replay", "name positions, or a --reason: not everything is sent again by accident")
    for position in positions or []:
        parse_position(position)
    settings = settings_from(config, given)

    async def work() -> Any:
        found = await newest(settings, scan if positions else limit, scan, reason)
        chosen = [listed for listed in found if not positions or listed.position in positions]
        return await replay(settings, chosen, again=again, dry_run=dry_run)

    done = run_async(work())
    absent = sorted(set(positions or []) - {one.listed.position for one in done})
    kept = [{"position": one.listed.position, "why": one.why} for one in done if not one.sent]
    kept += [{"position": position, "why": f"no such letter among the newest {scan}"} for position in absent]
    sent = [one.listed.position for one in done if one.sent]
    if as_json:
        print(json.dumps({"sent": sent, "kept": kept, "dry_run": dry_run}))
    else:
        for one in kept:
            print(f"{one['position']}  not sent: {one['why']}")
        print(f"{'would send' if dry_run else 'sent'} {len(sent)}, not sent {len(kept)}")
    sys.exit(1 if kept else 0)


def _readable(value: bytes | None) -> Any:
    """Return a value as text where it is text, else as base64."""
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}
