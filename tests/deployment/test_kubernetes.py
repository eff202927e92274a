"""The manifests hold: Kubernetes' own schemas, our settings, and what they say of each other."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import doctor_machine
from pipeline.doctor_finding import Level
from pipeline.operation import OPEN
from pipeline.operations import OPERATIONS
from pipeline.settings import Settings, load
from tests.deployment.compose import COMPOSE, image_environment, size

pytestmark = pytest.mark.unit
FOLDER = COMPOSE / "kubernetes"
FILES = [FOLDER / name for name in yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]]
OBJECTS = {
    (made["kind"], made["metadata"]["name"]): made for file in FILES for made in yaml.safe_load_all(file.read_text())
}
NODE = OBJECTS["StatefulSet", "isotherm"]["spec"]
POD = NODE["template"]["spec"]
(CONTAINER,) = POD["containers"]
(FIRST_KEY,) = POD["initContainers"]
LABELS = {"app.kubernetes.io/name": "isotherm"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """What the pod's node reads: the file of the ConfigMap, the environment of image and manifest."""
    file = tmp_path / "isotherm.toml"
    file.write_text(OBJECTS["ConfigMap", "isotherm"]["data"]["isotherm.toml"])
    return load(file, image_environment() | {each["name"]: each["value"] for each in CONTAINER["env"]})


def mounted(path: str) -> dict[str, Any]:
    """Return the volume that a path of the node lies on."""
    mounts = {mount["mountPath"]: mount["name"] for mount in CONTAINER["volumeMounts"]}
    volumes = POD["volumes"] + [{"name": claim["metadata"]["name"]} for claim in NODE["volumeClaimTemplates"]]
    name = mounts[max((mount for mount in mounts if path.startswith(f"{mount}/")), key=len)]
    (found,) = [volume for volume in volumes if volume["name"] == name]
    return found


def test_every_manifest_is_what_kubernetes_takes():
    """Strictly: a field that does not exist is refused. No file of the folder is left out."""
    command = [str(Path(sys.executable).parent / "kubernetes-validate"), "--strict", "--quiet", *map(str, FILES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert 0 == done.returncode, done.stdout + done.stderr
    assert {*FILES, FOLDER / "kustomization.yaml"} == set(FOLDER.iterdir())


def test_the_node_takes_its_settings(settings):
    """Files named there lie on what is mounted: the data on the claim, each secret in the secret."""
    security = settings.kafka.security
    for file in (security.password_file, security.ca_file, settings.warm.password_file, settings.warm.ca_file):
        assert "secret" in mounted(file), file
    assert {"name": "data"} == mounted(settings.data)
    assert "configMap" in mounted(CONTAINER["args"][-1])
    assert "emptyDir" in mounted("/tmp/any")
    assert "0.0.0.0" == settings.gateway.host


def test_a_pod_has_time_to_stop(settings):
    """Longer than the gateway's drain and then the node's."""
    assert settings.gateway.drain_s + settings.node.drain_s < POD["terminationGracePeriodSeconds"]


def test_no_variable_of_a_service_reaches_the_settings():
    """A Service named isotherm would set ISOTHERM_PORT in every pod, and an unknown setting stops the start."""
    assert ("Service", "isotherm") in OBJECTS
    assert POD["enableServiceLinks"] is False


async def test_its_memory_is_enough(settings, monkeypatch):
    """The doctor, inside the limit, finds that everything fits at once."""
    limit = size(CONTAINER["resources"]["limits"]["memory"])
    monkeypatch.setattr(doctor_machine, "memory_limit", lambda: (limit, "the limit of its cgroup"))

    assert [Level.OK] == [finding.level for finding in await doctor_machine.memory(settings)]


def test_selectors_find_the_pod_and_ports_its_port():
    """Services, budget and policy select what the StatefulSet makes; ports go by the container's name for it."""
    assert LABELS == NODE["selector"]["matchLabels"] == NODE["template"]["metadata"]["labels"]
    assert ("Service", NODE["serviceName"]) in OBJECTS
    for (kind, _), made in OBJECTS.items():
        if kind == "Service":
            assert LABELS == made["spec"]["selector"]
            assert ["http"] == [port["targetPort"] for port in made["spec"]["ports"]]
    assert LABELS == OBJECTS["PodDisruptionBudget", "isotherm"]["spec"]["selector"]["matchLabels"]
    assert LABELS == OBJECTS["NetworkPolicy", "isotherm"]["spec"]["podSelector"]["matchLabels"]
    assert [("http", 8080)] == [(port["name"], port["containerPort"]) for port in CONTAINER["ports"]]


def test_probes_ask_what_is_open():
    """Their paths are operations that want no key."""
    open_paths = {operation.path for operation in OPERATIONS if operation.scope == OPEN}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert CONTAINER[probe]["httpGet"]["path"] in open_paths, probe


def test_a_pod_may_nothing():
    """The restricted profile of Kubernetes' own pod security standards, and a root that cannot be written."""
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert {"type": "RuntimeDefault"} == POD["securityContext"]["seccompProfile"]
    assert POD["automountServiceAccountToken"] is False
    for container in (CONTAINER, FIRST_KEY):
        held = container["securityContext"]
        assert {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        } == held


def test_the_first_key_is_one_that_the_gateway_takes(tmp_path):
    """The init container's own script, run on files as a secret has them: keys of 0600, and never twice."""
    data, secret = tmp_path / "data", tmp_path / "secret"
    secret.mkdir()
    for name in ("keys", "keys.pepper"):
        (secret / name).write_text("first")
        (secret / name).chmod(0o440)
    shell, flag, script = FIRST_KEY["command"]
    script = script.replace("/var/lib/isotherm/data", str(data)).replace("/run/secrets/first-key", str(secret))
    subprocess.run([shell, flag, script], check=True)
    assert {0o600} == {file.stat().st_mode & 0o777 for file in data.iterdir()}
    (data / "keys").write_text("rotated")
    subprocess.run([shell, flag, script], check=True)

    assert "rotated" == (data / "keys").read_text()


def test_the_policy_lets_out_to_where_the_settings_point(settings):
    """Namespaces and ports of Kafka and Valkey, and names."""
    rules = OBJECTS["NetworkPolicy", "isotherm"]["spec"]["egress"]
    allowed = {
        (peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"], port["port"])
        for rule in rules
        for peer in rule.get("to", ())
        for port in rule["ports"]
    }
    for address in (settings.kafka.bootstrap, settings.warm.url.partition("//")[2].partition("/")[0]):
        host, _, port = address.partition(":")
        assert (host.partition(".")[2], int(port)) in allowed, address
    assert ("kube-system", 53) in allowed
    assert tomllib.loads(OBJECTS["ConfigMap", "isotherm"]["data"]["isotherm.toml"])
