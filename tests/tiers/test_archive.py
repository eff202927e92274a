"""The archive's commit path: order of effects, fence, crashes, and what others read of it."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import CommitProperties, DeltaTable, Transaction

from tests.tiers.contract import by_id, everything, places
from tests.tiers.rows import ATTRIBUTES, DIM, SHAPE, batch, row
from tiers import disk, parquet, record
from tiers.archive import TRIES, Archive
from tiers.deltalog import CHECKPOINT_COMMITS, ENTRIES_KEPT, DeltaLog, owner
from tiers.disk import Disk
from tiers.errors import Fenced, OutcomeUnknown, ServiceMissing, TierFull, TierUnavailable
from tiers.glacier import GlacierMemory
from tiers.glacier_settings import GlacierSettings
from tiers.index import Index
from tiers.layout import Layout
from tiers.parquet import DataFile, Style

pytestmark = pytest.mark.unit

PARTITIONS = 4
ROOT = Path(__file__).parents[2]
FACTS = {"dim": str(DIM)}
SCHEMA = Layout(SHAPE).table


class Synced:
    """An fsync that remembers the order, and can be told to fail once at a kind of path."""

    def __init__(self, root: Path) -> None:
        self.root, self.paths, self.fail = root, [], None

    def __call__(self, path: Path) -> None:
        if self.fail is not None and path.suffix == self.fail[0]:
            error, self.fail = self.fail[1], None
            raise error
        disk.fsync(path)
        if path.is_relative_to(self.root):
            self.paths.append(path.relative_to(self.root).as_posix())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "archive"


@pytest.fixture
async def opened(path):
    """Return a function that opens the archive as a new life, in a system (not alone)."""
    tiers = []

    async def open_it(epoch: int | None = None, **more) -> GlacierMemory:
        tier = await GlacierMemory.open(
            GlacierSettings(path=str(path)), SHAPE, partitions=PARTITIONS, index=Index.of(SHAPE), **more
        )
        tiers.append(tier)
        for partition in range(PARTITIONS if epoch else 0):
            await tier.raise_epoch(partition, epoch)
        return tier

    yield open_it
    for tier in tiers:
        await tier.cleanup()


def version(path) -> int:
    return DeltaTable(path).version()


# -- durability ----------------------------------------------------------------------------------------------------


async def test_all_is_fsynced_in_order_before_the_receipt(path, opened):
    """File, its directory, log entry before and after it has its name, log directory: synced before a store returns."""
    synced = Synced(path)
    tier = await opened(1, fsync=synced)
    await tier.store(batch(row("a", 1)))
    partition, before = record.partition("a", PARTITIONS), len(synced.paths)
    receipt = await tier.store(batch(row("a", 2)))
    entry = f"_delta_log/{version(path):020}.json"
    file = f"partition={partition}/e1-{receipt.slots[0] >> 24}.parquet"
    unnamed = synced.paths.pop(before + 2)

    assert unnamed.startswith(entry)
    assert unnamed.endswith(disk.UNNAMED)
    assert [file, f"partition={partition}", entry, "_delta_log"] == synced.paths[before:]
    assert [str(path / file)] == [uri for uri in DeltaTable(path).file_uris() if uri.endswith(file)]


async def test_a_new_directory_is_remembered_by_its_parent(path, opened):
    """The first file of a partition syncs the table's directory too: it names the partition's."""
    synced = Synced(path)
    tier = await opened(1, fsync=synced)
    before = len(synced.paths)
    await tier.store(batch(row("a", 1)))
    partition = record.partition("a", PARTITIONS)

    assert [".", f"partition={partition}/e1-1.parquet", f"partition={partition}"] == synced.paths[before:][:3]


async def test_raising_an_epoch_is_fsynced(path, opened):
    """An epoch counts only when its log entry is on stable storage."""
    synced = Synced(path)
    tier = await opened(fsync=synced)
    before = len(synced.paths)
    await tier.raise_epoch(0, 1)

    assert [f"_delta_log/{version(path):020}.json", "_delta_log"] == synced.paths[before + 1 :]
    assert synced.paths[before].endswith(disk.UNNAMED)


async def test_a_full_disk_changes_nothing(path, opened):
    """ENOSPC at the data file is TierFull, another error TierUnavailable; no file stays, and the next store works."""
    synced = Synced(path)
    tier = await opened(1, fsync=synced)
    before = version(path)
    synced.fail = (".parquet", OSError(errno.ENOSPC, "no space"))
    with pytest.raises(TierFull):
        await tier.store(batch(row("a", 1)))
    synced.fail = (".parquet", OSError(errno.EIO, "bad disk"))
    with pytest.raises(TierUnavailable):
        await tier.store(batch(row("a", 1)))

    assert before == version(path)
    assert list(path.glob("partition=*/*.parquet")) == []
    assert (await tier.store(batch(row("a", 1)))).held.tolist() == [1]


async def test_an_entry_that_may_not_be_durable_is_unknown(path, opened):
    """When the fsync of the log entry fails, nobody can tell: OutcomeUnknown, and the file stays for the log."""
    synced = Synced(path)
    tier = await opened(1, fsync=synced)
    synced.fail = (".json", OSError(errno.EIO, "bad disk"))
    with pytest.raises(OutcomeUnknown):
        await tier.store(batch(row("a", 1)))

    assert len(list(path.glob("partition=*/*.parquet"))) == 1


# -- the fence -----------------------------------------------------------------------------------------------------


async def test_an_epoch_stays(path, opened):
    """An epoch is 0 until raised, and is the highest raised, for every handle, after restarts."""
    first = await opened()

    assert [first.epoch(partition) for partition in range(PARTITIONS)] == [0] * PARTITIONS

    await first.raise_epoch(2, 5)
    await first.raise_epoch(2, 5)

    assert [0, 0, 5, 0] == [(await opened()).epoch(partition) for partition in range(PARTITIONS)]


async def test_a_lower_epoch_cannot_be_raised(path, opened):
    """Raising below what the archive has is refused, and writes nothing."""
    await opened(5)
    before = version(path)
    with pytest.raises(Fenced):
        await (await opened()).raise_epoch(0, 4)

    assert before == version(path)


async def test_a_stale_owner_is_refused_even_when_it_reloads(path, opened):
    """After a newer owner, nothing of the old one lands: no store, no rewrite, no clear, no unlinking, ever again."""
    stale = await opened(1)
    receipt = await stale.store(batch(row("a", 1)))
    stale._files._retired.note(["partition=0/e1-99.parquet"])
    await opened(2)
    before, files = version(path), sorted(path.glob("partition=*/*"))
    for _ in range(2):
        with pytest.raises(Fenced):
            await stale.store(batch(row("a", 2)))
        with pytest.raises(Fenced):
            await stale.rewrite(places(receipt)[0].partition, places(receipt))
        with pytest.raises(Fenced):
            await stale.clear()
        with pytest.raises(Fenced):
            stale._files.vacuum(after_s=0)
        with pytest.raises(Fenced):
            await stale.raise_epoch(0, 1)

    assert (before, files) == (version(path), sorted(path.glob("partition=*/*")))
    assert [None] != await stale.get(places(receipt))


def a_file(archive: Archive) -> DataFile:
    """Return a proven file that the log does not name yet."""
    layout = Layout(SHAPE)
    groups = iter([layout.encode(batch(row("a", 1)))])
    parquet.write(archive.storage, "partition=0/e1-1.parquet", layout.file, Style(8, "zstd", 3), groups)
    return parquet.prove(archive.storage, DataFile(0, 1, "partition=0/e1-1.parquet", 1, 0), layout.file)


def files_of(path: Path) -> list[str]:
    return DeltaTable(path).file_uris()


class Overtaken(Archive):
    """An archive in which `rival` runs once between the look at the epoch and the write of the entry."""

    rival = None

    def _admit(self, *args, **kwargs):
        super()._admit(*args, **kwargs)
        if self.rival is not None:
            rival, self.rival = self.rival, None
            rival()


def test_an_owner_overtaken_between_look_and_write_is_refused(path):
    """A raise that lands after the look makes the entry fail, and the second look finds the newer owner."""
    slow = Overtaken(DeltaLog.open(Disk(path), SCHEMA, FACTS), PARTITIONS)
    slow.raise_epochs({0: 1})
    fast = Archive.open(Disk(path), SCHEMA, PARTITIONS, FACTS)
    slow.rival = lambda: fast.raise_epochs({0: 2})
    with pytest.raises(Fenced):
        slow.commit({0: 1}, add=[a_file(slow)])

    assert (2, 2) == (version(path), fast.epochs[0])


def test_what_is_not_read_back_is_unknown(path):
    """A newer owner right after our entry: nobody here can say whether it still has our file."""
    slow = Archive.open(Disk(path), SCHEMA, PARTITIONS, FACTS)
    slow.raise_epochs({0: 1})
    append = slow.log.append

    def overtaken(*args):
        append(*args)
        Archive.open(Disk(path), SCHEMA, PARTITIONS, FACTS).raise_epochs({0: 2})

    slow.log.append = overtaken
    with pytest.raises(OutcomeUnknown, match="does not show"):
        slow.commit({0: 1}, add=[a_file(slow)])

    assert slow.files == {}


def test_a_commit_of_another_partition_in_between_is_no_fence(path):
    """An entry that leaves our epoch alone costs another try, not the store."""
    slow = Overtaken(DeltaLog.open(Disk(path), SCHEMA, FACTS), PARTITIONS)
    slow.raise_epochs({0: 1})
    other = Archive.open(Disk(path), SCHEMA, PARTITIONS, FACTS)
    slow.rival = lambda: other.raise_epochs({1: 7})
    file = a_file(slow)
    slow.commit({0: 1}, add=[file])

    assert (3, [file.path]) == (version(path), [Path(uri).relative_to(path).as_posix() for uri in files_of(path)])


def test_a_commit_always_beaten_gives_up(path):
    """The tries are bounded; giving up changes nothing."""
    slow = Archive.open(Disk(path), SCHEMA, PARTITIONS, FACTS)
    slow.raise_epochs({0: 1})
    other = Archive.open(Disk(path), SCHEMA, PARTITIONS, FACTS)
    look, mine = slow._admit, []

    def beaten(*args, **kwargs):
        look(*args, **kwargs)
        other.raise_epochs({1: len(mine) + 1})
        mine.append(version(path))

    slow._admit = beaten
    with pytest.raises(TierUnavailable, match="came first"):
        slow.commit({0: 1}, add=[a_file(slow)])

    assert (TRIES, mine[-1]) == (len(mine), version(path))
    assert ([], {}) == (files_of(path), slow.files)


def test_an_entry_on_a_stale_handle_is_refused(path):
    """What the fence stands on: a handle loaded before any other commit cannot write."""
    Archive.open(Disk(path), SCHEMA, PARTITIONS, FACTS).raise_epochs({0: 1})
    stale, fresh = (DeltaLog(Disk(path)) for _ in range(2))
    fresh.append({1: 1}, (), ())
    with pytest.raises(FileExistsError):
        stale.append({0: 1}, (), ())


async def test_a_process_that_never_raised_cannot_write(opened):
    """Without an epoch of its own a process is fenced, whatever the archive has."""
    tier = await opened()
    with pytest.raises(Fenced):
        await tier.store(batch(row("a", 1)))


async def test_a_late_commit_of_the_life_before_is_seen_after_the_raise(opened):
    """What lands between open and raise is found; after the raise nothing lands (R4a)."""
    before = await opened(1)
    now = await opened()
    late = await before.store(batch(row("a", 1)))
    for partition in range(PARTITIONS):
        await now.raise_epoch(partition, 2)

    assert ["a"] == [one.id for one, _ in await everything(now)]
    assert ["a"] == [one.id for one in await now.get(places(late))]

    own = await now.store(batch(row("b", 1), row("a", 2)))

    assert len(set(own.slots.tolist()) | set(late.slots.tolist())) == 3


# -- crashes -------------------------------------------------------------------------------------------------------


def killed(path: Path, step: str) -> None:
    """Let a child store version 2 of "a" and die at the step."""
    command = [sys.executable, "-m", "tests.tiers.glacier_child", str(path), step]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -9, done.stderr


@pytest.fixture
async def alone(path):
    """Return a function that opens the archive alone."""
    tiers = []

    async def open_it(**more) -> GlacierMemory:
        settings = GlacierSettings(path=str(path), **more.pop("settings", {}))
        tiers.append(await GlacierMemory.open(settings, SHAPE, partitions=PARTITIONS, **more))
        return tiers[-1]

    yield open_it
    for tier in tiers:
        await tier.cleanup()


@pytest.mark.parametrize("step", ["file", "folder"])
async def test_a_crash_before_the_commit_leaves_the_old_version(path, alone, step):
    """Killed with the file written and the log not: readers see what they saw, and the orphan goes with vacuum."""
    first = await alone()
    await first.store(batch(row("a", 1)))
    await first.cleanup()
    killed(path, step)
    again = await alone()

    assert {"a": 1} == {i: one.version for i, one in (await by_id(again, "a")).items()}
    assert len(list(path.glob("partition=*/*.parquet"))) == 2
    assert await again.vacuum() == 0

    later = await alone(settings={"vacuum_after_s": 0.0}, clock=lambda: 4e9)

    assert await later.vacuum() == 1
    assert len(list(path.glob("partition=*/*.parquet"))) == 1
    assert (await later.store(batch(row("a", 2)))).held.tolist() == [2]


async def test_a_store_repeated_after_a_crash_doubles_nothing(path, alone):
    """Killed after the commit and before the receipt: the row is there once, also after it is stored again."""
    first = await alone()
    await first.store(batch(row("a", 1)))
    await first.cleanup()
    killed(path, "entry")
    again = await alone()
    before = version(path)
    receipt = await again.store(batch(row("a", 2)))

    assert [2] == receipt.held.tolist()
    assert before == version(path)
    assert [("a", 2)] == [(one.id, one.version) for one, _ in await everything(again)]
    assert ["a"] == [one.id for one in await again.get(places(receipt))]


async def test_an_entry_nobody_synced_is_synced_before_it_is_believed(path, alone):
    """The next life fsyncs what the killed one left in the log, before it is open."""
    await (await alone()).cleanup()
    killed(path, "entry")
    entry = f"_delta_log/{version(path):020}.json"
    synced = Synced(path)
    await alone(fsync=synced)

    assert entry in synced.paths
    assert synced.paths.index(entry) < synced.paths.index("_delta_log")


async def test_an_entry_without_a_name_never_was(path, alone):
    """A crash before the entry has its name leaves a file that no reader looks at, and that goes at the next start."""
    first = await alone()
    await first.store(batch(row("a", 1)))
    await first.cleanup()
    leftover = path / "_delta_log" / f"{version(path) + 1:020}.json.0123{disk.UNNAMED}"
    leftover.write_bytes(b'{"commit')
    again = await alone()

    assert ["a"] == [one.id for one, _ in await everything(again)]
    assert not leftover.exists()


@pytest.mark.parametrize("hint", [True, False])
@pytest.mark.parametrize("damage", [b"", bytes(2000)])
async def test_a_torn_checkpoint_is_put_aside(path, opened, damage, hint):
    """A checkpoint is derived: one that cannot be read is renamed, and the entries tell the same."""
    tier = await opened(3)
    await tier.store(batch(row("a", 1)))
    table = DeltaTable(path)
    table.create_checkpoint()
    checkpoint = path / "_delta_log" / f"{table.version():020}.checkpoint.parquet"
    checkpoint.write_bytes(damage)
    if not hint:
        (path / "_delta_log" / "_last_checkpoint").unlink()
    again = await opened()

    assert again.epoch(0) == 3
    assert ["a"] == [one.id for one, _ in await everything(again)]


async def test_a_checkpoint_that_says_something_else_is_put_aside(path, opened):
    """A bit of it flipped: readable or not, it is not the one that was made, and the entries have it all."""
    tier = await opened(1)
    await tier.store(batch(row("a", 1)))
    while not (made := list((path / "_delta_log").glob("*.checkpoint.parquet"))):
        await tier.raise_epoch(1, version(path) + 1)
    whole, before = made[0].read_bytes(), tier.epoch(1)
    for at in range(0, len(whole), len(whole) // 8):
        made[0].write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        again = await opened()
        assert not made[0].exists()
        assert before == again.epoch(1)
        for torn in (path / "_delta_log").glob("*.torn"):
            torn.rename(torn.with_suffix(""))


async def test_a_readable_checkpoint_is_never_put_aside(path, opened):
    """When the table does not load for another reason, the start is refused and nothing is renamed."""
    tier = await opened(3)
    await tier.store(batch(row("a", 1)))
    DeltaTable(path).create_checkpoint()
    await tier.store(batch(row("a", 2)))
    await tier.store(batch(row("a", 3)))
    entry = path / "_delta_log" / f"{version(path) - 1:020}.json"
    entry.write_bytes(b"no json\n")
    before = sorted(path.glob("_delta_log/*"))
    with pytest.raises(ServiceMissing):
        await opened()

    assert before == sorted(path.glob("_delta_log/*"))


# -- checkpoints ---------------------------------------------------------------------------------------------------


async def test_checkpoints_keep_epochs_and_files_and_are_fsynced(path, opened):
    """Every fifty commits a checkpoint is written and fsynced; what is loaded from it is the same."""
    synced = Synced(path)
    tier = await opened(1, fsync=synced)
    receipt = await tier.store(batch(row("a", 1)))
    while version(path) < CHECKPOINT_COMMITS + 3:
        await tier.raise_epoch(1, version(path) + 1)
    name = f"_delta_log/{CHECKPOINT_COMMITS:020}.checkpoint.parquet"
    at = synced.paths.index(name)
    again = await opened()

    seal = name.replace("parquet", "crc32c")
    assert [name, seal, "_delta_log/_last_checkpoint", "_delta_log"] == synced.paths[at : at + 4]
    assert (1, CHECKPOINT_COMMITS + 3) == (again.epoch(0), again.epoch(1))
    assert ["a"] == [one.id for one in await again.get(places(receipt))]


def test_the_log_stays_bounded(path):
    """However many commits come, entries and checkpoints are a few hundred, and say the same when they are loaded."""
    archive = Archive.open(Disk(path), SCHEMA, PARTITIONS, FACTS)
    for epoch in range(1, 1_301):
        archive.raise_epochs({epoch % PARTITIONS: epoch})
    log = [each for each in (path / "_delta_log").iterdir() if each.suffix != ".crc32c"]
    seals = list((path / "_delta_log").glob("*.crc32c"))

    assert len(seals) == sum(each.name.endswith(".checkpoint.parquet") for each in log)
    assert len(log) <= ENTRIES_KEPT + 2 * CHECKPOINT_COMMITS + ENTRIES_KEPT // CHECKPOINT_COMMITS + 3
    assert archive.log.entries == len(log) - 1  # without the hint at the last checkpoint
    assert {0: 1300, 1: 1297, 2: 1298, 3: 1299} == Archive.open(Disk(path), SCHEMA, PARTITIONS, FACTS).epochs
    assert (1300, 1300) == (archive.log.version, version(path))


def test_a_writer_that_slept_through_all_that_is_kept_is_refused(path):
    """Its number in the log is free again, so its entry lands; the newest version does not have it: OutcomeUnknown."""
    slept = Archive.open(Disk(path), SCHEMA, PARTITIONS, FACTS)
    slept.raise_epochs({0: 1})
    awake = Archive.open(Disk(path), SCHEMA, PARTITIONS, FACTS)
    for epoch in range(1, ENTRIES_KEPT + 3 * CHECKPOINT_COMMITS):
        awake.raise_epochs({1: epoch})
    before = version(path)
    assert not (path / "_delta_log" / f"{slept.log.version + 1:020}.json").exists()
    with pytest.raises(OutcomeUnknown):
        slept.commit({0: 1}, add=[a_file(slept)])

    assert (before, []) == (version(path), files_of(path))
    assert {0: 1} == {0: Archive.open(Disk(path), SCHEMA, PARTITIONS, FACTS).epochs[0]}


# -- what it was made for ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "partitions"),
    [
        ("dim", record.schema(DIM + 1, ATTRIBUTES), PARTITIONS),
        ("partitions", SHAPE, PARTITIONS + 1),
        ("attributes", record.schema(DIM, {"user": "string"}), PARTITIONS),
    ],
)
async def test_an_archive_made_for_another_shape_is_refused(path, opened, name, shape, partitions):
    """Another dimension, partition count or set of attributes is named, with both values and a way out."""
    await opened()
    with pytest.raises(ServiceMissing, match=rf"was made for {name} .*, not .*glacier\.path"):
        await GlacierMemory.open(GlacierSettings(path=str(path)), shape, partitions=partitions)


async def test_a_path_that_cannot_be_is_refused(tmp_path):
    """Where no directory can be made, the start says so in a line."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceMissing, match="does not open"):
        await GlacierMemory.open(GlacierSettings(path=str(tmp_path / "file" / "x")), SHAPE, partitions=1)


async def test_a_file_of_another_writer_is_refused(path, opened):
    """Rows in a file that glacier did not number cannot be placed: the open says whose file it is."""
    tier = await opened(1)
    await tier.store(batch(row("a", 1), row("b", 1)))
    await tier.store(batch(row("a", 2), row("b", 2)))
    DeltaTable(path).optimize.compact()
    with pytest.raises(ServiceMissing, match="was written by something else"):
        await opened()


async def test_a_file_taken_by_another_writer_is_not_replaced(path, opened):
    """When someone else removed a file, rewriting it would double its rows: refused."""
    tier = await opened(1)
    ids = [i for i in map(str, range(50)) if record.partition(i, PARTITIONS) == 0]
    receipt = await tier.store(batch(*(row(i, 1) for i in ids)))
    DeltaTable(path).create_write_transaction(
        [],
        mode="overwrite",
        schema=SCHEMA,
        partition_by=["partition"],
        commit_properties=CommitProperties(app_transactions=[Transaction(owner(9), 1)]),
    )
    before = version(path)
    with pytest.raises(Fenced, match="another writer took"):
        await tier.rewrite(0, places(receipt)[:1])

    assert (before, []) == (version(path), files_of(path))


# -- other engines -------------------------------------------------------------------------------------------------


async def test_the_log_prunes_by_time(path, alone):
    """Engines leave out files by the statistics of event time and version."""
    tier = await alone()
    await tier.store(batch(*(row(f"old-{at}", 1, event_time=1_000) for at in range(20))))
    await tier.store(batch(*(row(f"new-{at}", 2, event_time=2_000_000) for at in range(20))))
    table = DeltaTable(path)
    young = table.file_uris(file_pruning_predicate="version > 1")
    dataset = table.to_pyarrow_dataset()
    after = pa.scalar(1_000_000, pa.timestamp("ms", "UTC")).cast(pa.timestamp("us", "UTC"))
    found = dataset.to_table(filter=pc.field("event_time") > after)

    assert len(young) == len(table.file_uris()) // 2
    assert Counter(i[:3] for i in found["id"].to_pylist()) == {"new": 20}
