"""From the text of a filter to the parse tree of one expression, by DuckDB's parser: parsed, and never run.

What is more than an expression (a statement around it, a second one, parameters) is refused here; what may stand inside
is vetted by `tiers.filter`.
"""

from __future__ import annotations

import json
import threading
from functools import lru_cache
from typing import Any

from tiers.errors import InvalidRecord

TEXT_BYTES_MAX = 4_096
DEPTH_MAX = 32


def refuse(why: str) -> InvalidRecord:
    """Return the error for a filter that cannot be used."""
    return InvalidRecord("filter", f"filter: {why}")


_local = threading.local()  # a DuckDB connection serves one thread at a time


def _serialized(sql: str) -> dict[str, Any]:
    """Return DuckDB's parse tree of a statement, parsed and never run."""
    if not hasattr(_local, "parser"):
        import duckdb  # noqa: PLC0415 - only who filters pays for it

        _local.parser = duckdb.connect()
    row = _local.parser.execute("SELECT json_serialize_sql(?)", [sql]).fetchone()
    tree: dict[str, Any] = json.loads(row[0])
    return tree


@lru_cache(maxsize=1)
def _frame() -> dict[str, Any]:
    """Return what surrounds the expression in a statement that is nothing but an expression."""
    return _without_places(_only(_serialized("SELECT 1")))


def _only(tree: dict[str, Any]) -> dict[str, Any]:
    if tree.get("error"):
        why = str(tree.get("error_message", "not a SQL expression")).splitlines()[0]
        if "expression depth" in why:
            raise refuse(f"nested deeper than {DEPTH_MAX}")
        raise refuse(f'{why} (a column whose name is a SQL word is written "name" in double quotes)')
    if len(tree["statements"]) != 1 or tree["statements"][0].get("named_param_map"):
        raise refuse("one expression, without parameters")
    node: dict[str, Any] = tree["statements"][0]["node"]
    return node


def _without_places(node: dict[str, Any]) -> dict[str, Any]:
    """Return a select node without its expressions, and without where in the text things stood."""
    rest = {key: value for key, value in node.items() if key != "select_list"}
    if isinstance(rest.get("from_table"), dict):
        rest["from_table"] = {k: v for k, v in rest["from_table"].items() if not k.startswith("query_location")}
    return rest


def tree(text: str) -> dict[str, Any]:
    """Return the parse tree of the one expression in `text`; InvalidRecord("filter") for anything else."""
    if len(text.encode("utf-8", "replace")) > TEXT_BYTES_MAX:
        raise refuse(f"at most {TEXT_BYTES_MAX} bytes")
    if "\0" in text or not text.strip():
        raise refuse("an expression, such as user = 'u1' AND score > 0.5")
    try:
        sql = f"SELECT {text}\n"  # the newline ends a comment
        sql.encode()
        node = _only(_serialized(sql))
    except UnicodeEncodeError as error:
        raise refuse("not UTF-8 text") from error
    except RecursionError as error:
        raise refuse(f"nested deeper than {DEPTH_MAX}") from error
    if _without_places(node) != _frame() or len(node["select_list"]) != 1:
        raise refuse("one boolean expression, and nothing of a statement around it")
    expression: dict[str, Any] = node["select_list"][0]
    if expression.get("alias"):
        raise refuse("an expression has no alias")
    return expression
