"""The demo's stream: what it has published, and how it publishes, revises, deletes and times it."""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import numpy as np

from pipeline.demo_texts import Text
from producers import MemoryProducer
from producers.decoder import Embed
from producers.ticks import ticks
from tiers.record import Floats

SPREAD_S = 20  # event times lie up to this far back
PUBLISH_S = 15  # how long the stream is published for
SETTLE_S = 90  # how long the tiers get to fill and the queues to empty
RESERVE = 400  # records kept back to go on trickling while older ones age
TRICKLE_S = 270  # how long they last: on a busy machine settling and checking take so long
LAST = 50  # of these, published just before the node is stopped, so that hot is not empty then


@dataclass(slots=True)
class World:
    """What the demo has published and measured."""

    texts: list[Text]
    vectors: Floats
    newest: dict[str, tuple[Floats, dict[str, Any]] | None] = field(default_factory=dict)
    published: int = 0
    updated: int = 0
    deleted: int = 0
    freshness_ms: list[float] = field(default_factory=list)
    search_ms: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    problems: list[str] = field(default_factory=list)
    answers: int = 0
    gone: list[str] = field(default_factory=list)

    def live(self) -> tuple[list[str], Floats]:
        """Return the ids that should be found, and their vectors."""
        pairs = [(identifier, known[0]) for identifier, known in self.newest.items() if known is not None]
        return [identifier for identifier, _ in pairs], np.stack([vector for _, vector in pairs])


async def publish(world: World, producer: MemoryProducer, http: httpx.AsyncClient, rows: range, embed: Embed) -> None:
    """Publish some texts, revise and delete some of those before, and time one until it is found."""
    sent = [await _send(world, producer, at) for at in rows]
    dice = random.Random(rows.start)  # noqa: S311 - the demo is the same each time
    for _ in range(len(rows) // 16):
        at = dice.randrange(rows.stop)
        if world.newest.get(world.texts[at].id) is not None:
            text = world.texts[at].text + " (revised)"
            sent.append(await _send(world, producer, at, text, embed([text])[0]))
            world.updated += 1
    deletes: dict[str, asyncio.Future[Any]] = {}
    for _ in range(len(rows) // 25):
        identifier = world.texts[dice.randrange(rows.stop - 1)].id  # never the one timed below
        if world.newest.get(identifier) is not None:
            deletes[identifier] = await producer.publish(identifier, None)
            world.newest[identifier] = None
            world.deleted += 1
    positions = await asyncio.gather(*sent, *deletes.values())
    world.published += len(positions)
    fresh = world.texts[rows.stop - 1]
    await http.get(f"/v1/memories/{fresh.id}", params={"at_least": producer.token(positions)})
    world.gone += deletes  # applied: no answer may show them from here on
    await _time_one(world, producer, http, fresh, world.vectors[rows.stop - 1])


async def _time_one(
    world: World, producer: MemoryProducer, http: httpx.AsyncClient, fresh: Text, vector: Floats
) -> None:
    """Send one record and search for it at least at its token: the time until it is found is the freshness."""
    payload, attributes = _content(fresh, fresh.text)
    world.newest[fresh.id] = (vector, payload)
    world.published += 1
    began = time.perf_counter()
    token = await producer.send(fresh.id, vector, payload, attributes)
    body = {"vector": vector.tolist(), "k": 1, "at_least": token, "include": []}
    answer = (await http.post("/v1/search", json=body)).json()
    world.freshness_ms.append((time.perf_counter() - began) * 1000)
    if not answer.get("hits") or answer["hits"][0]["score"] < 0.999:
        world.problems.append(f"{fresh.id} was not found right after it was sent: {answer}")


async def _send(
    world: World, producer: MemoryProducer, at: int, text: str | None = None, vector: Floats | None = None
) -> asyncio.Future[Any]:
    source = world.texts[at]
    vector = world.vectors[at] if vector is None else vector
    payload, attributes = _content(source, text or source.text)
    event_time = datetime.now(UTC) - timedelta(seconds=random.Random(at).uniform(0, SPREAD_S))  # noqa: S311
    world.newest[source.id] = (vector, payload)
    return await producer.enqueue(source.id, vector, payload, attributes, event_time)


def _content(source: Text, text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"text": text[:2_000]}, {"module": source.module, "kind": source.kind, "length": len(text)}


async def trickle(world: World, producer: MemoryProducer, stop: asyncio.Event) -> None:
    """Go on publishing the reserve until stopped, so that the newest are hot while everything is checked."""
    reserve = range(streamed(world), len(world.texts) - LAST)
    rows = iter(reserve)
    async for _ in ticks(stop, TRICKLE_S * 1_000 // max(1, len(reserve))):
        at = next(rows, None)
        if at is None:
            return
        await (await _send_now(world, producer, at))


async def publish_last(world: World, producer: MemoryProducer, http: httpx.AsyncClient) -> None:
    """Publish the last records and see the very last in hot."""
    rows = range(len(world.texts) - LAST, len(world.texts))
    positions = await asyncio.gather(*[await _send_now(world, producer, at) for at in rows])
    params = {"at_least": producer.token(positions)}
    answer = await http.get(f"/v1/memories/{world.texts[-1].id}", params=params)
    if answer.status_code != 200 or answer.json()["tier"] != "hot":
        world.problems.append(f"the last record: {answer.text}")


def streamed(world: World) -> int:
    """Return how many texts the stream takes; the rest is the reserve."""
    return len(world.texts) - min(RESERVE, len(world.texts) // 5)


async def _send_now(world: World, producer: MemoryProducer, at: int) -> asyncio.Future[Any]:
    source = world.texts[at]
    payload, attributes = _content(source, source.text)
    world.newest[source.id] = (world.vectors[at], payload)
    world.published += 1
    return await producer.enqueue(source.id, world.vectors[at], payload, attributes)
