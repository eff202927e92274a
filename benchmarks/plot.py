"""One kind of plot, as SVG: horizontal bars on a logarithmic axis, in groups. No library, no script, light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT = 820, 270, 170
BAR, GAP, HEAD, FOOT = 16, 14, 52, 34
TIMES = "bar: p50, line: p99"

STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600; font-size: 14px }
.quiet { fill: #59636e }
.grid { stroke: #d1d9e0 }
.ours { fill: #0b6bcb }
.theirs { fill: #8c959f }
.tail { stroke: #1f2328; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc }
  .quiet { fill: #9198a1 }
  .grid { stroke: #3d444d }
  .ours { fill: #4493f8 }
  .theirs { fill: #6e7681 }
  .tail { stroke: #f0f6fc }
}
"""


class Bar(NamedTuple):
    """A value, `tail` (a p99) if there is one, and words to stand beside them. `ours` gives the colour."""

    label: str
    value: float
    tail: float | None = None
    note: str = ""
    ours: bool = True


class Group(NamedTuple):
    """Bars that belong together."""

    label: str
    bars: Sequence[Bar]


def svg(title: str, unit: str, groups: Sequence[Group], legend: str = TIMES) -> str:
    """Return the plot; every value is more than 0, and stands beside its bar in figures."""
    bars = [bar for group in groups for bar in group.bars]
    low = 10.0 ** math.floor(math.log10(min(bar.value for bar in bars) * 0.7))
    high = 10.0 ** math.ceil(math.log10(max(bar.tail or bar.value for bar in bars)))
    height = HEAD + len(bars) * (BAR + 4) + len(groups) * GAP + FOOT

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(value / low) / math.log(high / low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        f'<text class="title" x="8" y="20">{escape(title)}</text>',
        f'<text class="quiet" x="8" y="38">{escape(unit)}, logarithmic; {escape(legend)}</text>',
    ]
    for power in range(round(math.log10(low)), round(math.log10(high)) + 1):
        at = x(10.0**power)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{HEAD}" y2="{height - FOOT}"/>')
        parts.append(f'<text class="quiet" x="{at:.1f}" y="{height - 14}" text-anchor="middle">{10.0**power:g}</text>')
    y = HEAD + GAP / 2
    for group in groups:
        for number, bar in enumerate(group.bars):
            parts += _bar(group.label if number == 0 else "", bar, y, low, x)
            y += BAR + 4
        y += GAP
    return "\n".join([*parts, "</svg>", ""])


def _bar(group: str, bar: Bar, y: float, low: float, x: Callable[[float], float]) -> list[str]:
    start, end = x(low), x(bar.value)
    middle = y + BAR - 4
    size = f'width="{max(1.0, end - start):.1f}" height="{BAR}"'
    out = [
        f'<text x="8" y="{middle:.1f}" class="title">{escape(group)}</text>' if group else "",
        f'<text class="quiet" x="{LEFT - 8}" y="{middle:.1f}" text-anchor="end">{escape(bar.label)}</text>',
        f'<rect class="{"ours" if bar.ours else "theirs"}" x="{start:.1f}" y="{y:.1f}" {size} rx="2"/>',
    ]
    if bar.tail is not None:
        end = x(bar.tail)
        line = f'x1="{x(bar.value):.1f}" x2="{end:.1f}" y1="{y + BAR / 2:.1f}" y2="{y + BAR / 2:.1f}"'
        out.append(f'<line class="tail" {line}/>')
    words = (
        f"{bar.value:.3g}{f' / {bar.tail:.3g}' if bar.tail is not None else ''}{f', {bar.note}' if bar.note else ''}"
    )
    out.append(f'<text x="{end + 6:.1f}" y="{middle:.1f}">{escape(words)}</text>')
    return [one for one in out if one]
