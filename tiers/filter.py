"""Filters: a SQL boolean expression over id, event_time and the declared attributes, as a bitmap.

DuckDB's parser reads the text; what it hands back is vetted into a tree of columns, constants, comparisons, AND, OR,
NOT, IN, BETWEEN, LIKE and IS NULL (nothing else: no functions, casts of columns, subqueries, parameters), typed against
the schema, and evaluated by Arrow compute. SQL's three-valued logic: a row passes where the expression is true, neither
where it is false nor where it is null.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache, reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tiers.expression import DEPTH_MAX, refuse, tree

VALUES_MAX = 1_000  # of one IN list

Columns = Mapping[str, pa.ChunkedArray]
Node = Callable[[Columns], Any]  # returns a boolean array with nulls, or a boolean scalar

_COMPARE: Mapping[str, Callable[[Any, Any], Any]] = {
    "COMPARE_EQUAL": pc.equal,
    "COMPARE_NOTEQUAL": pc.not_equal,
    "COMPARE_LESSTHAN": pc.less,
    "COMPARE_LESSTHANOREQUALTO": pc.less_equal,
    "COMPARE_GREATERTHAN": pc.greater,
    "COMPARE_GREATERTHANOREQUALTO": pc.greater_equal,
}
_MIRRORED: Mapping[str, str] = {
    "COMPARE_LESSTHAN": "COMPARE_GREATERTHAN",
    "COMPARE_LESSTHANOREQUALTO": "COMPARE_GREATERTHANOREQUALTO",
    "COMPARE_GREATERTHAN": "COMPARE_LESSTHAN",
    "COMPARE_GREATERTHANOREQUALTO": "COMPARE_LESSTHANOREQUALTO",
}
_LIKE = {"~~": (False, False), "!~~": (True, False), "~~*": (False, True), "!~~*": (True, True)}  # (negated, any case)
_TIMES = ("TIMESTAMP", "TIMESTAMP WITH TIME ZONE", "TIMESTAMPTZ", "DATE")


@dataclass(frozen=True, slots=True)
class Filter:
    """A vetted expression; `text` is what was given, `columns` the columns it reads."""

    text: str
    columns: frozenset[str]
    node: Node

    def mask(self, columns: Columns, rows: int) -> npt.NDArray[np.bool_]:
        """Return which of `rows` rows pass; `columns` maps each name in `self.columns` to an array of `rows` rows."""
        passed = self.node(columns)
        if isinstance(passed, pa.Scalar):
            return np.full(rows, passed.as_py() is True)
        out: npt.NDArray[np.bool_] = passed.fill_null(False).to_numpy(zero_copy_only=False)  # noqa: FBT003 - Arrow's form
        return out


@lru_cache(maxsize=1_024)
def parse(text: str, attributes: pa.StructType) -> Filter:
    """Return the vetted filter for records with these attributes; InvalidRecord("filter") says what is wrong where."""
    compiler = _Compiler(kinds(attributes))
    node = compiler.predicate(tree(text), 0)
    return Filter(text, frozenset(compiler.used), node)


def kinds(attributes: pa.StructType) -> dict[str, pa.DataType]:
    """Return what a filter may name, and its type: id, event_time and the attributes."""
    return {
        **{field.name: field.type for field in attributes},
        "id": pa.string(),
        "event_time": pa.timestamp("ms", "UTC"),
    }


# -- vetting and compiling ---------------------------------------------------------------------------------------------


class _Compiler:
    """Turns a parse tree into functions of columns; `used` collects the columns' names."""

    def __init__(self, columns: Mapping[str, pa.DataType]) -> None:
        self._columns = columns
        self.used: set[str] = set()

    def predicate(self, tree: Mapping[str, Any], depth: int) -> Node:
        """Compile an expression that must be boolean."""
        if depth > DEPTH_MAX:
            raise refuse(f"nested deeper than {DEPTH_MAX}")
        match tree["class"]:
            case "CONJUNCTION":
                parts = [self.predicate(child, depth + 1) for child in tree["children"]]
                join = pc.and_kleene if tree["type"] == "CONJUNCTION_AND" else pc.or_kleene
                return lambda columns: reduce(join, (part(columns) for part in parts))
            case "COMPARISON" if tree["type"] in _COMPARE:
                return self._compare(tree["type"], tree["left"], tree["right"])
            case "BETWEEN":
                low = self._compare("COMPARE_GREATERTHANOREQUALTO", tree["input"], tree["lower"])
                high = self._compare("COMPARE_LESSTHANOREQUALTO", tree["input"], tree["upper"])
                return lambda columns: pc.and_kleene(low(columns), high(columns))
            case "OPERATOR":
                return self._operator(tree, depth)
            case "FUNCTION" if tree["function_name"] in _LIKE and tree["is_operator"]:
                return self._like(*_LIKE[tree["function_name"]], tree["arguments"])
            case "COLUMN_REF":
                name, kind = self._column(tree)
                if not pa.types.is_boolean(kind):
                    raise refuse(f"{name} is {_word(kind)}, not a condition; compare it with something")
                return lambda columns: columns[name]
            case "CONSTANT" if tree["literal"]["kind"] == "BOOLEAN":
                value = pa.scalar(tree["literal"]["text"] == "true")
                return lambda _: value
        raise refuse(f"{_what(tree)} is not allowed; use =, <>, <, <=, >, >=, AND, OR, NOT, IN, BETWEEN, LIKE, IS NULL")

    def _operator(self, tree: Mapping[str, Any], depth: int) -> Node:
        children = tree["children"]
        match tree["type"]:
            case "OPERATOR_NOT":
                inner = self.predicate(children[0], depth + 1)
                return lambda columns: pc.invert(inner(columns))
            case "OPERATOR_IS_NULL" | "OPERATOR_IS_NOT_NULL":
                name, _ = self._column(children[0])
                test = pc.is_null if tree["type"] == "OPERATOR_IS_NULL" else pc.is_valid
                return lambda columns: test(columns[name])
            case "COMPARE_IN":
                return self._in(children[0], children[1:])
            case "COMPARE_NOT_IN":
                found = self._in(children[0], children[1:])
                return lambda columns: pc.invert(found(columns))
        raise refuse(f"{_what(tree)} is not allowed")

    def _compare(self, kind: str, left: Mapping[str, Any], right: Mapping[str, Any]) -> Node:
        if left["class"] != "COLUMN_REF" and right["class"] == "COLUMN_REF":
            left, right, kind = right, left, _MIRRORED.get(kind, kind)
        compare = _COMPARE[kind]
        name, of = self._column(left)
        if right["class"] == "COLUMN_REF":
            other, to = self._column(right)
            if of != to and not (_is_number(of) and _is_number(to)):
                raise refuse(f"{name} is {_word(of)} and {other} is {_word(to)}: they cannot be compared")
            kind_of = pa.float64() if of != to else of
            return lambda columns: compare(_as(columns[name], kind_of), _as(columns[other], kind_of))
        value = _constant(name, of, right)
        kind_of = value.type if _is_number(of) else of
        return lambda columns: compare(_as(columns[name], kind_of), value)

    def _in(self, left: Mapping[str, Any], listed: list[Mapping[str, Any]]) -> Node:
        name, kind = self._column(left)
        if len(listed) > VALUES_MAX:
            raise refuse(f"IN lists at most {VALUES_MAX} values")
        values = [_constant(name, kind, each) for each in listed]
        if _is_number(kind):
            kind = pa.float64() if any(pa.types.is_floating(value.type) for value in values) else kind
        wanted = pa.array([value.as_py() for value in values], values[0].type if pa.types.is_timestamp(kind) else kind)

        def found(columns: Columns) -> Any:
            column = columns[name]
            hit = pc.is_in(_as(column, wanted.type), value_set=wanted)
            return pc.if_else(pc.is_valid(column), hit, pa.scalar(None, pa.bool_()))

        return found

    def _like(self, negated: bool, any_case: bool, arguments: list[Mapping[str, Any]]) -> Node:
        left, right = (argument["expression"] for argument in arguments)
        name, kind = self._column(left)
        if not pa.types.is_string(kind):
            raise refuse(f"{name} is {_word(kind)}; LIKE is for strings")
        pattern = _constant(name, kind, right).as_py().replace("\\", "\\\\")  # SQL's LIKE has no escape, Arrow's has

        def like(columns: Columns) -> Any:
            hit = pc.match_like(columns[name], pattern, ignore_case=any_case)
            return pc.invert(hit) if negated else hit

        return like

    def _column(self, tree: Mapping[str, Any]) -> tuple[str, pa.DataType]:
        if tree["class"] != "COLUMN_REF":
            raise refuse(f"{_what(tree)} stands where a column is expected: {', '.join(sorted(self._columns))}")
        path = tree["column_names"]
        name = path[1] if len(path) == 2 and path[0] == "attributes" else path[0]
        if len(path) > 2 or name not in self._columns or (len(path) == 2 and path[0] != "attributes"):
            raise refuse(f"there is no column {'.'.join(path)!r}; there are {', '.join(sorted(self._columns))}")
        self.used.add(name)
        return name, self._columns[name]


def _constant(name: str, kind: pa.DataType, tree: Mapping[str, Any]) -> pa.Scalar:
    """Return a literal as a scalar that compares with a column of this type."""
    if tree["class"] == "CAST" and pa.types.is_timestamp(kind) and tree["type_expr"].get("type_name") in _TIMES:
        tree = tree["child"]
    if tree["class"] != "CONSTANT":
        raise refuse(f"{name} is compared with {_what(tree)}; compare it with a constant or a column")
    literal, text = tree["literal"]["kind"], tree["literal"]["text"]
    if literal == "NULL_LITERAL":
        raise refuse(f"nothing equals NULL; use {name} IS NULL")
    if pa.types.is_string(kind) and literal == "STRING":
        return pa.scalar(text, pa.string())
    if pa.types.is_boolean(kind) and literal == "BOOLEAN":
        return pa.scalar(text == "true")
    if _is_number(kind) and literal in ("INTEGER", "NUMERIC"):
        whole = pa.types.is_integer(kind) and literal == "INTEGER" and -(2**63) <= int(text) < 2**63
        return pa.scalar(int(text), pa.int64()) if whole else pa.scalar(float(text), pa.float64())
    if pa.types.is_timestamp(kind) and literal == "STRING":
        return _moment(name, text)
    raise refuse(f"{name} is {_word(kind)} and cannot be compared with {text[:64]!r}")


def _moment(name: str, text: str) -> pa.Scalar:
    try:
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        return pa.scalar(moment.astimezone(UTC), pa.timestamp("us", "UTC"))
    except (ValueError, OverflowError) as error:
        raise refuse(f"{name} is a time; {text[:64]!r} is none (write it as 2026-01-31T12:00:00Z)") from error


def _as(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Return a column as another type; integers beyond 2**53 lose their last bits as floats, as in SQL."""
    return column if column.type == kind else column.cast(kind, safe=False)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _word(kind: pa.DataType) -> str:
    return "a time" if pa.types.is_timestamp(kind) else f"a {kind}"


def _what(tree: Mapping[str, Any]) -> str:
    """Name a part of the tree as its author would."""
    if tree["class"] == "FUNCTION":
        return f"the function {tree['function_name']}"
    return str(tree["type"]).replace("_", " ").lower()
