"""The command that asks with SQL."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from pipeline.cli_options import GATEWAY, Json, Key, Url, connect

if TYPE_CHECKING:
    from pipeline.client_results import SqlResult

CELL_CHARACTERS = 60


def sql(
    query: Annotated[str, typer.Argument(help="One SELECT over memories, hot, warm, cold and glacier.")],
    deadline_ms: Annotated[float | None, typer.Option(help="End it after this time.")] = None,
    url: Url = GATEWAY,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Ask with SQL, over a snapshot of all tiers; exit 2 when the statement is refused.

    Example: isotherm sql "SELECT tier, count(*) FROM memories GROUP BY tier"
    """
    with connect(url, key) as client:
        answer = client.sql(query, deadline_ms)
    if as_json:
        print(msgspec.json.encode(answer).decode())
    else:
        _show(answer)


def _show(answer: SqlResult) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*answer.columns)
    for row in answer.rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    console = Console()
    console.print(table)
    cut = ", and there are more (sql.rows_max, sql.bytes_max)" if answer.truncated else ""
    console.print(f"{answer.row_count} rows{cut}, as of {answer.snapshot_age_ms / 1000:.1f} s ago")


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value)
    return text if len(text) <= CELL_CHARACTERS else text[: CELL_CHARACTERS - 1] + "…"


COMMANDS = (sql,)
