"""One seed: a world of producers, advice, readers, operators and faults around the lives of a node.

Between any two callbacks of the loop something may happen, and everything is checked. `run` ends when it has happened
often enough and all is quiet, or raises the Violation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import cache, partial
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa

from producers import events
from tests.simulation.checker import Checker, Violation, vector_of
from tests.simulation.disk import Directory
from tests.simulation.life import BELOW, Life
from tests.simulation.log import TOPICS, Log
from tests.simulation.loop import Loop
from tests.simulation.model import Model
from tests.simulation.network import LOG, Network
from tests.simulation.plan import Plan
from tests.tiers.fake import Store
from tests.tiers.rows import DIM, NOW_MS
from tiers import read, record
from tiers.errors import (
    InvalidRecord,
    IsothermError,
    LogUnavailable,
    OutcomeUnknown,
    Replaying,
    TierFull,
    TierUnavailable,
)
from tiers.tier import Query, TierName

STEPS_MAX = 40_000  # callbacks of one seed: more means that it hangs
PATIENCE = 50  # looks, 10 virtual ms apart, at what ends by itself
QUERY = np.ones(DIM, np.float32)
TRANSIENT = (TierUnavailable, TierFull, LogUnavailable, Replaying)


class World:
    """`trace` says what happened, one line an event."""

    def __init__(self, plan: Plan, broken: frozenset[str] = frozenset()) -> None:
        self.plan, self.broken, self.trace = plan, broken, []
        self.random = Random(plan.seed)
        self.loop = Loop(self.random)
        self.model = Model(plan.partitions)
        self.log = Log(self.loop, plan.partitions, self.model.appended)
        self.stores = {tier: Store() for tier in BELOW}
        self.directory = Directory(plan.partitions)
        self.network = Network(self.loop, plan.faults(), self.tell)
        self.network.faults.retry = "retry" in broken
        self.checker = Checker(self.model, self.log, self.stores)
        self.network.landed = self._landed
        self.life: Life | None = None
        self.epoch = 0
        self._running: asyncio.Task[None] | None = None
        self._readers: list[asyncio.Task[None]] = []
        self._operator: asyncio.Task[None] | None = None
        self._crashes = plan.crashes
        self._expects: type[Exception] | tuple[type[Exception], ...] = ()
        self._actions, self._weights = zip(*((getattr(self, name), w) for name, w in plan.weights.items()), strict=True)
        self._names = plan.names()

    def tell(self, line: str) -> None:
        """Add a line to the trace."""
        self.trace.append(f"{self.loop.now * 1000:8.2f} ms  {line}")

    def _landed(self) -> None:
        self.checker.landed += 1

    # -- running -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Live through the whole plan; Violation when a rule is broken."""
        with self.loop:
            self._begin()
            for _ in range(self.plan.actions):
                self._happen()
                for _ in range(self.random.randrange(self.plan.pace)):
                    self._step()
            self._calm()

    def _step(self) -> None:
        if not self.loop.step():
            raise Violation("nothing is ready, and nothing will be: it hangs")
        self._reap()
        self.checker.step(self.life)

    def _happen(self) -> None:
        (action,) = self.random.choices(self._actions, self._weights)
        action()
        self.checker.step(self.life)

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        for _ in range(STEPS_MAX):
            if condition():
                return
            self._step()
        raise Violation(f"it does not end: {what}")

    def _calm(self) -> None:
        """End all faults, let everything come to rest, and check that; then once more after a restart."""
        self.network.faults.out.clear()
        self.network.faults.refused = self.network.faults.lost = 0.0
        self.tell("calm")
        self._rest()
        if self.plan.last_crash:
            self._end("crash at rest")
            self._begin()
            self._rest()

    def _rest(self) -> None:
        """Bring a life to rest; one that still ends of an earlier fault is followed by another."""
        for _ in range(PATIENCE):
            self._until(lambda: self.life is not None and self.life.ready() and not self.life.stopping, "start")
            life = self.life
            assert life is not None
            settling = self.loop.create_task(self._settle(life))
            tasks = [settling, *self._readers, *([self._operator] if self._operator else [])]
            self._until(lambda: life is not self.life or all(task.done() for task in tasks), "coming to rest")
            if life is self.life and not isinstance(settling.exception(), TRANSIENT):  # else it is about to end
                break
        settling.result()
        self.checker.quiet(life)
        if self.plan.exact_ledger:
            self.checker.ledger(life)

    async def _settle(self, life: Life) -> None:
        """Move what is dirty down, evict what is queued, commit."""
        for partition, lane in life.lanes.items():
            while life.marks[partition].end < len(self.log.of(TOPICS.memories, partition)):
                await asyncio.sleep(0.01)
            await lane.perform(lambda p=partition: self._drain(life, p))
            for _ in range(PATIENCE):  # dead letters may still be on their way
                if life.marks[partition].value == life.marks[partition].end:
                    break
                await asyncio.sleep(0.01)
            await life.commit.step()
            for _ in range(3):
                for tier in (TierName.WARM, TierName.COLD):
                    if life.index.queue.count(partition, tier):
                        await lane.perform(lambda p=partition, t=tier: life.mover.evict_queued(p, t, 100))
                await lane.perform(lambda p=partition: life.mover.compact(p, 100))
                if not len(life.index.queue):
                    break

    async def _drain(self, life: Life, partition: int) -> None:
        keys = [
            (name, entry.version)
            for name, p in self.model.partition.items()
            if p == partition and (entry := life.index.find(name)) is not None and entry.home == TierName.HOT
        ]
        await life.mover.move(partition, TierName.HOT, TierName.WARM, "drained", keys)

    # -- lives -------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self.epoch += 1
        self.tell(f"start of life {self.epoch}")
        self.life = Life(
            self.loop,
            self.network,
            self.log,
            self.stores,
            self.directory,
            epoch=self.epoch,
            hot_rows=self.plan.hot_rows,
            broken=self.broken,
        )
        self._running = self.loop.create_task(self.life.run())

    def _end(self, why: str) -> None:
        """The process dies here."""
        self.tell(f"{why}; committed {self.log.committed}")
        self.network.crash()
        self.loop.kill()
        self.log.forget_waiting()
        self.life, self._running, self._readers, self._operator = None, None, [], None

    def _reap(self) -> None:
        """See whether the process has ended by itself, and whether it was allowed to."""
        task = self._running
        if task is None or not task.done():
            return
        error = task.exception() if not task.cancelled() else None
        for one in _leaves(error):
            if not isinstance(one, (OutcomeUnknown, *TRANSIENT)) or not self.plan.faulty:
                self.tell(f"the process ended: {one!r}")
                raise Violation(f"R9: the process ended of {one!r}") from one
        self._end(f"the process ended: {error!r}" if error else "the process ended in order")
        self._begin()

    def crash(self) -> None:
        if self._crashes and self.life is not None:
            self._crashes -= 1
            self._end("crash")
            self._begin()

    def stop(self) -> None:
        if self.life is not None and self.life.serving:
            self.tell("asked to stop")
            self.life.stop()

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
        self._readers.append(self.loop.create_task(self._quietly(work)))

    async def _quietly(self, work: Coroutine[Any, Any, Any]) -> None:
        try:
            await work
        except TRANSIENT:
            pass

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
            self._readers = [task for task in self._readers if not task.done()]
            self._readers.append(self.loop.create_task(self._reading(life, query)))

    async def _reading(self, life: Life, query: Query) -> None:
        began_ms = self.log.now_ms()
        began = self.checker.window(life, began_ms)
        try:
            found = await read.retrieve(life.index, life.tiers, query, life.scanner, began_ms)
        except (TierUnavailable, InvalidRecord):
            return
        self.checker.read(life, began, began_ms, found.hits, query.ids, found.complete)

    def give_up(self) -> None:
        """A client goes away."""
        under_way = [task for task in self._readers if not task.done()]
        if self._operator is not None and not self._operator.done() and self.random.random() < 0.3:
            under_way.append(self._operator)
        if under_way:
            self.random.choice(under_way).cancel()

    # -- operators ---------------------------------------------------------------------------------------------------

    def _operate(self, what: str, work: Callable[[Life], Coroutine[Any, Any, Any]]) -> None:
        life = self.life
        if life is not None and life.serving and (self._operator is None or self._operator.done()):
            self.tell(what)
            self._operator = self.loop.create_task(self._quietly(work(life)))

    def clear(self) -> None:
        tier = self.random.choice(list(TierName))
        self._operate(f"clear {tier.word}", lambda life: life.clearing.clear(tier))

    def clean(self) -> None:
        self._operate("cleanup", lambda life: life.clearing.cleanup())

    # -- faults ------------------------------------------------------------------------------------------------------

    def outage(self) -> None:
        out = self.network.faults.out
        where = self.random.choice([*BELOW, LOG])
        if where in out:
            self.tell(f"{where!r} is well again")
            del out[where]
        else:
            out[where] = "full" if where != LOG and self.random.random() < 0.5 else "down"
            self.tell(f"{where!r} is {out[where]}")

    def stop_valkey(self) -> None:
        self.tell("Valkey is killed")
        self.network.stop(TierName.WARM)


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


def _leaves(error: BaseException | None) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for one in error.exceptions for leaf in _leaves(one)]
    return [] if error is None else [error]


__all__ = ["IsothermError", "Violation", "World"]
