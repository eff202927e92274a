"""Backup and restore: what is restored elsewhere is what was there, and what is damaged is not restored."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from pipeline import MemoryManager
from pipeline.restore import restore
from pipeline.routes import Gateway
from pipeline.serve import HttpService
from pipeline.settings import Settings
from pipeline.snapshot import ABOUT, About, encode
from tests.nodes import rows
from tests.pipeline.test_questions import Service, service
from tiers import TierName
from tiers.errors import InvalidRecord, TierCorrupt

__all__ = ["service"]


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Service]:
    """A ready node and its gateway."""
    http = HttpService(settings)
    async with MemoryManager.open(settings, http) as memory:
        http.gateway = Gateway(memory)
        await memory.ready()
        async with httpx.AsyncClient(base_url=http.address, timeout=60) as client:
            yield Service(memory, client)


async def everything(service: Service) -> dict[str, Any]:
    """Return every record with all it has but the tier."""
    listed = await service.http.get("/v1/memories", params={"include": "payload,attributes,vector"})
    found = [json.loads(line) for line in listed.text.splitlines()]
    return {each["id"]: {key: value for key, value in each.items() if key != "tier"} for each in found}


def elsewhere(settings: Settings, data: Path) -> Settings:
    """Return settings of a node with the same log, and everything else its own."""
    return msgspec.structs.replace(
        settings, data=str(data), warm=msgspec.structs.replace(settings.warm, prefix=f"{settings.warm.prefix}-restored")
    )


async def test_what_is_restored_elsewhere_is_what_was_there(settings: Settings, tmp_path: Path) -> None:
    """Records of all tiers, updates and deletes before and after it, while records come in; from files and the log."""
    async with serving(settings) as node:
        await node.place()
        await node.memory.store(rows(5, seed=3))
        await node.memory.delete("id-35")
        busy = asyncio.create_task(publish_on(node))
        made = await node.http.post("/v1/snapshots", json={"name": "one"})
        assert made.status_code == 201, made.text
        busy.cancel()
        await asyncio.wait([busy])
        for token in (await node.memory.store(rows(9, start=10, seed=4)), await node.memory.delete("id-20")):
            await node.http.get("/v1/memories/id-1", params={"at_least": token})
        later = await node.http.post("/v1/snapshots", json={"name": "two"})
        assert later.status_code == 201, "so that what came after the first is committed too"
        before = await everything(node)

    told = made.json()
    assert told["rows"] >= 30
    restored = tmp_path / "restored"
    restore(Path(told["path"]), restored)
    shutil.rmtree(settings.data)
    async with serving(elsewhere(settings, restored)) as node:
        assert before == await everything(node)
        assert "id-35" not in before
        assert node.memory.node.index.rows(TierName.GLACIER) >= 20, "not all of it from the log"
        replayed = node.memory.node.ingest.rows
        token = await node.memory.delete("id-1")
        assert 404 == (await node.http.get("/v1/memories/id-1", params={"at_least": token})).status_code
    assert replayed < len(before)
    async with serving(elsewhere(settings, restored)) as node:  # a second start is like any other
        assert before.keys() - {"id-1"} == (await everything(node)).keys()


async def publish_on(node: Service) -> None:
    """Publish new records until cancelled."""
    for at in range(1_000, 100_000):
        await node.memory.store(rows(1, start=at))
        await asyncio.sleep(0.005)


def one_file(snapshot: Path) -> Path:
    """Return the name of a data file in a snapshot."""
    return min(snapshot.rglob("*.parquet")).relative_to(snapshot)


async def test_a_damaged_snapshot_is_refused_by_name(service: Service, tmp_path: Path) -> None:
    """A flipped bit, a cut or missing file, a changed note: the file is named, and nothing is made."""
    told = (await service.http.post("/v1/snapshots", json={"name": "two"})).json()
    data = one_file(Path(told["path"]))
    again = await service.http.post("/v1/snapshots", json={"name": "two"})
    assert (400, "name") == (again.status_code, again.json()["field"])
    assert 400 == (await service.http.post("/v1/snapshots", json={"name": "../x"})).status_code

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.unlink()  # it is a link of the archive's own file
        path.write_bytes(content)

    def cut(path: Path) -> None:
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[:-3])

    target = tmp_path / "restored"
    for damage in (flip, cut, Path.unlink):
        for file in (data, Path(ABOUT)):
            bad = tmp_path / "bad"
            shutil.copytree(told["path"], bad)
            damage(bad / file)
            with pytest.raises((TierCorrupt, InvalidRecord), match=str(bad)) as refused:
                restore(bad, target)
            assert file.name in str(refused.value) or file.name == ABOUT
            assert not target.exists()
            shutil.rmtree(bad)
    target.mkdir()
    (target / "precious").write_text("mine")
    with pytest.raises(InvalidRecord, match="there already"):
        restore(Path(told["path"]), target)
    assert (await service.http.get("/v1/memories/id-5")).status_code == 200


def test_the_command_restores_by_directory_and_by_name(tmp_path: Path, snapshot_of_nothing: Path) -> None:
    """It says what to do next; a snapshot that is not there is exit 2, a damaged one exit 1 with the file's name."""
    main = [sys.executable, "-m", "pipeline.cli", "snapshot", "restore"]

    def command(*words: str) -> tuple[int, str]:
        done = subprocess.run([*main, *words], capture_output=True, text=True, check=False, timeout=60)
        return done.returncode, done.stdout + done.stderr

    data = tmp_path / "data"
    named = ("-s", f"snapshot.path={snapshot_of_nothing.parent}")
    code, told = command(snapshot_of_nothing.name, "--to", str(data), "--json", *named)
    assert (0, {"0": 7}) == (code, json.loads(told)["offsets"])
    assert {"0": 7} == json.loads((data / "manifest.json").read_text())["replay_from"]
    assert 2 == command("absent", "--to", str(tmp_path / "x"))[0]
    (snapshot_of_nothing / ABOUT).write_text("{}")
    code, told = command(str(snapshot_of_nothing), "--to", str(tmp_path / "y"))
    assert (1, True) == (code, ABOUT in told)


@pytest.fixture
def snapshot_of_nothing(tmp_path: Path) -> Path:
    """A snapshot of a node without records."""
    about = About(
        name="none",
        created_at="2026-11-23T00:00:00+00:00",
        prefix="p",
        partitions=1,
        dim=16,
        metric="cosine",
        attributes={},
        epoch=0,
        cleared_below={},
        offsets={"0": 7},
        archive="elsewhere",
        delta_version=0,
        files=[],
    )
    place = tmp_path / "snapshots" / "none"
    place.mkdir(parents=True)
    (place / ABOUT).write_bytes(encode(about))
    return place
