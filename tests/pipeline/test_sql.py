"""SQL over all tiers: what it shows, and how old that is."""

from __future__ import annotations

import json
from typing import Any

from tests.nodes import rows, until
from tests.pipeline.test_questions import COUNT, Service, service

__all__ = ["service"]


async def sql(service: Service, query: str, **more: Any) -> dict[str, Any]:
    """Ask and return the answer's JSON."""
    return await service.post("/v1/sql", query=query, **more)


async def test_sql_shows_what_a_listing_shows(service: Service) -> None:
    """Over four tiers, with updates and deletes under way: each record once, at its newest."""
    memory = service.memory
    updated = [row for at, row in enumerate(rows(COUNT, seed=7)) if at % 5 == 0]
    await memory.store(updated)
    for at in range(1, COUNT, 7):
        token = await memory.delete(f"id-{at}")
    await service.http.get("/v1/memories/id-2", params={"at_least": token})
    await until(lambda: memory.freshness()["lag_ms"] == 0)
    listed = [json.loads(line) for line in (await service.http.get("/v1/memories")).text.splitlines()]

    answer = await sql(service, 'SELECT id, version, tier, payload, "user", score FROM memories ORDER BY id')
    shown = [
        dict(zip(("id", "version", "tier", "payload", "user", "score"), row, strict=True)) for row in answer["rows"]
    ]

    assert [
        {**{name: each[name] for name in ("id", "version", "tier", "payload")}, **each["attributes"]} for each in listed
    ] == shown
    assert (len(listed), False) == (answer["row_count"], answer["truncated"])
    assert answer["snapshot_age_ms"] >= 0
