"""WarmMemory and a server that is unfit, full, killed, or whose replies are lost."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.asyncio.connection import Connection

from tests.tiers.warm_rows import PARTITIONS, SHAPE, at, batch, opened, row, rows, versions
from tests.valkey_server import Proxy, ValkeyServer
from tiers.errors import OutcomeUnknown, ServiceMissing, SettingsError, TierFull, TierUnavailable
from tiers.warm import WarmMemory
from tiers.warm_scripts import STORE, STORE_ON
from tiers.warm_settings import WarmSettings

#: How replies begin that a connection gets before any command of ours: one that repeats must be able to connect again.
HANDSHAKE = (b"%", b"+")


@pytest.fixture
def own(tmp_path: Path) -> Iterator[ValkeyServer]:
    """Run a server to kill or to break."""
    with ValkeyServer(tmp_path) as running:
        yield running


def calls(server: ValkeyServer) -> int:
    """How many script calls the server has executed."""
    with redis.Redis(port=server.port) as client:
        return int(client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"])


class TestOpen:
    @pytest.mark.parametrize(
        ("name", "value", "good"),
        [
            ("appendfsync", "everysec", "always"),
            ("maxmemory-policy", "allkeys-lru", "noeviction"),
            ("no-appendfsync-on-rewrite", "yes", "no"),
            ("appendonly", "no", "yes"),
        ],
    )
    async def test_refuses_what_is_not_durable(self, own: ValkeyServer, name: str, value: str, good: str) -> None:
        """A server that could lose an answered write is refused, with its address and the command that mends it."""
        with redis.Redis(port=own.port) as client:
            client.config_set(name, value)

            with pytest.raises(ServiceMissing, match=f"127.0.0.1:{own.port}.*redis-cli CONFIG SET {name} {good}"):
                await WarmMemory.open(WarmSettings(url=own.url), SHAPE, partitions=PARTITIONS)

    async def test_nothing_there(self, own: ValkeyServer) -> None:
        """Where nothing listens the message names the address and no password."""
        own.kill()
        settings = WarmSettings(url=f"redis://:secret@127.0.0.1:{own.port}/0")

        with pytest.raises(ServiceMissing, match=rf"127\.0\.0\.1:{own.port}") as caught:
            await WarmMemory.open(settings, SHAPE, partitions=PARTITIONS)
        assert "secret" not in str(caught.value)

    async def test_a_replica(self, own: ValkeyServer) -> None:
        """A replica is refused."""
        with redis.Redis(port=own.port) as client:
            client.replicaof("127.0.0.1", "1")

            with pytest.raises(ServiceMissing, match="replica"):
                await WarmMemory.open(WarmSettings(url=own.url), SHAPE, partitions=PARTITIONS)

    @pytest.mark.parametrize("wrong", [{"prefix": "a*"}, {"prefix": "{a"}, {"prefix": ""}, {"rows_per_call": 0}])
    def test_impossible_settings(self, wrong: dict[str, object]) -> None:
        """A setting that cannot work is refused before anything is opened."""
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            WarmSettings(**wrong)  # type: ignore[arg-type]


class TestFull:
    async def test_no_room_by_the_setting(self, own: ValkeyServer) -> None:
        """A batch for which there is no room is refused whole, before anything is sent."""
        settings = WarmSettings(url=own.url, bytes_limit=8_000_000, rows_per_call=10)
        async with opened(settings) as tier:
            await tier.store(rows(100))

            with pytest.raises(TierFull, match="no room"):
                await tier.store(rows(200, 2, b"x" * 100_000))

            assert {f"ns/{n}": 1 for n in range(100)} == await versions(tier)

    async def test_no_room_in_the_server(self, own: ValkeyServer) -> None:
        """A server at its maxmemory refuses the call whole; evicting and raising the epoch work still."""
        async with opened(WarmSettings(url=own.url, bytes_limit=2**40)) as tier:
            await tier.store(rows(100))
            with redis.Redis(port=own.port) as client:
                client.config_set("maxmemory", "1mb")

            with pytest.raises(TierFull, match="maxmemory"):
                await tier.store(rows(200, 2))

            assert {f"ns/{n}": 1 for n in range(100)} == await versions(tier)
            assert await tier.evict([at("ns/5")], None) == 1
            await tier.raise_epoch(0, 2)

    async def test_a_batch_begun_is_completed(self, own: ValkeyServer) -> None:
        """Later calls of a batch are let in past maxmemory, since its first rows could not be taken back."""
        async with opened(WarmSettings(url=own.url)) as tier:
            with redis.Redis(port=own.port) as client:
                client.config_set("maxmemory", "1mb")
            keys = [tier._keys.epochs(0)[0], tier._keys.row(0, "a")]
            value = b"IR" + bytes(6) + struct.pack("<q", 7)

            with pytest.raises(TierFull):
                await STORE.run(tier.client, keys, 1, value)
            assert b"" == await STORE_ON.run(tier.client, keys, 1, value)  # all rows were new
            assert struct.pack("<q", 7) == await STORE_ON.run(tier.client, keys, 1, value)

    async def test_batches_side_by_side_share_the_room(self, own: ValkeyServer) -> None:
        """Two batches that fit one by one, but not together, are not both let in."""
        limit = 30_000_000
        async with opened(WarmSettings(url=own.url, bytes_limit=limit)) as tier:
            large = [batch(*(row(f"{side}/{n}", 1, b"x" * 140_000) for n in range(100))) for side in "ab"]

            results = await asyncio.gather(*map(tier.store, large), return_exceptions=True)

            assert any(isinstance(result, TierFull) for result in results)
            assert (await tier.usage()).bytes < limit


class TestDurable:
    async def test_killed_server_keeps_what_it_answered(self, own: ValkeyServer) -> None:
        """Rows and epochs that were answered are there after `kill -9`; the same client goes on by itself."""
        async with opened(WarmSettings(url=own.url), epoch=3) as tier:
            await tier.store(rows(1_000))
            await tier.evict([at("ns/9")], None)
            own.kill()
            with pytest.raises(TierUnavailable):
                await tier.store(rows(1, 2))
            with pytest.raises(TierUnavailable):
                await tier.get([at("ns/1")])
            own.start()

            assert {f"ns/{n}": 1 for n in range(1_000) if n != 9} == await versions(tier)
            assert dict.fromkeys(range(PARTITIONS), 3) == await tier.epochs()
            assert (await tier.store(rows(1, 2))).held[0] == 2

    async def test_restarted_server_is_not_an_unknown_outcome(self, own: ValkeyServer) -> None:
        """Connections that died with the server are replaced before a write is sent."""
        async with opened(WarmSettings(url=own.url)) as tier:
            await asyncio.gather(*(tier.store(rows(50, n)) for n in range(1, 9)))
            own.kill()
            await asyncio.to_thread(own.start)  # the loop goes on, as it would

            await asyncio.gather(*(tier.store(rows(50, n)) for n in range(11, 19)))

            assert {18} == set((await versions(tier)).values())


class TestLostReply:
    async def test_outcome_unknown_and_sent_once(self, own: ValkeyServer) -> None:
        """A write whose reply never comes was executed once; nobody repeats it, and the caller is told."""
        async with (
            Proxy(own.port) as proxy,
            opened(WarmSettings(url=proxy.url, timeout_ms=300, write_timeout_ms=300)) as tier,
        ):
            before = calls(own)

            async def until_written(reply: bytes) -> bool:
                return calls(own) == before or reply[:1] in HANDSHAKE

            proxy.let_through = until_written

            with pytest.raises(OutcomeUnknown, match="did not answer a EVALSHA"):
                await tier.store(rows(1))
            with pytest.raises(TierUnavailable):  # a read has no outcome to be unknown
                await tier.get([at("ns/0")])
            assert before + 1 == calls(own)

    async def test_a_connection_closed_under_the_client_is_no_bug(
        self, own: ValkeyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Uvloop says so in a RuntimeError: a write has an unknown outcome, a read none."""
        sends = Connection.send_packed_command

        async def closed(self: Connection, command: object, *given: object, **more: object) -> None:
            if any(name in b"".join(command) for name in (b"EVALSHA", b"MGET")):
                raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")
            await sends(self, command, *given, **more)

        async with opened(WarmSettings(url=own.url)) as tier:
            with monkeypatch.context() as patch:
                patch.setattr(Connection, "send_packed_command", closed)
                with pytest.raises(OutcomeUnknown, match="did not answer a EVALSHA"):
                    await tier.store(rows(1))
                with pytest.raises(TierUnavailable, match="handler is closed"):
                    await tier.get([at("ns/0")])

    async def test_a_server_that_hangs_for_a_while_costs_no_outcome(self, own: ValkeyServer) -> None:
        """A write waits longer for its answer than a read: what was sent has an outcome, and the server tells it."""
        async with Proxy(own.port) as proxy, opened(WarmSettings(url=proxy.url, timeout_ms=1_500)) as tier:
            reached, go_on = asyncio.Event(), asyncio.Event()

            async def hold(_: bytes) -> bool:
                reached.set()
                return await go_on.wait()

            proxy.let_through = hold
            storing = asyncio.ensure_future(tier._put(rows(200)))
            await reached.wait()
            for _ in range(2):
                with pytest.raises(TierUnavailable):
                    await tier.get([at("ns/0")])
            assert not storing.done()
            go_on.set()

            assert {1} == set((await storing).tolist())
            assert 200 == len(await versions(tier))

    async def test_the_client_repeats_nothing(self, own: ValkeyServer) -> None:
        """Whoever uses the tier's client directly has a request sent once, too."""
        async with Proxy(own.port) as proxy, opened(WarmSettings(url=proxy.url, timeout_ms=300)) as tier:
            with redis.Redis(port=own.port) as client:

                async def handshake_only(reply: bytes) -> bool:
                    return reply[:1] in HANDSHAKE

                proxy.let_through = handshake_only
                with pytest.raises(redis.TimeoutError):
                    await tier.client.incr("counter")
                assert b"1" == client.get("counter")

    async def test_refused_within_a_batch(self, own: ValkeyServer) -> None:
        """A server that refuses after the first call of a batch leaves an unknown outcome: a part is stored."""
        async with Proxy(own.port) as proxy, opened(WarmSettings(url=proxy.url, rows_per_call=1)) as tier:
            before = calls(own)

            async def demote_after_one(_: bytes) -> bool:
                if calls(own) == before + 1:
                    with redis.Redis(port=own.port) as client:
                        client.replicaof("127.0.0.1", "1")
                return True

            proxy.let_through = demote_after_one

            with pytest.raises(OutcomeUnknown, match=r"only a part.*READONLY"):
                await tier.store(rows(8))
            with pytest.raises(TierUnavailable, match="READONLY"):
                await tier.store(rows(8))

    async def test_cancelled_caller_mixes_no_replies(self, own: ValkeyServer) -> None:
        """After a read was cancelled with its reply on the way, the next read gets its own reply."""
        async with Proxy(own.port) as proxy, opened(WarmSettings(url=proxy.url, connections=1)) as tier:
            await tier.store(rows(2))
            reached, go_on = asyncio.Event(), asyncio.Event()

            async def hold(_: bytes) -> bool:
                reached.set()
                return await go_on.wait()

            proxy.let_through = hold
            reading = asyncio.ensure_future(tier.get([at("ns/0")]))
            await reached.wait()
            reading.cancel()
            go_on.set()

            assert [each.id for each in await tier.get([at("ns/1")]) if each] == ["ns/1"]
