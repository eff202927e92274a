"""A mutant: one place of the source made wrong, the rule that this breaks, and what must notice."""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Mutant:
    """`old` stands exactly once in `file`. `tests` are pytest's arguments; one of them at least fails on the mutant.

    `finding` names the trace of the model check whose clause it removes, if one: the simulation must find it, in at
    most `within` seeds from `first` on, with plans of the kind `focus`. `broken` are rules of the simulation's own
    start and stores, to be broken instead of the source.
    """

    name: str
    rule: str
    file: str = ""
    old: str = ""
    new: str = ""
    tests: tuple[str, ...] = ()
    finding: str = ""
    focus: str = ""
    first: int = 0
    within: int = 250
    broken: frozenset[str] = frozenset()

    def source(self) -> str:
        """Return the mutated source; AssertionError when the place to mutate is not there exactly once."""
        text = (ROOT / self.file).read_text()
        assert text.count(self.old) == 1, f"{self.name}: its place is {text.count(self.old)} times in {self.file}"
        mutated = text.replace(self.old, self.new)
        ast.parse(mutated)
        return mutated


class Mutated(importlib.abc.MetaPathFinder, importlib.machinery.SourceFileLoader):
    """Imports one module from its mutated source; nothing is written to disk."""

    def __init__(self, mutant: Mutant) -> None:
        self._source = mutant.source()
        super().__init__(mutant.file.removesuffix(".py").replace("/", "."), str(ROOT / mutant.file))

    def find_spec(self, fullname, path, target=None):
        return importlib.util.spec_from_loader(fullname, self) if fullname == self.name else None

    def get_code(self, fullname):
        return compile(self._source, self.path, "exec")

    def install(self) -> None:
        """Come before all others; the module must not have been imported."""
        assert self.name not in sys.modules, f"{self.name} was imported before it could be mutated"
        sys.meta_path.insert(0, self)
