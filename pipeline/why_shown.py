"""How `isotherm why` is read: where a record is, why, by which numbers, and what comes next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

COLOURS = {"hot": "red", "warm": "yellow", "cold": "blue", "glacier": "cyan"}


def why_shown(told: Mapping[str, Any]) -> RenderableType:
    """Return an answer of /v1/why for a terminal."""
    parts: list[RenderableType] = [_place(told), _sentences(told), _numbers(told)]
    if told["history"]:
        parts.append(_history(told))
    parts += [
        Text(f"waits for eviction: version {old['version']} in {old['tier']}", "dim") for old in told["superseded"]
    ]
    looked = told["looked"]
    how_far = "all" if looked["complete"] else f"offsets {looked['from_offset']} to {looked['to_offset']}"
    return Group(*parts, Text(f"looked at {how_far} of the changes that the topic still holds", "dim"))


def _tier(name: str | None) -> Text:
    return Text(name or "gone", COLOURS.get(name or "", "dim"))


def _place(told: Mapping[str, Any]) -> Text:
    place = "deleted; its tombstone is in " if told["deleted"] else "in "
    copy = " and a copy in hot" if told["copy_in_hot"] and not told["deleted"] else ""
    line = Text.assemble((told["id"], "bold"), f": {place}", _tier(told["tier"]), copy)
    return line.append(f"   version {told['version']}, partition {told['partition']}", "dim")


def _sentences(told: Mapping[str, Any]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_row("  why", told["because"])
    grid.add_row("  next", told["next"]["text"])
    if told["expires_at"]:
        grid.add_row("  ends", f"expires at {told['expires_at']}")
    return grid


def _numbers(told: Mapping[str, Any]) -> Table:
    """Return the counters now, and when the last move was decided if that is told, beside what they are held to."""
    rules, then = told["policy"], told.get("decided")
    table = Table(box=None, padding=(0, 2), header_style="dim")
    table.add_column("")
    table.add_column("now", justify="right")
    if then:
        table.add_column(f"when decided ({then['at']})", justify="right")
    table.add_column("held to", style="dim")
    held = {
        "age": ("age_s", f"leaves hot at {seconds(rules['hot_age_s'])}"),
        "not read for": (
            "idle_s",
            f"leaves warm at {seconds(rules['warm_idle_s'])}, cold at {seconds(rules['cold_idle_s'])}",
        ),
        "heat": ("heat", f"to warm from {rules['warm_heat_min']:g}, a copy from {rules['promote_heat_min']:g}"),
    }
    for name, (key, limit) in held.items():
        written = (lambda value: f"{value:.3g}") if key == "heat" else seconds
        table.add_row(name, *(written(at[key]) for at in (told, then) if at), limit)
    for tier, fraction in told["usage"].items():
        before = [f"{then['usage'][tier]:.0%}" if then["usage"] and tier in then["usage"] else "?"] if then else []
        label = Text.assemble(_tier(tier), " full")
        limit = f"evacuated from {rules['high_water']:.0%}" if tier != "glacier" else "the last tier"
        table.add_row(label, f"{fraction:.0%}", *before, limit)
    return table


def _history(told: Mapping[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for name in ("when", "from", "to", "why", "what", "version"):
        table.add_column(name)
    for step in told["history"]:
        table.add_row(step["at"], _tier(step["from"]), _tier(step["to"]), step["reason"], step["kind"], step["version"])
    return table


def seconds(value: float) -> str:
    """Return a time as people say it."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if value >= 2 * size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} s"
