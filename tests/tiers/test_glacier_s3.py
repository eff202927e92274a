"""Glacier on a real S3 server, by the same code: the contract, and what is said of slots, rewriting and limits."""

from __future__ import annotations

import pytest

from tests.tiers.buckets import in_bucket
from tests.tiers.contract import PARTITIONS, TierContract
from tests.tiers.rows import SHAPE
from tests.tiers.test_glacier import (  # noqa: F401 - collected here again, with this module's `opened`
    Clock,
    clock,
    test_a_file_without_rows_is_gone,
    test_a_full_glacier_takes_nothing,
    test_a_get_that_meets_a_vacuumed_file_answers_none,
    test_a_listing_is_bounded,
    test_a_rewrite_drops_only_the_exact_row,
    test_a_rewrite_keeps_every_other_row_and_says_where,
    test_a_store_fills_files_up_to_their_bound,
    test_a_store_whose_caller_gave_up_is_whole,
    test_an_evicted_row_is_not_answered_from_the_cache,
    test_equal_rows_at_two_slots_are_told_apart,
    test_evicting_updates_the_index,
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
from tiers.glacier import GlacierMemory
from tiers.index import Index

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
