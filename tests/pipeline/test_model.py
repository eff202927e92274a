"""The whole against a dictionary: Hypothesis drives a node on real servers and shrinks what goes wrong.

Rules publish, delete, move any record one hop or more through its lane, put copies into hot and take them away, clean
up, and restart the node; after each, a read by id, the listing and an exact search say what the dictionary says.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from pipeline import MemoryManager, Query
from pipeline.stack import Stack
from tests.nodes import DIM, small
from tiers import Row, TierName

IDS = st.integers(0, 5).map(lambda n: f"m/{n}")


class Life:
    """A manager on an event loop of its own, opened and closed from synchronous rules."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine to its end."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    async def open(self, node_settings: Any) -> MemoryManager:
        """Open a manager whose closing another call triggers."""
        opened: asyncio.Future[MemoryManager] = self.loop.create_future()
        self.closing = asyncio.Event()

        async def live() -> None:
            try:
                async with MemoryManager.open(node_settings) as manager:
                    await manager.ready()
                    opened.set_result(manager)
                    await self.closing.wait()
            except BaseException as error:
                if not opened.done():
                    opened.set_exception(error)
                raise

        self.task = asyncio.create_task(live())
        return await opened

    async def close(self) -> None:
        """Close the manager in order."""
        self.closing.set()
        await self.task

    def end(self) -> None:
        """End the loop."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


def machine(stack: Stack, directory: Path) -> type[RuleBasedStateMachine]:
    """Return the state machine over this stack."""

    class Memory(RuleBasedStateMachine):
        @initialize()
        def begin(self) -> None:
            prefix = f"t-{uuid.uuid4().hex[:12]}"
            more = {"policy__hot_age_s": 3_600.0, "move__upkeep_ms": 3_600_000}
            self.settings = small(stack, prefix, directory / prefix, **more)
            self.known: dict[str, np.ndarray[Any, Any]] = {}
            self.seed = 0
            self.life = Life()
            self.memory = self.life.do(self.life.open(self.settings))

        @rule(identifiers=st.lists(IDS, min_size=1, max_size=4))
        def publish(self, identifiers: list[str]) -> None:
            rows = []
            for identifier in identifiers:
                self.seed += 1
                vector = np.random.default_rng(self.seed).normal(size=DIM).astype(np.float32)
                rows.append(Row(identifier, 0, self.memory.node.ingest._now_ms(), None, vector, b"%d" % self.seed))
                self.known[identifier] = vector
            self._applied(self.life.do(self.memory.store(rows)))

        @rule(identifier=IDS)
        def delete(self, identifier: str) -> None:
            self.known.pop(identifier, None)
            self._applied(self.life.do(self.memory.delete(identifier)))

        def _applied(self, token: str) -> None:
            self.life.do(self.memory.retrieve(Query(ids=[], at_least=token)))

        @rule(identifiers=st.sets(IDS, min_size=1), below=st.sampled_from(list(TierName)[1:]))
        def demote(self, identifiers: set[str], below: TierName) -> None:
            self.life.do(self._demote(identifiers, below))

        async def _demote(self, identifiers: set[str], target: TierName) -> None:
            node = self.memory.node
            for identifier in sorted(identifiers):
                entry = node.index.find(identifier)
                if entry is not None and entry.home < target:
                    key = [(identifier, entry.version)]
                    job = partial(node.mover.move, entry.partition, TierName(entry.home), target, "test", key)
                    await node.lanes[entry.partition].perform(job)

        @rule(identifiers=st.sets(IDS, min_size=1))
        def promote(self, identifiers: set[str]) -> None:
            self.life.do(self._promote(sorted(identifiers)))

        async def _promote(self, identifiers: list[str]) -> None:
            node = self.memory.node
            now_ms = node.ingest._now_ms()
            node.index.touch(identifiers, [9] * len(identifiers), [now_ms] * len(identifiers), 300_000)
            for partition, lane in node.lanes.items():
                await lane.perform(partial(node.heat._promotion.promote, partition, identifiers))
            entries = [entry for name in identifiers if (entry := node.index.find(name)) is not None]
            assert all(node.copies.has(e.id) for e in entries if e.home != TierName.HOT and not e.deleted)

        @rule(identifiers=st.sets(IDS, min_size=1))
        def cool(self, identifiers: set[str]) -> None:
            self.life.do(self._cool(identifiers))

        async def _cool(self, identifiers: set[str]) -> None:
            self.memory.node.copies.evict(sorted(identifiers), "test")

        @rule()
        def clean(self) -> None:
            self.life.do(self.memory.cleanup())

        @rule()
        def restart(self) -> None:
            self.life.do(self.life.close())
            self.memory = self.life.do(self.life.open(self.settings))

        @invariant()
        def reads_are_right(self) -> None:
            if hasattr(self, "memory"):
                self.life.do(self._check())

        async def _check(self) -> None:
            result = await self.memory.retrieve(Query(ids=[f"m/{n}" for n in range(6)]))
            found = {hit.row.id: hit.row.vector for hit in result.hits}
            assert found.keys() == self.known.keys()
            assert all(np.array_equal(vector, found[identifier]) for identifier, vector in self.known.items())
            listed = [i async for batch in self.memory.retrieve_all() for i in batch["id"].to_pylist()]
            assert sorted(self.known) == sorted(listed)
            query = np.ones(DIM, np.float32)
            hits = (await self.memory.retrieve(Query(vector=query, k=3))).hits
            exact = sorted(self.known, key=lambda i: -float(self.known[i] @ query / np.linalg.norm(self.known[i])))
            assert exact[:3] == [hit.row.id for hit in hits]

        def teardown(self) -> None:
            if hasattr(self, "life"):
                self.life.do(self.life.close())
                self.life.end()

    return Memory


@pytest.mark.timeout(300)
def test_the_whole_behaves_like_a_dictionary(stack: Stack, tmp_path: Path) -> None:
    """Whatever is published, deleted, moved, cleaned up and restarted in any order, reads say what a dict says."""
    quick = settings(max_examples=12, stateful_step_count=14, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(machine(stack, tmp_path), settings=quick)
