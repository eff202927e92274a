"""Glacier on a real S3 server, by the same code: the contract, and what is said of slots, rewriting and limits."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from tests.tiers.buckets import in_bucket
from tests.tiers.contract import PARTITIONS, TierContract
from tests.tiers.rows import SHAPE, batch, row
from tests.tiers.test_glacier import (  # noqa: F401 - collected here again, with this module's `opened`
    Clock,
    clock,
    test_a_file_without_rows_is_gone,
    test_a_full_glacier_takes_nothing,
    test_a_get_that_meets_a_vacuumed_file_answers_none,
    test_a_listing_is_bounded,
    test_a_rewrite_drops_only_the_exact_row,
    test_a_rewrite_keeps_every_other_row_and_says_where,
    test_a_rewrite_takes_the_files_where_it_is_worth_most,
    test_a_store_fills_files_up_to_their_bound,
    test_a_store_whose_caller_gave_up_is_whole,
    test_an_evicted_row_is_not_answered_from_the_cache,
    test_equal_rows_at_two_slots_are_told_apart,
    test_evicting_updates_the_index,
    test_files_stay_bounded_over_hundreds_of_commits,
    test_many_small_files_are_merged_on_the_way,
    test_numbers_are_never_given_twice,
    test_old_slots_are_read_until_vacuum,
    test_slots_are_the_same_after_a_restart,
    test_small_files_are_merged_when_asked,
    test_stores_at_once_are_put_if_newer_too,
    test_superseded_rows_of_a_crash_go_at_open,
    test_the_cache_answers_like_the_file,
    test_times_are_in_milliseconds_again,
    test_vacuum_counts_from_the_replacement,
)
from tiers.credentials import Keys
from tiers.errors import ServiceMissing, SettingsError
from tiers.glacier import GlacierMemory
from tiers.glacier_settings import GlacierSettings
from tiers.index import Index
from tiers.tier import Query

SMALL = {"row_group_rows": 8, "file_rows_max": 24, "cache_bytes": 0}


@pytest.fixture
async def opened(s3, prefix, clock: Clock):  # noqa: F811 - the fixture above
    """Return a function that opens the archive with one partition, as part of a system or alone, owning it."""
    tiers = []

    async def open_it(*, alone: bool = False, epoch: int = 1, **settings) -> GlacierMemory:
        given = in_bucket(s3, prefix, **{**SMALL, **settings})
        index = None if alone else Index.of(SHAPE)
        tier = await GlacierMemory.open(given, SHAPE, partitions=1, index=index, clock=clock)
        tiers.append(tier)
        if not alone:
            await tier.raise_epoch(0, epoch)
        return tier

    yield open_it
    for tier in tiers:
        await tier.cleanup()


class TestGlacierOnS3(TierContract):
    @pytest.fixture
    def server(self, s3):
        return s3

    async def open_tier(self, tmp_path, server, prefix, shape):
        settings = in_bucket(server, f"{tmp_path.parent.name}/{prefix}")
        return await GlacierMemory.open(settings, shape, partitions=PARTITIONS)


class TestGlacierOfSmallFilesOnS3(TestGlacierOnS3):
    """Many files and row groups, no cache: every get is a range of an object."""

    async def open_tier(self, tmp_path, server, prefix, shape):
        settings = in_bucket(server, f"{tmp_path.parent.name}/small-{prefix}", **SMALL)
        return await GlacierMemory.open(settings, shape, partitions=PARTITIONS)


# -- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.unit
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "s3://"}, r"^glacier\.path = 's3://': s3://bucket/prefix"),
        ({"path": "s3://Bucket/x"}, r"^glacier\.path = .*: s3://bucket/prefix"),
        ({"path": "s3://bucket/a//b"}, r"^glacier\.path = .*: s3://bucket/prefix"),
        ({"path": "gs://bucket/x"}, r"^glacier\.path = .*: s3://bucket/prefix"),
        ({"path": "s3://user:hush@bucket/x"}, r"^glacier\.path = 's3://user:\*\*\*@bucket/x': credentials go into"),
        ({"path": "s3://bucket", "endpoint": "http://u:hush@h:1"}, r"^glacier\.endpoint = 'http://u:\*\*\*@h:1': cred"),
        ({"path": "s3://bucket", "endpoint": "h:1"}, r"^glacier\.endpoint = 'h:1': http\(s\)://host:port"),
        ({"path": "s3://bucket", "endpoint": "http://h:1"}, r"^glacier\.endpoint = .*: set glacier\.allow_http"),
        ({"path": "here", "endpoint": "https://h:1"}, r"^glacier\.endpoint = .*: only for a glacier\.path"),
        ({"path": "s3://bucket", "timeout_s": 0.0}, r"^glacier\.timeout_s = 0\.0: more than 0"),
        ({"path": "here", "file_bytes_max": 0}, r"^glacier\.file_bytes_max = 0: 1 to"),
    ],
)
async def test_an_impossible_place_is_refused(settings, message):
    """The key, the value without a password, and what is possible are named."""
    with pytest.raises(SettingsError, match=message) as caught:
        await GlacierMemory.open(GlacierSettings(**settings), SHAPE, partitions=1)

    assert "hush" not in str(caught.value)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: FileNotFoundError"),
        ("nonsense", "cannot be read: MissingSectionHeaderError"),
        ("[other]\naws_access_key_id = a\n", r"has no \[default\] section"),
        ("[default]\naws_access_key_id = a\n", "no S3 credentials: set aws_access_key_id and aws_secret_access_key"),
    ],
)
def test_a_credentials_file_that_cannot_be_used_is_named(tmp_path, text, message):
    """The file and what is wrong with it are named, not what it says."""
    file = tmp_path / "keys"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ServiceMissing, match=message) as caught:
        Keys.found(str(file))

    assert "nonsense" not in str(caught.value)


@pytest.mark.unit
def test_credentials_come_from_the_environment_or_a_file(tmp_path, monkeypatch):
    """A file is taken where it is named, else the environment, else it says what to set; nothing shows a key."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ServiceMissing, match=r"AWS_ACCESS_KEY_ID .* environment, or name a file"):
        Keys.found("")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "hush-too")
    file = tmp_path / "keys"
    file.write_text("[default]\naws_access_key_id = b\naws_secret_access_key = hush%\n")

    assert Keys("a", "hush", "hush-too") == Keys.found("")
    assert Keys("b", "hush%") == Keys.found(str(file))
    assert "hush" not in repr(Keys.found(""))


async def test_a_search_reads_a_bounded_number_of_row_groups(opened):
    """Those of the best candidates; explain says how many and what was left out. An exact search reads them all."""
    tier = await opened(alone=True, search_groups_max=3)
    rows = [row(f"id-{at:03}", at + 1) for at in range(60)]
    await tier.store(batch(*rows))
    nearest = Query(vector=rows[7].vector, k=1, explain=True)
    bounded = await tier.retrieve(nearest)
    exact = await tier.retrieve(replace(nearest, exact=True, k=60))

    assert ["id-007"] == [hit.row.id for hit in bounded.hits]
    assert 3 == bounded.explain["row_groups"]
    assert 30 <= bounded.explain["reranked"] + bounded.explain["skipped"] <= bounded.explain["candidates"]
    assert 0 < bounded.explain["skipped"]
    assert (8, 0, 60) == (exact.explain["row_groups"], exact.explain["skipped"], len(exact.hits))

    everything = await opened(alone=True, search_groups_max=0, epoch=2)
    assert 0 == (await everything.retrieve(nearest)).explain["skipped"]
