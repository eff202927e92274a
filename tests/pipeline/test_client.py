"""Both clients against a live gateway: every verb, equal answers; resuming; the errors that a gateway means."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from pipeline import client as clients
from pipeline.client import AsyncClient, Client, Conflict, NotFound, Refused
from pipeline.settings import Settings
from pipeline.stack import Stack
from tests.nodes import DIM, rows, small
from tests.pipeline.test_questions import COUNT, Service, service, vector_of
from tiers import record
from tiers.errors import InvalidRecord

__all__ = ["service"]

#: What of /v1/tiers and /v1/why differs from one moment to the next.
MOVING = ("at", "reads", "heat", "age_s", "idle_s", "last_read", "looked", "because", "next", "archive", "watermark")
MOVING += ("dirty", "tiers")
SINCE = datetime(2020, 1, 1, tzinfo=UTC)
READS: dict[str, Callable[[Any], Any]] = {
    "get": lambda client: client.get("id-3"),
    "get what is absent": lambda client: client.get("absent"),
    "get some": lambda client: client.get("id-3", include=["vector"]),
    "search": lambda client: client.search(vector=vector_of(5), k=3),
    "search numpy": lambda client: client.search(vector=np.array(vector_of(5), np.float32), k=3, exact=True),
    "search arrow": lambda client: client.search(id="id-5", k=3, arrow=True, include=["vector", "payload"]),
    "search with all": lambda client: client.search(
        id="id-5", k=4, filter="score > 1", tiers=["warm", "cold"], time_from=SINCE, include=["attributes"]
    ),
    "search_many": lambda client: client.search_many([{"id": "id-1", "k": 2}, {"id": "id-2", "k": 1}]),
    "retrieve ids": lambda client: client.retrieve(ids=["id-3", "absent", "id-30"]),
    "retrieve page": lambda client: client.retrieve(filter="score < 2", limit=5),
    "retrieve arrow": lambda client: client.retrieve(filter="score < 2", limit=5, arrow=True),
    "tiers": lambda client: client.tiers(),
    "why": lambda client: client.why("id-15"),
    "why of what is absent": lambda client: client.why("absent"),
}


@pytest.fixture
def settings(stack: Stack, prefix: str, tmp_path: Path) -> Settings:
    """A node whose records stay where they are, however often they are read."""
    quiet = {"policy__hot_age_s": 3_600.0, "policy__promote_heat_min": 1e6}
    return small(stack, prefix, tmp_path / "node", **quiet)


@pytest.fixture
async def both(service: Service) -> AsyncIterator[tuple[Client, AsyncClient]]:
    """The two clients of one gateway."""
    url = str(service.http.base_url)
    with Client(url) as blocking:
        async with AsyncClient(url) as awaiting:
            yield blocking, awaiting


def lasting(value: Any) -> Any:
    """Return an answer without what differs from one moment to the next."""
    plain = msgspec.to_builtins(value)
    for each in plain if isinstance(plain, list) else [plain]:
        if isinstance(each, dict):
            for name in ("took_ms", "freshness", "searched", "arrow", *MOVING):
                each.pop(name, None)
    return plain


@pytest.mark.unit
def test_both_clients_have_the_same_verbs() -> None:
    """Name by name, argument by argument, with a description each."""

    def verbs(kind: type) -> dict[str, list[str]]:
        found = inspect.getmembers(kind, inspect.isfunction)
        assert all(verb.__doc__ for name, verb in found if not name.startswith("_"))
        return {name: list(inspect.signature(verb).parameters) for name, verb in found if not name.startswith("_")}

    assert verbs(Client) == verbs(AsyncClient)
    tried = {name.split()[0] for name in READS}
    written = {"store", "publish", "publish_body", "delete", "promote", "demote", "clear"}
    elsewhere = {"retrieve_all", "retrieve_batches", "changes", "close", "sql", "snapshot", "verify"}
    assert tried | written | elsewhere == verbs(Client).keys()
    assert sorted(clients.__all__) == clients.__all__


async def test_every_read_has_the_same_answer_from_both(both: tuple[Client, AsyncClient]) -> None:
    """The contract: whatever is asked, `Client` and `AsyncClient` give equal values of equal types."""
    blocking, awaiting = both
    for name, ask in READS.items():
        there = await ask(awaiting)
        here = await asyncio.to_thread(ask, blocking)
        assert type(here) is type(there), name
        assert lasting(here) == lasting(there), name
        assert here is not None or "absent" in name, name


async def test_arrow_and_json_answers_are_the_same(both: tuple[Client, AsyncClient]) -> None:
    """The hits are equal either way, and so are the tables, but for the gateway's own order of columns."""
    _, client = both
    asked: dict[str, Any] = {"id": "id-5", "k": 7, "include": ["payload", "attributes", "vector"]}
    plain, arrow = await client.search(**asked), await client.search(**asked, arrow=True)
    plain_table, table = plain.to_arrow(), arrow.to_arrow()

    assert 7 == len(plain.hits)
    for one, other in zip(plain.hits, arrow.hits, strict=True):
        assert (one.id, one.tier, one.version, one.event_time) == (
            other.id,
            other.tier,
            other.version,
            other.event_time,
        )
        assert (one.attributes, one.payload, one.vector) == (other.attributes, other.payload, other.vector)
        assert pytest.approx(one.score) == other.score
    for name in ("id", "version", "event_time", "tier", "payload"):
        assert plain_table[name].to_pylist() == table[name].to_pylist(), name
    assert pa.list_(pa.float32(), DIM) == table.schema.field("vector").type
    assert plain.complete is arrow.complete is True


async def test_everything_streams_as_memories_and_as_batches(both: tuple[Client, AsyncClient]) -> None:
    """Both forms, both clients: every id once, in the order of ids; criteria hold."""
    blocking, awaiting = both
    memories = [memory async for memory in awaiting.retrieve_all()]
    batches = [batch async for batch in awaiting.retrieve_batches(include=["vector"])]
    expected = sorted(f"id-{at}" for at in range(COUNT))

    assert expected == [memory.id for memory in memories]
    assert expected == [i for batch in batches for i in batch["id"].to_pylist()]
    assert memories == await asyncio.to_thread(lambda: list(blocking.retrieve_all()))
    assert batches == await asyncio.to_thread(lambda: list(blocking.retrieve_batches(include=["vector"])))
    few = await asyncio.to_thread(lambda: list(blocking.retrieve_all(tiers=["cold"], filter="score > 2.5", include=[])))
    assert {f"id-{at}" for at in range(26, 30)} == {memory.id for memory in few}


async def test_the_whole_life_of_a_memory_through_both(both: tuple[Client, AsyncClient], service: Service) -> None:
    """Published one by one, as mappings, as Arrow; hinted at, deleted; each write is read with its token."""
    blocking, awaiting = both
    vector = np.arange(1, DIM + 1, dtype=np.float32)

    async def here(work: Callable[[], Any]) -> Any:
        return await asyncio.to_thread(work)

    token = await awaiting.publish("new/1", vector, payload={"a": [1]}, attributes={"user": "u"}, ttl_s=3600)
    one = await awaiting.get("new/1", at_least=token, include=["vector", "payload", "attributes"])
    assert one is not None
    assert (vector.tolist(), {"a": [1]}, {"user": "u"}) == (one.vector, one.payload, one.attributes)
    assert one.expires_at is not None
    token = await here(lambda: blocking.store([{"id": f"new/{n}", "vector": vector.tolist()} for n in (2, 3)]))
    assert 2 == len((await awaiting.retrieve(ids=["new/2", "new/3"], at_least=token)).hits)
    batch = record.to_batch(rows(2, start=900), record.schema(DIM, {"user": "string", "score": "float"}))
    token = await here(lambda: blocking.store(batch))
    assert 2 == len((await awaiting.retrieve(ids=["id-900", "id-901"], at_least=token)).hits)
    token = await awaiting.store(pa.Table.from_batches([batch]))
    assert "id-900" == (await here(lambda: blocking.promote("id-900")))["id"]
    assert "id-900" == (await awaiting.demote("id-900"))["id"]
    with pytest.raises(Conflict):
        await awaiting.demote("id-39")
    token = await here(lambda: blocking.delete("new/1"))
    assert await awaiting.get("new/1", at_least=token) is None
    assert 10 == await awaiting.clear("glacier")
    assert 0 == await here(lambda: blocking.clear("glacier"))


async def test_every_id_finds_its_way_into_a_path(both: tuple[Client, AsyncClient]) -> None:
    """What is stored under an id is read and deleted under it."""
    _, client = both
    for identifier in ("a/b", "a b", "ü/…", "..", ".", "a?b#c", "100%", "a:promote", "%2e", "a+b&c=d", "/", "a//b"):
        token = await client.publish(identifier, [1.0] * DIM)
        found = await client.get(identifier, at_least=token)
        assert found is not None, identifier
        assert identifier == found.id
        token = await client.delete(identifier)
        assert await client.get(identifier, at_least=token) is None


async def test_what_a_gateway_refuses_is_a_typed_error(both: tuple[Client, AsyncClient]) -> None:
    """400 with field, reason and position; 404; and what can be seen to be wrong is never sent."""
    blocking, client = both
    with pytest.raises(Refused, match="memory 1") as caught:
        await client.store([{"id": "ok", "vector": [1.0] * DIM}, {"id": "bad", "vector": [1.0]}])
    assert (1, "vector_dim", "vector", 400) == (
        caught.value.position,
        caught.value.reason,
        caught.value.field,
        caught.value.status,
    )
    with pytest.raises(Refused) as wrong:
        await asyncio.to_thread(lambda: blocking.search(id="id-1", filter="colour = 1"))
    assert "filter" in wrong.value.field
    with pytest.raises(NotFound):
        await client.promote("absent")
    with pytest.raises(InvalidRecord, match="time zone"):
        await client.retrieve(time_from=datetime(2020, 1, 1))  # noqa: DTZ001 - what is refused
    with pytest.raises(InvalidRecord, match="row of numbers"):
        await client.search(vector=[[1.0]])  # type: ignore[list-item]
    with pytest.raises(InvalidRecord, match="at least one character"):
        await client.get("")


async def test_the_change_feed_is_the_same_for_both(both: tuple[Client, AsyncClient], service: Service) -> None:
    """From the beginning both are told of every move, in order; a cursor goes on after it."""
    blocking, awaiting = both
    feed = awaiting.changes("beginning")
    moves = 12  # three tiers, four partitions
    told = [await anext(feed) for _ in range(moves)]
    await feed.aclose()

    def some(start: str, count: int) -> list[clients.Announced]:
        following = blocking.changes(start)
        try:
            return [next(following) for _ in range(count)]
        finally:
            following.close()  # type: ignore[attr-defined]

    assert {i for each in told for i in each.change.ids} <= {f"id-{at}" for at in range(COUNT)}
    again = await asyncio.to_thread(some, "beginning", moves)
    key = [(tuple(each.change.ids), each.change.target) for each in told]
    assert sorted(key) == sorted((tuple(each.change.ids), each.change.target) for each in again)
    rest = await asyncio.to_thread(some, told[2].cursor, moves - 3)
    assert {tuple(each.change.ids) for each in told[3:]} == {tuple(each.change.ids) for each in rest}
