"""WarmMemory against a real server: fences, versions, room, durability, and what is known when a reply is lost."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import redis

from pipeline.stack import Stack
from tests.valkey_server import Proxy, ValkeyServer
from tiers import record
from tiers.errors import Fenced, OutcomeUnknown, ServiceMissing, SettingsError, TierCorrupt, TierFull, TierUnavailable
from tiers.index import Index
from tiers.record import Row
from tiers.tier import Location, Query, TierName
from tiers.warm import WarmMemory, WarmSettings
from tiers.warm_scripts import STORE, STORE_ON

DIM, PARTITIONS = 8, 4
SHAPE = record.schema(DIM, {"user": "string", "score": "float", "seen": "timestamp"})


@pytest.fixture
def raw(stack: Stack) -> Iterator[redis.Redis]:
    """Look at the server past the tier."""
    with redis.Redis.from_url(stack.redis) as client:
        yield client


@pytest.fixture
def own(tmp_path: Path) -> Iterator[ValkeyServer]:
    """Run a server to kill or to break."""
    with ValkeyServer(tmp_path) as running:
        yield running


@pytest.fixture
def settings(stack: Stack, prefix: str) -> WarmSettings:
    """Cut batches into small calls, so that there are several."""
    return WarmSettings(url=stack.redis, prefix=prefix, buckets=2, rows_per_call=3)


@pytest.fixture
async def warm(settings: WarmSettings) -> AsyncIterator[WarmMemory]:
    """Open the tier as the system does: index shared, epochs raised by the owner."""
    async with opened(settings) as tier:
        yield tier


@asynccontextmanager
async def opened(settings: WarmSettings, epoch: int = 1) -> AsyncIterator[WarmMemory]:
    tier = await WarmMemory.open(settings, SHAPE, partitions=PARTITIONS, index=Index.of(SHAPE))
    try:
        for partition in range(PARTITIONS):
            await tier.raise_epoch(partition, epoch)
        yield tier
    finally:
        await tier.cleanup()


def row(identifier: str, version: int = 1, payload: bytes = b"{}", *, deleted: bool = False) -> Row:
    vector = None if deleted else np.full(DIM, 1 + len(identifier), np.float32)
    return Row(identifier, version, 1_700_000_000_000, None, vector, payload, {} if deleted else {"user": "u"}, deleted)


def batch(*rows: Row) -> pa.RecordBatch:
    return record.to_batch(rows, SHAPE)


def rows(number: int, version: int = 1, payload: bytes = b"{}") -> pa.RecordBatch:
    return batch(*(row(f"ns/{at}", version, payload) for at in range(number)))


def at(identifier: str, version: int = 1) -> Location:
    return Location(identifier, version, record.partition(identifier, PARTITIONS))


async def versions(tier: WarmMemory) -> dict[str, int]:
    """What the tier physically holds; fails when an id comes twice."""
    found = [pair async for part in tier.retrieve_all() for pair in pairs(part)]
    assert len(found) == len(dict(found))
    return dict(found)


def pairs(part: pa.RecordBatch) -> Sequence[tuple[str, int]]:
    return list(zip(part["id"].to_pylist(), part["version"].to_pylist(), strict=True))


class TestStore:
    async def test_returns_what_was_stored(self, warm: WarmMemory) -> None:
        """Every column comes back as it was: times, absent attributes, a tombstone's missing vector."""
        given = batch(
            row("a", 1),
            row("b", 2, b"\0\xff" * 70_000),
            row("ns/é}:*?[x]", 3, deleted=True),
            Row("d", 4, -5, 77, np.arange(1, DIM + 1, dtype=np.float32), b"", {"score": 0.5}),
        )

        receipt = await warm.store(given)
        found = await warm.get([at("a", 1), at("b", 2), at("ns/é}:*?[x]", 3), at("d", 4), at("absent")])

        assert receipt.held.tolist() == [1, 2, 3, 4]
        assert found.pop() is None
        assert given == record.to_batch([each for each in found if each], SHAPE)

    async def test_without_attributes(self, settings: WarmSettings) -> None:
        """A schema without attributes, which Arrow can hardly hold, is stored and read whole."""
        shape = record.schema(DIM, {})
        given = record.to_batch([Row("a", 1, 0, None, np.ones(DIM, np.float32), b"p")], shape)
        tier = await WarmMemory.open(settings, shape, partitions=PARTITIONS)

        await tier.store(given)
        everything = [part async for part in tier.retrieve_all()]
        await tier.cleanup()

        assert [given] == [part.drop_columns(["slot"]) for part in everything]

    @pytest.mark.parametrize("version", [1, 2**31, 2**32, 2**53, 2**53 + 2**32, 2**62, 2**63 - 2])
    async def test_versions_are_compared_exactly(self, warm: WarmMemory, version: int) -> None:
        """Neighbouring versions are told apart at every size, also where a double cannot."""
        held = []
        for each in (version, version - 1, version + 1, version):
            held += (await warm.store(batch(row("a", each)))).held.tolist()

        assert [version, version, version + 1, version + 1] == held
        assert {"a": version + 1} == await versions(warm)

    async def test_older_changes_nothing(self, warm: WarmMemory) -> None:
        """An older version is answered with a receipt that names the newer one; the value stays."""
        await warm.store(batch(row("a", 9, b"new")))

        receipt = await warm.store(batch(row("a", 8, b"old"), row("b", 8)))

        assert list(zip(receipt.versions.tolist(), receipt.held.tolist(), strict=True)) == [(8, 9), (8, 8)]
        assert [each.payload for each in await warm.get([at("a", 9)]) if each] == [b"new"]

    async def test_same_version_has_a_receipt(self, warm: WarmMemory) -> None:
        """Storing again what is there changes nothing and gives the same receipt."""
        first, second = await warm.store(rows(20)), await warm.store(rows(20))

        assert list(first.ids) == list(second.ids)
        assert first.held.tolist() == second.held.tolist()

    async def test_newest_of_a_batch(self, warm: WarmMemory) -> None:
        """Of several versions of an id in one batch the highest is stored, and the receipt has one line for it."""
        receipt = await warm.store(batch(row("a", 3), row("a", 5), row("b", 1), row("a", 4)))

        assert dict(zip(receipt.ids, receipt.held.tolist(), strict=True)) == {"a": 5, "b": 1}
        assert await versions(warm) == {"a": 5, "b": 1}

    async def test_queued_is_not_held(self, warm: WarmMemory) -> None:
        """A row that the mover queued before storing it is stored all the same."""
        warm.index.queue.add(TierName.WARM, at("a"))

        await warm.store(batch(row("a")))

        assert await versions(warm) == {"a": 1}

    async def test_agrees_with_a_dict(self, warm: WarmMemory) -> None:
        """Random batches and evictions leave what put-if-newer and drop-if-equal leave in a dict."""
        random = np.random.default_rng(7)
        model: dict[str, int] = {}
        for _ in range(60):
            picked = [(f"i{int(n)}", int(v)) for n, v in random.integers(1, 12, (random.integers(1, 30), 2))]
            if random.random() < 0.3:
                gone = dict(picked)
                dropped = {i for i, v in gone.items() if model.get(i) == v}
                assert len(dropped) == await warm.evict([at(i, v) for i, v in gone.items()], None)
                model = {i: v for i, v in model.items() if i not in dropped}
                continue
            receipt = await warm.store(batch(*(row(i, v) for i, v in picked)))
            for identifier, version in picked:
                model[identifier] = max(version, model.get(identifier, 0))
            assert [model[i] for i in receipt.ids] == receipt.held.tolist()

        assert model == await versions(warm)

    async def test_script_flushed(self, warm: WarmMemory, raw: redis.Redis) -> None:
        """A server that has forgotten the scripts is told them again."""
        raw.script_flush()

        await warm.store(rows(5))

        assert len(await versions(warm)) == 5


class TestEvict:
    async def test_another_version_drops_nothing(self, warm: WarmMemory) -> None:
        """Evicting an older or newer version than the one held drops nothing."""
        await warm.store(batch(row("a", 2**53 + 1)))

        assert await warm.evict([at("a", 2**53), at("a", 2**53 + 2), at("b", 1)], None) == 0
        assert await versions(warm) == {"a": 2**53 + 1}

    async def test_drops_exactly_these(self, warm: WarmMemory) -> None:
        """Evicting answers how many rows went; again, none."""
        receipt = await warm.store(rows(10))

        assert await warm.evict([at("ns/1"), at("ns/2"), at("ns/2")], receipt) == 2
        assert await warm.evict([at("ns/1"), at("ns/2")], receipt) == 0
        assert len(await versions(warm)) == 8

    async def test_nothing_to_do(self, warm: WarmMemory) -> None:
        """An empty batch and an empty eviction are fine."""
        assert list((await warm.store(rows(0))).ids) == []
        assert await warm.evict([], None) == 0
        assert await warm.get([]) == []


class TestFence:
    async def test_older_epoch_writes_nothing(self, warm: WarmMemory, settings: WarmSettings) -> None:
        """Once a newer owner has raised the epoch, the older one stores, evicts and clears nothing."""
        await warm.store(rows(6))
        async with opened(settings, epoch=2):
            for write in (warm.store(rows(9, 2)), warm.evict([at("ns/1")], None), warm.clear()):
                with pytest.raises(Fenced, match="epoch 2"):
                    await write

        assert {f"ns/{n}": 1 for n in range(6)} == await versions(warm)

    async def test_epoch_goes_up_only(self, warm: WarmMemory, settings: WarmSettings) -> None:
        """Raising to a lower epoch is refused, to the same one is not: a start that was cut short is repeated."""
        async with opened(settings, epoch=5):
            with pytest.raises(Fenced, match="epoch 5"):
                await warm.raise_epoch(0, 4)
            await warm.raise_epoch(0, 5)

            assert dict.fromkeys(range(PARTITIONS), 5) == await warm.epochs()

    async def test_lost_epoch(self, warm: WarmMemory, settings: WarmSettings, raw: redis.Redis) -> None:
        """Where the epoch is gone (a flushed server) nobody may write."""
        raw.delete(*raw.keys(f"*{settings.prefix}:*!epoch"))

        with pytest.raises(Fenced, match="none"):
            await warm.store(rows(1))

    async def test_no_epoch_raised(self, settings: WarmSettings) -> None:
        """A tier opened with an index writes nothing before its owner has raised the epoch."""
        tier = await WarmMemory.open(settings, SHAPE, partitions=PARTITIONS, index=Index.of(SHAPE))

        with pytest.raises(Fenced, match="raised no epoch"):
            await tier.store(rows(1))
        await tier.cleanup()

    async def test_alone_fences_the_one_before(self, settings: WarmSettings) -> None:
        """Opening a tier that is used alone ends the writes of whoever had it open."""
        first = await WarmMemory.open(settings, SHAPE, partitions=PARTITIONS)
        second = await WarmMemory.open(settings, SHAPE, partitions=PARTITIONS)

        with pytest.raises(Fenced):
            await first.store(rows(1))
        assert (await second.store(rows(1))).held.sum() == 1
        await first.cleanup()
        await second.cleanup()


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

    async def test_other_buckets(self, warm: WarmMemory, settings: WarmSettings) -> None:
        """Rows laid out for another number of buckets or partitions are refused: they would not be found."""
        await warm.store(rows(3))
        other = WarmSettings(url=settings.url, prefix=settings.prefix, buckets=settings.buckets + 1)

        with pytest.raises(SettingsError, match="buckets=2"):
            await WarmMemory.open(other, SHAPE, partitions=PARTITIONS)
        with pytest.raises(SettingsError, match="partitions=4"):
            await WarmMemory.open(settings, SHAPE, partitions=PARTITIONS * 2)

    @pytest.mark.parametrize("wrong", [{"prefix": "a*"}, {"prefix": "{a"}, {"prefix": ""}, {"rows_per_call": 0}])
    def test_impossible_settings(self, wrong: dict[str, object]) -> None:
        """A setting that cannot work is refused before anything is opened."""
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            WarmSettings(**wrong)  # type: ignore[arg-type]


class TestRead:
    async def test_all_rows_once(self, warm: WarmMemory, settings: WarmSettings, raw: redis.Redis) -> None:
        """Every row comes once, tombstones too, with no slot; nothing else under the prefix or beside it does."""
        await warm.store(rows(2_500))
        await warm.store(batch(row("ns/7", 2, deleted=True), row("x}:y", 1)))
        raw.set(f"{{{settings.prefix}:1:lease}}:epoch", "4")
        raw.set(f"{{{settings.prefix}x:1:1}}:a", "of another prefix")

        everything = pa.Table.from_batches([part async for part in warm.retrieve_all()])

        assert everything["slot"].unique().to_pylist() == [-1]
        assert everything.filter(everything["deleted"])["id"].to_pylist() == ["ns/7"]
        assert {f"ns/{n}" for n in range(2_500)} | {"x}:y"} == set(everything["id"].to_pylist())
        assert everything.num_rows == 2_501

    async def test_a_page_scanned_twice(self, warm: WarmMemory) -> None:
        """Keys that SCAN repeats, as it may while its table is resized, are read once."""
        await warm.store(rows(30))
        scan = warm.client.scan

        async def twice(cursor: int, pattern: str, _: int) -> tuple[int, list[bytes]]:
            _, keys = await scan(0, pattern, 1_000_000)
            return (0 if cursor else 9), [*keys, *keys]

        warm.client.scan = twice  # type: ignore[method-assign, assignment]

        assert len(await versions(warm)) == 30

    async def test_other_version_is_none(self, warm: WarmMemory) -> None:
        """A location of another version than the one held has no row."""
        await warm.store(batch(row("a", 5)))

        assert await warm.get([at("a", 4), at("a", 6)]) == [None, None]

    async def test_damaged_rows_are_never_served(
        self, warm: WarmMemory, settings: WarmSettings, raw: redis.Redis
    ) -> None:
        """A changed bit, a row under another id's key and a cut value are each found, on reading or on storing."""
        await warm.store(batch(row("a"), row("b")))
        key, other = warm._keys.row(at("a").partition, "a"), warm._keys.row(at("b").partition, "b")
        whole = raw.get(key)
        assert isinstance(whole, bytes)

        for damaged in (whole[:50] + bytes([whole[50] ^ 1]) + whole[51:], raw.get(other)):
            raw.set(key, damaged)  # type: ignore[arg-type]
            with pytest.raises(TierCorrupt):
                await warm.get([at("a")])
        raw.set(key, whole[:12])
        with pytest.raises(TierCorrupt, match="cut short"):
            await warm.store(batch(row("a", 2)))

    async def test_alone_answers_by_id_and_vector(self, settings: WarmSettings) -> None:
        """Used alone, the tier answers queries, and does so again after it was opened anew."""
        first = await WarmMemory.open(settings, SHAPE, partitions=PARTITIONS)
        axes = np.eye(DIM, dtype=np.float32)
        await first.store(batch(*(Row(f"v{n}", 1, 0, None, axes[n], b"old") for n in range(DIM))))
        await first.store(batch(Row("v3", 2, 0, None, axes[3], b"new"), row("v4", 2, deleted=True)))
        await first.cleanup()
        await first.cleanup()
        second = await WarmMemory.open(settings, SHAPE, partitions=PARTITIONS)

        nearest = await second.retrieve(Query(vector=axes[3], k=1))
        by_id = await second.retrieve(Query(ids=["v4", "v5"]))

        assert [(hit.row.id, hit.row.payload) for hit in nearest.hits] == [("v3", b"new")]
        assert [hit.row.id for hit in by_id.hits] == ["v5"]
        await second.clear()
        assert (await second.retrieve(Query(ids=["v5"]))).hits == []
        await second.cleanup()

    async def test_clear(self, warm: WarmMemory, settings: WarmSettings, raw: redis.Redis) -> None:
        """Clearing deletes every row and nothing else: the epochs and the lease stay."""
        await warm.store(rows(2_100))
        raw.set(f"{{{settings.prefix}:1:lease}}:epoch", "4")
        before = len(raw.keys(f"*{settings.prefix}*"))

        await warm.clear()

        assert await versions(warm) == {}
        assert before - 2_100 == len(raw.keys(f"*{settings.prefix}*"))
        await warm.store(rows(1))

    async def test_usage(self, stack: Stack, prefix: str) -> None:
        """Usage tells the rows at home, the server's memory, and the limit of whoever sets the lower one."""
        settings = WarmSettings(url=stack.redis, prefix=prefix, bytes_limit=2**40)
        tier = await WarmMemory.open(settings, SHAPE, partitions=PARTITIONS)
        await tier.store(rows(40))

        usage = await tier.usage()
        await tier.cleanup()

        assert (usage.rows, usage.bytes_limit) == (40, 2**40)
        assert 500_000 < usage.bytes < 2**40


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
            keys = next(tier._keys.calls(["a"], np.zeros(1, np.int32), 1)).keys
            value = b"IR" + bytes(6) + struct.pack("<q", 7)

            with pytest.raises(TierFull):
                await STORE.run(tier.client, keys, 1, value)
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
        async with Proxy(own.port) as proxy, opened(WarmSettings(url=proxy.url, timeout_ms=300)) as tier:
            before = calls(own)

            async def until_written(_: bytes) -> bool:
                return calls(own) == before

            proxy.let_through = until_written

            with pytest.raises(OutcomeUnknown, match="did not answer a EVALSHA"):
                await tier.store(rows(1))
            with pytest.raises(TierUnavailable):  # a read has no outcome to be unknown
                await tier.get([at("ns/0")])
            assert before + 1 == calls(own)

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

            with pytest.raises(OutcomeUnknown, match="only a part.*READONLY"):
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


def calls(server: ValkeyServer) -> int:
    """How many script calls the server has executed."""
    with redis.Redis(port=server.port) as client:
        return int(client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"])
