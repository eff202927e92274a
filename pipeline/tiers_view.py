"""`isotherm tiers`: where memories are, how full each tier is, what flows between them, and how fresh the answers are.

`frame` draws one moment, from what /v1/tiers says now and said before (rates are differences); pure, so that a test can
look at it. Where nobody looks, in a pipe or a file, there is a line a second instead.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Iterable
from datetime import datetime

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.client import Client, GatewayError, ServiceMissing
from pipeline.tiers_rates import Answer, Rates, fullness, rates, totals, whole

PERIOD_S = 1.0
COLOURS = {"hot": "#ff5f5f", "warm": "#ffaf5f", "cold": "#5fafff", "glacier": "#afd7ff"}
HIGH, FULL = 0.7, 0.85  # of a limit: where the bar turns yellow, and red (policy.low_water and high_water by default)
BAR = 12
SPARKS = "▁▂▃▄▅▆▇█"
SPARKED = 40  # samples of the spark line
LETTERS = 4  # reasons of dead letters shown
BEHIND_MS = 1_000.0  # freshness beyond which it is shown in yellow


def frame(
    now: Answer, before: Answer | None, ingests: Iterable[float] = (), where: str = "", fault: str = ""
) -> RenderableType:
    """Return one moment as it is drawn; `ingests` are the last rates of arrival, `fault` why it is an old one."""
    now, before = whole(now), whole(before) if before is not None else None
    rate = rates(now, before)
    return Group(_head(now, where, fault), Text(), _tiers(now, rate), Text(), *_foot(now, rate, list(ingests)))


def _head(now: Answer, where: str, fault: str) -> RenderableType:
    head = Table.grid(expand=True)
    head.add_column()
    head.add_column(justify="right")
    state = Text()
    if fault:
        state.append(fault, "bold red")
    elif now["replaying"]:
        state.append(f"replaying partitions {_listed(now['replaying'])}", "yellow")
    else:
        state.append("ready", "green")
        lag = float(now["freshness"]["lag_ms"])
        state.append(" · ").append(f"{_duration(lag)} behind the log", "yellow" if lag > BEHIND_MS else "")
    state.append(datetime.fromtimestamp(now["at"]).astimezone().strftime(" · %H:%M:%S"))
    head.add_row(Text.assemble(("isotherm ", "bold"), (where, "dim")), state)
    if spaces := now.get("namespaces"):  # a key of some is told of their records only
        head.add_row(Text(f"memories of {_listed(spaces)}", "dim"), Text())
    return head


def _tiers(now: Answer, rate: Rates | None) -> Table:
    """Return the tiers with their rates; before there are any with what happened since the node started."""
    shown, unit = (totals(now), "") if rate is None else (rate, "/s")
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim")
    table.add_column("tier", no_wrap=True)
    table.add_column("records", justify="right", no_wrap=True)
    table.add_column("how full", no_wrap=True)
    for name in ("bytes", f"in{unit}", f"out{unit}", f"read{unit}"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, tier in now["tiers"].items():
        colour = COLOURS.get(name, "")
        table.add_row(
            Text.assemble(("▌", colour), (name, f"bold {colour}")),
            f"{tier['records']:,}",
            _bar(fullness(tier), colour),
            _bytes(tier["bytes"]),
            *(_rate(each.get(name)) for each in (shown.into, shown.out, shown.reads)),
        )
    return table


def _bar(full: float | None, colour: str) -> Text:
    if full is None:
        return Text("no limit".ljust(BAR + 5, "·"), "dim")
    cells = min(BAR, round(full * BAR) or (1 if full > 0 else 0))
    style = "bold red" if full >= FULL else "yellow" if full >= HIGH else colour
    return Text.assemble(("█" * cells, style), ("░" * (BAR - cells), "dim"), (f" {full:4.0%}", style))


def _foot(now: Answer, rate: Rates | None, ingests: list[float]) -> list[RenderableType]:
    copies, letters = now["copies"], now["dead_letters"]
    queued = sum(tier["queued"] for tier in now["tiers"].values())
    dirty = sum(now["dirty"].values())
    lines: list[RenderableType] = []
    order = list(now["tiers"])
    flows = [(way, each) for way, each in (rate or totals(now)).flows.items() if each]
    flows.sort(key=lambda flow: [order.index(tier) for tier in flow[0] if tier in order])
    if flows:
        unit = "/s" if rate else ""
        ways = [f"{source or 'log'} → {target or 'gone'} {_rate(each)}{unit}" for (source, target), each in flows]
        lines.append(_side_by_side([Text("moving", "dim"), *map(Text, ways)]))
    if ingests:
        lines.append(Text.assemble(("arriving ", "dim"), (spark(ingests), COLOURS["hot"]), f" {_rate(ingests[-1])}/s"))
    facts = [
        ("copies in hot", f"{copies['records']:,} of {copies['records_max']:,}"),
        ("only in the log", f"{dirty:,}"),
        ("wait for eviction", f"{queued:,}"),
    ]
    reads = (rate or totals(now)).reads
    if total := sum(reads.get(name, 0.0) for name in now["tiers"]):
        quick, copied = (reads.get(name, 0.0) / total for name in ("hot", "copies"))  # copies are part of hot's
        facts.append(("reads from hot", f"{quick:.0%}" + (f" ({copied:.0%} copies)" if copied else "")))
    lines.append(_side_by_side([Text.assemble((f"{name} ", "dim"), value) for name, value in facts]))
    if letters:
        worst = ", ".join(
            f"{reason} {count:,}" for reason, count in sorted(letters.items(), key=lambda each: -each[1])[:4]
        )
        lines.append(Text(f"{sum(letters.values()):,} dead letters ({worst}): isotherm dead-letters list", "yellow"))
    if now["paused"]:
        lines.append(Text(f"partitions {_listed(now['paused'])} are paused: hot has no room for them", "bold red"))
    return lines


def spark(values: list[float]) -> str:
    """Return numbers as a line of bars, the largest the highest."""
    top = max(values, default=0.0) or 1.0
    return "".join(SPARKS[min(len(SPARKS) - 1, int(value / top * (len(SPARKS) - 1) + 0.5))] for value in values)


def line(now: Answer, before: Answer | None) -> str:
    """Return one moment as a line of text."""
    now, before = whole(now), whole(before) if before is not None else None
    rate = rates(now, before)
    parts = [datetime.fromtimestamp(now["at"]).astimezone().strftime("%H:%M:%S")]
    for name, tier in now["tiers"].items():
        full = fullness(tier)
        share = "" if full is None else f" ({full:.0%})"
        flow = f" +{_rate(rate.into.get(name))}/s -{_rate(rate.out.get(name))}/s" if rate else ""
        parts.append(f"{name} {tier['records']:,}{share}{flow}")
    return "  ".join([*parts, f"behind {_duration(float(now['freshness']['lag_ms']))}"])


def _rate(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 10 or value == 0 else f"{value:.1f}"


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _duration(milliseconds: float) -> str:
    return f"{milliseconds:.0f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"


def _side_by_side(items: list[Text]) -> RenderableType:
    """Return texts beside each other, none of them divided by a line's end."""
    return Columns(items, padding=(0, 3))


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


# -- showing it --------------------------------------------------------------------------------------------------------


def show(client: Client) -> None:
    """Print the tiers once."""
    Console().print(frame(client.tiers(), None, where=client.url))


def watch_json(client: Client, *, forever: bool) -> None:
    """Print one object, or one a second."""
    print(json.dumps(client.tiers()), flush=True)  # noqa: T201
    while forever:
        time.sleep(PERIOD_S)
        print(json.dumps(client.tiers()), flush=True)  # noqa: T201


def watch_live(client: Client) -> None:
    """Show the tiers live until Ctrl-C; on no terminal a line a second. A gateway that goes away is waited for."""
    now, before = client.tiers(), None
    if not sys.stdout.isatty():
        while True:
            print(line(now, before), flush=True)  # noqa: T201
            time.sleep(PERIOD_S)
            now, before = client.tiers(), now
    ingests: deque[float] = deque(maxlen=SPARKED)
    with Live(frame(now, None, where=client.url), screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(PERIOD_S)
            try:
                now, before = client.tiers(), now
            except (ServiceMissing, GatewayError) as error:
                if not (isinstance(error, ServiceMissing) or error.retriable):
                    raise
                live.update(frame(now, None, ingests, client.url, "the gateway does not answer"), refresh=True)
                continue
            rate = rates(whole(now), whole(before))
            if rate is not None:
                ingests.append(rate.into["hot"])
            live.update(frame(now, before, ingests, client.url), refresh=True)
