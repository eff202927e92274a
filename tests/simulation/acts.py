"""What may happen between any two callbacks: what producers, advice, readers, operators and faults do.

The names of the methods are those of `plan.WEIGHTS`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from producers import events
from tests.simulation.checker import vector_of
from tests.simulation.life import BELOW, Life
from tests.simulation.log import TOPICS
from tests.simulation.network import LOG
from tests.tiers.rows import DIM, NOW_MS
from tiers import read, record
from tiers.errors import LogUnavailable, OutcomeUnknown, Replaying, TierFull, TierUnavailable
from tiers.tier import Query, TierName

if TYPE_CHECKING:
    from tests.simulation.world import World

QUERY = np.ones(DIM, np.float32)
TRANSIENT = (TierUnavailable, TierFull, LogUnavailable, Replaying)


class Acts:
    """On one world."""

    def __init__(self, world: World) -> None:
        self._world, self.plan = world, world.plan
        self.random, self.log, self.loop, self.model = world.random, world.log, world.loop, world.model
        self.tell = world.tell
        self._names = world.plan.names()
        self._crashes = world.plan.crashes
        self._operation: asyncio.Task[None] | None = None  # one at a time

    @property
    def life(self) -> Life | None:
        """The process that is up or starting."""
        return self._world.life

    @property
    def _serving(self) -> Life | None:
        life = self._world.life
        return life if life is not None and life.serving else None

    def wait(self) -> None:
        """Let things go on."""

    def started(self) -> None:
        """Let a start come to its end."""
        self._world.until(lambda: self._serving is not None, "start")

    def crash(self) -> None:
        """Here, or as soon as a write is on its way: that is where it matters."""
        if not self._crashes or self._world.doomed:
            return
        self._crashes -= 1
        if self.random.random() < 0.3:
            self._world.crash("crash")
        else:
            self._world.doomed = True

    def stop(self) -> None:
        if self._serving is not None:
            self.tell("asked to stop")
            self._serving.stop()

    # -- what producers do -------------------------------------------------------------------------------------------

    def _name(self) -> str:
        return self.random.choice(self._names)

    def _append(self, name: str, value: bytes | None, headers: Any = ()) -> int:
        return self.log.append(TOPICS.memories, self.plan.partition(name), name.encode(), value, headers)

    def _upsert(self, ttl_s: float | None = None) -> None:
        name = self._name()
        partition = self.plan.partition(name)
        offset = len(self.log.of(TOPICS.memories, partition))
        if ttl_s is not None:
            self.model.expiring[partition, offset] = self.log.now_ms() + int(ttl_s * 1000)
        vector = vector_of(name, record.pack_version(0, offset))
        self._append(name, events.encode_event(vector, ttl_s=ttl_s))
        self.tell(f"upsert {name} at {offset}" + (f" for {ttl_s:.3f} s" if ttl_s else ""))

    def upsert(self) -> None:
        for _ in range(self.random.choice((1, 1, 1, 2))):
            self._upsert()

    def upsert_expiring(self) -> None:
        self._upsert(0.005 + self.random.random() * 0.1)

    def delete(self) -> None:
        name = self._name()
        self.tell(f"delete {name} at {self._append(name, None)}")

    def delete_if(self) -> None:
        name = self._name()
        past = self.model.history.get(name)
        if past:
            version = self.random.choice(past[-2:]).version
            headers = events.condition_headers("t", name, version)
            self.tell(f"delete {name} if {record.version_text(version)} at {self._append(name, None, headers)}")

    def bad_event(self) -> None:
        name = self._name()
        partition = self.plan.partition(name)
        self.model.bad.add((partition, len(self.log.of(TOPICS.memories, partition))))
        self.tell(f"bad event at {self._append(name, b'{')}")

    # -- advice ------------------------------------------------------------------------------------------------------

    def advise(self) -> None:
        """An age event, of now or of long ago."""
        by_place: dict[tuple[int, TierName], list[tuple[str, int]]] = {}
        for name in self.random.sample(self._names, self.random.randint(1, len(self._names))):
            past = self.model.history.get(name)
            entry = self.life.index.find(name) if self.life is not None else None
            if not past:
                continue
            if entry is None or self.random.random() < 0.15:
                tier, version = TierName(self.random.randrange(3)), self.random.choice(past).version
            else:
                tier, version = TierName(entry.home), entry.version
            by_place.setdefault((self.model.partition[name], tier), []).append((name, version))
        for (partition, tier), keys in by_place.items():
            self._age(partition, tier, keys)

    def _age(self, partition: int, tier: TierName, keys: list[tuple[str, int]]) -> None:
        self.log.append(TOPICS.age, partition, None, _advice(tier, tuple(keys), self.random.random() < 0.5))
        self.tell(f"advice: {', '.join(n for n, _ in keys)} should leave {tier.word}")

    def access(self) -> None:
        name = self._name()
        self.log.append(TOPICS.access, self.plan.partition(name), None, _accessed(name, self.random.randint(1, 5)))
        self.tell(f"advice: {name} was read")

    # -- the node's own services, a step at a time -------------------------------------------------------------------

    def _service(self, work: Coroutine[Any, Any, Any]) -> None:
        self._world.client(self._quietly(work))

    async def _quietly(self, work: Coroutine[Any, Any, Any]) -> None:
        with suppress(*TRANSIENT, OutcomeUnknown):  # the last ends the process by itself
            await work

    def commit(self) -> None:
        if self.life is not None and self.life.serving:
            self._service(self.life.commit.step())

    def upkeep(self) -> None:
        if self.life is not None and self.life.serving:
            self.life.upkeep.step()

    def compact(self) -> None:
        """Glacier's turn, whatever still waits in the tiers above."""
        if self.life is not None and self.life.serving:
            for partition, lane in self.life.lanes.items():
                lane.offer(partial(self.life.mover.compact, partition, 100))

    def cool(self) -> None:
        if self.life is not None and self.life.serving:
            self.life.promotion.step()

    def expire(self) -> None:
        if self.life is not None and self.life.serving:
            self._service(self.life.expiry.expire())

    def rewrite_index(self) -> None:
        if self.life is not None and self.life.rebuilt:
            self.life.index.compact(2)

    # -- readers -----------------------------------------------------------------------------------------------------

    def get(self) -> None:
        self._read(Query(ids=self.random.sample(self._names, self.random.randint(1, len(self._names)))))

    def search(self) -> None:
        whole = frozenset({"payload"}) if self.random.random() < 0.5 else frozenset()
        self._read(Query(vector=QUERY, k=10, include=whole))

    def list_all(self) -> None:
        self._read(Query(limit=100))

    def _read(self, query: Query) -> None:
        life = self.life
        if life is not None and life.ready():
            self._world.client(self._reading(life, query))

    async def _reading(self, life: Life, query: Query) -> None:
        checker, began_ms = self._world.checker, self.log.now_ms()
        began = checker.window(life)
        with suppress(TierUnavailable):
            found = await read.retrieve(life.index, life.tiers, query, life.scanner, began_ms)
            checker.read(life, began, began_ms, found.hits, query.ids, found.complete)

    def give_up(self) -> None:
        """A client goes away."""
        under_way = [task for task in self._world.clients if not task.done()]
        if under_way:
            self.random.choice(under_way).cancel()

    # -- operators ---------------------------------------------------------------------------------------------------

    def _operate(self, what: str, work: Callable[[Life], Coroutine[Any, Any, Any]]) -> None:
        life = self._serving
        if life is not None and (self._operation is None or self._operation.done()):
            self.tell(what)
            self._operation = self._world.client(self._quietly(work(life)))

    def clear(self) -> None:
        tier = self.random.choice(list(TierName))
        self._operate(f"clear {tier.word}", lambda life: life.clearing.clear(tier))

    def clean(self) -> None:
        self._operate("cleanup", lambda life: life.clearing.cleanup())

    # -- faults ------------------------------------------------------------------------------------------------------

    def outage(self) -> None:
        out = self._world.network.faults.out
        where = self.random.choice([*BELOW, LOG])
        if where in out:
            self.tell(f"{where!r} is well again")
            del out[where]
        else:
            out[where] = "full" if where != LOG and self.random.random() < 0.5 else "down"
            self.tell(f"{where!r} is {out[where]}")

    def stop_valkey(self) -> None:
        self.tell("Valkey is killed")
        self._world.network.stop(TierName.WARM)


@cache
def _advice(tier: TierName, keys: tuple[tuple[str, int], ...], warm: bool) -> bytes:
    count = len(keys)
    columns = [[n for n, _ in keys], [v for _, v in keys], [int(tier)] * count, [0] * count, [0] * count]
    columns += [[float(warm)] * count, ["age"] * count]
    fields = dict(zip(events.AGE.names, columns, strict=True))
    return events.encode_arrow(pa.RecordBatch.from_pydict(fields, schema=events.AGE))


@cache
def _accessed(name: str, count: int) -> bytes:
    fields = {"id": [name], "tier": [0], "count": [count], "last": [NOW_MS]}
    return events.encode_arrow(pa.RecordBatch.from_pydict(fields, schema=events.ACCESS))
