"""What the image would hold, and how it would run: the installed wheel, its user, a read-only root."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pipeline.ports import _free
from pipeline.stack import Stack
from tests.deployment.compose import COMPOSE, DOCKERFILE, ROOT, merged, seconds
from tests.deployment.installed import Installed, build, copied, installed, why_not

REASON = why_not()
as_the_image = pytest.mark.skipif(bool(REASON), reason=REASON or "can be run")


@pytest.fixture(scope="module")
def image() -> Iterator[Installed]:
    """The environment; not in pytest's folder, which only its owner may enter, nor in /tmp, which it hides."""
    folder = Path(tempfile.mkdtemp(prefix="isotherm-image-", dir="/var/tmp"))
    try:
        with installed(folder) as made:
            yield made
    finally:
        shutil.rmtree(folder)


def healthcheck(port: int) -> list[str]:
    """Return the HEALTHCHECK's command, for a gateway at another port."""
    found = re.search(r"HEALTHCHECK .*?CMD (\[.*?\])$", DOCKERFILE, re.DOTALL | re.MULTILINE)
    assert found is not None
    return [part.replace(":8080/", f":{port}/") for part in json.loads(found[1])]


@pytest.mark.unit
def test_the_wheel_has_what_is_no_code(tmp_path):
    """Settings, the local stack's lists and these files; tests, documents and locks are not in it."""
    names = set(zipfile.ZipFile(build(tmp_path)).namelist())

    for file in [*COMPOSE.rglob("*"), *(ROOT / "config").rglob("*")]:
        if file.is_file() and "__pycache__" not in file.parts:
            assert f"pipeline/_data/{file.relative_to(ROOT)}" in names
    for file in (ROOT / "pipeline").rglob("*"):  # the dashboard too
        if file.is_file() and "__pycache__" not in file.parts:
            assert str(file.relative_to(ROOT)) in names
    assert {"pipeline", "tiers", "consumers", "producers"} == {
        name.partition("/")[0] for name in names if ".dist-info/" not in name
    }


@pytest.mark.unit
def test_the_build_takes_only_what_is_let_in():
    """Each source that the Dockerfile copies exists, and .dockerignore lets it through."""
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for source in copied():
        assert (ROOT / source).exists(), source
        assert source.partition("/")[0] in let_in, source


@as_the_image
def test_its_view_is_the_images(image: Installed):
    """Another user, process number one, no rights; /tmp and its data take writes, nothing else does."""
    probe = """
import json, os, pathlib, pipeline
def writable(path):
    try:
        pathlib.Path(path, ".probe").touch()
    except OSError:
        return False
    return True
module = pipeline.__file__
names = ("/", "/etc", "/var/tmp", "/tmp", os.getcwd(), os.path.dirname(module))
status = pathlib.Path("/proc/self/status").read_text()
powerless, no_more = "CapEff:\\t0000000000000000" in status, "NoNewPrivs:\\t1" in status
print(json.dumps([os.getpid(), os.getuid(), powerless, no_more, module, {name: writable(name) for name in names}]))
"""
    done = subprocess.run(
        image.command("python", "-c", probe), env=image.environment(), capture_output=True, check=True
    )
    pid, user, powerless, no_more, module, places = json.loads(done.stdout)

    assert (1, 10001, True, True) == (pid, user, powerless, no_more)
    assert module.startswith(str(image.site))
    assert {"/tmp", str(image.data)} == {place for place, can in places.items() if can}


@as_the_image
def test_a_node_lives_and_stops_there(image: Installed, stack: Stack, prefix: str):
    """A key, a start, its HEALTHCHECK, a memory in and out, SQL; SIGTERM ends the first process in order, with 0."""
    (port,) = _free(1)
    environment = image.environment(
        ISOTHERM_KAFKA__BOOTSTRAP=stack.kafka,
        ISOTHERM_KAFKA__PREFIX=prefix,
        ISOTHERM_WARM__URL=stack.redis,
        ISOTHERM_WARM__PREFIX=prefix,
        ISOTHERM_GATEWAY__PORT=str(port),
        ISOTHERM_DIM="4",
    )
    make = image.command(
        "isotherm", "keys", "create", "me", "--scope", "read", "--scope", "write", "--all-namespaces", "--json"
    )
    key = json.loads(subprocess.run(make, env=environment, capture_output=True, check=True).stdout)["key"]
    node = subprocess.Popen(image.command("isotherm", "run", "--json"), env=environment, stdout=subprocess.PIPE)
    try:
        assert node.stdout is not None
        assert f"http://0.0.0.0:{port}" == json.loads(node.stdout.readline())["gateway"]
        subprocess.run(image.command(*healthcheck(port)), env=environment, check=True)
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {key}"}, timeout=30
        ) as http:
            written = http.post("/v1/memories", json={"id": "a", "vector": [1, 0, 0, 0]})
            token = written.json()["token"]
            assert 200 == http.get("/v1/memories/a", params={"at_least": token}).status_code
            counted = http.post("/v1/sql", json={"query": "SELECT count(*) FROM memories"})
            assert [[1]] == counted.json()["rows"], counted.text
        children = Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split()
        assert 1 == len(children), "unshare's one child is the node"
        grace = seconds(merged()["services"]["node"]["stop_grace_period"])
        subprocess.run(["kill", f"-{signal.SIGTERM}", children[0]], check=True)
        assert 0 == node.wait(grace)
    finally:
        node.kill()
        node.wait()
        if node.stdout is not None:
            node.stdout.close()
