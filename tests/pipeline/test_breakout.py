"""R12: a key of one namespace tries to see, change or count what lies in others, on every route; it never does.

Every foreign record carries a canary in its payload and attributes, and all records have the same vector, so that a
search that was not narrowed would return them. No answer to an attack may hold a canary or a foreign id.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pyarrow as pa
import pytest

from pipeline import Query
from pipeline.answers import ARROW
from pipeline.settings import Settings
from pipeline.visible import visible_change
from producers.events import ARROW_TYPE, JSON_TYPE, MSGPACK_TYPE, Change, encode_token
from tests.access import VECTOR, Keyed, keyed, make_key
from tests.nodes import until
from tiers.tier import TierName

CANARY = "canary-81c4"
OWN = [f"a/{at}" for at in range(4)]
#: Namespaces that are near to "a": longer, shorter, another case, look-alikes, "default", and what a path might become.
FOREIGN = [
    *(f"b/{at}" for at in range(4)),
    "ab/1",
    "A/1",
    "a",  # of the namespace "default"
    "a b/1",
    "\u0430/1",  # Cyrillic
    "\uff41/1",  # fullwidth
    "a\u0301/1",  # with an accent
    "a\u200b/1",  # with a zero-width space
    " a/1",
    "..",
    "b/../a/1",
    "a%2F1",
    "plain",
    "a\\1",
]


def memory(identifier: str) -> dict[str, Any]:
    """Return a memory; a foreign one carries the canary."""
    word = "own" if identifier in OWN else CANARY
    return {"id": identifier, "vector": VECTOR, "payload": {"word": word}, "attributes": {"user": word, "score": 1.0}}


class Prison(Keyed):
    """A node with records of many namespaces in several tiers, and keys of "a" and "b"."""

    ours: dict[str, str]
    theirs: dict[str, str]

    async def fill(self) -> None:
        """Publish everything, and move half of it down, which announces changes."""
        self.ours, self.theirs, whole = self.key("a"), self.key("b"), self.key()
        posted = await self.http.post("/v1/memories", json=[memory(each) for each in [*OWN, *FOREIGN]], headers=whole)
        assert 202 == posted.status_code, posted.text
        await self.memory.retrieve(Query(ids=[], at_least=posted.json()["token"]))
        node = self.memory.node
        for identifier in ("a/1", "b/1", "a/2", "b/2", "ab/1", "plain"):
            entry = node.index.find(identifier)
            assert entry is not None
            target = TierName.COLD if identifier[-1] == "2" else TierName.WARM
            keys, partition = [(identifier, entry.version)], entry.partition
            await node.lanes[partition].perform(
                lambda p=partition, t=target, k=keys: node.mover.move(p, TierName.HOT, t, "age", k)
            )

    async def state(self) -> dict[str, int]:
        """Return the version of every foreign record."""
        found = await self.memory.retrieve(Query(ids=FOREIGN))
        return {hit.row.id: hit.row.version for hit in found.hits}


@pytest.fixture
async def prison(settings: Settings) -> AsyncIterator[Prison]:
    """The node."""
    gateway = msgspec.structs.replace(settings.gateway, concurrent=0, rate_per_s=0.0)
    settings = msgspec.structs.replace(settings, gateway=gateway)
    make_key(settings)
    async with keyed(settings) as node:
        one = Prison(node.settings, node.memory, node.gateway, node.http)
        await one.fill()
        yield one


def quoted(identifier: str) -> str:
    """Return an id as a client writes it into a path: every byte in percent."""
    return "".join(f"%{byte:02x}" for byte in identifier.encode())


def ids_in(answer: httpx.Response) -> set[str]:
    """Return every id that an answer names as a record's."""
    if answer.headers.get("content-type", "").startswith(ARROW):
        return set(pa.ipc.open_stream(answer.content).read_all()["id"].to_pylist())
    found: set[str] = set()

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            found.update({value["id"]} & ({*OWN, *FOREIGN}) if isinstance(value.get("id"), str) else ())
            found.update(value.get("ids", ()))
            for each in value.values():
                walk(each)
        elif isinstance(value, list):
            for each in value:
                walk(each)

    for line in answer.text.splitlines():
        walk(json.loads(line.removeprefix("data: ")) if line[:1] in "[{" or line.startswith("data: ") else None)
    return found


def check(answer: httpx.Response, what: object) -> None:
    """Hold that nothing foreign is in an answer, nor in its headers."""
    assert answer.status_code < 500, (what, answer.text)
    assert CANARY.encode() not in answer.content, (what, answer.text)
    assert ids_in(answer) <= set(OWN), (what, answer.text)
    assert CANARY not in str(answer.headers), what


FILTERS = [
    None,
    "TRUE",
    "id = 'b/1'",
    "id = 'a/1' OR TRUE",
    "NOT (id LIKE 'a/%')",
    "id LIKE '%'",
    "id LIKE 'b/%' OR id LIKE 'a/%'",
    "id NOT IN ('a/1')",
    "id > 'a0'",
    "id IS NOT NULL",
    f"\"user\" = '{CANARY}'",
    "\"user\" LIKE '%canary%' OR score >= 0",
    "score IS NULL OR score = 1",
    "event_time > '2020-01-01'",
    "1 = 1",
    "id = 'a/1') OR (id = 'b/1'",
    "namespace = 'b'",
    "id = 'b/1' --",
]


async def test_no_question_finds_what_is_foreign(prison: Prison) -> None:
    """Any filter, any form of answer, by vector, by ids, page by page or streamed; and nothing foreign is counted."""
    for form, conditions in (({}, FILTERS), ({"accept": ARROW}, FILTERS[:3])):
        headers = {**prison.ours, **form}
        for condition in conditions:
            asked = {"filter": condition, "include": ["payload", "attributes", "vector"]}
            for path, body in (
                ("/v1/search", {"vector": VECTOR, "k": 100, **asked}),
                ("/v1/search", {"vector": VECTOR, "k": 100, "exact": True, "tiers": ["warm", "cold"], **asked}),
                ("/v1/retrieve", {"limit": 100, **asked}),
                ("/v1/retrieve", {"ids": [*FOREIGN, *OWN], **asked}),
            ):
                answer = await prison.http.post(path, json=body, headers=headers)
                check(answer, (path, body))
            params = {} if condition is None else {"filter": condition}
            check(await prison.http.get("/v1/memories", params=params, headers=headers), condition)


STATEMENTS = [
    "SELECT * FROM memories",
    "SELECT * FROM hot UNION ALL BY NAME SELECT * FROM warm UNION ALL BY NAME SELECT * FROM cold",
    "SELECT id, payload FROM glacier",
    "SELECT m.* FROM memories m, (SELECT 1) WHERE m.id NOT LIKE 'a/%' OR TRUE",
    "WITH every AS (SELECT * FROM cold) SELECT * FROM every WHERE namespace = 'b'",
    f"SELECT id FROM memories WHERE \"user\" = '{CANARY}'",
    "SELECT string_agg(id, ',') FROM memories",
    "SELECT namespace, count(*) FROM memories GROUP BY ALL",
    "SELECT * FROM duckdb_tables()",
    "FROM main.sqlite_master",
]


async def test_sql_has_our_own_rows_and_no_others(prison: Prison) -> None:
    """Whatever the statement, and after another key has asked the same: its rows are not there to be found."""
    for headers, own in ((prison.theirs, "b/"), (prison.ours, "a/")):
        for statement in STATEMENTS:
            answer = await prison.http.post("/v1/sql", json={"query": statement}, headers=headers)
            assert answer.status_code in (200, 400), (statement, answer.text)
            if own == "a/":
                check(answer, statement)
        asked = {"query": "SELECT id FROM memories ORDER BY id"}
        named = await prison.http.post("/v1/sql", json=asked, headers=headers)
        every = sorted(each for each in [*OWN, *FOREIGN] if each.startswith(own))
        assert [[each] for each in every] == named.json()["rows"]


async def test_the_counts_are_of_our_own(prison: Prison) -> None:
    """Scanned, of, searched, explain and the tiers' records count four records, not twenty."""
    answer = await prison.http.post("/v1/search", json={"vector": VECTOR, "explain": True}, headers=prison.ours)
    found = answer.json()
    assert (4, 4, 4) == (found["scanned"], found["of"], sum(each["rows"] for each in found["searched"].values()))
    assert {"segments", "by_vector", "by_code", "bytes_read"}.isdisjoint(found["explain"])
    listed = (await prison.http.post("/v1/retrieve", json={}, headers=prison.ours)).json()
    assert (4, OWN) == (listed["of"], [hit["id"] for hit in listed["hits"]])
    lines = (await prison.http.get("/v1/memories", headers=prison.ours)).text.splitlines()
    assert OWN == [json.loads(line)["id"] for line in lines]

    tiers = (await prison.http.get("/v1/tiers", headers=prison.ours)).json()
    assert {"hot": 2, "warm": 1, "cold": 1, "glacier": 0} == {n: each["records"] for n, each in tiers["tiers"].items()}
    assert {"namespaces", "tiers", "replaying", "freshness", "at"} == tiers.keys()
    assert len(OWN) + len(FOREIGN) == sum(each["records"] for each in (await prison.memory.tiers())["tiers"].values())


ABSENT = "b/absent"
ASKED_BY_ID = [
    ("GET", "/v1/memories/{}", None),
    ("GET", "/v1/why/{}", None),
    ("POST", "/v1/memories/{}:promote", None),
    ("POST", "/v1/memories/{}:demote", None),
    ("POST", "/v1/search", lambda identifier: {"id": identifier}),
    ("POST", "/v1/search", lambda identifier: {"queries": [{"id": identifier}]}),
]


async def test_a_foreign_id_is_as_absent_as_one_that_is_not(prison: Prison) -> None:
    """By path, by search, by why, by hints: status and words are the same, and no tier is asked for it."""
    for method, path, body in ASKED_BY_ID:
        said: set[tuple[int, str]] = set()
        for identifier in [ABSENT, *FOREIGN]:
            asked = {"json": body(identifier)} if body is not None else {}
            answer = await prison.http.request(method, path.format(quoted(identifier)), headers=prison.ours, **asked)
            check(answer, (method, path, identifier))
            said.add((answer.status_code, answer.json()["detail"].replace(repr(identifier), "?")))
        assert 1 == len(said), (path, said)
        assert {400 if body is not None else 404} == {status for status, _ in said}
    reads = prison.memory.node.access.reads
    assert all(reads[tier] == 0 for tier in TierName), "what is not shown was not read"


async def test_paths_are_what_they_decode_to_and_nothing_else(prison: Prison) -> None:
    """However it is written, a path names one id, and the namespace is that id's."""
    for path in (
        "a/../b/1",
        "a%2f..%2fb%2f1",
        "a%252F1",
        "b%2F1",
        "./b/1",
        "a//../b/1",
        "a/1%00",
        "A/1",
        "a%5C1",
        "/a/1",
    ):
        answer = await prison.http.request(
            "GET", httpx.URL(f"{prison.http.base_url}/v1/memories/{path}"), headers=prison.ours
        )
        check(answer, path)
        assert answer.status_code in (400, 404), path
    assert 200 == (await prison.http.get("/v1/memories/a%2F1", headers=prison.ours)).status_code


def packed(kind: str, identifiers: list[str]) -> bytes:
    """Return memories as a body of this kind."""
    if kind == MSGPACK_TYPE:
        return msgspec.msgpack.encode([{"id": each, "vector": VECTOR} for each in identifiers])
    if kind == ARROW_TYPE:
        vectors = pa.array([VECTOR] * len(identifiers), pa.list_(pa.float32(), len(VECTOR)))
        batch = pa.record_batch({"id": pa.array(identifiers), "vector": vectors})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        return bytes(sink.getvalue())
    values = [json.dumps({"id": each, "vector": VECTOR}) for each in identifiers]
    return ("[" + ",".join(values) + "]" if kind == JSON_TYPE else "\n".join(values)).encode()


async def test_nothing_foreign_can_be_written_or_deleted(prison: Prison) -> None:
    """403 that names the row, in every form of body; of a body with one foreign row nothing is published."""
    before, ingested = await prison.state(), prison.memory.node.ingest.rows
    for identifier in FOREIGN:
        for kind in (JSON_TYPE, "application/x-ndjson", MSGPACK_TYPE, ARROW_TYPE):
            body, headers = packed(kind, ["a/new", identifier]), {**prison.ours, "content-type": kind}
            answer = await prison.http.post("/v1/memories", content=body, headers=headers)
            check(answer, (kind, identifier))
            said = answer.json()
            assert (403, "id", "namespace", 1) == (
                answer.status_code,
                said["field"],
                said["reason"],
                said["position"],
            ), (kind, identifier, said)
        gone = await prison.http.delete(f"/v1/memories/{quoted(identifier)}", headers=prison.ours)
        assert (403, "namespace") == (gone.status_code, gone.json()["reason"]), identifier
    duplicate = b'{"id": "a/1", "id": "b/1", "vector": %s}' % json.dumps(VECTOR).encode()
    assert 400 == (await prison.http.post("/v1/memories", content=duplicate, headers=prison.ours)).status_code
    own = await prison.http.post("/v1/memories", json={"id": "a/0", "vector": VECTOR}, headers=prison.ours)
    await prison.memory.retrieve(Query(ids=[], at_least=own.json()["token"]))

    assert before == await prison.state()
    assert ingested + 1 == prison.memory.node.ingest.rows
    assert 403 == (await prison.http.post("/v1/tiers/hot:clear", headers=prison.ours)).status_code
    assert 403 == (await prison.http.get("/metrics", headers=prison.ours)).status_code


async def test_cursors_and_tokens_of_others_open_nothing(prison: Prison) -> None:
    """A listing's cursor is refused, taken or made up; a token only waits."""
    asked = {"filter": "score = 1", "limit": 1}
    theirs = (await prison.http.post("/v1/retrieve", json=asked, headers=prison.theirs)).json()
    ours = (await prison.http.post("/v1/retrieve", json=asked, headers=prison.ours)).json()
    assert (1, 1, True) == (len(theirs["hits"]), len(ours["hits"]), theirs["cursor"] != ours["cursor"])
    taken = await prison.http.post("/v1/retrieve", json={**asked, "cursor": theirs["cursor"]}, headers=prison.ours)
    assert (400, "cursor") == (taken.status_code, taken.json()["field"])
    place, mark = json.loads(base64.urlsafe_b64decode(ours["cursor"] + "=="))
    for after in ("", "b/", "\u0000", "zzz", place):
        forged = base64.urlsafe_b64encode(json.dumps([after, mark]).encode()).decode().rstrip("=")
        body = {**asked, "limit": 100, "cursor": forged}
        check(await prison.http.post("/v1/retrieve", json=body, headers=prison.ours), after)
    deleted = await prison.http.delete("/v1/memories/b/3", headers=prison.theirs)
    for token in (deleted.json()["token"], encode_token({0: 0}, 0)):
        body = {"ids": ["b/3", "b/1"], "at_least": token}
        check(await prison.http.post("/v1/retrieve", json=body, headers=prison.ours), token)
        check(await prison.http.get(f"/v1/memories/b/1?at_least={token}", headers=prison.ours), token)


async def test_the_change_stream_tells_of_our_own(prison: Prison) -> None:
    """From the beginning or from another's cursor: own ids with their own versions, in the order of the feed."""
    cursors: list[str] = []
    for headers, spaces, start in ((prison.theirs, "b/", None), (prison.ours, "a/", None), (prison.ours, "a/", 0)):
        resume = {} if start is None else {"last-event-id": cursors[start]}
        seen: list[tuple[str, str]] = []
        expected = {f"{spaces}1", f"{spaces}2"}
        if resume:
            await prison.memory.node.clearing.clear(TierName.HOT)  # something to tell after any cursor
            expected = {f"{spaces}0", f"{spaces}3"}
        path = "/v1/changes?from=beginning"
        async with prison.http.stream("GET", path, headers={**headers, **resume}) as stream:
            async for line in stream.aiter_lines():
                assert CANARY not in line
                if line.startswith("id: "):
                    cursors.append(line[4:])
                if line.startswith("data: "):
                    change = json.loads(line[6:])
                    assert len(change["ids"]) == len(change["versions"]) > 0
                    seen += zip(change["ids"], change["versions"], strict=True)
                if expected <= {identifier for identifier, _ in seen}:
                    break
        assert {True} == {identifier.startswith(spaces) for identifier, _ in seen}, seen
        assert all(version.count(".") == 2 for _, version in seen)
    await until(lambda: not prison.gateway.feed.streams)


@pytest.mark.unit
def test_a_change_keeps_its_shape_without_what_is_foreign() -> None:
    """Ids and versions stay paired and in order; a change without own ids is none; all namespaces see it as it is."""
    ids = ["a/1", "b/1", "ab/1", "a/2", "a"]
    change = Change(
        kind="home", source="hot", target="warm", reason="age", policy="p", at=1, ids=ids, versions=list("12345")
    )
    seen = visible_change(change, frozenset({"a"}))
    assert seen is not None
    assert (["a/1", "a/2"], ["1", "4"], "age") == (seen.ids, seen.versions, seen.reason)
    assert change is visible_change(change, None)
    assert None is visible_change(change, frozenset({"c"}))
    assert None is visible_change(change, frozenset())
    default = visible_change(change, frozenset({"default"}))
    assert default is not None
    assert ["a"] == default.ids
