"""The demo's real input: the distinct docstrings and help topics of the installed Python standard library."""

from __future__ import annotations

import ast
import importlib
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

CHARACTERS_MIN = 40  # shorter docstrings say too little to be asked for
SKIPPED = {"test", "tests", "idle_test", "site-packages", "__pycache__"}


class Text(NamedTuple):
    """One text and where it stands."""

    id: str
    module: str
    kind: str
    text: str


def collect(limit: int | None = None) -> list[Text]:
    """Return the texts, each once, in a stable order; `limit` takes them evenly from the whole."""
    found: dict[str, Text] = {}
    for text in (*_docstrings(), *_topics()):
        if len(text.text) >= CHARACTERS_MIN:
            found.setdefault(text.text, text)
    texts = [
        text._replace(id=identifier) for text, identifier in zip(found.values(), _unique(found.values()), strict=True)
    ]
    if limit is None or limit >= len(texts):
        return texts
    return [texts[at * len(texts) // limit] for at in range(limit)]


def _unique(texts: Iterable[Text]) -> Iterator[str]:
    """Yield an id for each text, numbered where a name is defined more than once."""
    seen: Counter[str] = Counter()
    for text in texts:
        seen[text.id] += 1
        yield text.id if seen[text.id] == 1 else f"{text.id}~{seen[text.id]}"


def _docstrings() -> Iterator[Text]:
    root = Path(sysconfig.get_path("stdlib"))
    for file in sorted(root.rglob("*.py")):
        relative = file.relative_to(root)
        if SKIPPED.intersection(relative.parts):
            continue
        module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):  # files that are wrong on purpose
            continue
        yield from _of(tree, module, module)


def _of(node: ast.AST, module: str, name: str) -> Iterator[Text]:
    """Yield the docstrings of a module, class or function and of all inside it."""
    kinds = {ast.Module: "module", ast.ClassDef: "class", ast.FunctionDef: "function", ast.AsyncFunctionDef: "function"}
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text:
            yield Text(f"stdlib/{name}", module, kinds[type(node)], text)
    for child in ast.iter_child_nodes(node):
        yield from _of(child, module, f"{name}.{child.name}" if hasattr(child, "name") and child.name else name)


def _topics() -> Iterator[Text]:
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    for name, text in sorted(topics.items()):
        yield Text(f"topic/{name}", "pydoc", "topic", text)
