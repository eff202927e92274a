"""Many rows in one message, msgpack, and keys that come twice: what is applied, and which row is a letter."""

from __future__ import annotations

import json
import struct
import sys
from datetime import UTC, datetime

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producers import columns, duplicates, events, ipc, letters, wire
from producers.decoder import EventDecoder, event_of
from producers.events import ARROW_TYPE, JSON_TYPE, MSGPACK_TYPE, Message
from tests.tiers.rows import ATTRIBUTES, NOW_MS
from tiers import record
from tiers.errors import InvalidRecord

pytestmark = pytest.mark.unit

DIM = 2
DECODER = EventDecoder(DIM, ATTRIBUTES)
SHAPE = record.schema(DIM, ATTRIBUTES)
VECTOR = pa.list_(pa.float32(), DIM)
HEADERS = {kind: [("content-type", kind.encode())] for kind in (JSON_TYPE, MSGPACK_TYPE, ARROW_TYPE)}
ALONE = wire.Place(0, 0, 1)
MS = pa.timestamp("ms", "UTC")


def stream(batch: pa.RecordBatch, compression: str | None = None, times: int = 1) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        for _ in range(times):
            writer.write_batch(batch)
    return bytes(sink.getvalue())


def batch_of(**given) -> pa.RecordBatch:
    """Return rows a, b, c; a column given replaces the good one, None leaves it out."""
    good = {
        "id": pa.array(["a", "b", "c"]),
        "vector": pa.array([[1, 2], [3, 4], [5, 6]], VECTOR),
        "payload": pa.array([b"1", None, b"3"], pa.binary()),
    }
    return pa.record_batch({name: column for name, column in (good | given).items() if column is not None})


def decode(value: bytes, kind: str = ARROW_TYPE, *, offset: int = 5, place=ALONE, limit: int = 100):
    message = Message(None if kind == ARROW_TYPE else b"a", value, HEADERS[kind], NOW_MS, offset)
    return wire.decode(DECODER, SHAPE, place, [message], limit)


def refused(found: wire.Decoded) -> list[tuple[int | None, str]]:
    return [(letter.row, letter.error.reason) for letter in found.letters]


# -- good ------------------------------------------------------------------------------------------------------------


def test_rows_of_a_message_have_its_offset_and_their_place():
    """The version of a row is (epoch, offset, row): within a message the last row of an id wins."""
    found = decode(stream(batch_of(id=pa.array(["a", "b", "a"]))), place=wire.Place(3, 0, 1))

    assert [] == found.letters
    assert [record.pack_version(3, 5, row) for row in range(3)] == found.batch["version"].to_pylist()
    assert {("a", record.pack_version(3, 5, 2)), ("b", record.pack_version(3, 5, 1))} == {
        (row.id, row.version) for row in record.rows_of(record.newest(found.batch))
    }


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("times", [1, 3])
def test_an_arrow_message_is_read_as_it_was_written(compression, times):
    """Vectors, payloads, attributes and times come out as they went in, compressed or not, in one batch or several."""
    attributes = pa.array([{"user": "u", "rank": 2**62, "seen": True, "at": datetime(2023, 1, 1, tzinfo=UTC)}] * 3)
    event_time = pa.array([NOW_MS - 7, None, NOW_MS], MS)
    found = decode(stream(batch_of(attributes=attributes, event_time=event_time), compression, times))
    rows = record.rows_of(found.batch)

    assert [] == found.letters
    assert SHAPE == found.batch.schema
    assert [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]] * times == [row.vector.tolist() for row in rows]
    assert [b"1", b"", b"3"] * times == [row.payload for row in rows]
    assert [NOW_MS - 7, NOW_MS, NOW_MS] * times == [row.event_time for row in rows]
    assert {"user": "u", "rank": 2**62, "seen": True, "at": datetime(2023, 1, 1, tzinfo=UTC)} == rows[0].attributes


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("id", pa.array(["a", "b", "c"], pa.large_string())),
        ("vector", pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.float64()))),
        ("vector", pa.array([[1, 2], [3, 4], [5, 6]], pa.large_list(pa.float32()))),
        ("vector", pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.float64(), DIM))),
        ("payload", pa.array(["1", None, "3"])),
        ("payload", pa.array(["1", None, "3"], pa.large_string())),
        ("version", pa.array([1, 2, 3])),
        ("event_time", pa.array([NOW_MS // 1000] * 3, pa.timestamp("s", "UTC"))),
        ("event_time", pa.array([NOW_MS * 1_000_000] * 3, pa.timestamp("ns", "Europe/Zurich"))),
        ("deleted", pa.array([False, None, False])),
    ],
)
def test_columns_of_kindred_types_are_taken(name, column):
    """What other libraries write by default is read as the record's own types."""
    found = decode(stream(batch_of(**{name: column})))

    assert [] == found.letters
    assert [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]] == record.vectors_of(found.batch).tolist()
    assert [b"1", b"", b"3"] == found.batch["payload"].to_pylist()
    assert [NOW_MS] * 3 == record.times_of(found.batch, "event_time").tolist()


def test_a_deleted_row_is_a_tombstone():
    """A row with `deleted` carries nothing but its id and time."""
    attributes = pa.array([{"user": "u"}] * 3)
    vector, deleted = pa.array([[1, 2], None, [5, 6]], VECTOR), pa.array([False, True, False])
    found = decode(stream(batch_of(vector=vector, deleted=deleted, attributes=attributes)))
    row = record.row_at(found.batch, 1)

    assert [] == found.letters
    assert (None, b"", {}, True, None) == (row.vector, row.payload, row.attributes, row.deleted, row.expires_at)
    assert [[1.0, 2.0], [0.0, 0.0], [5.0, 6.0]] == record.vectors_of(found.batch).tolist()


def test_ids_and_deleted_alone_are_deletes():
    """A message of nothing but tombstones needs no vector column."""
    found = decode(stream(pa.record_batch({"id": ["a", "b"], "deleted": [True, True]})))

    assert ([], 2, 2) == (found.letters, found.batch.num_rows, found.batch["vector"].null_count)


def test_singles_and_batches_are_applied_in_the_order_of_the_log():
    """JSON, Arrow and msgpack of one poll make one batch whose versions grow."""
    one = events.encode_event(np.ones(DIM, np.float32))
    packed = msgspec.msgpack.encode({"vector": [1.0, 2.0]})
    messages = [
        Message(b"x", one, HEADERS[JSON_TYPE], NOW_MS, 0),
        Message(None, stream(batch_of()), HEADERS[ARROW_TYPE], NOW_MS, 1),
        Message(b"y", packed, HEADERS[MSGPACK_TYPE], NOW_MS, 2),
        Message(b"x", None, (), NOW_MS, 3),
    ]
    found = wire.decode(DECODER, SHAPE, wire.Place(0, 0, 1), messages, 100)

    assert ["x", "a", "b", "c", "y", "x"] == found.batch["id"].to_pylist()
    assert sorted(found.batch["version"].to_pylist()) == found.batch["version"].to_pylist()


# -- bad rows --------------------------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
ROWS = {
    "no id": ("id_missing", {"id": pa.array(["a", None, "c"])}),
    "empty id": ("id_size", {"id": pa.array(["a", "", "c"])}),
    "long id": ("id_size", {"id": pa.array(["a", "é" * 257, "c"])}),
    "control character": ("id_control", {"id": pa.array(["a", "b\x85", "c"])}),
    "NUL": ("id_control", {"id": pa.array(["a", "b\x00", "c"])}),
    "not UTF-8": ("id_not_utf8", {"id": pa.array([b"a", b"\xff", b"c"], pa.binary()).view(pa.string())}),
    "no vector": ("vector_missing", {"vector": pa.array([[1, 2], None, [5, 6]], VECTOR)}),
    "vector of a deleted row": ("tombstone", {"deleted": pa.array([False, True, False])}),
    "too short": ("vector_dim", {"vector": pa.array([[1, 2], [3], [5, 6]], pa.list_(pa.float32()))}),
    "null float": ("vector_not_finite", {"vector": pa.array([[1, 2], [3, None], [5, 6]], VECTOR)}),
    "NaN": ("vector_not_finite", {"vector": pa.array([[1, 2], [NAN, 4], [5, 6]], VECTOR)}),
    "infinite": ("vector_not_finite", {"vector": pa.array([[1, 2], [3, -INF], [5, 6]], VECTOR)}),
    "length infinite": ("vector_not_finite", {"vector": pa.array([[1, 2], [1e30, 4], [5, 6]], VECTOR)}),
    "beyond float32": ("vector_not_finite", {"vector": pa.array([[1, 2], [1e39, 4], [5, 6]], pa.list_(pa.float64()))}),
    "zero": ("vector_zero", {"vector": pa.array([[1, 2], [0, -0.0], [5, 6]], VECTOR)}),
    "large payload": ("payload_size", {"payload": pa.array([b"1", b"x" * (record.PAYLOAD_BYTES_MAX + 1), b"3"])}),
    "too old": ("event_time", {"event_time": pa.array([NOW_MS, 0, NOW_MS], MS)}),
    "seconds that overflow": (
        "event_time",
        {"event_time": pa.array([NOW_MS // 1000, 2**62, None], pa.timestamp("s", "UTC"))},
    ),
    "expires before it happened": ("ttl", {"expires_at": pa.array([None, NOW_MS - 1, None], MS)}),
    "expires too late": ("ttl", {"expires_at": pa.array([None, NOW_MS * 2, None], MS)}),
    "infinite attribute": ("attribute_not_finite", {"attributes": pa.array([{"score": x} for x in (1.0, INF, None)])}),
    "long attribute": ("attribute_size", {"attributes": pa.array([{"user": x} for x in ("u", "x" * 16_385, None)])}),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_bad_row_costs_only_itself(name):
    """The row's letter says why and holds that row alone, as a stream that is refused again; its neighbours go on."""
    expected, given = ROWS[name]
    found = decode(stream(batch_of(**given)))

    assert [(1, expected)] == refused(found)
    assert ["a", "c"] == found.batch["id"].to_pylist()
    assert [record.pack_version(0, 5, 0), record.pack_version(0, 5, 2)] == found.batch["version"].to_pylist()

    _, value, headers = letters.encode("t", 0, found.letters[0])

    assert b"1" == dict(headers)["isotherm-row"]
    assert [(0, expected)] == refused(decode(value))


def test_a_row_in_the_wrong_partition_is_a_letter():
    """The partition of each row is that of its own id, whatever the message's key says."""
    names = [f"id-{at}" for at in range(12)]
    ours = [name for name in names if record.partition(name, 4) == 3]
    given = batch_of(id=pa.array(names), vector=pa.array([[1, 2]] * 12, VECTOR), payload=None)
    found = decode(stream(given), place=wire.Place(0, 3, 4))

    assert ours == found.batch["id"].to_pylist()
    assert {"wrong_partition"} == {reason for _, reason in refused(found)}
    assert [names.index(name) for name in names if name not in ours] == [row for row, _ in refused(found)]


def test_a_row_of_a_letter_is_whole():
    """What was good in a bad row is kept in its letter, attributes and text that is not UTF-8 included."""
    given = ROWS["not UTF-8"][1] | {"attributes": pa.array([{"user": "u", "rank": 2**60}] * 3)}
    found = decode(stream(batch_of(**given)))
    kept = columns.read(letters.encode("t", 0, found.letters[0])[1], 1)

    assert [b"\xff"] == kept["id"].to_pylist()
    assert [{"user": b"u", "rank": 2**60}] == kept["attributes"].to_pylist()
    assert [[3.0, 4.0]] == kept["vector"].to_pylist()


# -- bad messages ----------------------------------------------------------------------------------------------------

DICTIONARY = pa.array(["x", "y", "z"]).dictionary_encode()
MESSAGES = {
    "empty": ("arrow", b""),
    "noise": ("arrow", b"\xff\xff\xff\xff\x10\x00\x00\x00" + b"\x07" * 40),
    "a file, not a stream": ("arrow", b"ARROW1\x00\x00" + stream(batch_of())),
    "no schema": ("arrow", stream(batch_of())[-200:]),
    "cut short": ("arrow", stream(batch_of())[:-40]),
    "dictionary": ("arrow", stream(batch_of(id=DICTIONARY))),
    "no id": ("arrow_schema", stream(batch_of(id=None))),
    "unknown column": ("arrow_schema", stream(batch_of(colour=pa.array([1, 2, 3])))),
    "a column twice": (
        "arrow_schema",
        stream(pa.RecordBatch.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["id", "id"])),
    ),
    "id of numbers": ("arrow_schema", stream(batch_of(id=pa.array([1, 2, 3])))),
    "views": ("arrow_schema", stream(batch_of(id=pa.array(["a", "b", "c"], pa.string_view())))),
    "version of text": ("arrow_schema", stream(batch_of(version=pa.array(["a", "b", "c"])))),
    "vector of integers": ("arrow_schema", stream(batch_of(vector=pa.array([[1, 2]] * 3, pa.list_(pa.int32(), 2))))),
    "time without zone": ("arrow_schema", stream(batch_of(event_time=pa.array([NOW_MS] * 3, pa.timestamp("ms"))))),
    "unknown attribute": ("attribute_unknown", stream(batch_of(attributes=pa.array([{"colour": 1}] * 3)))),
    "attribute of another type": ("attribute_type", stream(batch_of(attributes=pa.array([{"rank": "1"}] * 3)))),
    "zstd bomb": ("arrow_size", stream(batch_of(payload=pa.array([b"\0" * 10**7] * 3, pa.binary())), "zstd")),
    "lz4 bomb": ("arrow_size", stream(batch_of(payload=pa.array([b"\0" * 10**7] * 3, pa.binary())), "lz4")),
    "more rows than may be": ("arrow_size", stream(batch_of(), times=34)),
    "more batches than may be": ("arrow_size", stream(batch_of().slice(0, 0), times=65)),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_bad_message_is_one_letter(name):
    """What cannot be taken apart, or must not be, is refused whole and kept as it came."""
    expected, value = MESSAGES[name]
    found = decode(value)

    assert [(None, expected)] == refused(found)
    assert 0 == found.batch.num_rows

    _, kept, headers = letters.encode("t", 0, found.letters[0])

    assert value == kept or len(value) > letters.LETTER_BYTES_MAX
    assert b"-" == dict(headers)["isotherm-row"]


def test_a_bomb_is_refused_before_it_is_unpacked():
    """30 MB that came as 3 KB are counted from what the message says, not allocated."""
    value = MESSAGES["zstd bomb"][1]
    whole, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        decode(value)
    finally:
        pa.set_memory_pool(whole)

    assert 10_000 > len(value)
    assert 100_000 > pool.max_memory()


def test_an_oversize_arrow_message_is_refused():
    """The limit of a message is the same for every content type."""
    value = stream(batch_of(payload=pa.array([b"x" * 400_000] * 3, pa.binary())))

    assert [(None, "event_size")] == refused(decode(value))


def test_a_corrupt_offset_is_refused():
    """Offsets that point outside of their data are found before a value is read."""
    value = bytearray(stream(batch_of()))
    at = value.index(struct.pack("<4i", 0, 1, 2, 3))
    value[at + 4 : at + 8] = struct.pack("<i", 1_000_000)

    assert [(None, "arrow")] == refused(decode(bytes(value)))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_stream_is_refused_or_harmless(data):
    """Any few bytes changed, and any cut: a letter or rows that can be read, never another error."""
    compression = data.draw(st.sampled_from([None, "zstd"]))
    value = bytearray(stream(batch_of(attributes=pa.array([{"user": "u", "rank": 1}] * 3)), compression))
    for at in data.draw(st.lists(st.integers(0, len(value) - 1), max_size=3)):
        value[at] ^= data.draw(st.integers(1, 255))
    cut = bytes(value[: data.draw(st.integers(0, len(value)))] if data.draw(st.booleans()) else value)
    found = decode(cut)
    record.rows_of(found.batch)
    for letter in found.letters:
        letters.encode("t", 0, letter)

    known = {reason for reason, _ in (*ROWS.values(), *MESSAGES.values())}
    assert {reason for _, reason in refused(found)} <= known


def test_what_a_message_says_it_holds_is_what_it_holds():
    """Rows and bytes are those of the buffers, whatever the compression says."""
    whole = batch_of(payload=pa.array([b"x" * 5_000] * 3, pa.binary()))
    for compression in (None, "lz4", "zstd"):
        found = ipc.inspect(stream(whole, compression, 2), 100, 10**6)

        assert 6 == found.rows
        assert 30_000 <= found.size < 31_500


@pytest.mark.parametrize("size", [0, 500_000])
def test_a_row_does_not_hold_on_to_a_message(size):
    """Rows are views of their message, unless it is much larger than they are: then they are copied, and it can go."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch_of().schema) as writer:
        writer.write_batch(batch_of(), custom_metadata={"x": "y" * size})
    value = bytes(sink.getvalue())
    before = sys.getrefcount(value)
    batch = decode(value).batch

    assert 3 == batch.num_rows
    assert (size == 0) == (before < sys.getrefcount(value))


# -- msgpack ---------------------------------------------------------------------------------------------------------


def packed(**fields) -> bytes:
    return msgspec.msgpack.encode({"vector": [1.0, 2.0]} | fields)


def test_msgpack_carries_what_json_does():
    """A list or bytes of floats, attributes, times and a payload of any kind."""
    when = datetime(2023, 11, 14, tzinfo=UTC)
    value = packed(
        vector=np.array([0.5, -2], "<f4").tobytes(),
        payload={"n": 2**60},
        attributes={"rank": 2**62, "at": when},
        event_time=when,
        ttl_s=5,
    )
    found = decode(value, MSGPACK_TYPE)
    (row,) = record.rows_of(found.batch)

    assert ([0.5, -2.0], b'{"n":1152921504606846976}') == (row.vector.tolist(), row.payload)
    assert ({"rank": 2**62, "at": when}, NOW_MS + 5_000) == (row.attributes, row.expires_at)
    assert int(when.timestamp() * 1000) == row.event_time
    assert b"\x00raw" == bytes(event_of(MSGPACK_TYPE, packed(payload=b"\x00raw")).payload)


@pytest.mark.parametrize(
    ("expected", "value"),
    [
        ("msgpack", b""),
        ("msgpack", b"\xc1"),
        ("msgpack", b"\x93\x01\x02\x03"),
        ("msgpack", packed()[:-1]),
        ("msgpack", packed() + b"\x00"),
        ("msgpack", packed(colour=1)),
        ("msgpack", b"\x81\xa7payload" + b"\x91" * 5_000 + b"\xc0"),
        ("msgpack", packed(payload=msgspec.msgpack.Ext(7, b"x"))),
        ("msgpack", b"\x81\xa4text\xa2\xff\xfe"),
        ("duplicate_key", b"\x82\xa6vector\x92\x01\x02\xa6vector\x92\x01\x02"),
        ("duplicate_key", b"\xde\x00\x02\xa6vector\x92\x01\x02\xa6vector\x92\x01\x02"),
        ("duplicate_key", b"\x82\xa6vector\x92\x01\x02\xaaattributes\x82\xa4rank\x01\xa4rank\x02"),
        ("vector_dim", packed(vector=b"1234567")),
        ("vector_dim", packed(vector=[1.0])),
        ("vector_not_finite", packed(vector=[1.0, NAN])),
        ("vector_missing", packed(vector=None)),
        ("attribute_not_finite", packed(attributes={"score": NAN})),
        ("attribute_type", packed(attributes={"rank": 2**64 - 1})),
        ("attribute_type", packed(attributes={"user": b"u"})),
        ("ttl", packed(ttl_s=NAN)),
    ],
)
def test_bad_msgpack_is_refused_with_its_reason(expected, value):
    """Each is a letter with the reason that the same mistake has in JSON."""
    assert [(0, expected)] == refused(decode(value, MSGPACK_TYPE))


def test_an_explicit_nil_is_no_duplicate():
    """A key with nil counts as a key, and its absence is the same."""
    assert [] == decode(packed(text=None, ttl_s=None), MSGPACK_TYPE).letters


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=80))
def test_msgpack_noise_is_refused(value):
    """Random bytes never end the process."""
    assert {reason for _, reason in refused(decode(value, MSGPACK_TYPE))} <= {
        "msgpack",
        "duplicate_key",
        "vector_missing",
    }


# -- duplicate keys --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        '{"vector": [1, 2], "vector": [3, 4]}',
        '{"vector": [1, 2], "ttl_s": 1, "ttl_s": 2}',
        '{"vector": [1, 2], "payload": 1, "payload": {}}',
        '{"vector": [1, 2], "\\u0076ector": [3, 4]}',
        '{"vector":[1,2],"attributes":{"rank":1,"rank":2}}',
        '{"vector":[1,2],"attributes":{"rank":1},"attributes":{"rank":2}}',
        '{"vector":[1,2],"attributes":{"user":"\\u0022","rank":1,"rank":2}}',
        '{"text": "a \\"word\\"", "ttl_s": 1, "ttl_s": 1, "payload": "\\""}',
        '{"vector": null, "vector": [1, 2]}',
    ],
)
def test_a_key_that_comes_twice_is_refused(value):
    """In the event and in its attributes, however the key is spelled."""
    with pytest.raises(InvalidRecord) as error:
        event_of(JSON_TYPE, value.encode())

    assert "duplicate_key" == error.value.reason


@pytest.mark.parametrize(
    "value",
    [
        '{"vector": [1, 2], "payload": {"a": 1, "a": 2, "b": "\\" {\\"vector\\": 1}"}}',
        '{"text": "say \\"vector\\": \\u0022", "attributes": {"user": "\\"user\\"", "at": null}}',
        '{"vector": [1, 2], "ttl_s": null, "text": null}',
        ' { "vector" :\n[1, 2] , "event_time" : "2023-11-14T00:00:00Z" , "attributes" : { } } ',
        '{"vector_b64": "AACAPw\\u003d\\u003d", "attributes": {"": 1}}',
    ],
)
def test_quotation_marks_alone_are_no_duplicate(value):
    """A payload is the sender's own business, and what looks like a key in a text is none."""
    event_of(JSON_TYPE, value.encode())


NAMES = st.sampled_from(["vector", "payload", "attributes", "event_time", "ttl_s", "text"])
VALUES = {
    "vector": st.just("[1, 2]"),
    "payload": st.recursive(
        st.sampled_from(['"\\""', "1", "{}"]), lambda s: st.tuples(s, s).map(lambda p: f'{{"a": {p[0]}, "a": {p[1]}}}')
    ),
    "attributes": st.sampled_from(["{}", '{"user": "u"}', '{"user": "\\""}', '{"rank": 1}', '{"rank": 1, "rank": 1}']),
    "event_time": st.just('"2023-11-14T00:00:00Z"'),
    "ttl_s": st.sampled_from(["1", "null"]),
    "text": st.text(max_size=4).map(json.dumps),
}


@settings(max_examples=300, deadline=None)
@given(
    st.lists(NAMES.flatmap(lambda name: st.tuples(st.just(name), VALUES[name])), max_size=5), st.sampled_from(["", " "])
)
def test_the_cheap_count_agrees_with_a_parser_that_sees_every_key(pairs, space):
    """Exactly the events in which a key comes twice are refused for it."""
    value = ("{" + f",{space}".join(f'"{name}":{space}{item}' for name, item in pairs) + "}").encode()
    names = [name for name, _ in pairs]
    twice = len(set(names)) < len(names) or any('"rank": 1, "rank"' in item for _, item in pairs)
    event = msgspec.json.decode(value, type=events.Event)
    try:
        duplicates.refuse(value, event)
        refused_ = False
    except InvalidRecord:
        refused_ = True

    assert twice == refused_


# -- letters ---------------------------------------------------------------------------------------------------------


def test_a_letter_is_read_as_it_was_written():
    """Place, reason, key, value and headers come back; a note names the letter that was sent again."""
    message = Message(b"k", b"{", [("content-type", b"x"), ("h", b"1")], NOW_MS, 9)
    error = InvalidRecord("json", "no \ud800")
    key, value, headers = letters.encode("t.memories", 3, letters.Letter(message, error))
    found = letters.decode(key, value, headers)

    assert ("t.memories", 3, 9, 0, "json", b"k", b"{") == (
        found.topic,
        found.partition,
        found.offset,
        found.row,
        found.reason,
        found.key,
        found.value,
    )
    assert [("content-type", b"x"), ("h", b"1")] == list(found.headers)
    assert (None, "0:4") == (letters.noted(headers), letters.noted(letters.note("0:4")[2]))


@pytest.mark.parametrize(
    "given",
    [(None, None), (None, b""), (b"", None), (b"k", None), (None, b"x" * 1_000_001)],
    ids=lambda pair: str(pair)[:20],
)
def test_a_letter_always_has_a_key_or_a_value(given):
    """The client library refuses a message without both, and what was null is null again when the letter is read."""
    key, value, headers = letters.encode("t", 0, letters.Letter(Message(*given, (), NOW_MS, 1), InvalidRecord("r", "")))
    found = letters.decode(key, value, headers)

    assert not (key is None and value is None)
    assert given == (found.key, found.value) or found.sha256 is not None


@pytest.mark.parametrize("headers", [[], [("isotherm-row", b"x")], [("isotherm-row", None)]])
def test_what_is_no_letter_is_refused(headers):
    """The topic may hold what a stranger wrote."""
    with pytest.raises(InvalidRecord):
        letters.decode(None, b"x", headers)
