"""Enough of PromQL to check that an expression is one and asks for what there is: tokens, balance, functions, labels.

Not Prometheus's own parser (there is none in Python's registry that we use, and promtool is no Python package): what it
cannot see is a wrong type, such as a rate of a scalar.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

FUNCTIONS = frozenset({"abs", "ceil", "changes", "clamp", "clamp_max", "clamp_min", "delta", "deriv", "exp", "floor"})
FUNCTIONS |= {"histogram_quantile", "idelta", "increase", "irate", "label_replace", "ln", "predict_linear", "rate"}
FUNCTIONS |= {"resets", "round", "scalar", "sort", "sort_desc", "sqrt", "time", "timestamp", "vector"}
FUNCTIONS |= {f"{how}_over_time" for how in ("avg", "count", "last", "max", "min", "quantile", "sum")}
AGGREGATES = frozenset({"avg", "bottomk", "count", "count_values", "group", "max", "min", "quantile", "stddev", "sum"})
GROUPINGS = frozenset({"by", "without", "on", "ignoring", "group_left", "group_right"})
WORDS = frozenset({"and", "or", "unless", "bool", "offset", "inf", "nan"})
RANGED = frozenset({"rate", "increase", "deriv", "delta", "irate", "changes", "resets", "predict_linear"})

TOKEN = re.compile(
    r"""(?P<space>\s+)|(?P<string>"(?:[^"\\]|\\.)*")|(?P<range>\[(?:\d+(?:ms|[smhdwy]))+\])
    |(?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)|(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)
    |(?P<operator>=~|!~|==|!=|<=|>=|[-+*/%^<>=])|(?P<bracket>[(){},])""",
    re.VERBOSE,
)


@dataclass
class Asked:
    """What an expression asks for: selectors with the labels they match, and labels that it groups by."""

    selectors: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    grouped: set[str] = field(default_factory=set)


def tokens(text: str) -> list[tuple[str, str]]:
    """Return (kind, text) of each token; ValueError where there is none."""
    found: list[tuple[str, str]] = []
    at = 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"no token at {text[at : at + 20]!r}")
        if match.lastgroup != "space":
            assert match.lastgroup is not None
            found.append((match.lastgroup, match[0]))
        at = match.end()
    return found


class Parser:
    """Recursive descent over the tokens; `asked` is filled on the way."""

    def __init__(self, text: str) -> None:
        self._tokens, self._at = [*tokens(text), ("end", "")], 0
        self.asked = Asked()

    def parse(self) -> Asked:
        """Return what the whole expression asks for."""
        self._expression()
        self._expect("end", "")
        return self.asked

    def _next(self) -> tuple[str, str]:
        return self._tokens[self._at]

    def _take(self) -> tuple[str, str]:
        self._at += 1
        return self._tokens[self._at - 1]

    def _expect(self, kind: str, text: str | None = None) -> str:
        found = self._take()
        if found[0] != kind or (text is not None and found[1] != text):
            raise ValueError(f"{found[1] or 'the end'!r} where {text or kind!r} was expected")
        return found[1]

    def _expression(self) -> None:
        self._operand()
        while self._next()[0] == "operator" or self._next()[1] in ("and", "or", "unless"):
            self._take()
            if self._next()[1] == "bool":
                self._take()
            while self._next()[1] in GROUPINGS:
                self._grouping()
            self._operand()

    def _operand(self) -> None:
        kind, text = self._take()
        if (kind, text) == ("operator", "-"):
            self._operand()
        elif (kind, text) == ("bracket", "("):
            self._expression()
            self._expect("bracket", ")")
        elif kind == "name":
            self._named(text)
        elif kind != "number":
            raise ValueError(f"{text!r} is no operand")

    def _named(self, name: str) -> None:
        if name in AGGREGATES:
            if self._next()[1] in GROUPINGS:
                self._grouping()
            self._arguments()
            if self._next()[1] in ("by", "without"):
                self._grouping()
        elif self._next()[1] == "(":
            if name not in FUNCTIONS:
                raise ValueError(f"there is no function {name}")
            ranges = sum(kind == "range" for kind, _ in self._tokens[: self._at])
            self._arguments()
            ranged = sum(kind == "range" for kind, _ in self._tokens[: self._at]) > ranges
            if name in RANGED and not ranged:
                raise ValueError(f"{name} needs a range")
        else:
            self._selector(name)

    def _arguments(self) -> None:
        self._expect("bracket", "(")
        while self._next()[1] != ")":
            self._expression()
            if self._next()[1] == ",":
                self._take()
        self._take()

    def _grouping(self) -> None:
        self._take()
        self._expect("bracket", "(")
        while self._next()[1] != ")":
            self.asked.grouped.add(self._expect("name"))
            if self._next()[1] == ",":
                self._take()
        self._take()

    def _selector(self, name: str) -> None:
        if name in WORDS | GROUPINGS:
            raise ValueError(f"{name!r} is no metric")
        labels: dict[str, str] = {}
        if self._next()[1] == "{":
            self._take()
            while self._next()[1] != "}":
                label = self._expect("name")
                operator = self._expect("operator")
                if operator not in ("=", "!=", "=~", "!~"):
                    raise ValueError(f"{operator!r} matches no label")
                labels[label] = operator + self._expect("string")[1:-1]
                if self._next()[1] == ",":
                    self._take()
            self._take()
        if self._next()[0] == "range":
            self._take()
        self.asked.selectors.append((name, labels))


def parse(text: str) -> Asked:
    """Return what an expression asks for; ValueError says what is wrong with it."""
    return Parser(text).parse()
