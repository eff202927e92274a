"""The reference pages, made from code: settings, commands, HTTP, topics.

    python -m scripts.pages            write docs/reference/
    python -m scripts.pages --check    exit 1 when a page is not what the code says

They are committed, so that they can be read without building anything; a test holds them equal. Their siblings are
docs/metrics.md, docs/bad-input.md and docs/benchmarks.md, which other programs write.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

from pipeline.cli import app
from scripts.pages_api import cell, http, topics

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "reference"
MADE = "*Made from {source} by `make pages`; not to be edited.*"


def settings() -> Iterator[str]:
    """Yield the page of settings: config/isotherm.toml, a table a section."""
    text = (ROOT / "config" / "isotherm.toml").read_text()
    yield from ["# Settings", "", MADE.format(source="config/isotherm.toml"), ""]
    head, *sections = re.split(r"^\[(.+)\]$", text, flags=re.MULTILINE)
    introduction, _, top = head.partition("\n\n# Directory")
    order = [line.removeprefix("#").strip() for line in introduction.splitlines()]
    yield " ".join(order[2:])
    yield from [
        "",
        "`hot.slab_rows` is `slab_rows` in the table `[hot]` of the file, `-s hot.slab_rows=…` on the command line,",
    ]
    yield from ["and `ISOTHERM_HOT__SLAB_ROWS` in the environment.", ""]
    for name, body in [("", f"# Directory{top}"), *zip(sections[::2], sections[1::2], strict=True)]:
        yield from [f"## {name}" if name else "## The node itself", "", "| setting | default | |", "|---|---|---|"]
        yield from _keys(f"{name}." if name else "", body)
        yield ""


def _keys(prefix: str, body: str) -> Iterator[str]:
    """Yield a row a key; its comment is what stands above it, and a key without one shares its neighbour's."""
    comment: list[str] = []
    ended = True
    for line in body.strip().splitlines():
        if line.startswith("#"):
            comment = [line.removeprefix("#")] if ended else [*comment, line.removeprefix("#")]
            ended = False
        elif " = " in line:
            key, _, value = line.partition(" = ")
            yield f"| `{prefix}{key}` | `{value}` | {cell(' '.join(comment))} |"
            ended = True


def commands() -> Iterator[str]:
    """Yield the page of commands: what `--help` says of each."""
    yield from ["# The command line", "", MADE.format(source="the commands themselves"), ""]
    yield "Exit codes: 0 fine, 1 not found or a check failed, 2 usage, 3 a service does not answer."
    for name, command in _walk("isotherm", typer.main.get_command(app)):
        yield from ["", f"## {name}", ""]
        told, mark, example = (command.help or "").partition("Example:")
        yield from [re.sub(r"\s*\n\s*", "\n", told.strip()), ""]
        if mark:
            yield from ["```sh", example.strip(), "```", ""]
        yield from _options(command)


def _walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield name, command
        return
    for word, each in inner.items():
        yield from _walk(f"{name} {word}", each)


def _options(command: Any) -> Iterator[str]:
    shown = [each for each in command.params if each.name != "help"]
    if shown:
        yield from ["| argument or option | default | |", "|---|---|---|"]
    for each in shown:
        argument = each.param_type_name == "argument"
        names = f"`{each.metavar or each.name.upper()}`" if argument else ", ".join(f"`{opt}`" for opt in each.opts)
        default = "" if each.default in (None, False, ()) or callable(each.default) else f"`{each.default}`"
        variable = f" ({each.envvar})" if each.envvar else ""
        yield f"| {names} | {default} | {cell(each.help or '')}{variable} |"


PAGES: dict[str, Callable[[], Iterator[str]]] = {
    "settings.md": settings,
    "commands.md": commands,
    "http.md": lambda: http(MADE.format(source="the OpenAPI document of a node with the default settings")),
    "topics.md": lambda: topics(MADE.format(source="the AsyncAPI document of a node with the default settings")),
}


def text(name: str) -> str:
    """Return a page as it must be."""
    return "\n".join(PAGES[name]()).rstrip("\n") + "\n"


def main() -> None:
    """Write the pages, or compare."""
    check = sys.argv[1:] == ["--check"]
    FOLDER.mkdir(exist_ok=True)
    for name in PAGES:
        file = FOLDER / name
        if not check:
            file.write_text(text(name))
        elif not file.exists() or file.read_text() != text(name):
            sys.exit(f"{file} is not what the code says: run `make pages`")


if __name__ == "__main__":
    main()
