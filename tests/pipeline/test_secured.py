"""A node against servers with TLS, users and ACLs, and what it says when they do not let it in."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from redis.asyncio import Redis

from consumers import subscribe_changes
from pipeline import MemoryManager, Query
from pipeline.dead_letters import newest
from pipeline.settings import Settings
from pipeline.stack import HOST, Stack
from producers import MemoryProducer
from producers.publisher import KafkaSettings, Publisher
from producers.security import KafkaSecurity
from tests import secured
from tests.conftest import StackThread
from tests.nodes import rows, small, until
from tests.secured import PASSWORD, PREFIX, Paper
from tests.valkey_server import Proxy, ValkeyServer
from tiers.errors import Fenced, ServiceMissing, SettingsError
from tiers.warm import WarmMemory
from tiers.warm_settings import WarmSettings

SOON_S = 15  # a server that refuses us is named within this time


class Secured(NamedTuple):
    """Where the servers listen: `users` SASL_SSL, `certs` SSL, `open` plain; `valkey` has ACLs, and no TLS."""

    paper: Paper
    users: str
    certs: str
    open: str
    valkey: ValkeyServer


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """Kafka and Valkey that enforce docs/security.md."""
    folder = tmp_path_factory.mktemp("secured")
    papers = secured.paper(folder)
    users, certs = secured.free_port(), secured.free_port()
    lines = secured.LISTENERS.format(users=users, certs=certs, folder=folder, password=PASSWORD)
    thread = StackThread(Stack(folder / "stack", kafka_properties=lines))
    (folder / "valkey").mkdir()
    acl = folder / "users.acl"
    acl.write_text(secured.redis_acl())
    try:
        thread.do(thread.stack.__aenter__())
        secured.enforce(thread.stack.kafka)
        with ValkeyServer(folder / "valkey", aclfile=str(acl)) as valkey:
            yield Secured(papers, f"{HOST}:{users}", f"{HOST}:{certs}", thread.stack.kafka, valkey)
    finally:
        thread.do(thread.stack.stop())
        thread.close()


@pytest.fixture
async def front(servers: Secured) -> AsyncIterator[Proxy]:
    """TLS in front of Valkey."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    servers.paper.server.configure_cert(context)
    async with Proxy(servers.valkey.port, context) as proxy:
        yield proxy


def security(servers: Secured, **more: str) -> KafkaSecurity:
    """Return the settings of the documented user."""
    given = {"protocol": "SASL_SSL", "username": "isotherm", "password": PASSWORD, "ca_file": servers.paper.file("ca")}
    return KafkaSecurity(**(given | more))


def kafka(servers: Secured, bootstrap: str | None = None, **more: str) -> KafkaSettings:
    """Return a client's settings; `more` are of its security."""
    where = servers.users if bootstrap is None else bootstrap
    return KafkaSettings(bootstrap=where, prefix=PREFIX, partitions=4, security=security(servers, **more))


@pytest.fixture
def node(servers: Secured, front: Proxy, tmp_path: Path) -> Settings:
    """A small node that uses both, with its passwords in files."""
    for name in ("kafka", "warm"):
        (tmp_path / name).write_text(f"{PASSWORD}\n")
    stack = Stack(tmp_path)
    made = small(
        stack,
        PREFIX,
        tmp_path / "node",
        kafka__bootstrap=servers.users,
        warm__url=front.url,
        warm__username="isotherm",
        warm__password_file=str(tmp_path / "warm"),
        warm__ca_file=servers.paper.file("ca"),
        policy__hot_age_s=0.2,
        policy__warm_idle_s=3600,
        kafka__security__protocol="SASL_SSL",
        kafka__security__username="isotherm",
        kafka__security__password_file=str(tmp_path / "kafka"),
        kafka__security__ca_file=servers.paper.file("ca"),
    )
    assert isinstance(made, Settings)
    return made


async def test_a_node_lives_on_the_documented_rights(node: Settings, servers: Secured, capsys) -> None:
    """Publish, search, move to warm, update, delete, evict, restart: no right beyond docs/security.md is missed."""
    given = rows(40)
    async with MemoryManager.open(node) as memory:
        await memory.ready()
        token = await memory.store(given)
        found = await memory.retrieve(Query(vector=given[3].vector, k=1, at_least=token))
        assert ["id-3"] == [hit.row.id for hit in found.hits]

        await until(lambda: _all_in_warm(memory, 40))
        assert b'{"n":3}' == (await memory.retrieve(Query(ids=["id-3"]))).hits[0].row.payload
        await memory.store(rows(5, seed=7))
        await memory.retrieve(Query(ids=[], at_least=await memory.delete("id-9")))
        await until(lambda: _all_in_warm(memory, 39))
        await memory.cleanup()
    async with MemoryManager.open(node) as memory:
        await memory.ready()
        assert 39 == len([row async for batch in memory.retrieve_all() for row in batch["id"]])
        assert 39 == await memory.clear("warm")
        with pytest.raises(Fenced):  # another node asks whose partitions these are
            async with MemoryManager.open(msgspec.structs.replace(node, data=f"{node.data}-2")):
                pass
    assert PASSWORD not in "".join(capsys.readouterr())
    async with Redis.from_url(servers.valkey.url, username="isotherm", password=PASSWORD) as client:
        called = {
            name.removeprefix("cmdstat_") for name, of in (await client.info("commandstats")).items() if of["calls"]
        }
    granted = {word.removeprefix("+") for word in secured.block("redis").split() if word.startswith("+")}
    assert set() == granted - called, "a right that nothing uses"


async def test_dead_letters_are_read_by_the_same_user(node: Settings) -> None:
    """Over TLS with the node's own credentials; `isotherm dead-letters` needs no right that a node has not."""
    async with MemoryManager.open(node) as memory, Publisher(node.kafka) as publisher:
        await memory.ready()
        before = sum(memory.node.ingest.letters.values())
        await publisher.send(memory.node.topics.memories, b"no JSON", b"bad-one", 0)
        await until(lambda: sum(memory.node.ingest.letters.values()) > before)
        found = await newest(node, 10, 1_000)

    assert b"bad-one" == found[-1].letter.key


async def _all_in_warm(memory: MemoryManager, count: int) -> bool:
    return (await memory.tiers())["tiers"]["warm"]["records"] == count


async def test_a_producer_and_a_subscriber_need_less(servers: Secured, node: Settings) -> None:
    """The documented rights of a program that only publishes, or only follows, are enough for that, and for no more."""
    async with MemoryManager.open(node) as memory:
        await memory.ready()
    async with MemoryProducer(kafka(servers, username="sensor")) as producer:
        assert await producer.send("s-1", np.ones(16, np.float32))
    async for _ in subscribe_changes(kafka(servers, username="auditor"), start="beginning", idle_ms=500):
        pass
    with pytest.raises(ServiceMissing, match=r"docs/security\.md"):
        async with MemoryProducer(kafka(servers, username="auditor")):
            pass


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_every_mechanism_lets_the_user_in(servers: Secured, mechanism: str) -> None:
    """The same user, under each mechanism."""
    async with Publisher(kafka(servers, mechanism=mechanism)):
        pass


async def test_a_certificate_of_our_own_is_enough_where_the_listener_wants_one(servers: Secured) -> None:
    """SSL without a user: the certificate is the name."""
    ours = {"cert_file": servers.paper.file("client"), "key_file": servers.paper.file("client-key")}
    only = KafkaSecurity(protocol="SSL", ca_file=servers.paper.file("ca"), **ours)
    client = AIOKafkaAdminClient(**KafkaSettings(bootstrap=servers.certs, security=only).client())
    await client.start()
    try:
        assert [] == await client.list_topics()  # it may log in, and has no rights
    finally:
        await client.close()


#: aiokafka lets go of a refused connection without waiting for its end; its remains may be collected in the test.
REFUSED = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

KAFKA_FAULTS: list[tuple[str, dict[str, str], str]] = [
    ("users", {"password": "wrong-canary"}, r"refused user 'isotherm'; set kafka\.security\.username"),
    ("users", {"password": "wrong-canary", "mechanism": "PLAIN"}, r"refused user 'isotherm'"),
    ("users", {"username": "stranger"}, r"refused user 'stranger'"),
    ("users", {"ca_file": "stranger"}, r"is not trusted .*set kafka\.security\.ca_file"),
    ("users", {"ca_file": ""}, r"is not trusted .*set kafka\.security\.ca_file"),
    ("users", {"protocol": "PLAINTEXT"}, r"kafka\.security\.protocol"),
    ("users", {"protocol": "SSL"}, r"kafka\.security\.protocol"),
    ("open", {}, r"kafka\.security\.protocol"),
    ("certs", {"protocol": "SSL"}, r"kafka\.security\.cert_file|kafka\.security\.protocol"),
]


@REFUSED
@pytest.mark.parametrize(("listener", "changed", "says"), KAFKA_FAULTS)
async def test_a_broker_that_refuses_us_is_named_with_the_setting(
    servers: Secured, listener: str, changed: dict[str, str], says: str
) -> None:
    """Wrong password, user, authority or protocol: ServiceMissing within seconds, and no secret in it."""
    given = {"protocol": "SASL_SSL", "username": "isotherm", "password": PASSWORD, "ca_file": "ca"} | changed
    if not given["protocol"].startswith("SASL"):
        given |= {"username": "", "password": ""}
    given["ca_file"] = servers.paper.file(given["ca_file"]) if given["ca_file"] and "SSL" in given["protocol"] else ""
    settings = KafkaSettings(bootstrap=getattr(servers, listener), security=KafkaSecurity(**given))
    async with asyncio.timeout(SOON_S):
        with pytest.raises(ServiceMissing, match=says) as caught:
            async with Publisher(settings):
                pass

    assert "canary" not in str(caught.value)


@REFUSED
async def test_a_user_without_rights_is_told_what_a_node_needs(servers: Secured, node: Settings) -> None:
    """A user that may log in and do nothing else stops the start, with the page that lists the rights."""
    barred = msgspec.structs.replace(node.kafka, prefix="other", security=security(servers, username="nobody"))
    async with asyncio.timeout(SOON_S):
        with pytest.raises(ServiceMissing, match=r"docs/security\.md"):
            async with MemoryManager.open(msgspec.structs.replace(node, kafka=barred)):
                pass


WARM_FAULTS: list[tuple[dict[str, str], str]] = [
    ({"password": "wrong-canary"}, r"set warm\.username and warm\.password"),
    ({"username": "", "password": ""}, r"set warm\.username and warm\.password"),
    ({"ca_file": "stranger"}, r"set warm\.ca_file"),
    ({"ca_file": ""}, r"set warm\.ca_file"),
    ({"scheme": "redis"}, r"rediss://"),
]


@pytest.mark.parametrize(("changed", "says"), WARM_FAULTS)
async def test_a_redis_that_refuses_us_is_named_with_the_setting(
    servers: Secured, front: Proxy, changed: dict[str, str], says: str
) -> None:
    """Wrong password, user, authority or scheme: ServiceMissing within seconds, and no secret in it."""
    given = {"scheme": "rediss", "username": "isotherm", "password": PASSWORD, "ca_file": "ca"} | changed
    url = front.url.replace("rediss", given.pop("scheme"))
    given["ca_file"] = servers.paper.file(given["ca_file"]) if given["ca_file"] and url.startswith("rediss") else ""
    async with asyncio.timeout(SOON_S):
        with pytest.raises(ServiceMissing, match=says) as caught:
            await WarmMemory.open(WarmSettings(url=url, prefix=PREFIX, **given), _shape(), partitions=1)

    assert "canary" not in str(caught.value)


async def test_a_redis_user_without_rights_is_told_what_a_node_needs(front: Proxy, servers: Secured) -> None:
    """Another prefix is another's: the documented user may not touch it."""
    given: dict[str, Any] = {"username": "isotherm", "password": PASSWORD, "ca_file": servers.paper.file("ca")}
    with pytest.raises(ServiceMissing, match=r"No permissions.*docs/security\.md"):
        await WarmMemory.open(WarmSettings(url=front.url, prefix="another", **given), _shape(), partitions=1)


def _shape() -> Any:
    from tiers import record

    return record.schema(4, {})


def test_wrong_credentials_end_the_command_with_3_and_wrong_files_with_2(servers: Secured, tmp_path: Path) -> None:
    """`isotherm run` says in one line which setting it is, without the secret, and does not hang."""
    base = {
        "ISOTHERM_DATA": str(tmp_path / "data"),
        "ISOTHERM_KAFKA__BOOTSTRAP": servers.users,
        "ISOTHERM_KAFKA__SECURITY__PROTOCOL": "SASL_SSL",
        "ISOTHERM_KAFKA__SECURITY__USERNAME": "isotherm",
        "ISOTHERM_KAFKA__SECURITY__PASSWORD": "wrong-canary",
        "ISOTHERM_KAFKA__SECURITY__CA_FILE": servers.paper.file("ca"),
        "ISOTHERM_GATEWAY__PORT": "0",
    }
    missing = {"ISOTHERM_KAFKA__SECURITY__CA_FILE": "/nowhere/ca.pem"}
    for environment, code, says in ((base, 3, "kafka.security.password"), (base | missing, 2, "ca_file = '/nowhere")):
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", "run"],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, **environment},
            check=False,
        )
        assert code == done.returncode, done.stderr
        assert says in done.stderr.strip().splitlines()[-1]
        assert "canary" not in done.stdout + done.stderr


# -- settings, without a server --------------------------------------------------------------------------------------

IMPOSSIBLE: list[tuple[type[Any], dict[str, str], str]] = [
    (KafkaSecurity, {"protocol": "TLS"}, r"kafka\.security\.protocol = 'TLS': one of PLAINTEXT"),
    (KafkaSecurity, {"mechanism": "MD5"}, r"kafka\.security\.mechanism = 'MD5'"),
    (KafkaSecurity, {"protocol": "SASL_SSL"}, r"kafka\.security\.username"),
    (KafkaSecurity, {"protocol": "SASL_SSL", "username": "u"}, r"password and password_file"),
    (KafkaSecurity, {"username": "u"}, r"kafka\.security\.username: PLAINTEXT knows no users"),
    (KafkaSecurity, {"protocol": "SSL", "password": "canary"}, r"kafka\.security\.password: SSL knows no users"),
    (KafkaSecurity, {"ca_file": "ca.pem"}, r"kafka\.security\.ca_file: PLAINTEXT is not encrypted"),
    (WarmSettings, {"url": "http://localhost"}, r"warm\.url: not a URL"),
    (WarmSettings, {"url": "redis://:canary@localhost:port/0"}, r"warm\.url: not a URL"),
    (WarmSettings, {"url": "redis://u:canary@localhost", "username": "u", "password": "x"}, r"warm\.url: it names"),
    (WarmSettings, {"username": "u"}, r"warm\.username: set warm\.password"),
    (WarmSettings, {"ca_file": "ca.pem"}, r"warm\.ca_file: warm\.url is not encrypted"),
]


@pytest.mark.unit
@pytest.mark.parametrize(("kind", "given", "says"), IMPOSSIBLE)
def test_an_impossible_combination_names_the_key(kind: type[Any], given: dict[str, str], says: str) -> None:
    """SettingsError at once, and never with a secret in it."""
    with pytest.raises(SettingsError, match=says) as caught:
        kind(**given)

    assert "canary" not in str(caught.value)


@pytest.mark.unit
def test_files_that_do_not_do_are_named(tmp_path: Path) -> None:
    """A file that is absent, empty, no PEM, locked by a passphrase or half of a pair: the key and why."""
    papers = secured.paper(tmp_path)
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "noise.pem").write_text("noise")
    sasl = {"protocol": "SASL_SSL", "username": "u"}
    faults: list[tuple[dict[str, str], str]] = [
        ({**sasl, "password_file": "/nowhere"}, r"password_file = '/nowhere': No such file"),
        ({**sasl, "password_file": str(tmp_path / "empty")}, r"password_file = .*the file is empty"),
        ({**sasl, "password_file": "/nowhere", "ca_file": papers.file("noise")}, r"ca_file = .*no PEM"),
        (
            {"protocol": "SSL", "cert_file": papers.file("client")},
            r"cert_file: a client certificate needs both|key_file",
        ),
        (
            {"protocol": "SSL", "cert_file": papers.file("client"), "key_file": papers.file("locked-key")},
            r"key_file = .*passphrase",
        ),
        ({"protocol": "SSL", "cert_file": papers.file("client"), "key_file": papers.file("ca")}, r"cert_file = "),
    ]
    for given, says in faults:
        with pytest.raises(SettingsError, match=says):
            KafkaSecurity(**given).options()


@pytest.mark.unit
def test_a_password_file_is_read_without_its_line_end(tmp_path: Path) -> None:
    """Editors end a file with a newline; the password does not have it."""
    (tmp_path / "secret").write_text("  spaces stay \r\n")
    file = str(tmp_path / "secret")

    assert "  spaces stay " == WarmSettings(username="u", password_file=file).security()["password"]


@pytest.mark.unit
def test_no_secret_is_shown(tmp_path: Path) -> None:
    """Not by config show, not by a repr, not by an error about another key."""
    environment = {
        **os.environ,
        "ISOTHERM_WARM__USERNAME": "u",
        "ISOTHERM_WARM__PASSWORD": "canary",
        "ISOTHERM_KAFKA__SECURITY__PROTOCOL": "SASL_SSL",
        "ISOTHERM_KAFKA__SECURITY__USERNAME": "u",
        "ISOTHERM_KAFKA__SECURITY__PASSWORD": "canary",
    }
    for more in ([], ["-s", "hot.colour=blue"], ["-s", "warm.connections=many"], ["-s", "kafka.security.colour=blue"]):
        command = [sys.executable, "-m", "pipeline.cli", "config", "show", *more]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
        assert (2 if more else 0) == done.returncode
        assert "canary" not in done.stdout + done.stderr
        if not more:
            shown = json.loads(done.stdout)
            assert ["***", "***"] == [shown["warm"]["password"], shown["kafka"]["security"]["password"]]
    settings = Settings(warm=WarmSettings(username="u", password="canary"))

    assert "canary" not in repr(settings)
    assert "canary" not in repr(KafkaSecurity(protocol="SASL_SSL", username="u", password="canary"))


@pytest.mark.unit
def test_a_producer_takes_its_security_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """MemoryProducer.from_settings() reads what a node reads, and refuses what a node refuses."""
    monkeypatch.setenv("ISOTHERM_KAFKA__PARTITIONS", "3")
    monkeypatch.setenv("ISOTHERM_KAFKA__SECURITY__PROTOCOL", "SASL_SSL")
    monkeypatch.setenv("ISOTHERM_KAFKA__SECURITY__USERNAME", "u")
    monkeypatch.setenv("ISOTHERM_KAFKA__SECURITY__PASSWORD", "canary")
    found = KafkaSettings.from_environment()

    assert (3, "SASL_SSL", "u", "canary") == (
        found.partitions,
        found.security.protocol,
        found.security.username,
        found.security.password,
    )

    monkeypatch.setenv("ISOTHERM_KAFKA__COLOUR", "blue")
    with pytest.raises(SettingsError, match="colour"):
        KafkaSettings.from_environment()
