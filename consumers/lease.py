"""Who owns a partition: one lease each in warm's Redis, with an epoch that grows with every new owner (R4a).

    {prefix:partition:lease}          the owner's id; gone when its time to live is over
    {prefix:partition:lease}:epoch    the epoch of the last owner; stays

The lease keeps two nodes from working at the same partition; it is the epoch, checked by the stores themselves, that
makes it safe when they do all the same (a paused node that wakes up). The lease is counted from *before* its renewal
was sent, by this node's monotonic clock, so that this node always gives it up before the server does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import structlog
from redis.asyncio import Redis

from tiers import failpoint, valkey
from tiers.errors import Fenced, OutcomeUnknown, TierUnavailable
from tiers.valkey import Script

log = structlog.get_logger()

RENEWALS_PER_TTL = 3
#: Counts the time a suspended machine sleeps, where the system has such a clock: the server counts it too.
CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now_s() -> float:
    """Return a time in seconds that only grows."""
    return time.clock_gettime(CLOCK)


#: KEYS: owner, epoch. ARGV: owner, floor, ms to live. Returns {epoch} if granted, else {present owner, its ms left}.
ACQUIRE = Script("""#!lua flags=allow-oom
local present = redis.call('GET', KEYS[1])
if present and present ~= ARGV[1] then return {present, redis.call('PTTL', KEYS[1])} end
local epoch = math.max(tonumber(redis.call('GET', KEYS[2]) or '0'), tonumber(ARGV[2])) + 1
redis.call('SET', KEYS[2], string.format('%d', epoch))
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
return {epoch}
""")

_MINE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] or redis.call('GET', KEYS[2]) ~= ARGV[2] then return 0 end
"""

#: KEYS: owner, epoch. ARGV: owner, its epoch, ms to live. Returns 1 if still held, else 0.
RENEW = Script(f"#!lua flags=allow-oom{_MINE}return redis.call('PEXPIRE', KEYS[1], ARGV[3])")
#: KEYS: owner, epoch. ARGV: owner, its epoch. Returns 1 if it was still held, else 0.
RELEASE = Script(f"#!lua flags=allow-oom{_MINE}return redis.call('DEL', KEYS[1])")


class Lease:
    """The leases of one node; `epochs` by partition. `run` renews them, `check` says whether they still hold."""

    name = "lease"

    def __init__(self, client: Redis, prefix: str, owner: str, ttl_s: float, clock: Callable[[], float]) -> None:
        self.epochs: dict[int, int] = {}
        self._client, self._prefix, self._owner, self._ttl_s, self._clock = client, prefix, owner, ttl_s, clock
        self._renewed: dict[int, float] = {}

    @classmethod
    async def acquire(
        cls,
        client: Redis,
        prefix: str,
        partitions: Sequence[int],
        owner: str,
        floor_by_partition: Mapping[int, int],
        ttl_s: float,
        *,
        clock: Callable[[], float] = now_s,
    ) -> Lease:
        """Take all the leases or none; an epoch is above its floor and above every epoch given out before.

        The same owner, started again, takes over at once. Fenced names who holds a partition, and for how long.
        """
        lease = cls(client, prefix, owner, ttl_s, clock)
        try:
            for partition in partitions:
                await lease._take(partition, floor_by_partition.get(partition, 0))
        except BaseException:
            await lease.release()
            raise
        log.info("lease.acquired", owner=owner, epochs=lease.epochs)
        return lease

    async def _take(self, partition: int, floor: int) -> None:
        sent = self._clock()
        reply = await ACQUIRE.run(self._client, self._keys(partition), self._owner, floor, self._ttl_ms)
        if len(reply) > 1:
            raise Fenced(
                f"partition {partition} is owned by {reply[0].decode()!r} for another {reply[1] / 1000:.1f} s "
                f"(lease in {valkey.address(self._client)}); stop that node, or give this one other partitions"
            )
        self.epochs[partition], self._renewed[partition] = int(reply[0]), sent
        failpoint.reach("lease.taken")

    @property
    def _ttl_ms(self) -> int:
        return int(self._ttl_s * 1000)

    def _keys(self, partition: int) -> list[bytes]:
        owner = f"{{{self._prefix}:{partition}:lease}}".encode()
        return [owner, owner + b":epoch"]

    def check(self, partition: int) -> None:
        """Raise Fenced unless this node surely holds the partition now. No I/O: asked before every commit."""
        if partition not in self._renewed:
            raise Fenced(f"this node holds no lease for partition {partition}")
        age_s = self._clock() - self._renewed[partition]
        if age_s >= self._ttl_s:
            raise Fenced(f"the lease of partition {partition} was renewed {age_s:.1f} s ago and lasts {self._ttl_s} s")

    def ages_s(self) -> dict[int, float]:
        """Return the seconds since each lease was renewed."""
        now = self._clock()
        return {partition: now - renewed for partition, renewed in self._renewed.items()}

    async def renew(self) -> None:
        """Renew every lease. Fenced when one has passed to another owner, or has run out.

        A server that does not answer is asked again at the next turn, until the lease has run out: renewing twice, or
        late, does no harm, because the script looks at owner and epoch.
        """
        try:
            for partition, epoch in self.epochs.items():
                sent = self._clock()
                if not await RENEW.run(self._client, self._keys(partition), self._owner, epoch, self._ttl_ms):
                    self._renewed.pop(partition, None)
                    raise Fenced(f"partition {partition} is no longer ours: epoch {epoch} of {self._owner!r} is over")
                self._renewed[partition] = sent
            failpoint.reach("lease.renewed")
        except (TierUnavailable, OutcomeUnknown) as error:
            for partition in self.epochs:
                self.check(partition)
            log.warning("lease.not_renewed", error=str(error))

    async def run(self, stop: asyncio.Event) -> None:
        """Renew until stopped, and once more then, for those that still finish; Fenced once a lease is lost."""
        while True:
            stopping = stop.is_set()
            await self.renew()
            if stopping:
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), self._ttl_s / RENEWALS_PER_TTL)

    async def release(self) -> None:
        """Give up what is still held, so that the next owner need not wait; twice is fine.

        A server that does not answer is no error here: the leases run out by themselves.
        """
        self._renewed.clear()
        failpoint.reach("lease.ended")
        epochs, self.epochs = self.epochs, {}
        try:
            for partition, epoch in epochs.items():
                await RELEASE.run(self._client, self._keys(partition), self._owner, epoch)
        except (TierUnavailable, OutcomeUnknown) as error:
            log.warning("lease.not_released", error=str(error))
