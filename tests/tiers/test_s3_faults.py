"""What S3 may do to a request: refuse it, be slow, or carry it out and lose the answer. Nothing is lost or doubled."""

from __future__ import annotations

import asyncio

import obstore
import pytest

from tests.faulty import Proxy
from tests.tiers.buckets import bucket, in_bucket
from tests.tiers.contract import everything, places
from tests.tiers.rows import SHAPE, batch, row
from tiers import record
from tiers.archive import Archive
from tiers.bucket import Bucket
from tiers.errors import Fenced, OutcomeUnknown, ServiceMissing, TierUnavailable
from tiers.glacier import GlacierMemory
from tiers.index import Index
from tiers.layout import Layout

PARTITIONS = 4
ENTRY = r"/_delta_log/\d{20}\.json"
DATA = r"/partition"
LOOK = r"/_delta_log/\d{20}\.json"


@pytest.fixture
def proxy(s3):
    """A proxy in front of the run's S3 server."""
    with Proxy(s3.s3) as running:
        yield running


@pytest.fixture
async def opened(s3, prefix, proxy):
    """Return a function that opens the archive through the proxy, as a new life that owns every partition."""
    tiers = []

    async def open_it(epoch: int = 1, **more) -> GlacierMemory:
        settings = in_bucket(s3, prefix, **{"endpoint": proxy.address, "timeout_s": 0.5, **more})
        tier = await GlacierMemory.open(settings, SHAPE, partitions=PARTITIONS, index=Index.of(SHAPE))
        tier._files.archive.storage._asking._pause = lambda _: None
        tiers.append(tier)
        for partition in range(PARTITIONS if epoch else 0):
            await tier.raise_epoch(partition, epoch)
        return tier

    yield open_it
    proxy.faults.clear()
    for tier in tiers:
        await tier.cleanup()


async def seen_by_the_next(opened) -> list[tuple[str, int]]:
    """Return the rows that another life finds."""
    return sorted((one.id, one.version) for one, _ in await everything(await opened(9)))


# -- the commit ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["503", "cut", "lost", "502", "hang", "late"])
async def test_a_commit_that_fails_once_lands_once(opened, proxy, kind):
    """Refused, cut off, slow or answered into the void: the store succeeds, and its row is there once."""
    tier = await opened()
    before = proxy.count("PUT", ENTRY)
    fault = proxy.inject(kind, "PUT", ENTRY)
    receipt = await tier.store(batch(row("a", 1)))

    assert (1, [1]) == (fault.seen, receipt.held.tolist())
    assert before + (1 if kind in ("lost", "502") else 2) == proxy.count("PUT", ENTRY)  # never repeated when it landed
    assert [412] * (kind == "late") == proxy.deliver()
    assert [("a", 1)] == await seen_by_the_next(opened)


async def test_a_commit_refused_to_the_end_changes_nothing(opened, proxy):
    """A server that turns every commit away is TierUnavailable, and the same store works when it is well again."""
    tier = await opened()
    fault = proxy.inject("503", "PUT", ENTRY, times=1_000)
    with pytest.raises(TierUnavailable, match="was not written"):
        await tier.store(batch(row("a", 1)))
    fault.times = 0

    assert [1] == (await tier.store(batch(row("a", 1)))).held.tolist()
    assert [("a", 1)] == await seen_by_the_next(opened)


async def test_a_commit_that_nobody_can_say_anything_about_is_unknown(opened, proxy):
    """Sent, not answered, and no look at it answered either: OutcomeUnknown, and what landed is found by the next."""
    tier = await opened()
    lost = proxy.inject("lost", "PUT", ENTRY)
    blind = proxy.inject("cut", "GET", LOOK, times=1_000)
    with pytest.raises(OutcomeUnknown, match="nothing says what became of it"):
        await tier.store(batch(row("a", 1)))
    lost.times = blind.times = 0

    assert [("a", 1)] == await seen_by_the_next(opened)


async def test_a_late_commit_of_the_life_before_lands_nowhere(opened, proxy):
    """A commit that arrives after the next life has raised its epoch meets a taken number (R4a)."""
    tier = await opened()
    proxy.inject("late", "PUT", ENTRY, times=1_000)
    with pytest.raises(OutcomeUnknown):
        await tier.store(batch(row("a", 1)))
    proxy.faults.clear()
    again = await opened(2)

    assert {412} == set(proxy.deliver())
    assert [] == await everything(again)
    assert [] == await seen_by_the_next(opened)


@pytest.mark.parametrize("kind", ["503", "cut", "lost", "hang"])
async def test_what_another_wrote_meanwhile_is_not_taken_for_ours(s3, prefix, proxy, kind):
    """After a lost answer, an entry of another writer under our number is a conflict, not our commit."""
    layout = Layout(SHAPE)
    ours, theirs = (
        Archive.open(bucket(s3, prefix, endpoint=at, timeout_s=0.5), layout.table, PARTITIONS, layout.facts(PARTITIONS))
        for at in (proxy.address, s3.s3)
    )
    ours.raise_epochs({0: 1})
    theirs.raise_epochs({1: 7})
    proxy.inject(kind, "PUT", ENTRY)
    ours.raise_epochs({0: 2})  # its number is theirs

    assert {0: 2, 1: 7, 2: 0, 3: 0} == {p: ours.log.epoch(p) for p in range(PARTITIONS)}
    assert ours.log.version == 3


# -- data files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["503", "cut", "lost", "502", "hang", "late"])
async def test_a_file_that_fails_once_is_written_once(opened, proxy, kind):
    """A data file's PUT is repeated under the condition that it is new: one that had landed is found to be ours."""
    tier = await opened()
    proxy.inject(kind, "PUT", DATA)
    receipt = await tier.store(batch(row("a", 1)))

    assert [1] == receipt.held.tolist()
    assert [412] * (kind == "late") == proxy.deliver()
    assert [("a", 1)] == await seen_by_the_next(opened)


async def test_a_file_that_never_lands_changes_nothing(opened, proxy):
    """A server that takes no data is TierUnavailable; no entry was tried, and what lands late is vacuumed."""
    tier = await opened(vacuum_after_s=0.0)
    before = proxy.count("PUT", ENTRY)
    fault = proxy.inject("late", "PUT", DATA, times=1_000)
    with pytest.raises(TierUnavailable):
        await tier.store(batch(row("a", 1)))
    fault.times = 0

    assert before == proxy.count("PUT", ENTRY)
    assert 200 in proxy.deliver()
    assert 1 == await tier.vacuum()
    assert [] == tier._files.archive.storage.list(f"partition={record.partition('a', PARTITIONS)}")


# -- reads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["503", "cut", "hang"])
async def test_a_read_that_fails_is_asked_again(opened, proxy, kind):
    """Reads are repeated a few times: one failure is not noticed, one that stays is TierUnavailable."""
    tier = await opened(cache_bytes=0)
    receipt = await tier.store(batch(row("a", 1)))
    where = places(receipt)
    fault = proxy.inject(kind, "GET", DATA)

    assert ["a"] == [one.id for one in await tier.get(where)]
    assert 1 == fault.seen

    fault.times = 1_000
    with pytest.raises(TierUnavailable, match="does not answer"):
        await tier.get(where)


@pytest.mark.parametrize("kind", ["503", "cut"])
async def test_a_log_that_does_not_load_once_is_loaded(opened, proxy, kind):
    """Reads of the log by delta-rs are repeated by it; they are its own, bounded, and change nothing."""
    proxy.inject(kind, "GET", r"_delta_log", times=1)
    tier = await opened()
    proxy.inject(kind, "GET", r"_delta_log", times=1)
    await tier.store(batch(row("a", 1)))

    assert ["a"] == [one.id for one, _ in await everything(tier)]


# -- counting ------------------------------------------------------------------------------------------------------


async def test_requests_are_counted_as_they_are_sent(opened, proxy):
    """What the tier says it asked for is what passes a proxy, by operation (but for delta-rs's checkpoints)."""
    tier = await opened(cache_bytes=0)
    proxy.inject("503", "PUT", DATA)
    receipt = await tier.store(batch(row("a", 1)))
    await tier.get(places(receipt))
    await tier.evict(places(receipt), None)
    tier._files.vacuum(after_s=0)
    counts = tier.census().requests
    listed = sum(m == "GET" and "list-type" in path for m, path in proxy.requests)

    assert {
        "put": proxy.count("PUT"),
        "get": proxy.count("GET") - listed,
        "list": listed,
        "head": proxy.count("HEAD"),
        "delete": proxy.count("POST", "delete"),
    } == {operation: count.requests for operation, count in counts.items()}
    assert {"put": 1} == {operation: count.failures for operation, count in counts.items() if count.failures}
    assert counts["put"].bytes == proxy.bodies["PUT"]


# -- two writers ---------------------------------------------------------------------------------------------------


async def test_writers_of_different_partitions_lose_no_commit(s3, prefix):
    """Two processes that commit at once to one table, each its own partitions: every commit is there, none twice."""
    ids = [f"id-{n}" for n in range(80)]
    mine = {0: {0, 1}, 1: {2, 3}}
    tiers = [
        await GlacierMemory.open(in_bucket(s3, prefix), SHAPE, partitions=PARTITIONS, index=Index.of(SHAPE))
        for _ in mine
    ]
    try:
        for at, tier in enumerate(tiers):
            for partition in mine[at]:
                await tier.raise_epoch(partition, 1)

        async def write(at: int) -> int:
            own = [i for i in ids if record.partition(i, PARTITIONS) in mine[at]]
            for identifier in own:
                await tiers[at].store(batch(row(identifier, 1)))
            return len(own)

        counts = await asyncio.gather(*(write(at) for at in mine))
        last = await GlacierMemory.open(in_bucket(s3, prefix), SHAPE, partitions=PARTITIONS)
        tiers.append(last)
        assert sorted(ids) == sorted(one.id for one, _ in await everything(last))
        assert min(counts) > 20
    finally:
        for tier in tiers:
            await tier.cleanup()


async def test_a_second_owner_fences_the_first(opened, proxy):
    """After a newer owner nothing of the old one lands in the bucket: no store, no rewrite, no clear, no removal."""
    stale = await opened(1)
    receipt = await stale.store(batch(row("a", 1)))
    stale._files._retired.note(["partition=0/e1-99.parquet"])
    await opened(2)
    before = proxy.count("PUT", ENTRY)
    with pytest.raises(Fenced, match="belongs to epoch 2, this process has 1"):
        await stale.store(batch(row("a", 2)))
    with pytest.raises(Fenced):
        await stale.rewrite(places(receipt)[0].partition, places(receipt))
    with pytest.raises(Fenced):
        await stale.clear()
    with pytest.raises(Fenced):
        stale._files.vacuum(after_s=0)
    assert before + 1 == proxy.count("PUT", ENTRY)  # the one that met the newer owner's

    assert [("a", 1)] == await seen_by_the_next(opened)


# -- the start -----------------------------------------------------------------------------------------------------


class Careless(Bucket):
    """A server that takes If-None-Match and does not look at it."""

    def _put(self, path, content):
        obstore.put(self._store, path, content, mode="overwrite", use_multipart=False)


def test_a_server_that_ignores_the_condition_is_refused(s3, prefix):
    """Without conditional writes two writers would overwrite each other's commits: the start says what to use."""
    careless = bucket(s3, prefix)
    careless.__class__ = Careless
    with pytest.raises(ServiceMissing, match=r"ignores If-None-Match.*SeaweedFS"):
        careless.prepare()

    assert [] == careless.list("")


async def test_a_server_that_is_not_there_is_named(s3, prefix):
    """The start says which server, and what to look at."""
    settings = in_bucket(s3, prefix, endpoint="http://127.0.0.1:1", timeout_s=0.2)
    with pytest.raises(ServiceMissing, match=r"127\.0\.0\.1:1 .*glacier\.endpoint"):
        await GlacierMemory.open(settings, SHAPE, partitions=PARTITIONS)


async def test_keys_that_may_not_write_are_refused(s3, prefix, tmp_path):
    """Wrong keys stop the start; neither they nor anything secret is in the message."""
    keys = tmp_path / "keys"
    keys.write_text("[default]\naws_access_key_id = isotherm\naws_secret_access_key = hush-hush\n")
    settings = in_bucket(s3, prefix, credentials_file=str(keys))
    with pytest.raises(ServiceMissing, match="credentials may not put") as caught:
        await GlacierMemory.open(settings, SHAPE, partitions=PARTITIONS)

    assert "hush" not in str(caught.value)


async def test_a_bucket_that_is_not_there_is_named(s3, prefix):
    """The start says which bucket."""
    with pytest.raises(ServiceMissing, match="no-such-bucket"):
        await GlacierMemory.open(in_bucket(s3, prefix, path="s3://no-such-bucket/x"), SHAPE, partitions=PARTITIONS)
