"""What a stranger's SQL can do: nothing but read. Both walls, each statement, and the limits; no server needed."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import sql_vet, sql_worker
from pipeline.sql_process import Ran, SqlFailed, Statement
from tiers.errors import InvalidRecord

pytestmark = pytest.mark.unit

SECRET = "canary-3b1f"

#: By the first wall: (statement, a word of the refusal).
DENIED = [
    # files
    ("SELECT * FROM read_csv('/etc/passwd')", "read_csv"),
    ("SELECT * FROM '/etc/passwd'", "there is no"),
    ("SELECT * FROM 'glacier/partition=0/number=1/data.parquet'", "there is no"),
    ("SELECT * FROM read_parquet('glacier/**/*.parquet')", "read_parquet"),
    ("SELECT * FROM parquet_scan('glacier/**/*.parquet')", "parquet_scan"),
    ("SELECT * FROM read_text('/etc/hostname')", "read_text"),
    ("SELECT * FROM read_blob('snapshot.duckdb')", "read_blob"),
    ("SELECT * FROM read_json('/etc/x.json')", "read_json"),
    ("SELECT * FROM glob('/*')", "glob"),
    ("SELECT * FROM read_duckdb('cold.duckdb')", "read_duckdb"),
    ("COPY (SELECT 1) TO 'out.csv'", "COPY"),
    ("COPY memories FROM 'in.csv'", "COPY"),
    ("EXPORT DATABASE 'out'", "EXPORT"),
    ("ATTACH '/tmp/other.db'", "ATTACH"),
    ("DETACH cold_file", "DETACH"),
    ("USE cold_file", "SET"),
    # extensions, settings, secrets
    ("INSTALL httpfs", "LOAD"),
    ("LOAD httpfs", "LOAD"),
    ("SET enable_external_access = true", "SET"),
    ("SET threads = 64", "SET"),
    ("RESET memory_limit", "SET"),
    ("SET VARIABLE a = 1", "SET"),
    ("PRAGMA database_list", "PRAGMA"),
    ("PRAGMA enable_profiling", "PRAGMA"),
    ("CREATE SECRET s (TYPE s3)", "CREATE"),
    ("SELECT current_setting('allowed_directories')", "current_setting"),
    ("SELECT getenv('HOME')", "getenv"),
    ("SELECT * FROM duckdb_settings()", "duckdb_settings"),
    ("SELECT * FROM duckdb_secrets()", "duckdb_secrets"),
    ("SELECT * FROM duckdb_databases", "there is no"),
    ("SELECT * FROM pragma_database_list", "there is no"),
    ("SELECT * FROM pragma_database_list()", "pragma_database_list"),
    ("SELECT * FROM information_schema.tables", "there is no"),
    ("SELECT * FROM sqlite_master", "there is no"),
    ("SHOW ALL TABLES", ""),
    # around the views
    ("SELECT * FROM _rows", "there is no"),
    ("SELECT * FROM cold_file.main.rows", "there is no"),
    ("SELECT * FROM query_table('_rows')", "query_table"),
    ("SELECT * FROM query('SELECT * FROM _rows')", "query"),
    ("WITH _rows AS (SELECT * FROM _rows) SELECT * FROM _rows", "WITH"),
    ("WITH duckdb_views AS (SELECT * FROM duckdb_views) SELECT * FROM duckdb_views", "WITH"),
    ('WITH "/etc/p.csv" AS (SELECT * FROM "/etc/p.csv") SELECT * FROM "/etc/p.csv"', "WITH"),
    ("SELECT * FROM secret_table", "there is no"),
    # writing
    ("CREATE TABLE t AS SELECT 1", "CREATE"),
    ("CREATE TEMP TABLE t AS SELECT 1", "CREATE"),
    ("CREATE OR REPLACE TEMP VIEW memories AS SELECT 1", "CREATE"),
    ("CREATE MACRO f() AS 1", "CREATE"),
    ("INSERT INTO _rows SELECT * FROM _rows", "INSERT"),
    ("UPDATE _rows SET id = 'x'", "UPDATE"),
    ("DELETE FROM _rows", "DELETE"),
    ("DROP TABLE _rows", "DROP"),
    ("WITH d AS (DELETE FROM _rows RETURNING *) SELECT * FROM d", "only SELECT"),
    ("WITH d AS (INSERT INTO _rows SELECT * FROM _rows RETURNING *) SELECT * FROM d", "only SELECT"),
    ("CHECKPOINT", ""),
    ("VACUUM", "VACUUM"),
    ("BEGIN", "TRANSACTION"),
    ("PREPARE p AS SELECT 1", "PREPARE"),
    ("CALL duckdb_settings()", "CALL"),
    ("EXPLAIN SELECT 1", "EXPLAIN"),
    ("EXPLAIN ANALYZE SELECT 1", "EXPLAIN"),
    # not one
    ("SELECT 1; SELECT 2", "one statement"),
    ("SELECT 1; DROP TABLE _rows", "one statement"),
    ("", "one statement"),
    ("SELECT", ""),
    ("SELECT nothing FROM memories", "nothing"),
    ("SELECT " + "(" * 5000 + "1" + ")" * 5000, ""),
]

ALLOWED = [
    "SELECT count(*) FROM memories",
    "FROM memories",
    "SELECT * FROM Memories m JOIN cold USING (id)",
    "SELECT id, payload ->> 'n' FROM memories",
    "WITH m AS (SELECT * FROM memories), n AS (FROM m) SELECT count(*) FROM n",
    "WITH memories AS (SELECT * FROM memories WHERE id = 'a') SELECT * FROM memories",
    "WITH RECURSIVE d(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM d WHERE n < 5) SELECT * FROM d",
    "SELECT * FROM range(3) t(x), unnest([1, 2]) u(y)",
    "SELECT * FROM hot UNION ALL BY NAME SELECT * FROM glacier",
    "SELECT id FROM memories WHERE id IN (SELECT id FROM warm) ORDER BY 1",
    "SELECT home, count(*) OVER (PARTITION BY home) FROM memories QUALIFY true",
    "FROM memories PIVOT (count(*) FOR home IN ('hot', 'cold'))",
    "DESCRIBE memories",
    "SUMMARIZE memories",
    "VALUES (1), (2)",
    "SELECT list_cosine_similarity([1.0], [1.0]), version() IS NOT NULL",
]


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot's directory with a row in each kind of place, and one row that no view shows."""
    place = tmp_path_factory.mktemp("snapshot")
    parquet = place / "glacier/partition=0/number=1/data.parquet"
    parquet.parent.mkdir(parents=True)
    pq.write_table(pa.table({"id": ["a", SECRET], "payload": [b'{"n":1}', b"masked"]}), parquet)
    with duckdb.connect(str(place / "cold.duckdb")) as cold:
        cold.execute(f"CREATE TABLE rows AS SELECT 1 AS slot, '{SECRET}' AS id")
    with duckdb.connect(str(place / "snapshot.duckdb")) as made:
        made.execute("CREATE TABLE _rows AS SELECT 'a' AS id, 'hot' AS home, '{\"n\":1}'::JSON AS payload")
    return place


SETUP = [
    "ATTACH 'cold.duckdb' AS cold_file (READ_ONLY)",
    *(f"CREATE TEMP VIEW {tier} AS SELECT * FROM _rows" for tier in ("hot", "warm", "cold", "memories")),
    "CREATE TEMP VIEW glacier AS FROM read_parquet('glacier/partition=0/number=1/data.parquet') WHERE id = 'a'",
]


def run(snapshot: Path, statement: str, **more: Any) -> Ran:
    """Run one statement in a child."""
    return begin(snapshot, statement, **more).run()


def begin(snapshot: Path, statement: str, **more: Any) -> Statement:
    """Return a run that has not begun."""
    return Statement(job_of(statement) | more, snapshot)


def job_of(statement: str) -> dict[str, Any]:
    """Return the job of a statement."""
    return {
        "statement": statement,
        "form": "json",
        "database": "snapshot.duckdb",
        "setup": SETUP,
        "files": True,
        "threads": 1,
        "deadline_ms": 5_000,
        "limit_ms": 5_000,
        "cpu_s": 10,
        "memory_bytes": 1 << 28,
        "rows_max": 1_000,
        "bytes_max": 1 << 20,
    }


def fingerprint(snapshot: Path) -> dict[str, int]:
    """Return each file of the snapshot with the time it was written."""
    return {str(path): path.stat().st_mtime_ns for path in snapshot.rglob("*") if path.is_file()}


def test_a_statement_that_only_reads_is_answered(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Joins, CTEs, recursion, windows, JSON, DESCRIBE: what an analyst writes."""
    monkeypatch.chdir(snapshot)
    for statement in ALLOWED:
        frames: list[tuple[bytes, bytes]] = []
        sql_worker.answer(job_of(statement), lambda kind, body, to=frames: to.append((kind, body)), {})
        assert (b"E", False) == (frames[-1][0], json.loads(frames[-1][1])["truncated"]), statement
        assert json.loads(frames[-1][1])["rows"] >= 1, statement


def test_everything_else_is_refused_with_its_reason(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files, settings, catalogs, writes, several statements: each is an error of the asker, and changes nothing.

    What the child runs, run here: a process for each would take a quarter of a minute.
    """
    monkeypatch.chdir(snapshot)
    before = fingerprint(snapshot)
    secret_table = pa.table({"secret": [SECRET]})  # a Python variable, which DuckDB would find by its name
    for statement, word in DENIED:
        with pytest.raises((sql_vet.Refused, duckdb.Error, RecursionError)) as refused:
            sql_worker.answer(job_of(statement), lambda kind, _: None, {})
        said = sql_worker.told(refused.value)
        assert said["kind"] in ("refused", "statement"), f"{statement[:80]} -> {said}"
        assert word in said["detail"], f"{statement[:80]} -> {said}"
        assert str(snapshot) not in said["detail"], statement[:80]

    with pytest.raises(InvalidRecord, match="read_csv"):
        run(snapshot, DENIED[0][0])

    assert before == fingerprint(snapshot)
    assert secret_table.num_rows == 1


#: With the first wall taken away, these still change nothing and show nothing of the machine.
HARMLESS = [
    "SELECT * FROM read_text('/proc/self/environ')",
    "SELECT * FROM glob('/**')",
    "COPY (SELECT 1) TO 'glacier/partition=0/number=1/data.parquet'",
    "COPY (SELECT 1) TO 'glacier/new.parquet'",
    "PRAGMA database_list",
    "SELECT current_setting('allowed_directories')",
    "SELECT * FROM duckdb_databases()",
    "CREATE TABLE t AS SELECT 1",
    "WITH d AS (DELETE FROM _rows RETURNING *) SELECT * FROM d",
    "CHECKPOINT",
]


def test_the_second_wall_stands_alone(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unvetted, a statement may be answered, but no file changes, and neither paths nor secrets of ours are in it."""
    monkeypatch.setenv("ISOTHERM_TEST_SECRET", SECRET + "-environment")
    before = fingerprint(snapshot)
    shown = b""
    for statement in HARMLESS:
        try:
            shown += b"".join(run(snapshot, statement, unvetted=True).parts)
        except (InvalidRecord, SqlFailed) as error:
            shown += str(error).encode()

    assert before == fingerprint(snapshot)
    assert b"-environment" not in shown
    assert b"root:" not in shown
    assert str(snapshot).encode() not in shown


def test_duckdb_alone_keeps_to_the_snapshot(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the first wall and without the system's: no file beside the snapshot, no setting, no second opening."""
    monkeypatch.chdir(snapshot)
    beyond = [
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM read_blob('../../../../etc/passwd')",
        "COPY (SELECT 1) TO '/tmp/isotherm-test.csv'",
        "ATTACH '/tmp/isotherm-test.db'",
        "SET enable_external_access = true",
        "SET allowed_directories = ['/']",
        "SET lock_configuration = false",
        "DELETE FROM _rows",
        "UPDATE cold_file.main.rows SET id = 'x'",
        "SELECT * FROM secret_table",
    ]
    secret_table = pa.table({"secret": [SECRET]})
    for statement in beyond:
        with pytest.raises(duckdb.Error):
            sql_worker.answer(job_of(statement) | {"unvetted": True}, lambda kind, _: None, {})
    assert secret_table.num_rows == 1


def test_the_child_has_an_environment_of_its_own(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets may be in ours."""
    monkeypatch.setenv("ISOTHERM_WARM__PASSWORD", SECRET)
    running = begin(snapshot, ENDLESS, deadline_ms=60_000, limit_ms=60_000)
    held = b""

    def look() -> None:
        nonlocal held
        while b"HOME=/\0" not in held:  # until it is its own: at first it is this process's
            if running.pid:
                held = Path(f"/proc/{running.pid}/environ").read_bytes()
        running.cancel()

    watching = threading.Thread(target=look)
    watching.start()
    with pytest.raises(SqlFailed):
        running.run()
    watching.join()
    assert SECRET.encode() not in held
    assert held.count(b"\0") <= 7


def test_the_child_has_no_network_and_no_files_where_the_kernel_allows_it(snapshot: Path) -> None:
    """As root, or with user namespaces, both are granted; the answer says which."""
    confined = run(snapshot, "SELECT 1").confined

    assert {"no_network", "no_files"} == confined.keys()
    if os.geteuid() == 0:
        assert {"no_network": True, "no_files": True} == confined


#: DuckDB looks at neither its limit nor an interrupt inside a function: only a kill ends this one.
ENDLESS = "SELECT max(levenshtein(repeat('a', 60000), repeat('b', 60000 + range::INTEGER))) FROM range(1000)"
HOSTILE = [
    ENDLESS,
    "SELECT length(repeat('x', 2000000000)) + length(repeat('y', 2000000000))",
    "SELECT sum(list_sum(list_transform(range(100000000), lambda x: x * 2))) FROM range(100)",
    "WITH RECURSIVE d(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM d) SELECT max(n) FROM d",
    "SELECT count(*) FROM range(1000000) a, range(1000000) b WHERE a.range * b.range % 7 = 3",
]


@pytest.mark.parametrize("statement", HOSTILE)
def test_a_statement_without_end_is_killed_within_a_second_of_its_deadline(snapshot: Path, statement: str) -> None:
    """Where DuckDB does not stop by itself the process is killed; none is left, and its memory was bounded."""
    hostile = begin(snapshot, statement, deadline_ms=400, limit_ms=400)
    began = time.monotonic()
    with pytest.raises(SqlFailed) as failed:
        hostile.run()

    assert time.monotonic() - began < 0.4 + 1.0
    assert failed.value.kind in ("sql-deadline", "sql-memory")
    assert not Path(f"/proc/{hostile.pid}").exists()


def test_memory_is_bounded(snapshot: Path) -> None:
    """What needs more than memory_bytes is refused, and no more was ever resident."""
    greedy = "SELECT count(DISTINCT repeat(range::VARCHAR, 20)) FROM range(30000000)"
    with pytest.raises(SqlFailed) as failed:
        run(snapshot, greedy, deadline_ms=30_000, limit_ms=30_000, cpu_s=30, memory_bytes=1 << 27)
    assert failed.value.kind == "sql-memory"

    modest = run(snapshot, "SELECT count(DISTINCT range) FROM range(500000)", memory_bytes=1 << 27)
    assert 0 < modest.peak_bytes < (1 << 27) + 100_000_000, "the limit, and the libraries"


def test_an_answer_is_cut_at_its_bounds_and_says_so(snapshot: Path) -> None:
    """Rows first, then bytes; in every form; a row too large for any answer is refused."""
    for form in ("json", "ndjson", "arrow"):
        cut = run(snapshot, "FROM range(5000)", form=form, rows_max=1_500)
        assert (1_500, True) == (cut.rows, cut.truncated), form
        large = run(snapshot, "SELECT repeat('x', 1000) FROM range(900)", form=form, bytes_max=300_000)
        assert large.truncated, form
        assert sum(map(len, large.parts)) <= 300_000, form
    exact = run(snapshot, "FROM range(1500)", rows_max=1_500)
    assert (1_500, False) == (exact.rows, exact.truncated)
    with pytest.raises(InvalidRecord, match="bytes_max"):
        run(snapshot, "SELECT repeat('x', 2000000)")


def test_values_have_a_form_in_json(snapshot: Path) -> None:
    """Bytes as base64, JSON as it stands, times as RFC 3339, decimals as numbers, what JSON lacks as null."""
    query = (
        "SELECT 'ab'::BLOB, '{\"a\": [1,\n2]}'::JSON, TIMESTAMPTZ '2026-01-02 03:04:05+00', 1.5::DECIMAL(9, 2),"
        " sum(range), 'nan'::DOUBLE, [1, 2], {'x': 1}, NULL, DATE '2026-01-02', INTERVAL 1 DAY, uuid() IS NULL,"
        " 170141183460469231731687303715884105727 FROM range(3)"
    )
    answer = run(snapshot, query, form="ndjson")
    (line,) = b"".join(answer.parts).splitlines()

    values = list(json.loads(line).values())
    assert ["YWI=", {"a": [1, 2]}, "2026-01-02T03:04:05Z", 1.5, 3, None, [1, 2], {"x": 1}, None] == values[:9]
    assert ["2026-01-02", "P0M1DT0S", False, 170141183460469231731687303715884105727] == values[9:]


def test_whoever_goes_takes_the_process_along(snapshot: Path) -> None:
    """A cancelled statement ends at once, long before its deadline."""
    endless = begin(snapshot, ENDLESS, deadline_ms=60_000, limit_ms=60_000)
    ended = threading.Event()

    def work() -> None:
        with pytest.raises(SqlFailed):
            endless.run()
        ended.set()

    thread = threading.Thread(target=work)
    thread.start()
    endless.cancel()
    assert ended.wait(2)
    thread.join()
    assert not Path(f"/proc/{endless.pid}").exists()
