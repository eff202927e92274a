"""WarmMemory against a real server: versions, evictions, fences, reading, and its use alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import numpy as np
import pyarrow as pa
import pytest
import redis

from pipeline.stack import Stack
from tests.tiers.warm_rows import DIM, PARTITIONS, SHAPE, at, batch, opened, row, rows, versions
from tiers import record
from tiers.errors import Fenced, SettingsError, TierCorrupt
from tiers.index import Index
from tiers.record import Row
from tiers.tier import Places, Query, TierName
from tiers.warm import WarmMemory
from tiers.warm_settings import WarmSettings


@pytest.fixture
def raw(stack: Stack) -> Iterator[redis.Redis]:
    """Look at the server past the tier."""
    with redis.Redis.from_url(stack.redis) as client:
        yield client


@pytest.fixture
def settings(stack: Stack, prefix: str) -> WarmSettings:
    """Cut batches into small calls, so that there are several."""
    return WarmSettings(url=stack.redis, prefix=prefix, buckets=2, rows_per_call=3)


@pytest.fixture
async def warm(settings: WarmSettings) -> AsyncIterator[WarmMemory]:
    """Open the tier as the system does: index shared, epochs raised by the owner."""
    async with opened(settings) as tier:
        yield tier


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

    async def test_two_opened_at_once(self, settings: WarmSettings, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of two that saw the same epoch and want the next one, only the first gets it."""
        first = await WarmMemory.open(settings, SHAPE, partitions=PARTITIONS)

        async def as_the_first_saw(_: WarmMemory) -> dict[int, int]:
            return dict.fromkeys(range(PARTITIONS), 0)

        monkeypatch.setattr(WarmMemory, "epochs", as_the_first_saw)
        with pytest.raises(Fenced, match="cannot get 1"):
            await WarmMemory.open(settings, SHAPE, partitions=PARTITIONS)
        await first.store(rows(1))
        await first.cleanup()


class TestLayout:
    async def test_other_buckets(self, warm: WarmMemory, settings: WarmSettings) -> None:
        """Rows laid out for another number of buckets or partitions are refused: they would not be found."""
        await warm.store(rows(3))
        other = WarmSettings(url=settings.url, prefix=settings.prefix, buckets=settings.buckets + 1)

        with pytest.raises(SettingsError, match="buckets=2"):
            await WarmMemory.open(other, SHAPE, partitions=PARTITIONS)
        with pytest.raises(SettingsError, match="partitions=4"):
            await WarmMemory.open(settings, SHAPE, partitions=PARTITIONS * 2)


class TestRead:
    async def test_all_rows_once(self, warm: WarmMemory, settings: WarmSettings, raw: redis.Redis) -> None:
        """Every row comes once, tombstones too, with no slot; nothing else under the prefix or beside it does."""
        await warm.store(rows(2_500))
        await warm.store(batch(row("ns/7", 2, deleted=True), row("x}:y", 1)))
        raw.set(f"{{{settings.prefix}:1:lease}}:epoch", "4")
        raw.set(f"{{{settings.prefix}x:1:1}}:a", "of another prefix")

        everything = pa.Table.from_batches([part async for part in warm.retrieve_all()])

        assert warm._keys.parse(f"{{{settings.prefix}:1:lease}}:epoch".encode()) is None
        assert everything["slot"].unique().to_pylist() == [-1]
        assert everything.filter(everything["deleted"])["id"].to_pylist() == ["ns/7"]
        assert {f"ns/{n}" for n in range(2_500)} | {"x}:y"} == set(everything["id"].to_pylist())
        assert everything.num_rows == 2_501

    @pytest.mark.parametrize("listing", ["entries", "retrieve_all"])
    async def test_a_listing_tells_that_rows_are_large(self, settings: WarmSettings, listing: str) -> None:
        """After a restart too, how large rows are is known once they were listed: a move of them must be bounded."""
        async with opened(settings) as tier:
            await tier.store(batch(row("ns/small"), row("ns/large", 1, b"x" * 50_000)))
        async with opened(settings, epoch=2) as tier:
            async for _ in (
                tier.entries(lambda _, versions: versions > 0) if listing == "entries" else tier.retrieve_all()
            ):
                pass
            small, large = (await tier.sizes(Places.of([at("ns/small"), at("ns/large")]))).tolist()

        assert small < 1_000
        assert 50_000 < large < 51_000

    @pytest.mark.parametrize("known", [True, False])
    async def test_entries_are_all_rows(self, warm: WarmMemory, *, known: bool) -> None:
        """Without vectors where all are known by their codes, else with them; the rest is as in the rows."""
        await warm.store(batch(*(row(f"ns/{n}", n + 1, deleted=n % 5 == 4) for n in range(300))))
        listing = warm.entries(lambda _, versions: known | (versions % 2 == 0))
        asked = [part async for part in listing if part.num_rows]
        whole = pa.Table.from_batches([part async for part in warm.retrieve_all()]).sort_by("id")
        found = pa.Table.from_batches(asked).sort_by("id")

        assert known is not ("vector" in found.column_names)
        assert record.partitions(found["id"].combine_chunks(), PARTITIONS).tolist() == found["partition"].to_pylist()
        for name in found.column_names:
            assert name == "partition" or whole[name].to_pylist() == found[name].to_pylist(), name

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
