"""Codes in a real node: kept over a restart, made anew on request, shown, and never believed against the tiers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import msgspec

from pipeline import MemoryManager, Query
from pipeline.routes import Gateway
from pipeline.serve import HttpService
from pipeline.settings import Settings
from tests.nodes import rows, until
from tiers.tier import TierName

COUNT = 400
WORLD = rows(COUNT)


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[tuple[MemoryManager, httpx.AsyncClient]]:
    """Yield a ready node with a client of its gateway."""
    service = HttpService(settings)
    async with MemoryManager.open(settings, service) as memory:
        service.gateway = Gateway(memory)
        await memory.ready()
        async with httpx.AsyncClient(base_url=service.address, timeout=30) as http:
            yield memory, http


async def put_down(memory: MemoryManager) -> None:
    """Store records and move them to cold and glacier, half and half."""
    await memory.retrieve(Query(ids=[], at_least=await memory.store(WORLD)))
    node = memory.node
    for partition, lane in node.lanes.items():
        entries = [entry for one in WORLD if (entry := node.index.find(one.id)) and entry.partition == partition]
        half = [(entry.id, entry.version) for entry in entries]
        for target, keys in ((TierName.COLD, half[::2]), (TierName.GLACIER, half[1::2])):
            await lane.perform(lambda p=partition, t=target, k=keys: node.mover.move(p, TierName.HOT, t, "age", k))


def coded(memory: MemoryManager) -> int:
    """Return how many live records have a code."""
    found = [one for one in memory.node.index.segments() if one.packed is not None]
    return sum(int(one.alive[one.packed.numbers].sum()) for one in found if one.packed is not None)


async def test_codes_outlive_a_restart_and_are_made_anew_on_request(settings: Settings) -> None:
    """The next start has every code and no vector; what was deleted meanwhile stays gone; a reindex changes all."""
    index = msgspec.structs.replace(settings.index, train_rows=COUNT // 2)
    settings = msgspec.structs.replace(settings, index=index)
    async with opened(settings) as (memory, http):
        refused = await http.post("/v1/index:reindex")
        assert (409, "urn:isotherm:no-codebook") == (refused.status_code, refused.json()["type"])
        await put_down(memory)
    async with opened(settings) as (memory, http):
        node = memory.node
        await until(lambda: node.coder.kept == COUNT)
        before = (await http.get("/v1/tiers")).json()["codes"]
        await memory.retrieve(Query(ids=[], at_least=await memory.delete("id-7")))
    async with opened(settings) as (memory, http):
        node = memory.node
        said = (await http.get("/v1/tiers")).json()["codes"]
        assert (before["codebook"], COUNT, 0, None) == tuple(
            said[name] for name in ("codebook", "coded", "waiting", "reindex")
        )
        assert COUNT - 1 == coded(memory)
        for at in (3, 7, 200):
            hits = (await memory.retrieve(Query(vector=WORLD[at].vector, k=1))).hits
            assert (hits[0].row.id == f"id-{at}") is (at != 7)

        answer = await http.post("/v1/index:reindex")
        assert answer.status_code == 202
        await until(lambda: node.coder.reindex.progress() is None)
        said = (await http.get("/v1/tiers")).json()["codes"]
        assert said["codebook"] != before["codebook"]  # id-7 is not in the sample any more
        assert [f"{said['codebook']}.codes"] == [path.name for path in (Path(settings.data) / "codes").iterdir()]
        assert await node.recall.step() is not None
        metrics = (await http.get("/metrics")).text
        assert "isotherm_codes_recall_ratio 1.0" in metrics
        assert "isotherm_reindex_ratio 1.0" in metrics
