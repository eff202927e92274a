"""`isotherm doctor`: what is wrong, and what to do."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import msgspec

from pipeline.cli_options import Config, Json, Set, run_async, settings_from
from tiers.errors import SettingsError

if TYPE_CHECKING:
    from pipeline.doctor_finding import Finding

MARKS = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "error": "[red]✗[/]"}


def doctor(config: Config = None, given: Set = None, as_json: Json = False) -> None:
    """Check machine, services, versions and settings, and say what to do; works with or without a running node.

    Exit 0: nothing is wrong (warnings may be), 1: something is, 2: the settings, 3: a service does not answer.

    Example: isotherm doctor --config config/isotherm.toml
    """
    from pipeline.doctor import examine, exit_code
    from pipeline.doctor_finding import Finding

    try:
        settings = settings_from(config, given)
    except SettingsError as error:
        findings, code = [Finding.error("settings", str(error))], 2
    else:
        _silence()
        findings = [Finding.ok("settings", "known keys, possible values"), *run_async(examine(settings))]
        code = exit_code(findings)
    if as_json:
        print(msgspec.json.encode({"code": code, "findings": findings}).decode())
    else:
        _print(findings)
    sys.exit(code)


def _silence() -> None:
    """Let no library say on its own what the findings will say."""
    import logging

    import structlog

    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def _print(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table.grid(padding=(0, 1))
    for finding in findings:
        text = escape(finding.text) + (f"\n[bold]→[/] {escape(finding.fix)}" if finding.fix else "")
        table.add_row(MARKS[finding.level], finding.check, text)
    console = Console(highlight=False)
    console.print(table)
    counts = {level: sum(finding.level == level for finding in findings) for level in MARKS}
    console.print(f"{counts['ok']} fine, {counts['warning']} warnings, {counts['error']} errors")
