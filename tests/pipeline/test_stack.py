"""The local servers are real, configured as the design asks, and survive a crash at the same address."""

from __future__ import annotations

import asyncio
import os
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

import obstore
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from obstore.store import S3Store
from redis.asyncio import Redis

from pipeline import kafka_jars, seaweed
from pipeline.stack import Stack, cluster_id
from tiers.credentials import Keys
from tiers.errors import ServiceMissing


@pytest.mark.unit
def test_a_cluster_has_an_id_of_kafkas_form() -> None:
    """22 characters of base64url, another for each draw, and never an option of the tool that takes it."""
    assert "AAAAAAAAAAAAAAAAAAAAAQ" == cluster_id(uuid.UUID(int=1))
    assert "f" == cluster_id(uuid.UUID(int=2**128 - 1))[0]
    found = {cluster_id(uuid.uuid4()) for _ in range(2_000)}
    assert (2_000, {22}) == (len(found), {len(each) for each in found})
    assert not [each for each in found if each.startswith("-")]


async def create(address: str, topic: str) -> None:
    """Create a topic of one partition: the broker makes none by itself."""
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, 1, 1)])
    finally:
        await admin.close()


async def send(address: str, topic: str, value: bytes, compression: str | None = None) -> int:
    """Publish one message, acknowledged by the broker; return its offset."""
    async with AIOKafkaProducer(bootstrap_servers=address, compression_type=compression) as producer:
        return int((await producer.send_and_wait(topic, value, partition=0)).offset)


async def read(address: str, topic: str, count: int) -> list[bytes]:
    """Read a topic from its start."""
    async with AIOKafkaConsumer(bootstrap_servers=address, enable_auto_commit=False) as consumer:
        consumer.assign([TopicPartition(topic, 0)])
        await consumer.seek_to_beginning()
        return [bytes((await consumer.getone()).value) for _ in range(count)]


@pytest.mark.parametrize("compression", [None, "gzip", "snappy", "lz4", "zstd"])
async def test_what_is_produced_is_consumed(stack: Stack, prefix: str, compression: str | None) -> None:
    """A message comes back from the real broker byte for byte, under every compression."""
    await create(stack.kafka, prefix)
    value = b"vector" * 1_000

    assert await send(stack.kafka, prefix, value, compression) == 0
    assert [value] == await read(stack.kafka, prefix, 1)


async def test_valkey_is_durable_and_never_evicts(stack: Stack) -> None:
    """Every answered write is on disk, nothing is dropped for memory, and only this machine can connect."""
    wanted = {
        "appendonly": "yes",
        "appendfsync": "always",
        "maxmemory-policy": "noeviction",
        "save": "",
        "bind": "127.0.0.1",
    }
    async with Redis.from_url(stack.redis, decode_responses=True) as client:
        found = await client.config_get(*wanted)

    assert wanted == found


async def test_services_tell_what_runs(stack: Stack) -> None:
    """Each service has the version that the software itself states, an address and a living process."""
    services = {service.name: service for service in stack.services}

    assert {"kafka", "valkey"} == services.keys()
    assert services["kafka"].version == kafka_jars.directory().name.removeprefix("kafka-")
    assert services["kafka"].address == stack.kafka
    for service in services.values():
        os.kill(service.pid, 0)


async def test_a_crash_keeps_data_and_addresses(tmp_path: Path) -> None:
    """After SIGKILL of both servers, acknowledged data is there, at the same addresses."""
    async with Stack(tmp_path) as own:
        addresses = own.kafka, own.redis
        await create(own.kafka, "kept")
        await send(own.kafka, "kept", b"acknowledged")
        async with Redis.from_url(own.redis) as client:
            await client.set("kept", b"acknowledged")
        for name in ("kafka", "valkey"):
            await own.kill(name)
            await own.restart(name)

        assert addresses == (own.kafka, own.redis)
        assert await read(own.kafka, "kept", 1) == [b"acknowledged"]
        async with Redis.from_url(own.redis) as client:
            assert await client.get("kept") == b"acknowledged"


async def test_stopped_servers_are_gone_and_come_back_where_they_were(tmp_path: Path) -> None:
    """Stopping leaves no process; the same data directory starts at the same addresses again."""
    async with Stack(tmp_path) as own:
        addresses = own.kafka, own.redis
        pids = [service.pid for service in own.services]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    async with Stack(tmp_path) as own:
        assert addresses == (own.kafka, own.redis)


async def test_s3_starts_when_asked_and_keeps_what_it_was_given(tmp_path: Path) -> None:
    """SeaweedFS is there only when asked for; after SIGKILL it has its data, keys and address; it says its version."""
    own = Stack(tmp_path)
    assert own.s3 == ""
    try:
        await own.start("s3")
        address, keys = own.s3, own.credentials.read_text()
        await obstore.put_async(in_stack(own), "kept", b"acknowledged")
        await own.kill("s3")
        await own.restart("s3")

        assert (address, keys) == (own.s3, own.credentials.read_text())
        assert bytes(await (await obstore.get_async(in_stack(own), "kept")).bytes_async()) == b"acknowledged"
        assert [("SeaweedFS", address)] == [(each.software, each.address) for each in own.services]
        assert own.services[0].version[0].isdigit()
        assert own.credentials.stat().st_mode & 0o077 == 0
    finally:
        await own.stop()


def in_stack(own: Stack) -> S3Store:
    """Return a client of the stack's bucket."""
    keys = Keys.found(str(own.credentials))
    config = {"endpoint": own.s3, "access_key_id": keys.access, "secret_access_key": keys.secret, "region": "us-east-1"}
    return S3Store(seaweed.BUCKET, config=config, client_options={"allow_http": True})


async def test_a_server_that_cannot_start_is_named_with_its_log(tmp_path: Path) -> None:
    """An impossible setting ends in ServiceMissing that shows the server's own words."""
    with pytest.raises(ServiceMissing, match=r"(?s)valkey did not come up.*maxmemory"):
        async with Stack(tmp_path, maxmemory="nonsense"):
            pass


async def test_a_cancelled_start_leaves_no_server_behind(tmp_path: Path) -> None:
    """Cancelling the start raises the cancellation itself, and no process stays, whichever step it hit."""
    own = Stack(tmp_path)
    for after_s in (0.0, 0.3, 1.5):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(after_s):
                await own.__aenter__()
        assert _processes(str(tmp_path)) == []


def _processes(mark: str) -> list[str]:
    """Return the command lines of other living processes that name `mark`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # ended meanwhile
            line = path.read_bytes().decode(errors="replace")
            if mark in line and path.parent.name != str(os.getpid()):
                found.append(line)
    return found


def _copied(tmp_path: Path) -> Path:
    folder = tmp_path / "jars"
    shutil.copytree(kafka_jars.fetch(), folder)
    kafka_jars.verify(folder)
    return folder


def test_a_corrupted_jar_is_refused(tmp_path: Path) -> None:
    """One changed byte in one jar is enough."""
    folder = _copied(tmp_path)
    jar = next(folder.glob("kafka-clients-*.jar"))
    content = bytearray(jar.read_bytes())
    content[len(content) // 2] ^= 1
    jar.write_bytes(content)

    with pytest.raises(ServiceMissing, match="kafka-clients"):
        kafka_jars.verify(folder)


def test_a_missing_jar_is_refused(tmp_path: Path) -> None:
    """A jar less than the pinned list is not the pinned list."""
    folder = _copied(tmp_path)
    next(folder.glob("zstd-jni-*.jar")).unlink()

    with pytest.raises(ServiceMissing, match="zstd-jni"):
        kafka_jars.verify(folder)


def test_an_extra_jar_is_refused(tmp_path: Path) -> None:
    """Nothing unpinned gets onto the broker's class path."""
    folder = _copied(tmp_path)
    (folder / "stranger.jar").write_bytes(b"")

    with pytest.raises(ServiceMissing, match="stranger"):
        kafka_jars.verify(folder)
