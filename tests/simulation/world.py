"""One seed: the lives of a node, with what happens around them.

Between any two callbacks of the loop something may happen, and everything is checked. `run` ends when it has happened
often enough and all is quiet, or raises the Violation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from random import Random
from typing import Any

from consumers.lane import Lane
from tests.simulation import ledger
from tests.simulation.acts import TRANSIENT, Acts
from tests.simulation.checker import Checker, Violation
from tests.simulation.disk import Directory
from tests.simulation.life import BELOW, Life
from tests.simulation.log import TOPICS, Log
from tests.simulation.loop import Loop
from tests.simulation.model import Model
from tests.simulation.network import Network
from tests.simulation.plan import Plan
from tests.tiers.fake import Store
from tiers.errors import OutcomeUnknown
from tiers.tier import TierName

STEPS_MAX = 40_000  # callbacks of one seed: more means that it hangs
PATIENCE = 200  # looks, 10 virtual ms apart, at what ends by itself; a reader's poll may take 500


class World:
    """`trace` says what happened, one line an event. `broken` are rules that do not hold here, on purpose."""

    def __init__(self, plan: Plan, broken: frozenset[str] = frozenset()) -> None:
        self.plan, self.broken, self.trace = plan, broken, []
        self.random = Random(plan.seed)
        self.loop = Loop(self.random)
        self.model = Model(plan.partitions)
        self.log = Log(self.loop, plan.partitions, self.model.appended)
        self.stores = {tier: Store() for tier in BELOW}
        self.directory = Directory(plan.partitions)
        self.network = Network(self.loop, plan.faults(), self.tell)
        self.network.faults.retry = "no retries" in broken
        self.checker = Checker(self.model, self.log, self.stores)
        self.network.landed = self.checker.changed
        self.life: Life | None = None
        self.clients: list[asyncio.Task[None]] = []  # those of this life
        self._acts = Acts(self)
        self._epoch = 0
        self._running: asyncio.Task[None] | None = None
        self.doomed = False  # to die with a write on its way

    def tell(self, line: str) -> None:
        """Add a line to the trace."""
        self.trace.append(f"{self.loop.now * 1000:8.2f} ms  {line}")

    def client(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin what someone asks of this life."""
        task = self.loop.create_task(work)
        self.clients.append(task)
        return task

    # -- running -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Live through the whole plan; Violation when a rule is broken."""
        with self.loop:
            self._begin()
            for act, pace in self._chosen():
                act()
                self.checker.step(self.life)
                for _ in range(self.random.randrange(pace)):
                    self._step()
            self._calm()

    def _chosen(self) -> Iterator[tuple[Callable[[], None], int]]:
        """Yield what happens, one after another, and below how many steps follow."""
        for word in self.plan.script.split():
            name, _, pace = word.partition(":")
            yield getattr(self._acts, name), int(pace) if pace else self.plan.pace
        names, weights = list(self.plan.weights), list(self.plan.weights.values())
        for _ in range(0 if self.plan.script else self.plan.actions):
            yield getattr(self._acts, self.random.choices(names, weights)[0]), self.plan.pace

    def _step(self) -> None:
        if not self.loop.step():
            raise Violation("nothing is ready, and nothing will be: it hangs")
        self._reap()
        if self.doomed and self.network.writing and self.random.random() < 0.4:
            self.crash("crash")
        self.checker.step(self.life)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Go on until a condition holds."""
        for _ in range(STEPS_MAX):
            if condition():
                return
            self._step()
        raise Violation(f"it does not end: {what}")

    # -- lives -------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._epoch += 1
        self.tell(f"start of life {self._epoch}")
        self.life = Life(
            self.loop,
            self.network,
            self.log,
            self.stores,
            self.directory,
            epoch=self._epoch,
            hot_rows=self.plan.hot_rows,
            slow_device=self.plan.slow_device,
            broken=self.broken,
        )
        self._running = self.loop.create_task(self.life.run())

    def crash(self, why: str) -> None:
        """End the process here, and start the next."""
        self.tell(f"{why}; committed {self.log.committed}")
        self.network.crash()
        self.loop.kill()
        self.log.forget_waiting()
        self.clients, self.doomed = [], False
        self._begin()

    def _reap(self) -> None:
        """See whether something has ended by itself, and whether it was allowed to."""
        ended = [task for task in self.clients if task.done()]
        for task in ended:
            self.clients.remove(task)
            if not task.cancelled():
                task.result()
        task = self._running
        if task is None or not task.done():
            return
        error = task.exception() if not task.cancelled() else None
        for one in _leaves(error):
            if not isinstance(one, (OutcomeUnknown, *TRANSIENT)) or not self.plan.faulty:
                raise Violation(f"R9: the process ended of {one!r}") from one
        self.crash(f"the process ended: {error!r}" if error else "the process ended in order")

    # -- coming to rest ----------------------------------------------------------------------------------------------

    def _calm(self) -> None:
        """End all faults, let everything come to rest, and check that; then once more after a restart."""
        self.network.faults.out.clear()
        self.network.faults.refused = self.network.faults.lost = 0.0
        self.doomed = False
        self.tell("calm")
        self._rest()
        if self.plan.last_crash:
            self.crash("crash at rest")
            self._rest()

    def _rest(self) -> None:
        """Bring a life to rest; one that still ends of an earlier fault is followed by another."""
        for _ in range(PATIENCE):
            self.until(lambda: self.life is not None and self.life.ready() and not self.life.stopping, "start")
            life = self.life
            assert life is not None
            if self._settled(life):
                break
        self.checker.quiet(life)
        if self.plan.exact_ledger:
            ledger.check(life, self.log, self.model)

    def _settled(self, life: Life) -> bool:
        """Say whether this life came to rest, rather than to an end."""
        settling = self.loop.create_task(self._settle(life))
        self.until(lambda: life is not self.life or (settling.done() and not self.clients), "coming to rest")
        if life is not self.life or isinstance(settling.exception(), TRANSIENT):
            return False
        settling.result()
        return True

    async def _settle(self, life: Life) -> None:
        """Move what is dirty down, evict what is queued, commit; again while advice on its way has made more of it."""
        for _ in range(3):
            for partition, lane in life.lanes.items():
                await self._settle_one(life, partition, lane)
            if not len(life.index.queue):
                break

    async def _settle_one(self, life: Life, partition: int, lane: Lane) -> None:
        await self._patiently(lambda: life.marks[partition].end >= len(self.log.of(TOPICS.memories, partition)))
        await lane.perform(lambda: self._drain(life, partition))
        await self._patiently(lambda: life.marks[partition].value == life.marks[partition].end)
        await life.commit.step()
        for _ in range(3):
            for tier in (TierName.WARM, TierName.COLD):
                if life.index.queue.count(partition, tier):
                    await lane.perform(lambda t=tier: life.mover.evict_queued(partition, t, 100))
            await lane.perform(lambda: life.mover.compact(partition, 100))
            if not len(life.index.queue):
                break

    async def _patiently(self, condition: Callable[[], bool]) -> None:
        """Wait for what is on its way: messages to be read, dead letters to be written."""
        for _ in range(PATIENCE):
            if condition():
                return
            await asyncio.sleep(0.01)

    async def _drain(self, life: Life, partition: int) -> None:
        keys = [
            (name, entry.version)
            for name, p in self.model.partition.items()
            if p == partition and (entry := life.index.find(name)) is not None and entry.home == TierName.HOT
        ]
        await life.mover.move(partition, TierName.HOT, TierName.WARM, "drained", keys)


def _leaves(error: BaseException | None) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for one in error.exceptions for leaf in _leaves(one)]
    return [] if error is None else [error]
