"""The doctor against misconfigurations, applied one by one to real servers: each is named, with what to do."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from redis.asyncio import Redis

from pipeline import MemoryManager, doctor
from pipeline.doctor_finding import Finding, Level
from pipeline.routes import Gateway
from pipeline.serve import HttpService
from pipeline.settings import Settings
from pipeline.stack import Stack
from pipeline.topics import ensure_topics
from producers.events import Topics
from tests.nodes import small
from tests.pipeline.test_cli import isotherm
from tests.scripted import Scripted, answer
from tests.valkey_server import ValkeyServer
from tiers.errors import SettingsError

GPU = Path("/dev/nvidia0").exists()


@dataclass
class World:
    """A stack and a temporary directory, and what to undo at the end."""

    stack: Stack
    prefix: str
    path: Path
    cleanup: AsyncExitStack
    environment: dict[str, str] = field(default_factory=dict)

    def settings(self, **more: Any) -> Settings:
        """Return settings of a node that would start, but for `more`."""
        return small(self.stack, self.prefix, self.path / "node", **more)

    def valkey(self, **settings: str) -> str:
        """Start a server of its own; returns its URL."""
        folder = self.path / "valkey"
        folder.mkdir()
        return self.cleanup.enter_context(ValkeyServer(folder, **settings)).url

    async def topic(self, partitions: int = 4, **config: str) -> Settings:
        """Make the memories topic with a configuration; returns settings that fit but for it."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.stack.kafka)
        await admin.start()
        try:
            configs = {"compression.type": "uncompressed", "retention.ms": "-1", **config}
            named = {name.replace("_", "."): value for name, value in configs.items()}
            name = Topics.under(self.prefix).memories
            await admin.create_topics([NewTopic(name, partitions, 1, topic_configs=named)])
        finally:
            await admin.close()
        return self.settings()


@pytest.fixture
async def world(stack: Stack, prefix: str, tmp_path: Path) -> AsyncIterator[World]:
    """Where a misconfiguration happens."""
    async with AsyncExitStack() as cleanup:
        yield World(stack, prefix, tmp_path, cleanup)


async def nothing(world: World) -> Settings:
    return world.settings()


async def kafka_elsewhere(world: World) -> Settings:
    return world.settings(kafka__bootstrap="127.0.0.1:1")


async def kafka_wants_tls(world: World) -> Settings:
    return world.settings(kafka__security__protocol="SSL")


async def other_partitions(world: World) -> Settings:
    return await world.topic(partitions=3)


async def compacted(world: World) -> Settings:
    return await world.topic(cleanup_policy="compact")


async def short_memory(world: World) -> Settings:
    return await world.topic(retention_ms="30000")


async def a_day_off(world: World) -> Settings:
    return await world.topic(retention_ms="3600000")


async def small_messages(world: World) -> Settings:
    return await world.topic(max_message_bytes="1000")


async def bombs(world: World) -> Settings:
    return await world.topic(compression_type="producer")


async def too_few_brokers(world: World) -> Settings:
    return world.settings(kafka__replication=3)


async def valkey_elsewhere(world: World) -> Settings:
    return world.settings(warm__url="redis://127.0.0.1:1/0")


async def everysec(world: World) -> Settings:
    return world.settings(warm__url=world.valkey(appendfsync="everysec"))


async def evicting(world: World) -> Settings:
    return world.settings(warm__url=world.valkey(**{"maxmemory-policy": "allkeys-lru"}))


async def wrong_password(world: World) -> Settings:
    return world.settings(warm__url=world.valkey(requirepass="right"), warm__password="wrong")


async def few_rights(world: World) -> Settings:
    acl = world.path / "users.acl"
    rights = "+info +config|get +ping +script|load +evalsha +exists +get +mget +scan +pttl +time"
    acl.write_text(f"user default on nopass ~* {rights}\n")
    return world.settings(warm__url=world.valkey(aclfile=str(acl)))


async def full(world: World) -> Settings:
    url = world.valkey()
    async with Redis.from_url(url) as client:
        await client.set("stranger", b"x" * 9_300_000)
    async with Redis.from_url(url) as client:  # another connection: the first one's buffer counted too
        used = int((await client.info("memory"))["used_memory"])
        await client.config_set("maxmemory", used)
    return world.settings(warm__url=url)


async def rows_that_expire(world: World) -> Settings:
    async with Redis.from_url(world.stack.redis) as client:
        await client.set(f"{{{world.prefix}:0:0}}:id", b"x", ex=60)
    return world.settings()


async def other_buckets(world: World) -> Settings:
    async with Redis.from_url(world.stack.redis) as client:
        await client.set(f"{{{world.prefix}}}!layout", "partitions=4 buckets=9")
    return world.settings()


async def data_is_a_file(world: World) -> Settings:
    (world.path / "node").write_text("")
    return world.settings()


async def other_dim(world: World) -> Settings:
    made = {"node": "n", "prefix": world.prefix, "partitions": 4, "dim": 99, "metric": "cosine"}
    (world.path / "node").mkdir()
    (world.path / "node" / "manifest.json").write_text(json.dumps({**made, "attributes": {}}))
    return world.settings()


async def disk_full(world: World) -> Settings:
    return world.settings(cold__reserve_bytes=1 << 60)


async def port_taken(world: World) -> Settings:
    server = world.cleanup.enter_context(Scripted(answer(200, b"<html>")))
    return world.settings(gateway__port=server.port)


async def too_much_memory(world: World) -> Settings:
    return world.settings(hot__capacity_rows=1 << 40)


async def no_gpu(world: World) -> Settings:
    return world.settings(hot__device="cuda")


async def embedder_of_other_size(world: World) -> Settings:
    return world.settings(embedder="wordllama")


async def no_credentials(world: World) -> Settings:
    return world.settings(glacier__path="s3://bucket/prefix", glacier__credentials_file="/nowhere")


async def s3_elsewhere(world: World) -> Settings:
    keys = world.path / "keys"
    keys.write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    given = {"path": "s3://bucket/p", "endpoint": "http://127.0.0.1:1", "allow_http": True, "timeout_s": 1.0}
    more = {f"glacier__{name}": value for name, value in given.items()}
    return world.settings(**more, glacier__credentials_file=str(keys))


Apply = Callable[[World], Any]
#: (what is wrong, the check that says so, the level, words of it, exit code)
CASES: list[tuple[Apply, str, Level, str, int]] = [
    (nothing, "kafka", Level.OK, "1 broker", 0),
    (kafka_elsewhere, "kafka", Level.ERROR, "Kafka does not answer at 127.0.0.1:1", 3),
    (kafka_wants_tls, "kafka", Level.ERROR, "kafka.security.protocol", 1),
    (other_partitions, "kafka", Level.ERROR, "kafka.partitions = 4, but topic", 1),
    (compacted, "kafka", Level.ERROR, "cleanup.policy=delete", 1),
    (short_memory, "kafka", Level.ERROR, "retention.ms=-1", 1),
    (a_day_off, "kafka", Level.WARNING, "forgets after 1 h", 0),
    (small_messages, "kafka", Level.ERROR, "max.message.bytes=1048576", 1),
    (bombs, "kafka", Level.WARNING, "compression.type=uncompressed", 0),
    (too_few_brokers, "kafka", Level.ERROR, "kafka.replication = 3", 1),
    (valkey_elsewhere, "warm", Level.ERROR, "127.0.0.1:1 does not answer", 3),
    (everysec, "warm", Level.ERROR, "CONFIG SET appendfsync always", 1),
    (evicting, "warm", Level.ERROR, "CONFIG SET maxmemory-policy noeviction", 1),
    (wrong_password, "warm", Level.ERROR, "set warm.username and warm.password", 1),
    (few_rights, "warm", Level.ERROR, "may not use GETRANGE, SET, UNLINK, DEL, PEXPIRE", 1),
    (full, "warm", Level.ERROR, "raise maxmemory", 1),
    (rows_that_expire, "warm", Level.ERROR, "1 of 1 rows looked at have a TTL", 1),
    (other_buckets, "warm", Level.ERROR, "buckets=9", 1),
    (data_is_a_file, "data", Level.ERROR, "node is a file", 1),
    (other_dim, "data", Level.ERROR, "was made with 99", 1),
    (disk_full, "cold", Level.ERROR, "nothing can be stored", 1),
    (port_taken, "gateway", Level.ERROR, "set gateway.port", 1),
    (too_much_memory, "memory", Level.ERROR, "lower hot.capacity_rows", 1),
    (no_gpu, "hot", Level.ERROR, "hot.device = 'cuda', but no GPU answers", 1),
    (embedder_of_other_size, "embedder", Level.ERROR, "set dim = 256", 1),
    (no_credentials, "glacier", Level.ERROR, "/nowhere", 1),
    (s3_elsewhere, "glacier", Level.ERROR, "glacier.endpoint", 3),
]


@pytest.mark.parametrize(("apply", "check", "level", "says", "code"), CASES, ids=[case[0].__name__ for case in CASES])
async def test_one_thing_is_wrong_and_is_named(
    world: World, apply: Apply, check: str, level: Level, says: str, code: int
) -> None:
    """The finding is there, at its level, with what to do; nothing else is called an error; the exit code fits."""
    if apply is no_gpu and GPU:
        pytest.skip("there is a GPU")
    findings = await doctor.examine(await apply(world))
    told = [f"{finding.text} {finding.fix}" for finding in findings if (finding.check, finding.level) == (check, level)]

    assert any(says in each for each in told), [f for f in findings if f.level is not Level.OK]
    wrong = {finding.check for finding in findings if finding.level is Level.ERROR}
    assert wrong <= {check, *(("data",) if apply is disk_full else ())} | (
        {"cold", "glacier"} if apply is data_is_a_file else set()
    )
    assert code == doctor.exit_code(findings)
    print(f"{apply.__name__:24} {level:8} exit {code}  {told[0]}")  # noqa: T201


async def test_a_running_node_is_fine(settings: Settings, stack: Stack) -> None:
    """Beside a node: its port, its lock and its rows are its own; nothing is disturbed."""
    service = HttpService(settings)
    async with MemoryManager.open(settings, service) as memory:
        service.gateway = Gateway(memory)
        service.listen()
        await memory.ready()
        port = int(service.address.rpartition(":")[2])
        prefix = settings.kafka.prefix
        own = small(stack, prefix, Path(settings.data), gateway__port=port, policy__hot_age_s=3_600.0)
        findings = await doctor.examine(own)
        texts = [finding.text for finding in findings]

        assert 0 == doctor.exit_code(findings), findings
        assert any(f"process {os.getpid()}" in text for text in texts)
        assert any("a node listens at" in text and "is ready" in text for text in texts)
        assert sum("is configured as it must be" in text for text in texts) == 5


async def test_a_check_that_fails_or_hangs_is_a_finding(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others go on."""
    monkeypatch.setattr(doctor, "CHECK_S", 0.05)

    async def breaks(_: Settings) -> list[Finding]:
        raise ZeroDivisionError("oh")

    async def hangs(_: Settings) -> list[Finding]:
        await asyncio.Event().wait()
        return []

    async def refuses(_: Settings) -> list[Finding]:
        raise SettingsError("key: reason")

    async def works(_: Settings) -> list[Finding]:
        return [Finding.ok("works", "well")]

    looks = (breaks, hangs, refuses, works)
    findings = await doctor.examine(settings, [doctor.Check(look.__name__, look) for look in looks])

    assert [Level.ERROR, Level.ERROR, Level.ERROR, Level.OK] == [finding.level for finding in findings]
    assert "oh" in findings[0].text
    assert 3 == doctor.exit_code(findings)


async def test_the_command_says_all_of_it_and_exits_so(world: World) -> None:
    """0 with what is fine, 2 for a setting, 3 for a service; --json is one object."""
    await ensure_topics(world.settings().kafka, Topics.under(world.prefix))
    given = [f"data={world.path / 'node'}", f"kafka.bootstrap={world.stack.kafka}", f"kafka.prefix={world.prefix}"]
    given += [f"warm.url={world.stack.redis}", "gateway.port=0", "kafka.partitions=4", "index.bytes_limit=1000000"]
    options = [part for pair in given for part in ("-s", pair)]

    fine = await asyncio.to_thread(isotherm, "doctor", *options)
    assert (0, "0 errors") == (fine.returncode, fine.stdout.strip().rpartition(", ")[2]), fine.stdout + fine.stderr
    unset = await asyncio.to_thread(isotherm, "doctor", "-s", "hot.colour=blue")
    assert 2 == unset.returncode
    assert "no such setting" in unset.stdout
    gone = await asyncio.to_thread(isotherm, "doctor", *options, "-s", "warm.url=redis://127.0.0.1:1/0", "--json")
    said = json.loads(gone.stdout)
    assert (3, 3) == (gone.returncode, said["code"])
    assert {"warm"} == {finding["check"] for finding in said["findings"] if finding["level"] == "error"}
    assert "" == gone.stderr
