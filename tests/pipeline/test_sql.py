"""SQL over all tiers of a node: what it shows, to whom, and how old that is."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
import time
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from pipeline import MemoryManager
from pipeline.answers import ARROW, NDJSON
from pipeline.settings import Settings
from pipeline.sql_process import SqlFailed
from tests.nodes import rows, until
from tests.pipeline.test_documents import DOCS, blocks
from tests.pipeline.test_questions import COUNT, TIERS, Service, service
from tests.pipeline.test_sql_wall import ENDLESS
from tiers.tier import TierName

__all__ = ["service"]


def with_sql(settings: Settings, **sql: Any) -> Settings:
    """Return settings with other ones for SQL."""
    return msgspec.structs.replace(settings, sql=msgspec.structs.replace(settings.sql, **sql))


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Every statement has a snapshot of its own."""
    return with_sql(settings, snapshot_s=0.0)


async def select(memory: MemoryManager, query: str, **more: Any) -> list[list[Any]]:
    """Return the rows of a statement."""
    answer = await memory.node.sql.query(query, **more)
    found: list[list[Any]] = json.loads(b"[" + b"".join(answer.parts) + b"]")
    return found


async def move(service: Service, identifier: str, target: TierName) -> None:
    """Move what is newest of an id, in its lane."""
    node = service.memory.node
    entry = node.index.find(identifier)
    assert entry is not None
    keys = [(entry.id, entry.version)]
    job = partial(node.mover.move, entry.partition, TierName(entry.home), target, "test", keys)
    await node.lanes[entry.partition].perform(job)


async def test_sql_shows_what_a_listing_shows(service: Service) -> None:
    """Over four tiers, with updates, deletes and a copy in hot: each record once, at its newest, with its tier."""
    memory = service.memory
    updated = [row for at, row in enumerate(rows(COUNT, seed=7)) if at % 5 == 0]
    await memory.store(updated)
    tokens = [await memory.delete(f"id-{at}") for at in range(1, COUNT, 7)]
    await memory.node.access.hint("id-23", 100)
    await until(lambda: len(memory.node.copies) == 1)
    for token in tokens:
        await service.http.get("/v1/memories/id-2", params={"at_least": token})
    await move(service, "id-1", TierName.COLD)  # their tombstones lie in the copied file and in the archive
    await move(service, "id-8", TierName.GLACIER)
    listed = [json.loads(line) for line in (await service.http.get("/v1/memories")).text.splitlines()]

    query = 'SELECT id, version, tier, event_time, payload, "user", score FROM memories ORDER BY id'
    answer = await service.post("/v1/sql", query=query)
    shown = [dict(zip(answer["columns"], row, strict=True)) for row in answer["rows"]]
    assert ("VARCHAR", "JSON", "DOUBLE") == tuple(answer["types"][at] for at in (0, 4, 6))

    wanted = ("id", "version", "tier", "payload")
    expected = [{**{name: each[name] for name in wanted}, **each["attributes"]} for each in listed]
    times = [shown_one.pop("event_time") for shown_one in shown]
    assert expected == shown
    assert [each["event_time"][:19] for each in listed] == [text[:19] for text in times]
    assert (len(listed), False, True) == (answer["row_count"], answer["truncated"], answer["snapshot_age_ms"] >= 0)


async def test_each_tier_is_a_view_and_together_they_are_all(service: Service) -> None:
    """By home; vectors where they are kept on disk; bytes of the payload beside its JSON."""
    counts = await select(service.memory, " UNION ALL ".join(f"SELECT '{t}', count(*) FROM {t}" for t in TIERS))
    assert [[name, 10] for name in TIERS] == sorted(counts, key=lambda row: TIERS.index(row[0]))

    ((cold, glacier),) = await select(
        service.memory, "SELECT (SELECT min(len(vector)) FROM cold), (SELECT min(len(vector)) FROM glacier)"
    )
    assert (16, 16) == (cold, glacier)
    text = "SELECT namespace, home, payload ->> 'n', decode(payload_bytes) FROM memories WHERE id = 'id-35'"
    assert [["default", "glacier", "35", '{"n":35}']] == await select(service.memory, text)


async def test_every_form_has_the_same_rows(service: Service) -> None:
    """JSON, NDJSON and an Arrow stream; the headers of the latter two say the age."""
    query = "SELECT id, score FROM memories ORDER BY id LIMIT 3"
    expected = (await service.post("/v1/sql", query=query))["rows"]
    lines = await service.http.post("/v1/sql", json={"query": query}, headers={"accept": NDJSON})
    arrow = await service.http.post("/v1/sql", json={"query": query}, headers={"accept": ARROW})
    table = pa.ipc.open_stream(io.BytesIO(arrow.content)).read_all()

    assert expected == [list(json.loads(line).values()) for line in lines.text.splitlines()]
    assert expected == [list(row.values()) for row in table.to_pylist()]
    assert (ARROW, "false") == (arrow.headers["content-type"], arrow.headers["isotherm-truncated"])
    assert int(lines.headers["isotherm-snapshot-age-ms"]) >= 0


async def test_a_refusal_is_a_problem_object(service: Service) -> None:
    """400 with the reason; never a path of the node."""
    for query, word in (("DROP TABLE memories", "DROP"), ("SELECT * FROM glob('*')", "glob"), ("SELEC 1", "syntax")):
        refused = await service.http.post("/v1/sql", json={"query": query})
        assert (400, "query") == (refused.status_code, refused.json()["field"])
        assert word in refused.json()["detail"]
        assert service.memory.node.settings.data not in refused.text
    late = await service.http.post("/v1/sql", json={"query": "SELECT 1", "deadline_ms": 10**9})
    assert (400, "deadline_ms") == (late.status_code, late.json()["field"])


async def test_reads_stay_fast_while_a_statement_burns(service: Service) -> None:
    """A statement that nothing but a kill ends: reads by id go on, and the answer comes within a second."""

    async def read() -> float:
        at = time.perf_counter()
        await service.http.get("/v1/memories/id-3")
        return time.perf_counter() - at

    alone = sorted([await read() for _ in range(100)])
    took: list[float] = []
    hostile = asyncio.create_task(service.http.post("/v1/sql", json={"query": ENDLESS, "deadline_ms": 1_500}))
    began = time.monotonic()
    while not hostile.done():
        took.append(await read())
        await asyncio.sleep(0.005)
    answer = await hostile

    assert (504, "urn:isotherm:sql-deadline") == (answer.status_code, answer.json()["type"])
    assert time.monotonic() - began < 1.5 + 1.0 + 20 * alone[98]
    assert sorted(took)[int(len(took) * 0.99)] < 5 * alone[98] + 0.1, "a busy machine; the loop itself is never held"


async def test_a_namespace_sees_a_file_of_its_own(service: Service) -> None:
    """R12: the child of a narrow principal gets a database in which nothing else ever was."""
    memory = service.memory
    named = [replace(row, id=f"team/{row.id}") for row in rows(4, start=500)]
    token = await memory.store(named)
    await service.http.get("/v1/memories/id-2", params={"at_least": token})
    mine = frozenset({"team"})

    assert [[4, 4]] == await select(memory, "SELECT count(*), count(payload) FROM memories", namespaces=mine)
    assert [[40]] == await select(memory, "SELECT count(*) FROM memories", namespaces=frozenset({"default", "none"}))
    assert [[0]] == await select(memory, "SELECT count(*) FROM memories", namespaces=frozenset({"none"}))
    assert [[44]] == await select(memory, "SELECT count(*) FROM memories")
    await select(memory, "SELECT 1", namespaces=mine)
    kept = [made.directory for key, made in memory.node.sql._made.items() if key == mine]
    held = b"".join(path.read_bytes() for path in kept[0].rglob("*") if path.is_file())
    assert b"team/id-501" in held
    assert b"id-25" not in held


async def test_a_snapshot_is_shared_until_it_is_old(service: Service) -> None:
    """Statements within snapshot_s get the same one, with its age; a later one a new one, and the old one goes."""
    sql = service.memory.node.sql
    sql._settings = msgspec.structs.replace(sql._settings, snapshot_s=60.0)
    now = [service.memory.node.sql._now_ms()]
    sql._now_ms = sql._maker._now_ms = lambda: now[0]  # type: ignore[attr-defined]
    first, second = await asyncio.gather(sql.query("SELECT count(*) FROM memories"), sql.query("SELECT 1"))
    await service.memory.store(rows(1, start=900))
    await until(lambda: len(service.memory.node.index) == COUNT + 1)
    now[0] += 59_000
    third = await sql.query("SELECT count(*) FROM memories")
    now[0] += 2_000
    fourth = await sql.query("SELECT count(*) FROM memories")

    assert [b"[40]"] == third.parts
    assert [b"[41]"] == fourth.parts
    assert 58_000 < third.snapshot_age_ms < 60_000
    assert 0 == fourth.snapshot_age_ms
    assert first.rows == second.rows
    assert 1 == len(os.listdir(f"{service.memory.node.settings.data}/sql"))  # noqa: PTH208 - a name is enough


async def test_at_the_bound_of_processes_the_answer_is_429(service: Service) -> None:
    """Two run; the third is told to come again, and comes through once they are gone."""
    post, sql = service.http.post, service.memory.node.sql
    sql._settings = msgspec.structs.replace(sql._settings, processes_max=2)
    burning = [asyncio.create_task(post("/v1/sql", json={"query": ENDLESS, "deadline_ms": 1_200})) for _ in "ab"]
    await until(lambda: sql._running == 2)
    third = await post("/v1/sql", json={"query": "SELECT 1"})
    await asyncio.wait(burning)

    assert (429, "1") == (third.status_code, third.headers["retry-after"])
    assert 200 == (await post("/v1/sql", json={"query": "SELECT 1"})).status_code


async def test_a_client_that_hangs_up_ends_its_statement(service: Service) -> None:
    """No process stays, and its place is free, long before the deadline."""
    sql = service.memory.node.sql
    asked = asyncio.create_task(sql.query(ENDLESS, deadline_ms=10_000))
    await until(lambda: any(users for users in sql._users.values()))
    asked.cancel()
    async with asyncio.timeout(3):
        await asyncio.wait([asked])
    assert 0 == sql._running


async def test_snapshots_while_everything_moves_show_each_record_once(ageing: Settings) -> None:
    """Snapshots under ageing, updates and deletes: no record twice, none that is not deleted missing."""
    ageing = with_sql(ageing, snapshot_s=0.0)
    async with MemoryManager.open(ageing) as memory:
        await memory.ready()
        await memory.store(rows(600))
        await until(lambda: len(memory.node.index) == 600)
        stop = asyncio.Event()

        async def churn() -> None:
            seed = 1
            while not stop.is_set():
                await memory.store(rows(100, start=100 * (seed % 5), seed=seed))
                await memory.delete(f"id-{550 + seed % 50}")
                seed += 1
                await asyncio.sleep(0.02)

        async with asyncio.TaskGroup() as group:
            group.create_task(churn())
            seen: set[str] = set()
            looks = 0
            while looks < 6 or not {"cold", "glacier"} <= seen:
                looks += 1
                query = "SELECT id, home, payload ->> 'n' FROM memories"
                answer = await select(memory, query)
                ids = [row[0] for row in answer]
                seen |= {row[1] for row in answer}
                assert len(ids) == len(set(ids))
                assert {f"id-{n}" for n in range(550)} <= set(ids)
                assert all(identifier == f"id-{n}" for identifier, _, n in answer)
            stop.set()


async def test_what_does_not_fit_is_refused(service: Service) -> None:
    """A snapshot larger than its bound is a 503 that names the setting; the node goes on."""
    service.memory.node.sql._maker._bytes_max = 100_000  # type: ignore[attr-defined]
    with pytest.raises(SqlFailed, match="snapshot_bytes_max"):
        await service.memory.node.sql.query("SELECT 1")
    assert (await service.http.get("/readyz")).status_code == 200


async def test_every_request_of_the_document_is_answered(service: Service) -> None:
    """Each block of docs/sql.md has rows, and its columns are those of the views."""
    text = (DOCS / "sql.md").read_text()
    for block in blocks(text, "http"):
        line, _, body = block.partition("\n")
        answer = await service.http.post(line.split()[1], content=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["row_count"] > 0

    for view in ("memories", "cold"):
        described = await select(service.memory, f"DESCRIBE {view}")
        for name in (row[0] for row in described if row[0] not in ("user", "score")):
            assert f"`{name}`" in text, name


async def test_the_command_prints_a_table_or_json(service: Service) -> None:
    """Rows, how many, and how old; a refused statement is exit 2 with the reason."""
    url = str(service.http.base_url).rstrip("/")

    async def command(*words: str) -> tuple[int, str]:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "pipeline.cli", "sql", *words, "--url", url, stdout=-1, stderr=-2
        )
        out, _ = await child.communicate()
        assert child.returncode is not None
        return child.returncode, out.decode()

    query = "SELECT home, count(*) AS n FROM memories GROUP BY home"
    (code, table), (json_code, line), (refused, why) = await asyncio.gather(
        command(query), command(query, "--json"), command("DROP TABLE memories")
    )

    assert (0, True, True) == (code, "glacier" in table, "4 rows, as of" in table)
    assert (0, [["cold", 10]]) == (json_code, [row for row in json.loads(line)["rows"] if row[0] == "cold"])
    assert (2, True) == (refused, "only SELECT" in why)
