"""Another log under the same name: refused at the start and while running, in words; adopted by an operator, not lost.

All on the real broker: partitions added, the topic made again, its beginning deleted, offsets beyond its end.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from pipeline import MemoryManager, log_watch
from pipeline.demo_checks import read_topic
from pipeline.doctor_kafka import kafka
from pipeline.log_identity import identity
from pipeline.manifest import DataDirectory, Manifest, held
from pipeline.settings import Settings
from pipeline.stack import Stack
from pipeline.topics import ensure_topics
from producers import MemoryProducer
from producers.events import Topics
from tests.command import command
from tests.kafka_admin import add_partitions, administration, commit, committed, delete_before, remake
from tests.nodes import bring, rows, small, until
from tiers.errors import InvalidRecord, LogChanged, LogUnavailable, SettingsError
from tiers.tier import Query, TierName

COUNT = 40
PARTITIONS = 4
HOT, WARM, COLD, GLACIER = TierName


@pytest.fixture
def settings(stack: Stack, prefix: str, tmp_path: Path) -> Settings:
    """A node whose records stay where they are put."""
    still = {"policy__hot_age_s": 3_600.0, "policy__warm_idle_s": 3_600.0, "policy__cold_idle_s": 3_600.0}
    return small(stack, prefix, tmp_path / "node", **still)


def log_of(settings: Settings) -> str:
    return Topics.under(settings.kafka.prefix).memories


async def adopt(settings: Settings, *arguments: str) -> tuple[int, str, str]:
    """Run `isotherm log adopt` for a node."""
    given = {
        "data": settings.data,
        "dim": settings.dim,
        "attributes": json.dumps(dict(settings.attributes)),
        "kafka.bootstrap": settings.kafka.bootstrap,
        "kafka.prefix": settings.kafka.prefix,
        "kafka.partitions": settings.kafka.partitions,
    }
    options = [part for key, value in given.items() for part in ("-s", f"{key}={value}")]
    return await asyncio.to_thread(command, "log", "adopt", *arguments, *options)


async def found(memory: MemoryManager, *ids: str) -> dict[str, tuple[int, bytes]]:
    """Return the log epoch and the payload of those that are there."""
    result = await memory.retrieve(Query(ids=list(ids), limit=max(1, len(ids))))
    return {hit.row.id: (hit.row.version >> 57, hit.row.payload) for hit in result.hits}


def payload(n: int) -> bytes:
    return b'{"n":%d}' % n


async def lived(settings: Settings) -> str:
    """Let a node live once: 40 records of ten offsets and more a partition, in all four tiers; returns a token."""
    async with MemoryManager.open(settings) as memory:
        await memory.ready()
        for row in rows(COUNT):
            token = await memory.store([row])
        await until(lambda: all(memory.node.index.find(f"id-{n}") for n in range(COUNT)))
        for n in range(COUNT):
            await bring(memory, f"id-{n}", *(HOT, (WARM, COLD, GLACIER)[n % 3]))
        await until(lambda: not sum(mark.dirty for mark in memory.node.ingest.watermarks.values()))
    return token


async def refused(settings: Settings, words: str) -> None:
    """Hold that a start is refused, as something only a person can settle."""
    with pytest.raises(LogChanged, match=words):
        async with MemoryManager.open(settings):
            pass


async def ends(settings: Settings, accident: Callable[[], Awaitable[None]], words: str) -> None:
    """Hold that a running node ends by itself after an accident, and says why."""

    async def live() -> None:
        async with MemoryManager.open(settings) as memory:
            await memory.ready()
            await accident()
            await asyncio.Event().wait()

    with pytest.raises(BaseExceptionGroup) as failed:
        await live()
    error: BaseException = failed.value
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, LogChanged)
    assert words in str(error)


class TestPartitionCount:
    async def test_partitions_that_were_added_stop_the_start(self, settings: Settings) -> None:
        """A record's partition would change: refused with both numbers, by the node and by the doctor's words."""
        await lived(settings)
        await add_partitions(settings.kafka.bootstrap, log_of(settings), 6)

        with pytest.raises(SettingsError, match=r"kafka.partitions = 4, but topic .* has 6.*log adopt"):
            async with MemoryManager.open(settings):
                pass
        code, _, said = await adopt(settings)
        assert (2, True) == (code, "has 6" in said), "adopting cannot help while the count is wrong"

    async def test_partitions_added_to_a_running_node_end_it(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Producers would put records where nobody reads: seen at the next look, and fatal."""
        monkeypatch.setattr(log_watch, "EVERY_MS", 100)
        await ends(settings, partial(add_partitions, settings.kafka.bootstrap, log_of(settings), 5), "has 5")

    async def test_the_way_back_keeps_every_record(self, settings: Settings) -> None:
        """The topic made again with the old number, and adopted: what was durable is there."""
        await lived(settings)
        await add_partitions(settings.kafka.bootstrap, log_of(settings), 6)
        await remake(settings.kafka.bootstrap, log_of(settings), PARTITIONS)
        assert 0 == (await adopt(settings))[0]

        async with MemoryManager.open(settings) as memory:
            await memory.ready()
            assert COUNT == len(await found(memory, *(f"id-{n}" for n in range(COUNT))))


class TestMadeAgain:
    async def test_a_topic_made_again_is_refused_until_adopted(self, settings: Settings) -> None:
        """Old records stay at their old versions, what the new log says of an id wins, and a restart keeps it so."""
        old = await lived(settings)
        before = held(Path(settings.data), settings)
        assert before is not None
        await remake(settings.kafka.bootstrap, log_of(settings), PARTITIONS)
        await refused(settings, r"was deleted and made again.*isotherm log adopt")
        assert [True] == ["made again" in each.text for each in await kafka(settings) if each.level == "error"]

        code, said, _ = await adopt(settings, "--dry-run", "--json")
        assert (0, before) == (code, held(Path(settings.data), settings)), "a dry run changes nothing"
        code, done, _ = await adopt(settings, "--json")
        assert (0, json.loads(said)) == (code, json.loads(done))
        assert (1, {str(p): 0 for p in range(PARTITIONS)}) == (
            json.loads(done)["epoch"],
            json.loads(done)["replay_from"],
        )

        for _ in range(2):
            async with MemoryManager.open(settings) as memory:
                await memory.ready()
                token = await memory.store([replace(rows(4)[3], payload=b'"new"')])
                assert {"id-3": (1, b'"new"')} == {
                    hit.row.id: (hit.row.version >> 57, hit.row.payload)
                    for hit in (await memory.retrieve(Query(ids=["id-3"], at_least=token))).hits
                }
                there = await found(memory, *(f"id-{n}" for n in range(COUNT) if n != 3))
                assert {f"id-{n}": (0, payload(n)) for n in range(COUNT) if n != 3} == there
                with pytest.raises(InvalidRecord, match=r"at_least was given for epoch 0.*epoch 1"):
                    await memory.retrieve(Query(ids=["id-0"], at_least=old))
        assert 2 == (await adopt(settings))[0], "once adopted there is nothing to adopt"

    async def test_a_delete_in_the_new_log_ends_an_old_record(self, settings: Settings) -> None:
        """A tombstone of the new epoch covers the old record in any tier, and is dropped in the end (R5)."""
        await lived(settings)
        await remake(settings.kafka.bootstrap, log_of(settings), PARTITIONS)
        await adopt(settings)
        async with MemoryManager.open(settings) as memory:
            await memory.ready()
            for n in range(6):  # a token is of the partitions that its records are in
                await memory.retrieve(Query(ids=["id-0"], at_least=await memory.delete(f"id-{n}")))
            assert {} == await found(memory, *(f"id-{n}" for n in range(6)))
            for n in range(6):
                await bring(memory, f"id-{n}", HOT, GLACIER)
            await until(lambda: not any(memory.node.index.find(f"id-{n}") for n in range(6)))
        async with MemoryManager.open(settings) as memory:
            await memory.ready()
            assert {} == await found(memory, *(f"id-{n}" for n in range(6)))

    @pytest.mark.parametrize("word", ["warm", "cold", "glacier"])
    async def test_clearing_takes_old_records_whose_offsets_are_beyond_the_new_log(
        self, settings: Settings, word: str
    ) -> None:
        """A tier is cleared of rows of the epoch before, whatever their offsets, and nothing comes back."""
        await lived(settings)
        await remake(settings.kafka.bootstrap, log_of(settings), PARTITIONS)
        await adopt(settings)
        tier = TierName[word.upper()]
        async with MemoryManager.open(settings) as memory:
            await memory.ready()
            there = memory.node.index.rows(tier)
            assert there == await memory.node.clearing.clear(tier)
            assert there
        async with MemoryManager.open(settings) as memory:
            await memory.ready()
            assert 0 == memory.node.index.rows(tier)

    async def test_a_topic_made_again_under_a_running_node_ends_it(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its offsets would go on in another log: the next look at the broker is fatal."""
        monkeypatch.setattr(log_watch, "EVERY_MS", 100)
        await ends(settings, partial(remake, settings.kafka.bootstrap, log_of(settings), PARTITIONS), "made again")


class TestOffsets:
    async def test_offsets_beyond_the_end_are_refused_and_adopted_at_the_end(self, settings: Settings) -> None:
        """What is left of a truncated log was applied already: it is not read again over what was cut off."""
        await lived(settings)
        known = await identity(settings.kafka, log_of(settings))
        group = f"{settings.kafka.prefix}.node"
        ends = await committed(settings.kafka.bootstrap, group, log_of(settings), PARTITIONS)
        assert all(ends.values())
        await commit(settings.kafka.bootstrap, group, log_of(settings), {2: (ends[2] or 0) + 100})
        await refused(settings, r"\[2\]: reading goes on at offset .* truncated.*log adopt")

        code, done, _ = await adopt(settings, "--json")
        assert (0, {str(p): end for p, end in ends.items()}) == (code, json.loads(done)["replay_from"])
        manifest = held(Path(settings.data), settings)
        assert manifest is not None
        assert (known.id, 1) == (manifest.topic, manifest.epoch)
        async with MemoryManager.open(settings) as memory:
            await memory.ready()
            there = await found(memory, *(f"id-{n}" for n in range(COUNT)))
            assert {f"id-{n}": (0, payload(n)) for n in range(COUNT)} == there

    async def test_a_log_cut_off_and_written_on_is_refused_until_it_is_said_where_it_begins(
        self, settings: Settings
    ) -> None:
        """Same id, offsets in range, other messages where some were applied: commits know them by their checksums."""
        await lived(settings)
        await cut_off(settings, dict.fromkeys(range(PARTITIONS), 3))
        began = datetime.now(UTC).isoformat()
        async with MemoryProducer(settings.kafka) as producer:
            for row in rows(2 * COUNT, COUNT):
                await producer.send(row.id, row.vector, {"n": int(row.id.removeprefix("id-"))})
        await refused(settings, r"\[\d\]: a message of .* was applied at offset \d+, and the log has another one there")

        assert 2 == (await adopt(settings))[0], "nobody but a person knows where the new part begins"
        assert 0 == (await adopt(settings, "--from", began))[0]
        async with MemoryManager.open(settings) as memory:
            await memory.ready()
            there = await found(memory, *(f"id-{n}" for n in range(3 * COUNT)))
            assert {f"id-{n}": (int(n >= COUNT), payload(n)) for n in range(3 * COUNT)} == there

    async def test_a_log_that_ends_before_what_was_applied_is_refused(self, settings: Settings) -> None:
        """Cut off above the watermark: what had moved down already has versions that other messages would get."""
        async with MemoryManager.open(settings) as memory:
            await memory.ready()
            for row in rows(COUNT):  # each by a poll of its own: the watermark goes by what polls brought
                token = await memory.store([row])
                await memory.retrieve(Query(ids=[row.id], at_least=token))
            entries = {f"id-{n}": memory.node.index.find(f"id-{n}") for n in range(COUNT)}
            mine = [name for name, entry in entries.items() if entry is not None and entry.partition == 0]
            for name in (mine[0], *mine[2:]):
                await bring(memory, name, HOT, COLD)
            await until(lambda: memory.node.commit.acknowledged(0) == 1)
        await cut_off(settings, {0: 2})
        await refused(settings, r"\[0\]: a message of .* was applied at offset \d+, and the log ends before it.*--from")

    async def test_a_beginning_that_was_deleted_is_refused_and_adopted_at_the_beginning(
        self, settings: Settings
    ) -> None:
        """Retention has passed the committed offsets: never skipped over in silence; then all that is left is read."""
        async with MemoryManager.open(settings) as memory:
            await memory.ready()
            token = await memory.store(rows(COUNT))
            await memory.retrieve(Query(ids=["id-0"], at_least=token))
            ends = {p: mark.end for p, mark in memory.node.ingest.watermarks.items()}
        async with MemoryManager.open(settings) as memory:  # nothing is committed: all is dirty
            await memory.ready()
            assert COUNT == len(await found(memory, *(f"id-{n}" for n in range(COUNT))))
            for row in rows(COUNT, COUNT):
                token = await memory.store([row])
            await memory.retrieve(Query(ids=["id-0"], at_least=token))
            await commit_zero(settings)
        await delete_before(settings.kafka.bootstrap, log_of(settings), ends)
        await refused(settings, r"at offset 0, and the log has \[1, .*Raise retention.ms.*log adopt")

        assert 0 == (await adopt(settings))[0]
        async with MemoryManager.open(settings) as memory:
            await memory.ready()
            there = await found(memory, *(f"id-{n}" for n in range(2 * COUNT)))
            assert {f"id-{n}": (1, payload(n)) for n in range(COUNT, 2 * COUNT)} == there

    async def test_a_time_says_where_the_new_part_begins(self, settings: Settings) -> None:
        """--from takes begin, end, or a time; without a zone it is refused, and so is anything else."""
        await lived(settings)

        assert 2 == (await adopt(settings))[0]
        for wrong in ("2026-11-28T10:00:00", "yesterday"):
            code, _, said = await adopt(settings, "--from", wrong)
            assert (2, True) == (code, "a time with its zone" in said)
        for start, expected in (
            ("begin", [0] * 4),
            ("end", None),
            ("2000-01-01T00:00:00Z", [0] * 4),
            ("2100-01-01T00:00:00+00:00", None),
        ):
            code, said, _ = await adopt(settings, "--from", start, "--dry-run", "--json")
            at = list(json.loads(said)["replay_from"].values())
            assert 0 == code
            assert at == expected if expected else all(at)


async def cut_off(settings: Settings, cut: Mapping[int, int]) -> None:
    """Cut partitions of the log off at these offsets.

    No broker lets anyone do that. So the topic is made again with what lay below, and everything is told that it is the
    one that it was: the manifest its id, the group its commits.
    """
    group, topic, bootstrap = f"{settings.kafka.prefix}.node", log_of(settings), settings.kafka.bootstrap
    partitions = [TopicPartition(topic, p) for p in range(PARTITIONS)]
    async with administration(bootstrap) as admin:
        commits = await admin.list_consumer_group_offsets(group, partitions=partitions)
    messages = await read_topic(bootstrap, topic, PARTITIONS)
    await remake(bootstrap, topic, PARTITIONS)
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
    async with producer:
        for each in messages:
            if each.offset < cut.get(each.partition, each.offset + 1):
                where = {"partition": each.partition, "timestamp_ms": each.timestamp}
                await producer.send_and_wait(topic, each.value, each.key, headers=list(each.headers), **where)
    with DataDirectory(Path(settings.data)) as directory:
        manifest = directory.manifest(settings)
        manifest.topic = (await identity(settings.kafka, topic)).id
        directory.save(manifest)
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False)
    async with consumer:
        consumer.assign(partitions)
        await consumer.commit(commits)


async def commit_zero(settings: Settings) -> None:
    """Commit the beginning of every partition, as a node does that has nothing durable."""
    group = f"{settings.kafka.prefix}.node"
    await commit(settings.kafka.bootstrap, group, log_of(settings), dict.fromkeys(range(PARTITIONS), 0))


async def test_a_directory_without_an_id_takes_the_first_that_it_sees(settings: Settings) -> None:
    """A data directory of an older program goes on, and knows its log from then on."""
    async with MemoryManager.open(settings) as memory:
        first = memory.node.manifest
    older = Path(settings.data) / "manifest.json"
    content = json.loads(older.read_text())
    del content["topic"], content["crc32c"]
    older.write_text(json.dumps(content))

    async with MemoryManager.open(settings) as memory:
        assert isinstance(memory.node.manifest, Manifest)
        assert first.topic == memory.node.manifest.topic
    assert first.topic == json.loads(older.read_text())["topic"]


async def test_a_topic_that_is_not_there_is_unavailable(settings: Settings) -> None:
    """Asking for a topic's identity makes no topic."""
    with pytest.raises(LogUnavailable, match="UnknownTopicOrPartition"):
        await identity(settings.kafka, "nothing.of.this.name")


async def test_a_topic_that_was_just_made_is_waited_for(settings: Settings) -> None:
    """Not every broker knows it at once: the first start of a node must not fail of that."""
    asked = asyncio.ensure_future(identity(settings.kafka, log_of(settings), wait_s=60.0))
    done, _ = await asyncio.wait({asked}, timeout=0.5)
    assert not done
    await ensure_topics(settings.kafka, Topics.under(settings.kafka.prefix))

    assert (log_of(settings), PARTITIONS) == ((await asked).topic, (await asked).partitions)


async def test_a_node_that_is_no_node_cannot_adopt(settings: Settings) -> None:
    """Without a manifest there is nothing that could go on, and nothing is made."""
    code, _, said = await adopt(settings)

    assert (2, True) == (code, "holds no node" in said)
