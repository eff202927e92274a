"""The power goes: whatever was not fsynced is forgotten, at every moment of a process that writes all that we write.

And the receipts themselves: counted, with what they rest on, in the order in which it happened.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import redis
import structlog

from pipeline.key_file import KeyFiles
from pipeline.manifest import Clearances, DataDirectory
from tests.preload import MARK, SYNCS, Event, Preload, cut, unsynced
from tests.tiers.power_child import PARTITIONS, SETTINGS, cold_settings
from tests.tiers.rows import SHAPE
from tests.valkey_server import ValkeyServer
from tiers.cold import ColdMemory
from tiers.glacier import GlacierMemory
from tiers.glacier_settings import GlacierSettings
from tiers.index import Index
from tiers.tier import Tier

log = structlog.get_logger()

ROOT = Path(__file__).parents[2]
#: What is written and may be lost: it is made again from what is durable, or found to be incomplete by its checksums.
DERIVED = ("/cold/cold.side", "/cold/cold.lock", "/cold/cold.mark", "/lock", "/cold/cold.tmp")


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Preload:
    """A process that has written everything, under the shim."""
    folder = tmp_path_factory.mktemp("power")
    preload = Preload(folder, folder / "disk")
    command = [sys.executable, "-m", "tests.tiers.power_child", preload.root, preload.log]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | preload.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return preload


def kept(path: str) -> bool:
    """Say whether a receipt rests on a path (with "@", on its name)."""
    return not path.lstrip("@").startswith(DERIVED)


def test_no_receipt_is_given_before_its_bytes_and_names_are_synced(lived: Preload) -> None:
    """At each answer of cold, glacier, manifest and key file nothing that it rests on was left unsynced."""
    events = lived.events()
    marks = [at for at, each in enumerate(events) if each.op == MARK]

    left = {at: {each for each in unsynced(lived, events[:at]) if kept(each)} for at in marks}

    assert {} == {at: paths for at, paths in left.items() if paths}
    report = lived.report()
    log.info("receipts.counted", receipts=len(marks))
    assert all(report[op] for op in (*SYNCS, "write", "rename", "link", "unlink", "truncate"))


def test_each_receipt_of_a_change_has_syncs_of_its_own(lived: Preload) -> None:
    """Between two answers of which the second says something new there is a sync on the path that it is kept in."""
    counts = {"cold": 0, "glacier": 0, "cleared": 0, "keys": 0}
    rests_on = {"cold": "/cold/cold.duckdb.wal", "glacier": "/glacier/_delta_log", "cleared": "/", "keys": "/"}
    before: dict[str, Any] = {}
    since: list[Event] = []
    for event in lived.events():
        if event.op != MARK:
            since.append(event)
            continue
        now = json.loads(event.path)
        for kind in counts:
            if before and now[kind] != before[kind]:
                synced = [each for each in since if each.op in SYNCS and each.done and rests_on[kind] in each.path]
                assert synced, (kind, event.path)
                counts[kind] += 1
        before, since = now, []
    log.info("receipts.synced", **counts)
    assert {"cold": 24, "glacier": 8, "cleared": 3, "keys": 1} == counts


async def found_in(tier: Tier) -> dict[str, int]:
    """Return every row by id."""
    rows = [batch async for batch in tier.retrieve_all()]
    return {
        identifier: version
        for batch in rows
        for identifier, version in zip(batch["id"].to_pylist(), batch["version"].to_pylist(), strict=True)
    }


async def survivors(root: Path) -> dict[str, Any]:
    """Start on what is left, and return what is there."""
    with DataDirectory(root) as directory:
        cleared = Clearances(directory, directory.manifest(SETTINGS)).cleared_below(0)
        cold = await ColdMemory.open(cold_settings(root), SHAPE, partitions=PARTITIONS, index=Index.of(SHAPE))
        glacier = await GlacierMemory.open(
            GlacierSettings(path=str(root / "glacier")), SHAPE, partitions=PARTITIONS, index=Index.of(SHAPE)
        )
        try:
            files = KeyFiles.under(str(root), "", "")
            if files.exist():
                files.read()
                files.read_pepper()
            rows = {"cold": await found_in(cold), "glacier": await found_in(glacier)}
            return {**rows, "cleared": cleared, "keys": int(files.exist())}
        finally:
            await cold.cleanup()
            await glacier.cleanup()


def moments(events: Sequence[Event]) -> list[tuple[int, dict[str, Any], dict[str, Any]]]:
    """Return (events before the cut, what was answered by then, what the answer after it says): at each sync."""
    answers = [(at, json.loads(each.path)) for at, each in enumerate(events) if each.op == MARK]
    found: list[tuple[int, dict[str, Any], dict[str, Any]]] = []
    for (at, before), (end, after) in pairwise(answers):
        cuts = [at + 1, *(n + 1 for n in range(at, end) if events[n].op in SYNCS)]
        found += [(n, before, after) for n in cuts]
    return found


@pytest.mark.timeout(240)
async def test_whenever_the_power_goes_what_was_answered_is_there(lived: Preload, tmp_path: Path) -> None:
    """Cut at each sync: the start finds what was answered, or with what was just being answered; it never refuses."""
    events = lived.events()
    tried = moments(events)
    for number, (at, before, after) in enumerate(tried):
        left = tmp_path / str(number)
        cut(lived, events[:at], left)

        there = await survivors(left)

        for kind in before:
            assert there[kind] in (before[kind], after[kind]), (at, kind)
    log.info("power.cut", times=len(tried))
    assert len(tried) > 80


def test_an_answer_of_valkey_rests_on_its_log(tmp_path: Path) -> None:
    """Each reply comes after an fdatasync of the append-only file; cut after any of them, it has all it answered.

    The directory is there before: Valkey does not sync the name of one that it makes.
    """
    preload = Preload(tmp_path, tmp_path / "valkey" / "appendonlydir")
    with (
        ValkeyServer(preload.root.parent, environment=preload.environment) as server,
        redis.Redis(port=server.port) as client,
    ):
        for n in range(20):
            before = len(preload.events())
            client.mset({f"{{k}}{n}-{m}": f"{n}" for m in range(250)})
            preload.mark(str(n + 1))
            news = preload.events()[before:]
            assert [each for each in news if each.op in SYNCS and "incr.aof" in each.path and each.done]
            assert not {each for each in unsynced(preload, preload.events()) if "incr.aof" in each}
    events = preload.events()
    preload.report()
    for at, count in [(at + 1, int(each.path)) for at, each in enumerate(events) if each.op == MARK][::4]:
        left = tmp_path / f"left-{at}"
        cut(preload, events[:at], left / "appendonlydir")
        with ValkeyServer(left) as server, redis.Redis(port=server.port) as client:
            assert 250 * count == client.dbsize()
