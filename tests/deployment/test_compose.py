"""The compose files hold: schema, settings, and what a node demands of servers started with their options."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from pipeline import MemoryManager, doctor_machine
from pipeline.child import end, launch
from pipeline.doctor import examine
from pipeline.doctor_finding import Level
from pipeline.ports import _free
from pipeline.seaweed import NAMES, PORTS, binary
from pipeline.settings import load
from pipeline.stack import Stack
from tests.deployment.compose import (
    COMPOSE,
    DOCKERFILE,
    OVERLAYS,
    ROOT,
    environment,
    image_environment,
    kafka_properties,
    merged,
    seconds,
    size,
)
from tests.nodes import until
from tests.valkey_server import ValkeyServer

FILES = sorted(COMPOSE.glob("*.yaml"))
SETS = [chosen for count in range(4) for chosen in combinations(OVERLAYS, count)]
HERE = Path(sys.executable).parent


def told(node: dict[str, Any]) -> dict[str, str]:
    """Return the environment of a node's process."""
    return image_environment() | environment(node)


def ran(*command: str) -> str:
    """Run a checker of this environment; returns what it said, "" where it found nothing to say."""
    done = subprocess.run([str(HERE / command[0]), *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.unit
def test_the_files_are_compose_files():
    """By the Compose specification's own schema."""
    assert ran("check-jsonschema", "--builtin-schema", "vendor.compose-spec", *map(str, FILES)) == ""
    assert {"compose.yaml", *OVERLAYS} == {file.name for file in FILES}


@pytest.mark.unit
def test_the_linters_are_content():
    """Yamllint with every YAML file of compose/, hadolint with the Dockerfile."""
    assert ran("yamllint", "--strict", "compose") == ""
    assert ran("hadolint", "compose/Dockerfile") == ""


@pytest.mark.unit
@pytest.mark.parametrize("overlays", SETS, ids=lambda each: "+".join(("core", *each)))
def test_a_node_takes_the_environment_that_it_is_given(overlays):
    """Each variable is a setting, and the start would be refused neither for them nor for the stop's time."""
    node = merged(*overlays)["services"]["node"]
    settings = load(None, told(node))

    assert "0.0.0.0" == settings.gateway.host
    assert node["volumes"] == [f"node:{settings.data}"]
    assert seconds(node["stop_grace_period"]) > settings.gateway.drain_s + settings.node.drain_s
    assert ("cuda" if "gpu.yaml" in overlays else "auto") == settings.hot.device
    assert ("s3.yaml" in overlays) == settings.glacier.path.startswith("s3://")


@pytest.mark.unit
def test_a_setting_that_does_not_exist_would_be_noticed():
    """What the test above leans on."""
    with pytest.raises(Exception, match=r"warm\.urll: no such setting"):
        load(None, {"ISOTHERM_WARM__URLL": "redis://valkey"})


@pytest.mark.unit
async def test_the_memory_is_enough(monkeypatch):
    """The doctor, inside the limit of the core file, finds that everything fits at once."""
    node = merged()["services"]["node"]
    monkeypatch.setattr(doctor_machine, "memory_limit", lambda: (size(node["mem_limit"]), "the limit of its cgroup"))

    assert [Level.OK] == [finding.level for finding in await doctor_machine.memory(load(None, told(node)))]


@pytest.mark.unit
@pytest.mark.parametrize("overlays", SETS[-1:], ids=["all"])
def test_nothing_is_open_that_need_not_be(overlays):
    """Ports are the loopback's, roots are read-only where the image bears it, and nobody gains rights."""
    for name, service in merged(*overlays)["services"].items():
        assert "no-new-privileges:true" in service["security_opt"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        assert "mem_limit" in service, name
        assert not service.get("privileged"), name
    node = merged(*overlays)["services"]["node"]
    assert (True, ["ALL"]) == (node["read_only"], node["cap_drop"])
    assert "\nUSER 10001:10001\n" in DOCKERFILE


@pytest.mark.unit
def test_what_the_files_name_is_there():
    """Bind mounts, the Dockerfile, the lock of each image; and no image floats on `latest`."""
    services = merged(*OVERLAYS)["services"]
    for name, service in services.items():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert not source.startswith(".") or (COMPOSE / source).exists(), (name, source)
        assert "build" in service or ":" in service["image"], name
    build = services["node"]["build"]
    assert (ROOT / build["args"]["LOCK"]).exists()
    assert (COMPOSE / build["context"] / build["dockerfile"]).resolve() == COMPOSE / "Dockerfile"


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A server started with the options of compose.yaml, and none of ours."""
    _, *options = merged()["services"]["valkey"]["command"]
    server = ValkeyServer(tmp_path)
    server.settings = {name.removeprefix("--"): value for name, value in zip(options[::2], options[1::2], strict=True)}
    with server:
        yield server


def of_compose(services: dict[str, Any]) -> str:
    """Return the broker's properties, with addresses and directory of this machine."""
    given = kafka_properties(services["kafka"])
    voters, external = given.pop("controller.quorum.voters"), given.pop("log.dirs")
    assert ("1@localhost:9093", "/var/lib/kafka/data") == (voters, external)
    (spare,) = _free(1)
    ports = {"INTERNAL": "{kafka}", "EXTERNAL": str(spare), "CONTROLLER": "{controller}"}
    names = [each.partition(":")[0] for each in given["listeners"].split(",")]
    given["listeners"] = ",".join(f"{name}://{{host}}:{ports[name]}" for name in names)
    given["advertised.listeners"] = ",".join(f"{name}://{{host}}:{ports[name]}" for name in names[:2])
    return "".join(f"{key}={value}\n" for key, value in given.items())


async def test_a_node_starts_on_these_servers_and_the_doctor_finds_nothing(tmp_path, valkey, monkeypatch):
    """Kafka, Valkey and SeaweedFS run with the files' options: the start refuses none, no finding is an error."""
    services = merged("s3.yaml")["services"]
    keys = {"AWS_ACCESS_KEY_ID": "given", "AWS_SECRET_ACCESS_KEY": "given"}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    ports = _free(PORTS)
    numbered = zip(NAMES, zip(ports[::2], ports[1::2], strict=True), strict=True)
    here = [
        f"-{name}.port{kind}={port}" for name, both in numbered for kind, port in zip(("", ".grpc"), both, strict=True)
    ]
    options = [each for each in services["s3"]["command"] if not each.startswith(("-dir", "-s3.port"))]
    (tmp_path / "s3").mkdir()
    with (tmp_path / "s3.log").open("wb") as out:
        weed = await launch(
            [binary(), *options, f"-dir={tmp_path / 's3'}", "-ip=127.0.0.1", *here], stdout=out, stderr=out
        )
    try:
        async with Stack(tmp_path / "stack", kafka_properties=of_compose(services)) as stack:
            settings = load(
                None,
                told(services["node"]),
                {
                    "data": str(tmp_path / "node"),
                    "kafka.bootstrap": stack.kafka,
                    "warm.url": valkey.url,
                    "glacier.endpoint": f"http://127.0.0.1:{ports[0]}",
                    "gateway.port": 0,
                    "hot.device": "cpu",
                },
            )
            await until(lambda: doctor_machine.anyone("127.0.0.1", ports[0]))
            health = services["s3"]["healthcheck"]["test"][-1].replace(":8333/", f":{ports[0]}/")
            async with httpx.AsyncClient() as http:
                assert 200 == (await http.get(health)).status_code
            async with MemoryManager.open(settings) as memory:
                await memory.ready()
                found = {finding.check: finding for finding in await examine(settings) if finding.level is Level.ERROR}
        assert {} == found
    finally:
        await end(weed)


@pytest.mark.unit
def test_prometheus_in_compose_has_the_rules_of_the_other():
    """compose.yml differs from prometheus.yml in the node's address alone."""
    ours, other = (
        yaml.safe_load((COMPOSE / "observability" / "prometheus" / name).read_text())
        for name in ("compose.yml", "prometheus.yml")
    )
    assert ["node:8080"] == ours["scrape_configs"][0]["static_configs"][0].pop("targets")
    other["scrape_configs"][0]["static_configs"][0].pop("targets")
    assert other == ours
