"""What every tier does when it is used alone (R10).

A tier's tests subclass `TierContract` and open it:

    class TestCold(TierContract):
        async def open_tier(self, tmp_path, server, prefix, shape):
            return await ColdMemory.open(ColdSettings(path=str(tmp_path / prefix)), shape, partitions=PARTITIONS)

    class TestWarm(TierContract):
        @pytest.fixture
        def server(self, stack):
            return stack

        async def open_tier(self, tmp_path, server, prefix, shape):
            return await WarmMemory.open(WarmSettings(url=server.redis, prefix=prefix), shape, partitions=PARTITIONS)

Opened again with the same arguments, a tier that is `durable` has the same rows.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tiers.rows import DIM, NOW_MS, SHAPE, batch, row, same
from tiers import record, score
from tiers.record import Row
from tiers.tier import AT_ONCE_ROWS, Location, Places, Query, Receipt, Tier, TierName

PARTITIONS = 4
BIG = 1 << 62  # neighbours of this version are equal as doubles

Open = Callable[..., Awaitable[Tier]]

STEPS = st.lists(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", "c/1", "é"]), st.integers(1, 9), st.booleans()), min_size=1, max_size=5
    ),
    min_size=1,
    max_size=6,
)


class TierContract:
    """`durable`: a tier opened again still has its rows. `in_memory`: what was stored last can be shown at once."""

    durable = True
    in_memory = False

    async def open_tier(self, tmp_path: Path, server: Any, prefix: str, shape: pa.Schema) -> Tier:
        """Return the tier, opened alone over PARTITIONS partitions."""
        raise NotImplementedError

    @pytest.fixture
    def server(self) -> Any:
        """What `open_tier` needs beside a folder: nothing, unless a subclass says otherwise."""
        return None

    @pytest.fixture
    async def opened(self, tmp_path: Path, server: Any) -> AsyncIterator[Open]:
        """Return a function that opens the tier of a name; all are cleaned up at the end."""
        async with AsyncExitStack() as stack:

            async def open_it(prefix: str = "one", shape: pa.Schema = SHAPE) -> Tier:
                tier = await self.open_tier(tmp_path, server, f"{tmp_path.name[:40]}-{prefix}", shape)
                stack.push_async_callback(tier.cleanup)
                return tier

            yield open_it

    @pytest.fixture
    async def tier(self, opened: Open) -> Tier:
        """One open, empty tier."""
        return await opened()

    # -- store and look up -------------------------------------------------------------------------------------------

    async def test_a_stored_row_is_retrieved(self, tier):
        """Every field of a row comes back as it was stored, and the answer is complete."""
        given_row = row("user/a", 5, attributes=EVERYTHING, event_time=NOW_MS + 1)
        await tier.store(batch(given_row))
        result = await tier.retrieve(Query(ids=["user/a"]))

        assert [tier.name] == [hit.tier for hit in result.hits]
        assert same(given_row, result.hits[0].row)
        assert (result.complete, result.missed) == (True, [])

    async def test_absent_attributes_stay_absent(self, tier):
        """A row with some attributes has exactly these."""
        await tier.store(batch(row("a", 5, attributes={"rank": 3}), row("b", 6)))

        assert {i: r.attributes for i, r in (await by_id(tier, "a", "b")).items()} == {"a": {"rank": 3}, "b": {}}

    async def test_times_and_bytes_survive(self, tier):
        """An expiry, a time before 1970, an empty payload and one of the largest size come back."""
        rows = [
            Row("a", 1, -1, NOW_MS, np.ones(DIM, np.float32), b""),
            Row("b", 2, 0, 1, np.full(DIM, 1e-19, np.float32), b"\x00\xff" * (record.PAYLOAD_BYTES_MAX // 2)),
        ]
        await tier.store(batch(*rows))
        found = await by_id(tier, "a", "b")

        assert [same(one, found[one.id]) for one in rows] == [True, True]

    async def test_hits_come_in_the_order_asked(self, tier):
        """Lookups keep the order of the ids, once each; unknown ids are left out."""
        await tier.store(batch(row("a", 1), row("b", 2), row("c", 3)))
        result = await tier.retrieve(Query(ids=["c", "x", "a", "c"]))

        assert [hit.row.id for hit in result.hits] == ["c", "a"]

    async def test_the_newest_version_is_retrieved(self, tier):
        """A newer version replaces the older, also where only the lowest bit of a large version tells them apart."""
        await tier.store(batch(row("a", BIG)))
        await tier.store(batch(row("a", BIG + 1)))

        assert (await by_id(tier, "a"))["a"].version == BIG + 1

    async def test_an_empty_tier_answers_with_nothing(self, tier):
        """Lookups, searches and listings of an empty tier find nothing and are complete."""
        assert (await tier.retrieve(Query(ids=["a"]))).hits == []
        assert (await tier.retrieve(Query(vector=np.ones(DIM, np.float32)))).hits == []
        assert await everything(tier) == []

    # -- receipts ----------------------------------------------------------------------------------------------------

    async def test_the_receipt_names_each_row_and_where_it_lies(self, tier):
        """A receipt has one entry a row in the order of the batch, and its slots are where the rows are."""
        rows = [row("b", 2), row("a", 1), row("c", 3, deleted=True)]
        receipt = await tier.store(batch(*rows))

        assert (tier.name, ["b", "a", "c"], [2, 1, 3], [2, 1, 3]) == described(receipt)
        assert receipt.proof
        assert [same(*pair) for pair in zip(rows, await tier.get(places(receipt)), strict=True)] == [True] * 3

    async def test_an_older_version_changes_nothing(self, tier):
        """Storing an older version is answered: the receipt says which version is held, and it is still there."""
        await tier.store(batch(row("a", BIG + 1)))
        receipt = await tier.store(batch(row("a", BIG)))

        assert (tier.name, ["a"], [BIG], [BIG + 1]) == described(receipt)
        assert (await by_id(tier, "a"))["a"].version == BIG + 1

    async def test_the_same_version_again_changes_nothing(self, tier):
        """Storing a version twice is answered the second time with the place of the first."""
        first = await tier.store(batch(row("a", 5), row("b", 6)))
        second = await tier.store(batch(row("b", 6), row("a", 5)))

        assert described(first) == described(reversed_(second))
        assert first.slots.tolist() == second.slots.tolist()[::-1]
        assert len(await everything(tier)) == 2

    async def test_repeated_ids_in_a_batch_are_one_row(self, tier):
        """Of an id that a batch names several times, the highest version is stored, wherever it stands."""
        receipt = await tier.store(batch(row("a", 7), row("b", 1), row("a", 9), row("a", 8), row("b", 1)))

        assert dict(zip(receipt.ids, receipt.held.tolist(), strict=True)) == {"a": 9, "b": 1}
        assert len(receipt.ids) == 2
        assert {("a", 9), ("b", 1)} == {(one.id, one.version) for one, _ in await everything(tier)}

    async def test_a_mixed_batch_is_decided_row_by_row(self, tier):
        """Newer, equal, older and unknown rows in one batch each get their own answer."""
        await tier.store(batch(row("newer", 5), row("equal", 5), row("older", 5)))
        receipt = await tier.store(batch(row("older", 4), row("unknown", 5), row("newer", 6), row("equal", 5)))

        assert dict(zip(receipt.ids, receipt.held.tolist(), strict=True)) == {
            "older": 5,
            "unknown": 5,
            "newer": 6,
            "equal": 5,
        }

    async def test_nothing_stored_is_answered_too(self, tier):
        """An empty batch has an empty receipt."""
        assert (tier.name, [], [], []) == described(await tier.store(batch()))

    # -- tombstones --------------------------------------------------------------------------------------------------

    async def test_a_tombstone_masks_and_stays(self, tier):
        """A deletion hides the record from lookups and searches, and is itself kept as a row."""
        await tier.store(batch(row("a", 5)))
        await tier.store(batch(row("a", 6, deleted=True)))

        assert await by_id(tier, "a") == {}
        assert (await tier.retrieve(Query(vector=np.ones(DIM, np.float32)))).hits == []
        assert ("a", 6, True) in {(one.id, one.version, one.deleted) for one, _ in await everything(tier)}

    async def test_a_tombstone_holds_against_what_is_older(self, tier):
        """Nothing older than a deletion comes back; something newer does."""
        await tier.store(batch(row("a", 6, deleted=True)))
        await tier.store(batch(row("a", 5)))

        assert await by_id(tier, "a") == {}

        await tier.store(batch(row("a", 7)))

        assert (await by_id(tier, "a"))["a"].version == 7

    async def test_many_tombstones_do_not_hide_what_is_far(self, tier):
        """However many deletions lie beside them, a search finds the live records, those behind the query too."""
        await tier.store(batch(*(row(f"gone-{at}", at, deleted=True) for at in range(200))))
        await tier.store(batch(row("far", 300, [-1, 0, 0, 0]), row("near", 301, [1, 0, 0, 0])))
        result = await tier.retrieve(Query(vector=np.array([1, 0, 0, 0], np.float32), k=5))

        assert [hit.row.id for hit in result.hits] == ["near", "far"]

    # -- search ------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("k", [1, 10, 500])
    async def test_search_is_the_exact_one(self, tier, k):
        """After updates and deletions, the k nearest are those that NumPy finds, with the same scores to the bit."""
        random = np.random.default_rng(7)
        live: dict[str, Row] = {}
        for version in range(1, 4):
            ids = [f"id-{at}" for at in random.choice(150, 90, replace=False)]
            rows = [row(i, version * 1_000 + at, deleted=bool(random.integers(5) == 0)) for at, i in enumerate(ids)]
            await tier.store(batch(*rows))
            live |= {one.id: one for one in rows}
        alive = sorted((one for one in live.values() if not one.deleted), key=lambda one: one.id)
        query = random.normal(size=DIM).astype(np.float32)
        scores = score.scores(query, np.stack([one.vector for one in alive]), "cosine")
        order = sorted(range(len(alive)), key=lambda at: (-scores[at], alive[at].id))[:k]
        result = await tier.retrieve(Query(vector=query, k=k))

        assert [(alive[at].id, float(scores[at])) for at in order] == [(h.row.id, h.score) for h in result.hits]
        assert (True, len(alive)) == (result.complete, result.scanned)

    async def test_ties_are_ordered_by_id(self, tier):
        """Records with the same vector come in the order of their ids, whichever came first."""
        await tier.store(batch(*(row(i, at, [1, 2, 3, 4]) for at, i in enumerate(["c", "a", "d", "b"]))))
        result = await tier.retrieve(Query(vector=np.ones(DIM, np.float32), k=3))

        assert [hit.row.id for hit in result.hits] == ["a", "b", "c"]

    # -- listing, places, eviction -----------------------------------------------------------------------------------

    async def test_retrieve_all_yields_each_row_with_its_slot(self, tier):
        """The listing has every row, tombstones too, in batches of the schema and a last column with the slot."""
        rows = [row(f"id-{at}", at, deleted=at % 5 == 0) for at in range(300)]
        await tier.store(batch(*rows))
        async for found in tier.retrieve_all():
            assert [*SHAPE.names, "slot"] == found.schema.names
            assert found.drop_columns(["slot"]).schema.equals(SHAPE)
        listed = await everything(tier)
        expected = {one.id: one for one in rows}

        assert sorted(expected) == sorted(one.id for one, _ in listed)
        assert [one for one, _ in listed if not same(expected[one.id], one)] == []
        again = await tier.get([place(one, slot) for one, slot in listed])
        assert [one.id for one, _ in listed] == [one.id for one in again]

    async def test_get_wants_the_exact_version(self, tier):
        """A place with another version, or of another id, holds nothing for the asker."""
        receipt = await tier.store(batch(row("a", 5), row("b", 5)))
        at_a, at_b = places(receipt)
        wrong = [
            Location("a", 4, at_a.partition, at_a.slot),
            Location("a", 6, at_a.partition, at_a.slot),
            Location("b", 6, at_b.partition, at_b.slot),
        ]

        assert await tier.get(wrong) == [None, None, None]
        assert [one.id for one in await tier.get([at_b, at_a])] == ["b", "a"]
        assert await tier.get([]) == []

    async def test_vectors_are_those_of_the_rows(self, tier):
        """Each where its exact row lies; none for another version, another id, or a tombstone."""
        receipt = await tier.store(batch(row("a", 5), row("b", 6), row("c", 7, deleted=True)))
        partitions = record.partitions(pa.array(receipt.ids), PARTITIONS)
        places = Places(list(receipt.ids), receipt.versions, partitions, receipt.slots)
        wrong = replace(places, versions=receipt.versions + 1)
        other = replace(places, ids=["b", "a", "c"])
        found = (await tier.vectors(places)).found

        assert np.array_equal(row("a", 5).vector, found[0])
        assert np.array_equal(row("b", 6).vector, found[1])
        assert found[2] is None
        assert [None] * 3 == (await tier.vectors(wrong)).found
        if tier.name != TierName.HOT:  # where slots are given by partition, that and the version name the row
            assert [None] * 3 == (await tier.vectors(other)).found

    async def test_vectors_at_once_are_those_that_would_be_waited_for(self, tier):
        """The same, or nothing at all where one of them cannot be shown without waiting."""
        receipt = await tier.store(batch(row("a", 5), row("b", 6), row("c", 7, deleted=True)))
        partitions = record.partitions(pa.array(receipt.ids), PARTITIONS)
        places = Places(list(receipt.ids), receipt.versions, partitions, receipt.slots)
        older = replace(places, versions=receipt.versions + 1)
        for asked in (places, places[:2], older, older[:2]):
            now, waited = tier.vectors_at_once(asked), (await tier.vectors(asked)).found

            assert now is None or len(now.found) == len(waited)
            assert now is None or all(map(np.array_equal, now.found, waited))
        if self.in_memory:
            assert tier.vectors_at_once(places[:2]) is not None
        if tier.name != TierName.HOT:
            many = [np.repeat(column[:1], AT_ONCE_ROWS + 1) for column in (receipt.versions, partitions, receipt.slots)]
            assert tier.vectors_at_once(Places(["a"] * len(many[0]), *many)) is None

    async def test_gather_is_get_as_a_batch(self, tier):
        """The very rows, in the order asked for, and none in place of another version, another id or nothing."""
        rows = [row(f"r{n}", n, deleted=n % 7 == 3, attributes={"rank": n}) for n in range(40)]
        lies = places(await tier.store(batch(*rows)))
        await tier.evict([lies[5]], None)
        asked = [*lies[20:], *reversed(lies[:20])]
        for at in (3, 30):
            asked[at] = replace(asked[at], version=99)
        asked[8] = replace(asked[8], id="zz")
        found, there = await tier.gather(Places.of(asked))
        got = await tier.get(asked)

        assert [one is not None for one in got] == there.tolist()
        assert 4 == len(asked) - there.sum()
        assert all(map(same, [one for one in got if one is not None], record.rows_of(found)))

    async def test_sizes_tell_large_rows_from_small_ones(self, tier):
        """What a row takes is known before it is read, well enough to bound what is read together."""
        rows = [row("small", 1), replace(row("large", 1), payload=np.random.default_rng(1).bytes(100_000))]
        small, large = (await tier.sizes(Places.of([places(await tier.store(batch(one)))[0] for one in rows]))).tolist()

        assert small < 20_000
        assert 100_000 <= large < 200_000

    async def test_get_of_another_id_at_this_place_is_nothing(self, tier):
        """A row is not handed out under another id, whatever its version and slot."""
        receipt = await tier.store(batch(row("a", 5)))
        where = places(receipt)[0]

        assert await tier.get([Location("zz", 5, where.partition, where.slot)]) == [None]

    async def test_evict_drops_the_exact_version_only(self, tier):
        """Eviction with another version drops nothing; with the right one it drops the row and no other."""
        receipt = await tier.store(batch(row("a", 5), row("b", 5)))
        at_a, at_b = places(receipt)
        wrong = [
            Location("a", 4, at_a.partition, at_a.slot),
            Location("a", 6, at_a.partition, at_a.slot),
            Location("b", 4, at_b.partition, at_b.slot),
        ]

        assert await tier.evict(wrong, None) == 0
        assert len(await everything(tier)) == 2
        assert await tier.evict([at_a], receipt) == 1
        assert [one.id for one, _ in await everything(tier)] == ["b"]
        assert [one and one.version for one in await tier.get([at_a, at_b])] == [None, 5]

    async def test_evict_is_idempotent(self, tier):
        """What is gone is skipped, and what is named twice goes once."""
        receipt = await tier.store(batch(row("a", 5), row("b", 6)))

        assert await tier.evict([*places(receipt), places(receipt)[0]], None) == 2
        assert await tier.evict(places(receipt), None) == 0
        assert await tier.evict([], None) == 0

    # -- life --------------------------------------------------------------------------------------------------------

    async def test_clear_leaves_nothing(self, tier):
        """A cleared tier is empty and takes rows again, older ones too."""
        await tier.store(batch(row("a", 5), row("b", 6, deleted=True)))
        await tier.clear()

        assert await everything(tier) == []
        assert (await tier.usage()).rows == 0
        assert await by_id(tier, "a") == {}

        await tier.store(batch(row("a", 4), row("b", 3)))

        assert {i: one.version for i, one in (await by_id(tier, "a", "b")).items()} == {"a": 4, "b": 3}

    async def test_clear_of_an_empty_tier_is_fine(self, tier):
        """Nothing can be cleared, twice."""
        await tier.clear()
        await tier.clear()

        assert await everything(tier) == []

    async def test_cleanup_may_be_called_twice(self, opened):
        """Releasing what is released does nothing."""
        tier = await opened()
        await tier.store(batch(row("a", 5)))
        await tier.cleanup()
        await tier.cleanup()

    async def test_a_tier_opened_again_has_its_rows(self, opened):
        """After cleanup and open, lookups, searches and listings answer as before (hot: is empty); cleared stays so."""
        first = await opened()
        await first.store(batch(row("a", 5), row("b", 6), row("c", 7)))
        await first.store(batch(row("a", 8, [1, 0, 0, 0], attributes=EVERYTHING), row("b", 9, deleted=True)))
        await first.cleanup()
        again = await opened()
        found = await by_id(again, "a", "b", "c")
        if not self.durable:
            assert (found, await everything(again)) == ({}, [])
            return

        assert {i: one.version for i, one in found.items()} == {"a": 8, "c": 7}
        assert same(row("a", 8, [1, 0, 0, 0], attributes=EVERYTHING), found["a"])
        assert (await again.retrieve(Query(vector=np.array([1, 0, 0, 0], np.float32), k=1))).hits[0].row.id == "a"
        assert (await again.store(batch(row("a", 7)))).held.tolist() == [8]
        await again.clear()
        await again.cleanup()
        assert await everything(await opened()) == []

    async def test_two_tiers_do_not_see_each_other(self, opened):
        """Tiers of different names share nothing."""
        one, other = await opened("one"), await opened("other")
        await one.store(batch(row("a", 5)))

        assert await everything(other) == []

    async def test_usage_counts_rows_and_bytes(self, tier):
        """Usage is zero when empty, counts the rows that are there, and grows in bytes with what is stored."""
        empty = await tier.usage()
        await tier.store(batch(*(row(f"id-{at}", at) for at in range(50))))
        full = await tier.usage()

        assert (empty.rows, full.rows) == (0, 50)
        assert full.bytes > empty.bytes
        assert 0.0 <= empty.fraction <= full.fraction <= 1.0

    # -- unusual data ------------------------------------------------------------------------------------------------

    async def test_a_schema_without_attributes(self, opened):
        """A tier works for records that declare no attribute."""
        tier = await opened("bare", record.schema(DIM, {}))
        await tier.store(batch(row("a", 5), row("b", 6, deleted=True), shape=record.schema(DIM, {})))

        assert {i: one.attributes for i, one in (await by_id(tier, "a", "b")).items()} == {"a": {}}
        assert len(await everything(tier)) == 2

    @pytest.mark.parametrize(
        "identifier", ["a", "x" * 512, "é" * 256, "\U0001f980" * 128, "a b/{c}:*?[d]'\"\\%", "user/ns/é", "../a", " "]
    )
    async def test_any_id_is_only_a_name(self, tier, identifier):
        """Ids of every script, of full length, and of letters that mean something to an engine are kept apart."""
        others = [row(other, 1) for other in {"b", identifier[:-1] or "c", identifier.swapcase()} - {identifier, ""}]
        await tier.store(batch(row(identifier, 5), *others))

        assert [one.version for one in (await by_id(tier, identifier)).values()] == [5]
        assert len(others) + 1 == len(await everything(tier))

    # -- all together ------------------------------------------------------------------------------------------------

    @given(steps=STEPS)
    @settings(
        max_examples=8,
        deadline=None,
        suppress_health_check=[
            HealthCheck.function_scoped_fixture,
            HealthCheck.differing_executors,
            HealthCheck.too_slow,
        ],
    )
    async def test_batches_do_what_a_dict_does(self, tmp_path, server, steps):
        """Whatever batches come, with repeats, old versions and deletions, the tier holds what a dict of them holds."""
        number = self.__dict__.setdefault("_number", [0])
        number[0] += 1
        prefix = f"{tmp_path.name[:40]}-d{number[0]}"
        model: dict[str, tuple[int, bool]] = {}
        async with self._open(tmp_path, server, prefix) as tier:
            for step in steps:
                rows = [row(name, version, deleted=gone_at(name, version)) for name, version, _ in step]
                for one in rows:
                    model[one.id] = max(model.get(one.id, (-1, False)), (one.version, one.deleted))
                receipt = await tier.store(batch(*rows))
                assert {one.id: model[one.id][0] for one in rows} == dict(
                    zip(receipt.ids, receipt.held.tolist(), strict=True)
                )
            await agrees(tier, model)
        if self.durable:
            async with self._open(tmp_path, server, prefix) as tier:
                await agrees(tier, model)

    @asynccontextmanager
    async def _open(self, tmp_path: Path, server: Any, prefix: str) -> AsyncIterator[Tier]:
        tier = await self.open_tier(tmp_path, server, prefix, SHAPE)
        try:
            yield tier
        finally:
            await tier.cleanup()


EVERYTHING = {
    "user": "ü1",
    "rank": -(2**63),
    "score": 0.1,
    "seen": False,
    "at": datetime(2026, 11, 23, 5, tzinfo=UTC),
}


def gone_at(identifier: str, version: int) -> bool:
    """Say whether a version is a deletion: the same version is always the same row."""
    return (version + len(identifier)) % 3 == 0


async def agrees(tier: Tier, model: dict[str, tuple[int, bool]]) -> None:
    """Assert that lookups and the newest rows of the listing are those of the model."""
    live = {name: version for name, (version, gone) in model.items() if not gone}
    assert live == {name: one.version for name, one in (await by_id(tier, *model)).items()}
    newest: dict[str, tuple[int, bool]] = {}
    for one, _ in await everything(tier):
        newest[one.id] = max(newest.get(one.id, (-1, False)), (one.version, one.deleted))
    assert model == newest


async def by_id(tier: Tier, *ids: str) -> dict[str, Row]:
    """Return the live rows of these ids."""
    return {hit.row.id: hit.row for hit in (await tier.retrieve(Query(ids=ids))).hits}


async def everything(tier: Tier) -> list[tuple[Row, int]]:
    """Return every physical row with its slot."""
    found = []
    async for one in tier.retrieve_all():
        found += [(record.row_at(one, at), one["slot"][at].as_py()) for at in range(one.num_rows)]
    return found


def place(one: Row, slot: int) -> Location:
    """Return where a row of the listing lies."""
    return Location(one.id, one.version, record.partition(one.id, PARTITIONS), slot)


def places(receipt: Receipt) -> list[Location]:
    """Return where the rows of a receipt lie, at the versions held."""
    partition = record.partitions(pa.array(receipt.ids, pa.string()), PARTITIONS).tolist()
    return [
        Location(*at) for at in zip(receipt.ids, receipt.held.tolist(), partition, receipt.slots.tolist(), strict=True)
    ]


def described(receipt: Receipt) -> tuple[Any, Sequence[str], list[int], list[int]]:
    """Return what of a receipt does not depend on the tier's own numbers."""
    assert len(receipt.ids) == len(receipt.slots)
    return receipt.tier, list(receipt.ids), receipt.versions.tolist(), receipt.held.tolist()


def reversed_(receipt: Receipt) -> Receipt:
    """Return the receipt with its entries in the opposite order."""
    back = slice(None, None, -1)
    return Receipt(
        receipt.tier, receipt.ids[back], receipt.versions[back], receipt.slots[back], receipt.held[back], receipt.proof
    )
