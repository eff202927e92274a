"""Files and batches into the log: every format, what is rejected, and letters that are sent again."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import MemoryManager, Query
from pipeline.client import Client
from pipeline.dead_letters import newest, one, parse_position, replay
from pipeline.publish import Outcome, publish_file
from pipeline.routes import Gateway
from pipeline.serve import HttpService
from pipeline.settings import Settings
from producers import MemoryProducer, columns
from producers.events import ARROW_TYPE, MSGPACK_TYPE
from tests.nodes import DIM, rows, until
from tiers import record
from tiers.errors import InvalidRecord, ServiceMissing
from tiers.record import Row

ISOTHERM = [sys.executable, "-m", "pipeline.cli"]
Node = tuple[MemoryManager, str]


@pytest.fixture
async def node(settings: Settings) -> AsyncIterator[Node]:
    """A ready node, and the address of its gateway."""
    service = HttpService(settings)
    async with MemoryManager.open(settings, service) as memory:
        service.gateway = Gateway(memory)
        await memory.ready()
        yield memory, service.address


def line(row: Row, **more: Any) -> bytes:
    """Return a row as a JSON line."""
    fields = {"id": row.id, "vector": row.vector.tolist(), "payload": json.loads(row.payload)} | more
    return json.dumps(fields).encode()


def table(given: list[Row]) -> pa.Table:
    """Return rows as a table like those that others write."""
    return pa.table(
        {
            "id": [row.id for row in given],
            "vector": [row.vector.tolist() for row in given],
            "payload": [row.payload.decode() for row in given],
            "attributes": [row.attributes for row in given],
        }
    )


async def published(address: str, file: Path, rejects: Path | None = None) -> Outcome:
    """Publish a file from a thread, as the command does from its own process."""

    def work() -> Outcome:
        with Client(address) as client:
            return publish_file(client, str(file), rejects, quiet=True)

    return await asyncio.to_thread(work)


async def found(memory: MemoryManager, given: list[Row], token: str | None) -> dict[str, bytes]:
    """Return the payloads of these rows, read at the token."""
    vectors = {row.id: row.vector for row in given}
    payloads: dict[str, bytes] = {}
    for start in range(0, len(given), 1_000):
        ids = [row.id for row in given[start : start + 1_000]]
        hits = (await memory.retrieve(Query(ids=ids, at_least=token))).hits
        assert all(np.array_equal(vectors[hit.row.id], hit.row.vector) for hit in hits)
        payloads |= {hit.row.id: hit.row.payload for hit in hits}
    return payloads


async def test_json_lines_are_published_and_bad_ones_rejected(node: Node, tmp_path: Path) -> None:
    """Bad lines cost themselves only, wherever they stand: each is in the rejects with its number, reason and text."""
    memory, address = node
    given = rows(1_200)
    lines = [line(row) for row in given]
    bad = {
        0: b"{broken",
        499: line(given[0], vector=[1.0]),
        500: b"\xff\xfe",
        1_199: line(given[1], id=""),
        700: b"x" * 1_600_000,
    }
    for at, text in bad.items():
        lines[at] = text
    file, rejects = tmp_path / "a.jsonl", tmp_path / "rejects.jsonl"
    file.write_bytes(b"\n\n" + b"\n".join(lines))
    outcome = await published(address, file, rejects)
    said = [json.loads(text) for text in rejects.read_text().splitlines()]

    assert (1_195, 5) == (outcome.published, outcome.rejected)
    assert {
        (at + 3, reason)
        for at, reason in ((0, "json"), (499, "vector_dim"), (500, "json"), (700, "event_size"), (1_199, "id_size"))
    } == {(reject["position"], reject["reason"]) for reject in said}
    assert bad[499].decode() == next(reject["input"] for reject in said if reject["reason"] == "vector_dim")
    kept = [row for at, row in enumerate(given) if at not in bad]
    assert {row.id for row in kept} == set(await found(memory, kept, outcome.token))


def written(form: str, given: pa.Table, file: Path) -> None:
    """Write a table in a format."""
    if form == "parquet":
        pq.write_table(given, file, row_group_size=100)
    elif form == "polars parquet":
        pl.from_arrow(given).write_parquet(file)
    elif form == "polars arrow":
        pl.from_arrow(given).write_ipc(file)  # views, which few others write
    elif form == "arrow file":
        with pa.ipc.new_file(file, given.schema) as writer:
            writer.write_table(given, max_chunksize=700)
    else:
        with pa.ipc.new_stream(file, given.schema) as writer:
            writer.write_table(given)


@pytest.mark.parametrize("form", ["parquet", "polars parquet", "polars arrow", "arrow file", "arrow stream"])
async def test_columnar_files_are_published_and_bad_rows_rejected(node: Node, tmp_path: Path, form: str) -> None:
    """Each format gives the same records; a bad row is rejected by its number, its neighbours are published."""
    memory, address = node
    given = rows(800)
    given[640] = Row("id-640", 0, 0, None, np.zeros(DIM, np.float32), b"", given[640].attributes)
    file, rejects = tmp_path / "a.bin", tmp_path / "rejects.jsonl"
    written(form, table(given), file)
    outcome = await published(address, file, rejects)

    assert (799, 1) == (outcome.published, outcome.rejected)
    (reject,) = [json.loads(text) for text in rejects.read_text().splitlines()]
    assert (641, "vector_zero", {"id": "id-640"}) == (reject["position"], reject["reason"], reject["input"])
    kept = given[:640] + given[641:]
    assert {row.id: row.payload for row in kept} == await found(memory, kept, outcome.token)


@pytest.mark.parametrize(
    ("reason", "content"),
    [
        ("arrow_schema", table(rows(2)).append_column("colour", pa.array([1, 2]))),
        ("attribute_unknown", table(rows(2)).set_column(3, "attributes", pa.array([{"colour": "red"}] * 2))),
        ("file", b"PAR1 but nothing behind it"),
        ("file", None),
    ],
)
async def test_a_file_that_cannot_be_meant_is_refused_whole(
    node: Node, tmp_path: Path, reason: str, content: Any
) -> None:
    """Unknown columns, a broken file, a missing one: one error that names what is wrong, and nothing is published."""
    memory, address = node
    file = tmp_path / "a.bin"
    if isinstance(content, pa.Table):
        pq.write_table(content, file)
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidRecord) as refused:
        await published(address, file)

    assert reason == refused.value.reason
    assert 0 == memory.node.ingest.rows


def isotherm(*arguments: str, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command line to its end."""
    full = {**os.environ, **environment}
    return subprocess.run([*ISOTHERM, *arguments], input=stdin, capture_output=True, timeout=60, env=full, check=False)


async def test_publish_reads_standard_input_and_tells_by_its_exit_code(node: Node) -> None:
    """JSON lines and an Arrow stream by a pipe; 0 when all went, 1 when some were rejected, 2 for what is no input."""
    memory, address = node
    given = rows(4)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table(given[2:]).schema) as writer:
        writer.write_table(table(given[2:]))
    good = await asyncio.to_thread(
        isotherm, "publish", "--json", stdin=line(given[0]) + b"\n" + line(given[1]), ISOTHERM_URL=address
    )
    assert 0 == good.returncode, good.stderr
    piped = await asyncio.to_thread(isotherm, "publish", "-", "--json", stdin=sink.getvalue(), ISOTHERM_URL=address)
    some = await asyncio.to_thread(isotherm, "publish", stdin=b"{}\n", ISOTHERM_URL=address)
    none = await asyncio.to_thread(isotherm, "publish", "/nowhere.jsonl", ISOTHERM_URL=address)

    assert (0, 1, 2) == (piped.returncode, some.returncode, none.returncode)
    assert b"published 0, rejected 1" in some.stdout
    await found(memory, given[:2], json.loads(good.stdout)["token"])
    assert {row.id for row in given} == set(await found(memory, given, json.loads(piped.stdout)["token"]))


# -- over HTTP and from Python ---------------------------------------------------------------------------------------


def bodies(given: list[Row]) -> dict[str, tuple[bytes, str]]:
    """Return the same memories in every form that POST takes."""
    packed = [{"id": row.id, "vector": row.vector.tobytes(), "payload": row.payload} for row in given]
    whole = columns.plain(table(given).combine_chunks().to_batches()[0])
    return {
        "list": (b"[" + b",".join(map(line, given)) + b"]", "application/json"),
        "lines": (b"\r\n".join(map(line, given)) + b"\n\n", "application/x-ndjson; charset=utf-8"),
        "msgpack": (msgspec.msgpack.encode(packed), MSGPACK_TYPE),
        "arrow": (columns.encode(whole), ARROW_TYPE),
        "curl": (b"[" + b",".join(map(line, given)) + b"]", "application/x-www-form-urlencoded"),
    }


@pytest.mark.parametrize("form", ["list", "lines", "msgpack", "arrow", "curl"])
async def test_post_takes_memories_in_every_form(node: Node, form: str) -> None:
    """The token covers all of them: each is there with its vector and payload when it is reached."""
    memory, address = node
    given = rows(40)
    body, kind = bodies(given)[form]
    async with httpx.AsyncClient(base_url=address) as client:
        answer = await client.post("/v1/memories", content=body, headers={"content-type": kind})

    assert (202, 40) == (answer.status_code, answer.json()["published"])
    assert {row.id for row in given} == set(await found(memory, given, answer.json()["token"]))


@pytest.mark.parametrize("form", ["list", "lines", "msgpack", "arrow"])
async def test_a_bad_memory_stops_all_of_its_request(node: Node, form: str) -> None:
    """The problem names position, field and reason, and not one memory of the request was published."""
    memory, address = node
    given = rows(5)
    given[3] = Row(given[3].id, 0, 0, None, np.zeros(DIM, np.float32), given[3].payload, given[3].attributes)
    body, kind = bodies(given)[form]
    async with httpx.AsyncClient(base_url=address) as client:
        answer = await client.post("/v1/memories", content=body, headers={"content-type": kind})
        after = await client.post("/v1/memories", content=line(rows(6)[5]))
    await memory.retrieve(Query(ids=["id-5"], at_least=after.json()["token"]))
    problem = answer.json()

    assert (400, 3, "vector", "vector_zero") == (
        answer.status_code,
        problem["position"],
        problem["field"],
        problem["reason"],
    )
    assert 1 == memory.node.ingest.rows


async def test_bytes_that_are_no_json_may_be_a_payload(node: Node) -> None:
    """By msgpack and by Arrow a payload is any bytes, and comes back as they were."""
    memory, address = node
    vector = rows(1)[0].vector
    body = msgspec.msgpack.encode({"id": "raw", "vector": vector.tobytes(), "payload": b"\x00\xff{"})
    async with httpx.AsyncClient(base_url=address) as client:
        first = await client.post("/v1/memories", content=body, headers={"content-type": MSGPACK_TYPE})
    (hit,) = (await memory.retrieve(Query(ids=["raw"], at_least=first.json()["token"]))).hits
    token = await memory.store([Row("rawer", 0, hit.row.event_time, None, vector, b"\xfe", {})])
    (other,) = (await memory.retrieve(Query(ids=["rawer"], at_least=token))).hits

    assert (b"\x00\xff{", b"\xfe") == (hit.row.payload, other.row.payload)


async def test_send_batch_splits_by_partition_and_size(node: Node) -> None:
    """A batch larger than messages may be arrives whole: deletes, updates of one id in order, times and attributes."""
    memory, _ = node
    given = rows(900)
    large = [
        Row(f"large-{n}", 0, row.event_time, None, row.vector, bytes([n]) * 200_000, {})
        for n, row in enumerate(given[:9])
    ]
    again = Row("id-1", 0, given[1].event_time, given[1].event_time + 60_000, given[5].vector, b'"last"', {"user": "x"})
    gone = Row("id-2", 0, given[2].event_time, None, None, b"", {}, deleted=True)
    shape = record.schema(DIM, memory.node.settings.attributes)
    settings = memory.node.settings.kafka
    async with MemoryProducer(settings, rows_max=100) as producer:
        token = await producer.send_batch(record.to_batch([*given, *large, again, gone], shape))
    result = await memory.retrieve(
        Query(ids=[f"id-{n}" for n in range(900)] + [row.id for row in large], at_least=token)
    )
    hits = {hit.row.id: hit.row for hit in result.hits}

    assert {*(row.id for row in given), *(row.id for row in large)} - {"id-2"} == set(hits)
    assert (b'"last"', {"user": "x"}, again.expires_at) == (
        hits["id-1"].payload,
        hits["id-1"].attributes,
        again.expires_at,
    )
    assert {row.id: row.payload for row in large} == {row.id: hits[row.id].payload for row in large}
    assert given[7].event_time == hits["id-7"].event_time


async def test_a_bad_row_stops_all_of_its_batch(node: Node) -> None:
    """send_batch checks every row before it sends any, and names the bad one."""
    memory, _ = node
    given = [*rows(3), Row("a\nb", 0, 0, None, rows(1)[0].vector, b"", {})]
    with pytest.raises(InvalidRecord, match=r"row 3: .*control"):
        await memory.store(given)
    token = await memory.store(rows(1))
    await memory.retrieve(Query(ids=["id-0"], at_least=token))

    assert (1, 0) == (memory.node.ingest.rows, memory.node.ingest.letters.total())


# -- dead letters ----------------------------------------------------------------------------------------------------


def options(settings: Settings, **attributes: str) -> list[str]:
    """Return the command line's settings for the node's Kafka."""
    declared = json.dumps(dict(settings.attributes) | attributes)
    given = {
        "kafka.bootstrap": settings.kafka.bootstrap,
        "kafka.prefix": settings.kafka.prefix,
        "kafka.partitions": "4",
    }
    pairs = {**given, "dim": str(DIM), "attributes": declared}
    return [word for key, value in pairs.items() for word in ("-s", f"{key}={value}")]


async def test_letters_are_listed_shown_and_sent_again(node: Node, settings: Settings) -> None:
    """What is fixed by now is applied, whole and in the right partition; the rest stays, with why; none goes twice."""
    memory, _ = node
    publisher, topic = memory.node.publisher, memory.node.topics.memories
    vector = rows(1)[0].vector.tolist()
    good = json.dumps({"vector": vector, "payload": {"n": 1}}).encode()
    wrong = next(p for p in range(4) if p != record.partition("lost", 4))
    await publisher.send(topic, good, b"lost", wrong, [("content-type", b"application/json"), ("trace", b"7")])
    await publisher.send(topic, b"{", b"broken", record.partition("broken", 4))
    await publisher.send(topic, b"x" * 1_000_001, b"huge", record.partition("huge", 4))
    elsewhere = columns.plain(table(rows(12)).combine_chunks().to_batches()[0])
    await publisher.send(topic, columns.encode(elsewhere), None, wrong, [("content-type", ARROW_TYPE.encode())])
    away = [row for row in rows(12) if record.partition(row.id, 4) != wrong]
    await until(lambda: memory.node.ingest.letters.total() >= 3 + len(away))

    listed = await newest(settings, 100, 1_000)
    assert ["broken", "huge", "lost"] == sorted(
        at.letter.key.decode() if at.letter.key else "huge" for at in listed if not _arrow(at)
    )
    assert {"wrong_partition": 1 + len(away), "json": 1, "event_size": 1} == _reasons(listed)
    assert 1 == len(await newest(settings, 1, 1_000, "wrong_partition"))
    shown = await one(settings, listed[0].position)
    assert shown is not None
    assert listed[0].letter == shown.letter
    assert await one(settings, "0:99999") is None

    dry = await replay(settings, listed, again=False, dry_run=True)
    done = await replay(settings, listed, again=False, dry_run=False)
    assert [r.sent for r in dry] == [r.sent for r in done]
    assert {"json", "not_kept"} == {r.why.partition(":")[0] for r in done if not r.sent}
    ids = ["lost", *(row.id for row in away)]

    async def there() -> bool:
        return len((await memory.retrieve(Query(ids=ids))).hits) == len(ids)

    await until(there)

    twice = await replay(settings, await newest(settings, 100, 1_000), again=False, dry_run=False)
    assert [] == [r for r in twice if r.sent]
    assert {"replayed", "json", "not_kept"} == {r.why.partition(":")[0] for r in twice}


def _arrow(listed: Any) -> bool:
    return any(value == ARROW_TYPE.encode() for _, value in listed.letter.headers)


def _reasons(listed: list[Any]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for entry in listed:
        counts[entry.letter.reason] = counts.get(entry.letter.reason, 0) + 1
    return counts


async def test_the_command_tells_of_letters(node: Node, settings: Settings) -> None:
    """list, show and replay by the command line, with their exit codes; an attribute declared since makes it good."""
    memory, _ = node
    publisher, topic = memory.node.publisher, memory.node.topics.memories
    value = json.dumps({"vector": rows(1)[0].vector.tolist(), "attributes": {"colour": "red"}}).encode()
    await publisher.send(topic, value, b"painted", record.partition("painted", 4))
    await until(lambda: memory.node.ingest.letters.total() > 0)

    def run(*words: str, **attributes: str) -> tuple[int, str, str]:
        done = isotherm("dead-letters", *words, *options(settings, **attributes))
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    code, out, _ = await asyncio.to_thread(run, "list", "--json")
    (letter,) = json.loads(out)
    position = letter["position"]
    assert (0, "attribute_unknown", "painted") == (code, letter["reason"], letter["key"])
    code, out, _ = await asyncio.to_thread(run, "show", position, "--json")
    assert (0, value.decode()) == (code, json.loads(out)["value"])
    assert 1 == (await asyncio.to_thread(run, "show", "0:777"))[0]
    assert 2 == (await asyncio.to_thread(run, "show", "first"))[0]
    assert 2 == (await asyncio.to_thread(run, "replay"))[0]
    code, out, _ = await asyncio.to_thread(run, "replay", position, "0:777")
    assert (1, True, True) == (code, "attribute_unknown" in out, "no such letter" in out)
    code, out, _ = await asyncio.to_thread(lambda: run("replay", position, "--dry-run", colour="string"))
    assert (0, "would send 1, not sent 0\n") == (code, out)
    code, out, _ = await asyncio.to_thread(lambda: run("replay", "--reason", "attribute_unknown", colour="string"))
    assert (0, "sent 1, not sent 0\n") == (code, out)
    assert "sent again" in (await asyncio.to_thread(run, "list"))[1]


async def test_a_missing_topic_is_a_missing_service(settings: Settings) -> None:
    """Looking for letters creates no topic: the error names it, and what may be wrong."""
    with pytest.raises(ServiceMissing, match=r"no topic .*dead-letters"):
        await newest(settings, 1, 1)


@pytest.mark.unit
@pytest.mark.parametrize("text", ["", "1", ":", "a:1", "1:-1", "1:2:3", "²:1", "1:" + "9" * 60])
def test_what_is_no_position_is_refused(text: str) -> None:
    """A position is partition:offset."""
    with pytest.raises(InvalidRecord):
        parse_position(text)
