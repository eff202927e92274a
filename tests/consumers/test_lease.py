"""The lease against a real server: one owner a partition, growing epochs, and giving up before the server does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path

import pytest
from redis.asyncio import Redis

from consumers.lease import Lease
from pipeline.stack import Stack
from tests.valkey_server import ValkeyServer
from tiers import valkey
from tiers.errors import Fenced, TierUnavailable

TTL_S = 60.0


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[Redis]:
    """Connect as the tier does."""
    connected = valkey.connect(stack.redis, connections=4, timeout_ms=2_000)
    yield connected
    await connected.aclose()


@pytest.fixture
def clock() -> Clock:
    """Begin at some moment."""
    return Clock()


async def take(client: Redis, prefix: str, owner: str, *partitions: int, floor: int = 0, **more: object) -> Lease:
    """Take leases with the floor for all."""
    return await Lease.acquire(client, prefix, partitions, owner, dict.fromkeys(partitions, floor), TTL_S, **more)


async def pass_to(client: Redis, prefix: str, owner: str, partition: int) -> Lease:
    """Let the server's time to live run out, and another owner take the partition."""
    await client.delete(f"{{{prefix}:{partition}:lease}}")
    return await take(client, prefix, owner, partition)


async def test_epochs_grow(client: Redis, prefix: str) -> None:
    """Each new owner gets a higher epoch than all before, also after the one before gave up its lease."""
    epochs = []
    for owner in ("a", "b", "a"):
        lease = await take(client, prefix, owner, 3)
        epochs.append(lease.epochs[3])
        await lease.release()

    assert epochs == [1, 2, 3]


async def test_above_the_floor(client: Redis, prefix: str) -> None:
    """An epoch is above its floor (what the stores have seen), and a floor never lowers it."""
    first = await take(client, prefix, "a", 0, floor=41)
    second = await take(client, prefix, "a", 0, floor=7)

    assert (first.epochs, second.epochs) == ({0: 42}, {0: 43})


async def test_same_owner_takes_over(client: Redis, prefix: str) -> None:
    """A node that was killed and started again need not wait; what is left of its former life is fenced."""
    former = await take(client, prefix, "a", 0)

    await take(client, prefix, "a", 0)

    with pytest.raises(Fenced, match="no longer ours: epoch 1"):
        await former.renew()


async def test_another_owner_is_refused(client: Redis, prefix: str) -> None:
    """Who holds a partition is named with the time left; nothing stays taken, and no epoch is used up."""
    await take(client, prefix, "node-a", 1)

    with pytest.raises(Fenced, match=r"partition 1 is owned by 'node-a' for another (60|59)\.\d s"):
        await take(client, prefix, "node-b", 0, 1)

    assert (await take(client, prefix, "node-c", 0)).epochs == {0: 2}
    assert (await take(client, prefix, "node-a", 1)).epochs == {1: 2}


async def test_lost_lease_is_not_renewed(client: Redis, prefix: str) -> None:
    """A lease that ran out, or that another has, is not renewed, even when the owner's name is the same."""
    lease = await take(client, prefix, "a", 0)
    await client.delete(f"{{{prefix}:0:lease}}")
    with pytest.raises(Fenced):
        await lease.renew()

    other = await take(client, prefix, "b", 0)
    with pytest.raises(Fenced):
        await lease.renew()
    with pytest.raises(Fenced):
        lease.check(0)
    await lease.release()
    await other.renew()


async def test_good_for_its_time_from_before_it_was_sent(client: Redis, prefix: str, clock: Clock) -> None:
    """The time to live counts from before the request: what it took on the way is not added."""
    evalsha = client.connection_pool.get_connection

    async def slow() -> object:
        clock.now_s += 10
        return await evalsha()

    client.connection_pool.get_connection = slow  # type: ignore[method-assign]
    lease = await take(client, prefix, "a", 0, clock=clock)
    client.connection_pool.get_connection = evalsha  # type: ignore[method-assign]
    sent = 1_000.0

    clock.now_s = sent + TTL_S - 0.1
    lease.check(0)
    clock.now_s = sent + TTL_S
    with pytest.raises(Fenced, match=r"60\.0 s ago"):
        lease.check(0)

    await lease.renew()  # the server still has it
    lease.check(0)


async def test_not_ours(client: Redis, prefix: str) -> None:
    """A partition that was never taken, or was given up, does not pass the check."""
    lease = await take(client, prefix, "a", 0)

    with pytest.raises(Fenced, match="no lease for partition 1"):
        lease.check(1)
    await lease.release()
    await lease.release()
    with pytest.raises(Fenced, match="no lease for partition 0"):
        lease.check(0)


async def test_run_ends_the_process_when_the_lease_is_lost(client: Redis, prefix: str) -> None:
    """Renewing goes on by itself and raises as soon as another owner is found."""
    looks, renewed_twice = count(), asyncio.Event()

    def looked_at() -> float:
        if next(looks) == 3:  # one for the acquiring, two for renewals that were answered, and one more
            renewed_twice.set()
        return 1_000.0

    lease = await Lease.acquire(client, prefix, [0], "a", {}, 0.03, clock=looked_at)
    running = asyncio.ensure_future(lease.run(asyncio.Event()))
    await renewed_twice.wait()
    await pass_to(client, prefix, "b", 0)

    with pytest.raises(Fenced):
        await running


async def test_run_renews_once_more_when_stopped(client: Redis, prefix: str, clock: Clock) -> None:
    """Stopping renews a last time, so that what still finishes has the whole time to live for it."""
    lease = await take(client, prefix, "a", 0, clock=clock)
    stop = asyncio.Event()
    clock.now_s += TTL_S - 1
    stop.set()

    await lease.run(stop)

    clock.now_s += TTL_S - 1
    lease.check(0)


async def test_a_silent_server_is_borne_until_the_lease_is_over(tmp_path: Path, clock: Clock) -> None:
    """Without its server a node keeps the lease as long as it lasts and no longer; the lease outlives a `kill -9`."""
    with ValkeyServer(tmp_path) as server:
        client = valkey.connect(server.url, connections=2, timeout_ms=2_000)
        lease = await take(client, "p", "a", 0, 1, clock=clock)
        server.kill()

        await lease.renew()
        lease.check(0)
        clock.now_s += TTL_S
        with pytest.raises(Fenced):
            await lease.renew()
        await asyncio.to_thread(server.start)
        with pytest.raises(Fenced, match="owned by 'a'"):
            await take(client, "p", "b", 0)
        assert (await take(client, "p", "a", 0)).epochs == {0: 2}
        await client.aclose()


async def test_full_server_still_renews(tmp_path: Path) -> None:
    """A server at its maxmemory grants, renews and releases leases: memory is no reason to lose a partition."""
    with ValkeyServer(tmp_path, maxmemory="100kb") as server:
        client = valkey.connect(server.url, connections=2, timeout_ms=2_000)
        lease = await take(client, "p", "a", 0)
        await lease.renew()
        await lease.release()

        assert (await take(client, "p", "b", 0)).epochs == {0: 2}
        await client.aclose()


async def test_release_without_a_server(tmp_path: Path) -> None:
    """Giving up leases whose server is gone is no error: they run out by themselves. Taking them is one."""
    with ValkeyServer(tmp_path) as server:
        client = valkey.connect(server.url, connections=2, timeout_ms=2_000)
        lease = await take(client, "p", "a", 0)
        server.kill()

        await lease.release()

        with pytest.raises(TierUnavailable):
            await take(client, "p", "a", 0)
        await client.aclose()
