"""Many packed rows at once: exactly what one at a time gives, and every damaged one is found."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiers.rows import DIM, IDS, SHAPE, batch, row, same
from tiers import codec, packed, record
from tiers.errors import TierCorrupt
from tiers.record import Row

pytestmark = pytest.mark.unit

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
ATTRIBUTES = st.fixed_dictionaries(
    {},
    optional={
        "user": st.text(max_size=20),
        "rank": st.integers(-(2**63), 2**63 - 1),
        "score": st.floats(allow_nan=False),
        "seen": st.booleans(),
        "at": st.integers(0, 10**12).map(lambda ms: datetime.fromtimestamp(ms / 1000, UTC).replace(microsecond=0)),
    },
)
TIMES = st.integers(-(2**63), 2**63 - 1)
ROWS = st.builds(
    Row,
    id=IDS,
    version=st.integers(0, 2**63 - 1),
    event_time=TIMES,
    expires_at=st.none() | TIMES,
    vector=st.lists(FLOATS, min_size=DIM, max_size=DIM).map(lambda values: np.array(values, np.float32)),
    payload=st.binary(max_size=64),
    attributes=ATTRIBUTES,
) | st.builds(
    Row,
    id=IDS,
    version=st.integers(0, 2**63 - 1),
    event_time=TIMES,
    expires_at=st.none() | TIMES,
    vector=st.none(),
    payload=st.just(b""),
    deleted=st.just(value=True),
)
MIXED = [row("a", 1, attributes={"user": "u", "rank": 7}), row("b/é", 2, deleted=True), row("c", 3)]


@settings(max_examples=150, deadline=None)
@given(st.lists(ROWS, max_size=8), st.integers(0, 2))
def test_many_at_once_are_what_each_is_alone(rows, skipped):
    """A batch, or a slice of one, is packed to the very bytes of each row, and unpacked to the very rows."""
    given_batch, rows = batch(*rows).slice(skipped), rows[skipped:]
    bytes_of = packed.pack(given_batch).to_pylist()

    assert [codec.encode(one) for one in record.rows_of(given_batch)] == bytes_of
    assert given_batch.equals(packed.unpack(bytes_of, SHAPE))
    assert all(map(same, rows, record.rows_of(packed.unpack(bytes_of, SHAPE))))


def test_a_schema_without_attributes():
    """Records of a configuration that declares none are packed and unpacked alike."""
    shape = record.schema(DIM, {})
    rows = [row("a", 1), row("b", 2, deleted=True)]
    bytes_of = packed.pack(batch(*rows, shape=shape)).to_pylist()

    assert [codec.encode(one) for one in rows] == bytes_of
    assert batch(*rows, shape=shape).equals(packed.unpack(bytes_of, shape))


@pytest.mark.parametrize("at", range(3))
def test_every_flipped_bit_of_one_row_is_found_in_it_alone(at):
    """Whatever bit of a row is wrong, that row is not whole, its neighbours are, and nothing is unpacked."""
    rows = [codec.encode(one) for one in MIXED]
    wanted = np.arange(3) != at
    for bit in range(8 * len(rows[at])):
        broken = bytearray(rows[at])
        broken[bit // 8] ^= 1 << bit % 8
        damaged = [*rows[:at], bytes(broken), *rows[at + 1 :]]

        assert wanted.tolist() == packed.whole(damaged).tolist(), bit
    with pytest.raises(TierCorrupt):
        packed.unpack(damaged, SHAPE)


@pytest.mark.parametrize("cut", [0, 1, 39, 43, 44, 45, -1])
def test_a_row_cut_short_is_found(cut):
    """No prefix of a packed row is whole, nor is one with a byte more."""
    rows = [codec.encode(one) for one in MIXED]

    assert [True, False, True] == packed.whole([rows[0], rows[1][:cut], rows[2]]).tolist()
    assert [True, False, True] == packed.whole([rows[0], rows[1] + b"0", rows[2]]).tolist()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=120) | st.binary(max_size=120).map(lambda noise: b"IR\x01" + noise), max_size=4))
def test_noise_is_not_whole(noise):
    """Bytes that were never packed are no row."""
    assert [False] * len(noise) == packed.whole(noise).tolist()


def test_a_row_of_another_dimension_is_refused():
    """A row with other vectors than the configuration's has no place in its batches."""
    with pytest.raises(TierCorrupt):
        packed.unpack([codec.encode(row("a", 1, vector=[1.0, 2.0]))], SHAPE)


def test_rows_of_a_large_column_keep_their_bytes_apart():
    """Parts are found by offsets in a slice of a column too."""
    column = pa.array([b"abc", b"", b"de"], packed.BYTES)

    assert b"de" == bytes(packed.content(column.slice(1)))
    assert [0, 2] == packed.sizes(column.slice(1)).tolist()
