"""The record: versions, ids, partitions, and what a batch says of its rows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from aiokafka.partitioner import murmur2
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.tiers.rows import ATTRIBUTES, DIM, IDS, NOW_MS, SHAPE, batch, row, same
from tiers import record
from tiers.errors import InvalidRecord

pytestmark = pytest.mark.unit

QUICK = settings(max_examples=60, deadline=None)


def by_the_client_library(identifier: str, count: int) -> int:
    return (murmur2(identifier.encode()) & 0x7FFFFFFF) % count


@QUICK
@given(st.lists(st.text(max_size=40).filter(lambda t: t.isprintable()), max_size=20), st.integers(1, 64))
@example(["", "a", "ab", "abc", "abcd", "abcde"], 7)
def test_partitions_are_those_of_the_client_library(ids, count):
    """The vectorised partitioner agrees with aiokafka's murmur2 for every text, the empty one too."""
    expected = [by_the_client_library(identifier, count) for identifier in ids]

    assert expected == record.partitions(pa.array(ids, pa.string()), count).tolist()


@QUICK
@given(st.lists(IDS, min_size=1, max_size=20), st.data())
def test_partitions_of_a_slice_are_those_of_its_rows(ids, data):
    """A sliced array is partitioned by its own rows and not by those of the array it was cut from."""
    start = data.draw(st.integers(0, len(ids)))
    length = data.draw(st.integers(0, len(ids) - start))
    expected = [by_the_client_library(identifier, 8) for identifier in ids[start : start + length]]

    assert expected == record.partitions(pa.array(ids, pa.string()).slice(start, length), 8).tolist()


def test_partition_of_one_id_is_that_of_the_batch():
    """`partition` is `partitions` of one row."""
    assert by_the_client_library("user/π", 8) == record.partition("user/π", 8)


BOUNDS = (
    st.sampled_from([0, 1, 63]) | st.integers(0, 63),
    st.sampled_from([0, record.OFFSET_MAX]) | st.integers(0, record.OFFSET_MAX),
    st.sampled_from([0, record.ROW_MAX]) | st.integers(0, record.ROW_MAX),
)


@QUICK
@given(*BOUNDS)
@example(63, record.OFFSET_MAX, record.ROW_MAX)
@example(0, 0, 0)
def test_version_round_trip(epoch, offset, at):
    """A version is a positive int64 that gives back its epoch, offset and row, also through its text."""
    version = record.pack_version(epoch, offset, at)

    assert 0 <= version < 2**63
    assert (epoch, offset, at) == record.unpack_version(version)
    assert version == record.parse_version(record.version_text(version))
    assert [offset] == record.offsets(np.array([version], np.int64)).tolist()


@QUICK
@given(st.tuples(*BOUNDS), st.tuples(*BOUNDS))
def test_versions_order_as_their_places_in_the_log(left, right):
    """Comparing versions is comparing (epoch, offset, row)."""
    assert (left < right) == (record.pack_version(*left) < record.pack_version(*right))


@pytest.mark.parametrize(
    "place", [(64, 0, 0), (-1, 0, 0), (0, record.OFFSET_MAX + 1, 0), (0, -1, 0), (0, 0, record.ROW_MAX + 1), (0, 0, -1)]
)
def test_a_place_beyond_the_bits_has_no_version(place):
    """A place that does not fit its bits is refused rather than folded into another."""
    with pytest.raises(ValueError, match="no version"):
        record.pack_version(*place)


@pytest.mark.parametrize("text", ["", "1", "1.2", "1.2.3.4", "a.b.c", "64.0.0", "-1.0.0", "0.0.65536", "0..0"])
def test_a_text_that_is_no_version_is_refused(text):
    """`parse_version` raises ValueError for what `version_text` never writes."""
    with pytest.raises(ValueError, match=r".*"):
        record.parse_version(text)


@pytest.mark.parametrize(
    ("expected", "identifier"),
    [("default", "a"), ("user", "user/a"), ("user", "user/a/b"), ("", "/a"), ("ü", "ü/")],
)
def test_namespace_is_what_precedes_the_first_slash(expected, identifier):
    """The part before the first slash is the namespace; without a slash it is "default"."""
    assert expected == record.namespace(identifier)


@pytest.mark.parametrize(
    ("reason", "identifier"),
    [
        ("id_size", ""),
        ("id_size", "a" * 513),
        ("id_size", "é" * 257),
        ("id_control", "a\nb"),
        ("id_control", "\x00"),
        ("id_control", "a\x7f"),
        ("id_control", "a\x85"),
        ("id_control", "\x9f"),
        ("id_not_utf8", "a\ud800"),
    ],
)
def test_bad_ids_are_refused_with_their_reason(reason, identifier):
    """An id that is empty, too long, not UTF-8 or has a control character is refused, and the reason is stable."""
    with pytest.raises(InvalidRecord) as refused:
        record.check_id(identifier)

    assert reason == refused.value.reason


@pytest.mark.parametrize("identifier", ["a", "a" * 512, "é" * 256, "\U0001f980" * 128, "a b", "\xa0", "a/", "~"])
def test_good_ids_come_back_unchanged(identifier):
    """An id of 1 to 512 bytes without control characters is taken as it is."""
    assert identifier == record.check_id(identifier)


@QUICK
@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 6)), max_size=30, unique=True))
def test_newest_keeps_the_highest_version_of_each_id_in_order(keys):
    """Whatever the order of the rows, only the highest version of each id stays, in the order of those rows."""
    highest: dict[str, int] = {}
    for identifier, version in keys:
        highest[identifier] = max(version, highest.get(identifier, -1))
    expected = [key for key in keys if highest[key[0]] == key[1]]
    found = record.newest(batch(*(row(*key) for key in keys)))

    assert expected == list(zip(found["id"].to_pylist(), found["version"].to_pylist(), strict=True))


def test_newest_of_unique_ids_is_the_batch_itself():
    """No copy is made when no id repeats."""
    given_batch = batch(row("a", 1), row("b", 1))

    assert given_batch is record.newest(given_batch)


def test_newest_of_a_repeated_row_keeps_one():
    """The same (id, version) twice is one row."""
    assert record.newest(batch(row("a", 1), row("a", 1))).num_rows == 1


@QUICK
@given(st.lists(st.booleans(), max_size=12), st.data())
def test_vectors_of_a_slice_with_tombstones(deleted, data):
    """`vectors_of` gives each row its vector and tombstones zeros, also of a slice."""
    rows = [row("a", at, deleted=gone) for at, gone in enumerate(deleted)]
    start = data.draw(st.integers(0, len(rows)))
    part = batch(*rows).slice(start, data.draw(st.integers(0, len(rows) - start)))
    expected = [[0.0] * DIM if one.vector is None else one.vector.tolist() for one in rows[start : start + len(part)]]

    assert expected == record.vectors_of(part).tolist()


def test_vectors_without_tombstones_are_not_copied():
    """The array shares the memory of the batch."""
    given_batch = batch(row("a", 1), row("b", 2))
    values = given_batch["vector"].flatten()

    assert values.buffers()[1].address == record.vectors_of(given_batch).ctypes.data


@QUICK
@given(st.lists(st.booleans(), min_size=1, max_size=8))
def test_vector_array_is_null_exactly_where_deleted(deleted):
    """The vector column is null for tombstones and only for them."""
    column = record.vector_array(np.ones((len(deleted), DIM), np.float32), np.array(deleted))

    assert deleted == column.is_null().to_pylist()


def test_rows_survive_a_batch():
    """What `to_batch` was given is what `row_at` reads, null and absent attributes alike."""
    given_rows = [
        row("a", 1, attributes={"user": "u", "rank": -(2**63), "score": 0.5, "seen": False}),
        row("b", 2, deleted=True),
        row("user/\U0001f980", 3),
    ]
    read = [record.row_at(batch(*given_rows), at) for at in range(3)]

    assert [same(*pair) for pair in zip(given_rows, read, strict=True)] == [True] * 3


def test_times_are_milliseconds_and_zero_where_null():
    """`times_of` reads milliseconds since 1970; a missing time is 0."""
    given_batch = batch(row("a", 1, event_time=NOW_MS + 1))

    assert record.times_of(given_batch, "event_time").tolist() == [NOW_MS + 1]
    assert record.times_of(given_batch, "expires_at").tolist() == [0]


@pytest.mark.parametrize("attributes", [{}, ATTRIBUTES])
def test_an_empty_batch_has_all_columns(attributes):
    """No rows make a batch of the full schema, with and without declared attributes."""
    shape = record.schema(DIM, attributes)

    assert (0, shape) == (record.to_batch([], shape).num_rows, record.to_batch([], shape).schema)
    assert record.vectors_of(record.to_batch([], shape)).shape == (0, DIM)


def test_rows_without_declared_attributes_make_a_batch():
    """A schema without attributes takes rows; its struct is empty."""
    made = batch(row("a", 1), row("b", 1), shape=record.schema(DIM, {}))

    assert made["attributes"].to_pylist() == [{}, {}]
    assert SHAPE.names == made.schema.names
