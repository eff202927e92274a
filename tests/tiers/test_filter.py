"""Filters mean what SQL means by them, and nothing but an expression is let in."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiers import filter as filters
from tiers.errors import InvalidRecord
from tiers.record import ATTRIBUTE_TYPES

pytestmark = pytest.mark.unit

DECLARED = {"user": "string", "score": "float", "n": "int", "ok": "bool", "seen": "timestamp"}
ATTRIBUTES = pa.struct([(name, ATTRIBUTE_TYPES[kind]) for name, kind in DECLARED.items()])
TIME = pa.timestamp("ms", "UTC")
COLUMNS = pa.schema([pa.field("id", pa.string()), pa.field("event_time", TIME), *ATTRIBUTES])


def moment(day: int) -> datetime:
    return datetime(2026, 1, day, 12, tzinfo=UTC)


WORDS = ["", "a", "b%", "a_b", "a\\b", "A", "äö", "a\nb", "u1"]
VALUES: dict[str, list[Any]] = {
    "id": ["a", "ns/a", "ns/b", "b%"],
    "event_time": [moment(day) for day in (1, 2, 3)],
    "user": [*WORDS, None],
    "score": [-1.5, 0.0, 0.5, 1e300, None],
    "n": [-(2**63), -1, 0, 1, 2**53 + 1, 2**63 - 1, None],
    "ok": [True, False, None],
    "seen": [moment(1), moment(2), None],
}


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=COLUMNS)


def literal(value: Any) -> str:
    """Return a value as SQL writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime):
        return f"'{value.isoformat()}'"
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)


@st.composite
def comparisons(draw: st.DrawFn) -> str:
    name = draw(st.sampled_from(list(VALUES)))
    known = [value for value in VALUES[name] if value is not None]
    one = literal(draw(st.sampled_from(known)))
    forms = [f"{name} {operator} {one}" for operator in ("=", "<>", "<", "<=", ">", ">=")]
    forms += [f"{one} < {name}", f"{name} IS NULL", f"{name} IS NOT NULL", f"attributes.n = {2**53 + 1}"]
    several = ", ".join(literal(value) for value in draw(st.lists(st.sampled_from(known), min_size=1, max_size=3)))
    forms += [f"{name} IN ({several})", f"{name} NOT IN ({several})", f"{name} BETWEEN {one} AND {one}"]
    if name in ("id", "user"):
        pattern = literal(draw(st.sampled_from([*WORDS, "%", "a%", "%b", "%a%", "_", "a_b", "ns/%", "\\%"])))
        forms += [f"{name} LIKE {pattern}", f"{name} NOT LIKE {pattern}", f"{name} ILIKE {pattern}"]
    if name == "ok":
        forms += ["ok", "NOT ok"]
    if name in ("n", "score"):
        forms += ["n < score", "score >= n", "n > 0.5", "n IN (0, 0.5, 1)"]
    return draw(st.sampled_from(forms))


def joined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pair = st.tuples(inner, st.sampled_from(["AND", "OR"]), inner)
    return pair.map(lambda parts: f"({parts[0]} {parts[1]} {parts[2]})") | inner.map(lambda part: f"NOT ({part})")


expressions = st.recursive(comparisons(), joined, max_leaves=6)
records = st.lists(st.fixed_dictionaries({name: st.sampled_from(known) for name, known in VALUES.items()}), max_size=8)


def expected(text: str, rows: pa.Table) -> list[int]:
    """Return which rows DuckDB lets pass."""
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        packed = rows.append_column("attributes", pa.array([{"n": n} for n in rows["n"].to_pylist()], ATTRIBUTES))
        con.register("records", packed.append_column("row_number", pa.array(range(rows.num_rows), pa.int64())))
        return [
            row[0] for row in con.execute(f"SELECT row_number FROM records WHERE {text} ORDER BY row_number").fetchall()
        ]


def actual(text: str, rows: pa.Table) -> list[int]:
    columns = {name: rows.column(name) for name in rows.column_names}
    mask = filters.parse(text, ATTRIBUTES).mask(columns, rows.num_rows)
    return [int(at) for at in np.flatnonzero(mask)]


@settings(max_examples=300, deadline=None)
@given(expressions, records)
def test_a_filter_passes_the_rows_that_duckdb_passes(text: str, rows: list[dict[str, Any]]) -> None:
    """Three-valued logic, types, LIKE and all: the oracle is DuckDB on the same rows."""
    found = table(rows)

    assert expected(text, found) == actual(text, found)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "an expression"),
        ("   ", "an expression"),
        ("user = ", "syntax error"),
        ("user = 'a' FROM records", "nothing of a statement"),
        ("user = 'a'; SELECT 1", "one expression"),
        ("1 UNION SELECT 2", "nothing of a statement"),
        ("n = 1, ok", "nothing of a statement"),
        ("n = 1 GROUP BY 1", "nothing of a statement"),
        ("n = 1 AS k", "no alias"),
        ("*", "not allowed"),
        ("n", "not a condition"),
        ("1", "not allowed"),
        ("1 = 1", "expected"),
        ("unknown = 1", "no column 'unknown'"),
        ("other.n = 1", "no column 'other.n'"),
        ("attributes.unknown = 1", "no column 'attributes.unknown'"),
        ("n = ?", "without parameters"),
        ("n = $1", "without parameters"),
        ("n = NULL", "IS NULL"),
        ("n IN (1, NULL)", "IS NULL"),
        ("n = 'a'", "cannot be compared"),
        ("user = 5", "cannot be compared"),
        ("user = n", "cannot be compared"),
        ("ok = 1", "cannot be compared"),
        ("seen > 'yesterday'", "none (write it as"),
        ("event_time > 5", "cannot be compared"),
        ("score LIKE '1%'", "LIKE is for strings"),
        ("user LIKE id", "constant"),
        ("user SIMILAR TO 'a'", "not allowed"),
        ("user ~ 'a'", "not allowed"),
        ("length(user) = 1", "the function length"),
        ("getenv('HOME') = 'x'", "the function getenv"),
        ("n + 1 = 2", "the function +"),
        ("CAST(n AS VARCHAR) = '1'", "operator cast"),
        ("n IN (SELECT 1)", "not allowed"),
        ("EXISTS (SELECT 1)", "not allowed"),
        ("CASE WHEN ok THEN true END", "not allowed"),
        ("user COLLATE NOCASE = 'a'", "collate"),
        ("n[1] = 1", "expected"),
        ("NOT " * 40 + "ok", "nested deeper"),
        ("(" * 2000 + "ok" + ")" * 2000, "nested deeper"),
        ("NOT " * 1000 + "ok", "nested deeper"),
        (f"n IN ({', '.join(['1'] * 1200)})", "at most"),
        ("user = '" + "x" * 5000 + "'", "at most"),
        ("user = '\ud800'", "UTF-8"),
        ("user = 'a\0b'", "an expression"),
    ],
)
def test_what_is_not_a_plain_condition_is_refused(text: str, says: str) -> None:
    """The error is about the filter and says what is wrong; nothing of a foreign statement is run."""
    with pytest.raises(InvalidRecord) as found:
        filters.parse(text, ATTRIBUTES)

    assert found.value.reason == "filter"
    assert says in str(found.value)


def test_a_long_conjunction_is_no_nesting() -> None:
    """Two hundred conditions joined by AND are as flat as they are written."""
    text = " AND ".join(f"n <> {at}" for at in range(200))

    assert [0] == actual(text, table([dict.fromkeys(VALUES, None) | {"id": "a", "event_time": moment(1), "n": -1}]))


def test_times_without_a_zone_are_utc() -> None:
    """A date, a time without a zone, and one with another zone name the same moments as in UTC."""
    rows = table([dict.fromkeys(VALUES, None) | {"id": "a", "event_time": moment(2)}])
    same = ["event_time = '2026-01-02 12:00:00'", "event_time = TIMESTAMP '2026-01-02T12:00:00Z'"]
    same += ["event_time = '2026-01-02T14:00:00+02:00'", "event_time > DATE '2026-01-02'"]

    assert [[0]] * 4 == [actual(text, rows) for text in same]
