"""The packed row: what is written is read back, for ever, and nothing else ever is.

`python -m tests.tiers.test_codec` writes the golden files anew; do it only with a new format number.
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiers.rows import DIM, IDS, NOW_MS, row, same
from tiers import codec
from tiers.errors import TierCorrupt
from tiers.record import Row

pytestmark = pytest.mark.unit

GOLDEN_DIR = Path(__file__).parent / "golden"
VECTOR = np.array([0.5, -1.0, 3.4e38, 1e-45], np.float32)
GOLDEN = {
    "plain": Row("user/a", 131_073, NOW_MS, None, VECTOR, b'{"text":"hello"}'),
    "tombstone": Row("user/a", 196_608, NOW_MS + 1, None, None, b"", {}, deleted=True),
    "attributes_expires": Row(
        "\U0001f980/é",
        2**63 - 1,
        -1,
        NOW_MS + 60_000,
        VECTOR,
        b"\x00\xff",
        {"user": "u1", "rank": -(2**63), "score": 0.1, "seen": True, "at": datetime(2026, 11, 23, 5, tzinfo=UTC)},
    ),
    "empty_payload": Row("a", 0, 0, 0, VECTOR, b""),
}

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
ATTRIBUTES = st.fixed_dictionaries(
    {},
    optional={
        "user": st.text(max_size=20),
        "rank": st.integers(-(2**63), 2**63 - 1),
        "score": st.floats(allow_nan=False),
        "seen": st.booleans(),
        "at": st.datetimes(timezones=st.just(UTC)),
    },
)
TIMES = st.integers(-(2**63), 2**63 - 1)
ROWS = st.builds(
    Row,
    id=IDS,
    version=st.integers(0, 2**63 - 1),
    event_time=TIMES,
    expires_at=st.none() | TIMES,
    vector=st.lists(FLOATS, min_size=1, max_size=6).map(lambda values: np.array(values, np.float32)),
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


@settings(max_examples=150, deadline=None)
@given(ROWS)
def test_round_trip(given_row):
    """Any row is read back as it was written, its vector bit for bit."""
    assert same(given_row, codec.decode(codec.encode(given_row)))


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes_are_written(name):
    """The bytes of format 1 never change: a store that was filled yesterday is read tomorrow."""
    assert (GOLDEN_DIR / f"{name}.bin").read_bytes() == codec.encode(GOLDEN[name])


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes_are_read(name):
    """The rows of format 1 are read from the bytes as they were."""
    assert same(GOLDEN[name], codec.decode((GOLDEN_DIR / f"{name}.bin").read_bytes()))


def test_golden_files_are_the_listed_ones():
    """Every golden file has its row here, so that none is guarded by nothing."""
    assert sorted(GOLDEN) == sorted(path.stem for path in GOLDEN_DIR.glob("*.bin"))


@pytest.mark.parametrize("name", GOLDEN)
def test_every_single_bit_flip_is_found(name):
    """No flipped bit, checksum included, yields a row."""
    packed = codec.encode(GOLDEN[name])
    yielded = []
    for bit in range(8 * len(packed)):
        broken = bytearray(packed)
        broken[bit // 8] ^= 1 << bit % 8
        try:
            yielded.append((bit, codec.decode(bytes(broken))))
        except TierCorrupt:
            continue

    assert yielded == []


@pytest.mark.parametrize("name", GOLDEN)
def test_every_truncation_is_found(name):
    """No prefix of a packed row yields a row, nor does a packed row with a byte more."""
    packed = codec.encode(GOLDEN[name])
    for cut in [*(packed[:size] for size in range(len(packed))), packed + b"\x00"]:
        with pytest.raises(TierCorrupt):
            codec.decode(cut)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=120), st.booleans())
def test_noise_is_no_row(noise, magic):
    """Bytes that were never written by `encode` raise TierCorrupt and nothing else."""
    with pytest.raises(TierCorrupt):
        codec.decode(b"IR\x01" + noise if magic else noise)


@settings(max_examples=50, deadline=None)
@given(ROWS)
def test_version_lies_where_the_script_reads_it(given_row):
    """The eight bytes at VERSION_AT are the version: warm's script compares them without unpacking the rest."""
    packed = codec.encode(given_row)

    assert (given_row.version,) == struct.unpack_from("<q", packed, codec.VERSION_AT)


def test_a_row_is_read_from_a_memoryview():
    """The side file hands out views; they are read like bytes."""
    packed = codec.encode(row("a", 1))

    assert same(row("a", 1), codec.decode(memoryview(packed)))
    assert len(codec.decode(memoryview(packed)).vector) == DIM


if __name__ == "__main__":
    for golden_name, golden_row in GOLDEN.items():
        (GOLDEN_DIR / f"{golden_name}.bin").write_bytes(codec.encode(golden_row))
