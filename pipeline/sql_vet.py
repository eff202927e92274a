"""Which statements may run: one SELECT, over the views that are offered, without functions that look around.

The first of two walls, for what the second (a read-only, locked database in a process of its own) lets through: the
parse tree, as DuckDB's own parser gives it, is read and never rewritten. Only kinds of nodes that are known pass.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import duckdb

VIEWS = frozenset({"memories", "hot", "warm", "cold", "glacier"})
QUERIES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
SOURCES = {"BASE_TABLE", "JOIN", "SUBQUERY", "EMPTY", "EXPRESSION_LIST", "TABLE_FUNCTION", "SHOW_REF", "PIVOT"}
TABLE_FUNCTIONS = {"range", "generate_series", "unnest", "json_each", "json_tree"}
LOOKING = {"current_setting", "write_log", "getenv", "getvariable", "nextval", "currval"}


class Refused(Exception):
    """The statement may not run; the message says why, and what may."""


def vet(connection: duckdb.DuckDBPyConnection, statement: str) -> None:
    """Raise Refused unless the statement may run; duckdb.ParserException for what is no SQL."""
    found = connection.extract_statements(statement)
    if len(found) != 1:
        raise Refused(f"one statement at a time; this has {len(found)}")
    if found[0].type != duckdb.StatementType.SELECT:
        raise Refused(f"{found[0].type.name} may not run here: only SELECT, which reads {_named()}")
    ((text,),) = connection.execute("SELECT json_serialize_sql(?)", [statement]).fetchall()
    tree = json.loads(text)
    if tree.get("error"):
        raise Refused(f"this form of SELECT is not taken: {tree.get('error_message')}")
    nodes = list(_nodes(tree))
    held = connection.execute(
        "SELECT lower(view_name) FROM duckdb_views() UNION SELECT table_name FROM duckdb_tables()"
    )
    taken = {name for (name,) in held.fetchall()} - VIEWS
    names = {entry["key"] for node in nodes if "cte_map" in node for entry in node["cte_map"]["map"]}
    names |= {node["cte_name"] for node in nodes if node.get("type") in ("RECURSIVE_CTE_NODE", "CTE_NODE")}
    for name in names:
        if not name.isidentifier() or name.lower() in taken:
            raise Refused(f"a WITH may not be called {name!r}")
    known = VIEWS | {name.lower() for name in names}
    for node in nodes:
        _check(node, known)


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for each in value.values():
            yield from _nodes(each)
    elif isinstance(value, list):
        for each in value:
            yield from _nodes(each)


def _check(node: dict[str, Any], known: frozenset[str]) -> None:
    kind = str(node.get("type"))
    if "class" in node:  # an expression
        if str(node.get("function_name", "")).lower() in LOOKING:
            raise Refused(f"the function {node['function_name']} may not be used here")
    elif "cte_map" in node or kind.endswith("_NODE"):
        if kind not in QUERIES:
            raise Refused("only SELECT may run, also inside WITH")
    elif "sample" in node or "table_name" in node or kind in SOURCES:
        _check_source(kind, node, known)


def _check_source(kind: str, node: dict[str, Any], known: frozenset[str]) -> None:
    if kind not in SOURCES:
        raise Refused(f"{kind.lower().replace('_', ' ')} is nothing that may be read; there are {_named()}")
    if kind == "SHOW_REF" and node.get("query") is None:
        raise Refused(f"there is nothing to show but {_named()}: DESCRIBE one of them")
    if kind == "BASE_TABLE":
        path = [node.get("catalog_name") or "", node.get("schema_name") or "", node["table_name"]]
        if any(path[:2]) or path[2].lower() not in known or node.get("at_clause"):
            shown = ".".join(part for part in path if part)
            raise Refused(f"there is no {shown!r}; there are {_named()}")
    if kind == "TABLE_FUNCTION":
        name = str(node.get("function", {}).get("function_name", "")).lower()
        if name not in TABLE_FUNCTIONS:
            raise Refused(f"the table function {name} may not be used here; there are {', '.join(TABLE_FUNCTIONS)}")


def _named() -> str:
    return ", ".join(sorted(VIEWS))
