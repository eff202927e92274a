"""A secret in every place that takes one, and real starts that succeed and fail: it is shown nowhere."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from typer.testing import CliRunner

from pipeline import MemoryManager
from pipeline.cli import app
from pipeline.demo_node import NodeProcess
from pipeline.key_file import KeyFiles
from pipeline.log import configure
from pipeline.settings import LogSettings, load, shown
from pipeline.stack import Stack
from tests.access import bearer, make_key
from tests.nodes import DIM, small
from tiers.errors import IsothermError, SettingsError
from tiers.secret import masked_url

CANARY = "canary-7d1e"
ISOTHERM = [sys.executable, "-m", "pipeline.cli"]

#: Every way in which settings take a secret, and what makes the start go on past the settings: {warm} and {kafka} are
#: real servers, which want no password and refuse one; nobody listens at port 1.
SECRETS: dict[str, dict[str, Any]] = {
    "password in warm.url": {"warm.url": f"redis://:{CANARY}@{{warm}}/0"},
    "user and password in warm.url": {"warm.url": f"redis://me:{CANARY}@{{warm}}/0"},
    "password in warm.url, nobody there": {"warm.url": f"redis://:{CANARY}@127.0.0.1:1/0"},
    "password in warm.url, in percent": {"warm.url": "redis://:%63anary-7d1e@{warm}/0"},
    "password in warm.url's query": {"warm.url": f"redis://{{warm}}/0?password={CANARY}"},
    "password in warm.url, no URL": {"warm.url": f"redis://:{CANARY}@[{{warm}}/0"},
    "warm.password": {"warm.password": CANARY, "warm.username": "me"},
    "warm.password, wrong type of another": {"warm.password": CANARY, "warm.connections": "many"},
    "kafka password": {
        "kafka.security.protocol": "SASL_PLAINTEXT",
        "kafka.security.username": "me",
        "kafka.security.password": CANARY,
    },
    "kafka password, nobody there": {
        "kafka.bootstrap": "127.0.0.1:1",
        "kafka.security.protocol": "SASL_PLAINTEXT",
        "kafka.security.mechanism": "PLAIN",
        "kafka.security.username": "me",
        "kafka.security.password": CANARY,
    },
    "password in glacier.endpoint": {
        "glacier.path": "s3://bucket/archive",
        "glacier.endpoint": f"http://me:{CANARY}@127.0.0.1:1",
        "glacier.allow_http": "true",
    },
    "password in glacier.endpoint's query": {
        "glacier.path": "s3://bucket/archive",
        "glacier.endpoint": f"http://127.0.0.1:1/?password={CANARY}",
        "glacier.allow_http": "true",
    },
}
TAKEN = {"password in warm.url", "password in warm.url, in percent", "password in warm.url's query"}
#: %63 is a "c": what is written in percent is as secret as what it stands for.
SAID = (CANARY, "%63anary")


def hold(text: str, where: str) -> None:
    """Hold that no canary is in a text."""
    for word in SAID:
        assert word not in text, (where, text[max(0, text.find(word) - 300) :][:700])


@pytest.fixture
def logging_restored() -> Iterator[None]:
    """Logging is as it was, afterwards: standard error is another one in each test."""
    root = logging.getLogger()
    before = root.handlers[:], root.level, structlog.get_config()
    yield
    root.handlers[:], level, given = before
    root.setLevel(level)
    structlog.configure(**given)


@pytest.mark.usefixtures("logging_restored")
@pytest.mark.parametrize("name", SECRETS)
async def test_a_start_that_fails_shows_no_secret(
    name: str, stack: Stack, prefix: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not in the error, its causes and tracebacks, the log at its lowest level, or what is shown of the settings."""
    addresses = {"warm": stack.redis.removeprefix("redis://").partition("/")[0], "kafka": stack.kafka}
    given = {
        key: value.replace("{warm}", addresses["warm"]) if isinstance(value, str) else value
        for key, value in SECRETS[name].items()
    }
    configure(LogSettings(level="debug", format="json"))
    logging.getLogger().setLevel(logging.DEBUG)  # libraries too
    try:
        settings = small(stack, prefix, tmp_path / "node", warm__timeout_ms=500, **given)
    except SettingsError as error:
        hold("".join(traceback.format_exception(error)), name)
        return
    hold(json.dumps(shown(settings)) + repr(settings), name)
    failure: BaseException | None = None
    try:  # a server whose default user has no password takes any: then it is the log that must hold its tongue
        async with asyncio.timeout(30), MemoryManager.open(settings):
            pass
    except (IsothermError, BaseExceptionGroup) as error:
        failure = error
        hold("".join(traceback.format_exception(error)), name)
    hold("".join(capfd.readouterr()), name)
    assert (failure is None) == (name in TAKEN), failure


def test_credentials_of_a_bucket_are_not_shown(stack: Stack, prefix: str, tmp_path: Path) -> None:
    """From the environment or a file: a bucket that cannot be reached, or refuses them, says nothing of them."""
    (tmp_path / "credentials").write_text(
        f"[default]\naws_access_key_id = {CANARY}\naws_secret_access_key = {CANARY}\n"
    )
    bucket = {
        "ISOTHERM_GLACIER__PATH": "s3://bucket/archive",
        "ISOTHERM_GLACIER__ENDPOINT": "http://127.0.0.1:1",
        "ISOTHERM_GLACIER__ALLOW_HTTP": "true",
        "ISOTHERM_GLACIER__TIMEOUT_S": "0.2",
        "ISOTHERM_LOG__LEVEL": "debug",
        "ISOTHERM_KAFKA__BOOTSTRAP": stack.kafka,
        "ISOTHERM_KAFKA__PREFIX": prefix,
        "ISOTHERM_WARM__URL": stack.redis,
        "ISOTHERM_WARM__PREFIX": prefix,
        "ISOTHERM_DATA": str(tmp_path / "node"),
        "ISOTHERM_GATEWAY__PORT": "0",
        "ISOTHERM_GLACIER__CREDENTIALS_FILE": str(tmp_path / "credentials"),
        "AWS_SECRET_ACCESS_KEY": CANARY,
        "AWS_ACCESS_KEY_ID": CANARY,
    }
    environment = {**os.environ, **bucket}
    for command, code in ((["run"], 3), (["config", "show"], 0)):
        done = subprocess.run(
            [*ISOTHERM, *command], capture_output=True, text=True, timeout=60, env=environment, check=False
        )
        hold(done.stdout + done.stderr, str(command))
        assert code == done.returncode, done.stderr


async def test_an_api_key_is_in_nothing_that_a_node_says(stack: Stack, prefix: str, tmp_path: Path) -> None:
    """Sent well, badly, in a parameter: not in an answer, the log, /metrics, `keys list`, or a file."""
    more = {"kafka.prefix": prefix, "warm.prefix": prefix, "log.level": "debug", "embedder": "", "dim": DIM}
    node = NodeProcess(tmp_path, stack, more)
    data = load(None, {}, {"data": str(tmp_path / "node")})
    key = make_key(data)
    secret = key[17:]
    bad = f"iso_{'0' * 12}_{secret}"
    ways: list[dict[str, Any]] = [
        {"headers": bearer(key)},
        {"headers": bearer(bad)},
        {"headers": bearer(key[:-1])},
        {"headers": {"authorization": key}},
        {"headers": {"authorization": f"Basic {key}"}},
        {"headers": [("authorization", f"Bearer {key}")] * 2},
        {"headers": {"x-api-key": key}},
        {"params": {"key": key}},
        {"headers": bearer(key), "params": {"key": key}},
        {"headers": {**bearer(key), "content-type": "nonsense"}},
    ]
    try:
        address = await node.start()
        async with httpx.AsyncClient(base_url=address, timeout=10) as http:
            for way in ways:
                for method, path in (
                    ("GET", "/v1/memories/a"),
                    ("GET", "/v1/why/a"),
                    ("POST", "/v1/memories"),
                ):
                    answer = await http.request(method, path, **way)
                    hold_secret(secret, answer.text + str(answer.headers), (way, path))
            metrics = await http.get("/metrics", headers=bearer(key))
            assert 200 == metrics.status_code
            hold_secret(secret, metrics.text, "/metrics")
        await node.stop()
    finally:
        await node.cleanup()
    for file in list(tmp_path.rglob("*")):  # noqa: ASYNC240 - nothing else runs
        if file.is_file():
            hold_secret(secret, file.read_bytes().decode("latin-1"), file)
    listed = [CliRunner().invoke(app, ["keys", "list", "-s", f"data={data.data}", *more]) for more in ([], ["--json"])]
    for one in listed:
        assert 0 == one.exit_code
        hold_secret(secret, one.output, "keys list")
        assert KeyFiles.under(data.data, "", "").read()[0].hash not in one.output


def hold_secret(secret: str, text: str, where: object) -> None:
    """Hold that no twelve characters of a secret that follow each other are in a text."""
    for at in range(len(secret) - 12):
        assert secret[at : at + 12] not in text, where


@pytest.mark.unit
@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://me@h:1/0?db=2", "redis://me@h:1/0?db=2"),
        (f"redis://:{CANARY}@h:1/0", "redis://:***@h:1/0"),
        (f"rediss://me:{CANARY}@h", "rediss://me:***@h"),
        (f"redis://me:12/{CANARY}@h", "redis://me:***@h"),
        (f"redis://me:a@{CANARY}@h", "redis://me:***@h"),
        (f"redis://me:a?{CANARY}\n@h", "redis://me:***@h"),
        (f"redis://h/0?db=1&Password={CANARY}", "redis://h/0?***"),
        (f"s3://AKIA:{CANARY}@bucket/prefix", "s3://AKIA:***@bucket/prefix"),
        ("", ""),
        ("/var/lib/isotherm", "/var/lib/isotherm"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, expected: str) -> None:
    """Wherever a URL can hold one, also where it should have been written in percent; the rest stays readable."""
    assert expected == masked_url(url)
