"""One partition's world in memory: a log, hot, three fake tiers, the product's index, ingest and mover.

Coroutines are driven by hand, a suspension at a time; between any two the rules that hold always are checked:

- every live id of what was ingested lies somewhere at its newest version (R1, "never in none");
- the home that the index shows is physically there;
- every other row below hot is queued, every other row in hot is the copy that the index shows (R3);
- below the watermark nothing depends on the log (R1, R2).

`crash` ends the life: what is in memory is gone, the fake tiers, the log and the committed offset stay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import Any, NamedTuple

from consumers.demote import MoveSettings
from consumers.ingest import Ingest
from consumers.lane import Lane
from consumers.mover import Mover
from consumers.promote import Promotion
from consumers.watermark import Watermark
from producers import events
from producers.changes import Changes
from producers.decoder import EventDecoder
from producers.events import Message, Topics
from producers.publisher import Position
from tests.tiers.fake import FakeTier, Store, moment
from tests.tiers.rows import ATTRIBUTES, DIM, NOW_MS, SHAPE, vector_of
from tiers import record
from tiers.copies import Told
from tiers.device import HostDevice
from tiers.hot import HotMemory, HotSettings
from tiers.index import Index
from tiers.policy import PolicySettings
from tiers.rebuild import load
from tiers.segment import NO_COPY
from tiers.tier import NO_SLOT, TierName

P = 0  # the partition
BELOW = (TierName.WARM, TierName.COLD, TierName.GLACIER)
TOPICS = Topics.under("t")
LONG = 10_000  # suspensions; a coroutine that takes more hangs

Coro = Coroutine[Any, Any, Any]


class Logged(NamedTuple):
    """An upsert, a delete, or a delete that counts while the version at an offset is the newest."""

    name: str
    deleted: bool
    if_offset: int | None = None


class Confirmed:
    """The answer of the broker: awaited, it suspends once before it is there."""

    def __init__(self, answer: Position, trace: list[str]) -> None:
        self._answer, self._trace = answer, trace

    def __await__(self) -> Generator[None, None, Position]:
        self._trace.append("publish.answered")
        yield
        return self._answer


class FakePublisher:
    """Keeps what was sent, by topic, as (key, value, headers)."""

    def __init__(self, trace: list[str]) -> None:
        self.sent: dict[str, list[tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]]] = {}
        self.insisted: set[str] = set()  # topics with a message that its sender would wait for without end
        self._trace = trace

    async def enqueue(self, topic, value, key=None, partition=None, headers=(), *, insist=False) -> Confirmed:
        """See producers.publisher."""
        assert not (key is None and value is None), "aiokafka sends no message without key and value"
        self.insisted |= {topic} if insist else set()
        self._trace.append("publish.sent")
        await moment()
        self.sent.setdefault(topic, []).append((key, value, list(headers)))
        return Confirmed(Position(P if partition is None else partition, len(self.sent[topic]) - 1), self._trace)

    async def send(self, topic, value, key=None, partition=None, headers=()) -> Position:
        """See producers.publisher."""
        return await (await self.enqueue(topic, value, key, partition, headers))

    def changes(self) -> list[events.Change]:
        """Return what was announced."""
        return [events.decode_change(value) for _, value, _ in self.sent.get(TOPICS.changes, ())]


class World:
    """One life. `committed` is what the broker has, `acknowledged` what this life knows of it."""

    def __init__(
        self,
        *,
        hot_rows: int = 64,
        log: list[Logged] | None = None,
        stores: dict[TierName, Store] | None = None,
        committed: int = 0,
    ) -> None:
        self.log = log if log is not None else []
        self.stores = stores if stores is not None else {tier: Store() for tier in BELOW}
        self.committed = self.acknowledged = committed
        self.trace: list[str] = []
        self.publisher = FakePublisher(self.trace)
        self.index = Index(DIM)
        settings = HotSettings(device="cpu", capacity_rows=hot_rows, slab_rows=4)
        self.hot = HotMemory(settings, SHAPE, partitions=1, index=self.index, device=HostDevice())
        self.below = {
            tier: FakeTier(tier, SHAPE, partitions=1, index=self.index, store=self.stores[tier], trace=self.trace)
            for tier in BELOW
        }
        self.marks = {P: Watermark(committed)}
        self.changes = Changes(self.publisher, TOPICS.changes, lambda: NOW_MS)
        self.ingest = Ingest(
            EventDecoder(DIM, ATTRIBUTES),
            SHAPE,
            self.hot,
            self.index,
            self.publisher,
            TOPICS,
            self.changes,
            epoch=0,
            partitions=1,
            watermarks=self.marks,
            now_ms=lambda: NOW_MS,
        )
        tiers = {TierName.HOT: self.hot, **self.below}
        self.now_ms = NOW_MS
        self.lane = Lane(P, 64)
        self.rules = PolicySettings(promote_heat_min=4.0, promote_margin=1.5, copy_heat_min=1.0)
        self.promotion = Promotion(
            MoveSettings(), self.rules, self.index, self.hot, tiers, self.changes, {P: self.lane}, lambda: self.now_ms
        )
        self.mover = Mover(
            self.index,
            tiers,
            self.changes,
            SHAPE,
            self.marks,
            lambda _: self.version(self.acknowledged),
            self.promotion.keep,
        )

    # -- what happens ------------------------------------------------------------------------------------------------

    def produce(self, *ids: str) -> None:
        """Append upserts to the log; "-a" deletes a, "-a?3" if its newest version is the one at offset 3."""
        for text in ids:
            name, _, if_offset = text.removeprefix("-").partition("?")
            self.log.append(Logged(name, text.startswith("-"), int(if_offset) if if_offset else None))

    def version(self, offset: int) -> int:
        """Return the version of the event at an offset."""
        return record.pack_version(0, offset)

    def messages(self, start: int, end: int) -> list[Message]:
        """Return the log's messages of these offsets."""
        return [self._message(offset) for offset in range(start, end)]

    def _message(self, offset: int) -> Message:
        name, deleted, if_offset = self.log[offset]
        value = None if deleted else events.encode_event(vector_of(name, self.version(offset)), {"at": offset})
        headers = () if if_offset is None else events.condition_headers("t", "x", self.version(if_offset))
        return Message(name.encode(), value, headers, NOW_MS, offset)

    def take(self, *ids: str) -> None:
        """Produce and ingest at once."""
        self.produce(*ids)
        self.replay()

    def replay(self) -> None:
        """Ingest what the log holds."""
        if self.ingest.applied(P) < len(self.log):
            self.finish(self.ingest.apply(P, self.messages(self.ingest.applied(P), len(self.log))))

    def move(self, source: TierName, target: TierName, *ids: str) -> Coro:
        """Return the move of these ids at their newest version."""
        keys = [(name, self.index.find(name).version) for name in ids]
        return self.mover.move(P, source, target, "test", keys)

    def read(self, name: str, times: int = 5) -> None:
        """Take note of reads of an id, as the access topic brings them."""
        self.index.touch([name], [times], [self.now_ms], self.rules.heat_half_life_s * 1000)

    def promote(self, *ids: str) -> Coro:
        """Return the promotion of these ids, read often."""
        for name in ids:
            self.read(name)
        return self.promotion.promote(P, ids)

    def told(self) -> list[Told]:
        """Return what has not been announced of copies."""
        return list(self.hot.copies.told[P])

    def commit(self) -> None:
        """Commit the watermark, and get the answer."""
        self.committed = self.acknowledged = self.marks[P].value

    def evict_all(self) -> None:
        """Let the lane evict what is queued in warm and cold."""
        for tier in (TierName.WARM, TierName.COLD):
            self.finish(self.mover.evict_queued(P, tier, 100))

    def crash(self) -> World:
        """Return the next life: rebuilt from the tiers, with the committed offset read, not yet replayed."""
        life = World(log=self.log, stores=self.stores, committed=self.committed)
        for tier in BELOW:
            life.finish(load(life.index, life.below[tier], 1, NOW_MS), check=False)
        life.trace.clear()
        return life

    # -- driving -----------------------------------------------------------------------------------------------------

    def finish(self, coro: Coro, *, check: bool = True, between: Callable[[], None] | None = None) -> Any:
        """Drive a coroutine to its end; after every suspension run `between`, and check."""
        for _ in range(LONG):
            try:
                coro.send(None)
            except StopIteration as done:
                if check:
                    self.check()
                return done.value
            if between is not None:
                between()
            if check:
                self.check()
        raise AssertionError("it does not end")

    def until(self, coro: Coro, step: int) -> bool:
        """Drive a coroutine to its suspension number `step`; False when it ended before."""
        for _ in range(step + 1):
            try:
                coro.send(None)
            except StopIteration:
                return False
            self.check()
        return True

    def stop(self, coro: Coro, error: BaseException) -> None:
        """Throw an error into a coroutine where it is suspended; it must come out."""
        try:
            coro.throw(error)
        except type(error):
            self.check()
            return
        raise AssertionError(f"{error!r} was swallowed")

    def cancel(self, coro: Coro) -> None:
        """Cancel a coroutine where it is suspended."""
        self.stop(coro, asyncio.CancelledError())

    # -- looking -----------------------------------------------------------------------------------------------------

    def physical(self) -> set[tuple[TierName, str, int, int]]:
        """Return (tier, id, version, slot) of every row below hot."""
        return {(tier, *row) for tier in BELOW for row in self.below[tier].physical()}

    def in_hot(self) -> set[tuple[str, int, int]]:
        """Return (id, version, slot) of every visible row in hot."""
        rows: Sequence[Any] = self.finish(_listed(self.hot), check=False)
        return {
            row
            for batch in rows
            for row in zip(*(batch[n].to_pylist() for n in ("id", "version", "slot")), strict=True)
        }

    def where(self, name: str) -> list[str]:
        """Return the tiers that hold a row of the id, hot first, one word a row."""
        hot = ["hot" for row in self.in_hot() if row[0] == name]
        return hot + sorted(
            (t.word for t, n, _, _ in self.physical() if n == name), key=["warm", "cold", "glacier"].index
        )

    def newest(self, applied: int) -> dict[str, tuple[int, bool]]:
        """Return (version, deleted) of each id by the log up to an offset: the model."""
        found: dict[str, tuple[int, bool]] = {}
        for at, (name, deleted, if_offset) in enumerate(self.log[:applied]):
            if if_offset is None or found.get(name, (-1,))[0] == self.version(if_offset):
                found[name] = (self.version(at), deleted)
        return found

    def check(self) -> None:
        """Assert the rules that hold between any two steps."""
        physical, hot = self.physical(), self.in_hot()
        keys = {(n, v) for _, n, v, _ in physical} | {(n, v) for n, v, _ in hot}
        applied, mark = self.ingest.applied(P), self.marks[P].value
        for name, (version, deleted) in self.newest(applied).items():
            newest = [v for n, v in keys if n == name and v >= version]
            older = [v for n, v in keys if n == name and v < version]
            assert newest or (deleted and not older), f"{name} lies nowhere, or a deletion was forgotten"
            below = any(n == name and v >= version for _, n, v, _ in physical)
            dropped = deleted and not newest
            in_log = record.unpack_version(version)[1] >= mark
            assert below or dropped or in_log, f"{name} is neither durable nor in the log"
        homes = {row for name in {event.name for event in self.log} for row in self._home(name, physical, hot)}
        shown = {row[1]: row[2] for row in homes}
        for name, version in shown.items():
            assert max(v for n, v in keys if n == name) == version, f"the index shows an old version of {name}"
        queued = {(k.tier, k.id, k.version, self._now(k.tier, k.slot)) for n, _ in keys for k in self.index.queue.of(n)}
        for row in physical - homes:
            assert {row, (*row[:3], NO_SLOT)} & queued, f"nobody knows of {row}"
        self._check_copies(hot)

    def _check_copies(self, hot: set[tuple[str, int, int]]) -> None:
        """Assert that what is in hot without being at home there is the copy that the index shows, and bounded."""
        copies = {row for row in hot if not self._at_home(row)}
        entries = [self.index.find(name) for name in {event.name for event in self.log}]
        shown = {(e.id, e.version, e.copy) for e in entries if e is not None and e.copy != NO_COPY}
        assert copies == shown, f"copies {copies}, but the index shows {shown}"
        assert not any(e.deleted or e.home == TierName.HOT for e in entries if e is not None and e.copy != NO_COPY)
        assert len(copies) == len(self.hot.copies) <= self.hot.copies.rows_max

    def _at_home(self, row: tuple[str, int, int]) -> bool:
        entry = self.index.find(row[0])
        return entry is not None and (entry.home, entry.version, entry.slot) == (TierName.HOT, *row[1:])

    def _home(self, name: str, physical: set[Any], hot: set[Any]) -> list[tuple[TierName, str, int, int]]:
        """Return the home that the index shows, where its row lies by now, after asserting that it is there."""
        entry = self.index.find(name)
        if entry is None:
            return []
        home = (TierName(entry.home), name, entry.version, self._now(TierName(entry.home), entry.slot))
        if home[3] is None:
            assert entry.deleted, f"the home of {name} was dropped"
            return []
        assert home[1:] in hot if entry.home == TierName.HOT else home in physical, f"the home of {name} is not there"
        return [home]

    def _now(self, tier: TierName, slot: int) -> int | None:
        """Follow a slot through a rewrite that the index has not been told of yet (readers still find the old one)."""
        return self.below[tier].now(slot) if tier is TierName.GLACIER else slot

    def quiet(self) -> None:
        """Assert what holds when nothing is under way and all was evicted: one place an id, an empty queue."""
        self.check()
        rows = [row[0] for row in self.in_hot() if self._at_home(row)] + [name for _, name, _, _ in self.physical()]
        assert sorted(set(rows)) == sorted(rows), "an id lies in two places"
        assert [] == self.index.queue._groups, "a move that has ended left its groups"
        assert 0 == len(self.index.queue), (
            f"left in the queue: {[k for n in set(rows) for k in self.index.queue.of(n)]}"
        )


async def _listed(hot: HotMemory) -> list[Any]:
    return [batch async for batch in hot.retrieve_all()]
