"""Every file that a node keeps, with bits flipped and ends cut off: it is loud, or answers rightly; never wrongly.

The files are what a node that has done everything has left; one of a kind that no case here knows fails the test.
Damage is done while the node is stopped, to a copy. Loud is: the start refuses and names the place; or an answer says
which tier it lacks; or a read raises TierCorrupt. What an answer says that calls itself complete must be the truth.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import structlog

from pipeline import MemoryManager, Query
from pipeline.key_file import KeyFiles
from pipeline.settings import Settings
from pipeline.stack import Stack
from tests.command import command
from tests.nodes import rows, small, until
from tiers import deltalog
from tiers.errors import IsothermError, SettingsError
from tiers.tier import TierName

log = structlog.get_logger()

COUNT = 800
HOT, WARM, COLD, GLACIER = TierName
DAMAGES = 4  # of a file of each kind: a bit and an end in turns, all over it


@dataclass(frozen=True)
class Kind:
    """Files whose path in the data directory fits, and why damage to them cannot make an answer wrong."""

    name: str
    path: str
    why: str
    refused: bool = False  # nothing else has what it says: all but a name, or the last line's end, must be seen


#: Every kind of file below the data directory. What is not read back at a start says so.
KINDS = (
    Kind("lock", r"lock|cold/cold\.lock", "empty, or a process id for people: never read for a decision"),
    Kind("manifest", r"manifest\.json", "has its own crc32c", refused=True),
    Kind("keys", r"keys", "has its own crc32c"),
    Kind("pepper", r"keys\.pepper", "without it no key is good"),
    Kind("database", r"cold/cold\.duckdb", "DuckDB's block checksums; the side file's rows have theirs"),
    Kind("wal", r"cold/cold\.duckdb\.wal", "cold.mark is its witness", refused=True),
    Kind("mark", r"cold/cold\.mark", "a witness that is damaged is none"),
    Kind("side", r"cold/cold\.side/side-\d+\.dat", "derived; frames and rows have checksums"),
    Kind("entry", r"glacier/_delta_log/\d+\.json", "its first action has the crc32c of the others", refused=True),
    Kind("checkpoint", r"glacier/_delta_log/\d+\.checkpoint\.parquet", "derived; a crc32c beside it"),
    Kind("seal", r"glacier/_delta_log/\d+\.checkpoint\.crc32c", "a checkpoint that does not fit it is put aside"),
    Kind("hint", r"glacier/_delta_log/_last_checkpoint", "for other engines"),
    Kind("file", r"glacier/partition=\d+/e\d+-\d+\.parquet", "page checksums; size and rows in the log"),
    Kind("codebook", r"codebook", "derived; has its own crc32c"),
    Kind("codes", r"codes/\w+\.codes", "derived; frames have checksums"),
)


def kind_of(path: str) -> Kind | None:
    """Return the case of a file."""
    return next((kind for kind in KINDS if re.fullmatch(kind.path, path)), None)


def files(data: Path) -> dict[str, Path]:
    """Return the files of a data directory by their path in it."""
    return {str(each.relative_to(data)): each for each in sorted(data.rglob("*")) if each.is_file()}


def options(stack: Stack, prefix: str, data: Path) -> Settings:
    """A node in which nothing moves by itself, and codes are made."""
    still = {"policy__hot_age_s": 36_000.0, "policy__warm_idle_s": 36_000.0, "policy__cold_idle_s": 36_000.0}
    more = {"move__compact_s": 3_600.0, "index__train_rows": 260}
    return small(stack, prefix, data, **still, **more)


HALVES = (rows(COUNT // 2), rows(COUNT // 2, COUNT // 2))
WORLD = [*HALVES[0], *HALVES[1]]
TRUTH = {row.id: row.payload for row in WORLD}


async def live(settings: Settings, left: Path) -> None:
    """Do everything that leaves a file, and copy what is there while the node runs: its WAL is not empty."""
    for half in HALVES:  # a stop checkpoints cold, and keeps all codes
        async with MemoryManager.open(settings) as memory:
            await memory.ready()
            await memory.retrieve(Query(ids=["id-0"], at_least=await memory.store(half)))
            for partition, lane in memory.node.lanes.items():
                for tier in (WARM, COLD, GLACIER):
                    found = [memory.node.index.find(row.id) for row in half[tier::4]]
                    keys = [(each.id, each.version) for each in found if each and each.partition == partition]
                    await lane.perform(partial(memory.node.mover.move, partition, HOT, tier, "age", keys))
            await until(lambda: memory.node.index.codebook is not None)
            await memory.node.commit.step()
            if half is HALVES[1]:
                shutil.copytree(settings.data, left)
    keys_of_all = ("keys", "create", "all", "--scope", "read", "--all-namespaces", "-s", f"data={left}")
    done = await asyncio.to_thread(command, *keys_of_all)
    assert done.code == 0, done.err


@pytest.fixture(scope="module")
def lived(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Path]:
    """The settings of a node that has done everything, and what lay in its directory."""
    folder = tmp_path_factory.mktemp("damage")
    settings = options(stack, f"t-{uuid.uuid4().hex[:12]}", folder / "node")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(deltalog, "CHECKPOINT_COMMITS", 8)
        asyncio.run(live(settings, folder / "left"))
    return settings, folder / "left"


def damages(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield damaged contents: bits flipped all over the file, and ends cut off."""
    for number in range(DAMAGES):
        where = len(content) * number // DAMAGES
        if number % 2 and content:
            flipped = bytearray(content)
            flipped[where] ^= 1 << number
            yield f"bit at {where} of {len(content)}", bytes(flipped)
        else:
            yield f"cut at {where} of {len(content)}", content[:where]
    yield "cut by a byte", content[:-1]


async def judged(settings: Settings) -> str:
    """Start on what is there, ask for everything in every way, and say how it went; AssertionError where it lied."""
    try:
        async with MemoryManager.open(settings) as memory:
            await memory.ready()
            return await asked(memory)
    except (IsothermError, BaseExceptionGroup) as error:
        found: BaseException = error
        while isinstance(found, BaseExceptionGroup):
            found = found.exceptions[0]
        assert isinstance(found, IsothermError), repr(found)
        assert str(found)
        return f"loud: {found}"


async def asked(memory: MemoryManager) -> str:
    """Ask for all by id, by vector and in a list."""
    result = await memory.retrieve(Query(ids=list(TRUTH), limit=COUNT))
    wrong = {hit.row.id for hit in result.hits if TRUTH[hit.row.id] != hit.row.payload}
    assert not wrong, wrong
    if not result.complete:
        return f"incomplete: {result.missed}"
    assert set(TRUTH) == {hit.row.id for hit in result.hits}
    listed = {hit.row.id: hit.row.payload async for page in memory.pages(Query()) for hit in page}
    assert TRUTH == listed
    for at in range(0, COUNT, 97):
        hits = (await memory.retrieve(Query(vector=WORLD[at].vector, k=1))).hits
        assert [f"id-{at}"] == [hit.row.id for hit in hits]
    return "right"


def keys_read(data: Path) -> str:
    """Read the keys as a gateway does, and say how it went: nobody comes in, or exactly who did before."""
    made = KeyFiles.under(str(data), "", "")
    try:
        assert ["all"] == [key.name for key in made.read()]
        return f"right, with a pepper of {len(made.read_pepper())} bytes"
    except SettingsError as error:
        return f"loud: {error}"


def test_every_kind_of_file_has_a_case(lived: tuple[Settings, Path]) -> None:
    """No file lies in a data directory that no case here damages; and each case has a file."""
    kinds = {path: kind_of(path) for path in files(lived[1])}

    assert [] == [path for path, kind in kinds.items() if kind is None]
    assert {kind.name for kind in KINDS} == {kind.name for kind in kinds.values() if kind}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
async def test_a_damaged_file_is_loud_or_costs_nothing(lived: tuple[Settings, Path], kind: Kind) -> None:
    """Damage to a file of each kind, each at a start of its own, and every answer held against the truth."""
    settings, left = lived
    data, path = Path(settings.data), max(path for path in files(left) if kind_of(path) is kind)
    outcomes: list[str] = []
    for what, content in damages((left / path).read_bytes()):
        shutil.rmtree(data)
        shutil.copytree(left, data)
        (data / path).write_bytes(content)
        outcome = keys_read(data) if kind.name in ("keys", "pepper") else await judged(settings)
        outcomes.append(f"{what}: {outcome}")
    log.info("damage.done", file=path, outcomes=outcomes)
    loud = sum(": loud" in each or ": incomplete" in each for each in outcomes)
    assert loud >= DAMAGES - 1 or not kind.refused, outcomes
