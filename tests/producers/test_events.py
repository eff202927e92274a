"""The contracts of the topics: whatever a stranger sends is either applied or refused with a stable reason."""

from __future__ import annotations

import base64
import json
import re
from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.subscribe import decode_cursor, encode_cursor
from producers import decoder, events, letters
from producers.decoder import EventDecoder
from producers.events import Change, Message
from producers.letters import Letter
from tests.tiers.rows import ATTRIBUTES, IDS, NOW_MS
from tiers import record
from tiers.errors import InvalidRecord

pytestmark = pytest.mark.unit

QUICK = settings(max_examples=60, deadline=None)
DECODER = EventDecoder(2, ATTRIBUTES)
VECTOR = '"vector": [1, 2]'
TOO_DEEP = 100_000


def message(value: bytes | str | None, key: bytes | None = b"a", headers=(), timestamp_ms: int = NOW_MS) -> Message:
    return Message(key, value.encode() if isinstance(value, str) else value, headers, timestamp_ms, 5)


def reason(decode, *given) -> str:
    """Return the reason with which a decoder refuses what it was given."""
    with pytest.raises(InvalidRecord) as refused:
        decode(*given)
    return refused.value.reason


def refusal(decode, *given) -> str | None:
    """Return the reason with which a decoder refuses what it was given, None when it takes it."""
    try:
        decode(*given)
    except InvalidRecord as refused:
        return refused.reason
    return None


def with_attribute(value: str) -> str:
    return f'{{{VECTOR}, "attributes": {{{value}}}}}'


def b64(*floats: float) -> str:
    return base64.b64encode(np.array(floats, "<f4").tobytes()).decode()


BAD = {
    "empty": ("json", b""),
    "not json": ("json", b"\x00\x01"),
    "not utf-8": ("json", b'{"text": "\xff"}'),
    "a list": ("json", "[]"),
    "null": ("json", "null"),
    "truncated": ("json", "{" + VECTOR),
    "trailing": ("json", "{" + VECTOR + "} {}"),
    "unknown field": ("json", f'{{{VECTOR}, "vektor": 1}}'),
    "version given": ("json", f'{{{VECTOR}, "version": 1}}'),
    "vector of text": ("json", '{"vector": ["1", "2"]}'),
    "vector of null": ("json", '{"vector": [1, null]}'),
    "vector nested": ("json", '{"vector": [[1, 2]]}'),
    "NaN literal": ("json", '{"vector": [1, NaN]}'),
    "Infinity literal": ("json", '{"vector": [1, Infinity]}'),
    "beyond a double": ("json", '{"vector": [1, 1e999]}'),
    "lone surrogate": ("json", with_attribute('"user": "\\ud800"')),
    "payload too deep": ("json", f'{{{VECTOR}, "payload": {"[" * TOO_DEEP}{"]" * TOO_DEEP}}}'),
    "attributes too deep": ("json", with_attribute(f'"user": {"[" * TOO_DEEP}{"]" * TOO_DEEP}')),
    "unknown too deep": ("json", f'{{"x": {"[" * TOO_DEEP}{"]" * TOO_DEEP}}}'),
    "base64 broken": ("json", '{"vector_b64": "####"}'),
    "time is no time": ("json", f'{{{VECTOR}, "event_time": "yesterday"}}'),
    "ttl is text": ("json", f'{{{VECTOR}, "ttl_s": "1"}}'),
    "an integer of 5000 digits": ("json", with_attribute('"rank": 1' + "0" * 5_000)),
    "no vector": ("vector_missing", "{}"),
    "two vectors": ("vector_missing", f'{{{VECTOR}, "vector_b64": "{b64(1, 2)}"}}'),
    "vector and text": ("vector_missing", f'{{{VECTOR}, "text": "hello"}}'),
    "text alone": ("text_without_embedder", '{"text": "hello"}'),
    "too short": ("vector_dim", '{"vector": [1]}'),
    "too long": ("vector_dim", '{"vector": [1, 2, 3]}'),
    "no floats": ("vector_dim", '{"vector": []}'),
    "base64 too short": ("vector_dim", f'{{"vector_b64": "{b64(1)}"}}'),
    "base64 of odd size": ("vector_dim", f'{{"vector_b64": "{base64.b64encode(b"1234567").decode()}"}}'),
    "zero": ("vector_zero", '{"vector": [0, -0.0]}'),
    "zero in float32": ("vector_zero", '{"vector": [1e-60, 0]}'),
    "length zero in float32": ("vector_zero", '{"vector": [1e-30, 0]}'),
    "infinite in float32": ("vector_not_finite", '{"vector": [1, 1e39]}'),
    "length infinite in float32": ("vector_not_finite", '{"vector": [1e30, 1]}'),
    "NaN in base64": ("vector_not_finite", f'{{"vector_b64": "{b64(1, float("nan"))}"}}'),
    "infinity in base64": ("vector_not_finite", f'{{"vector_b64": "{b64(float("-inf"), 1)}"}}'),
    "unknown attribute": ("attribute_unknown", with_attribute('"colour": 1')),
    "empty attribute name": ("attribute_unknown", with_attribute('"": 1')),
    "text for a number": ("attribute_type", with_attribute('"rank": "1"')),
    "float for an int": ("attribute_type", with_attribute('"rank": 1.0')),
    "bool for an int": ("attribute_type", with_attribute('"rank": true')),
    "bool for a float": ("attribute_type", with_attribute('"score": true')),
    "number for a text": ("attribute_type", with_attribute('"user": 1')),
    "number for a bool": ("attribute_type", with_attribute('"seen": 1')),
    "list for a text": ("attribute_type", with_attribute('"user": []')),
    "number for a time": ("attribute_type", with_attribute('"at": 1')),
    "no time": ("attribute_type", with_attribute('"at": "noon"')),
    "2^63": ("attribute_type", with_attribute(f'"rank": {2**63}')),
    "-2^63 - 1": ("attribute_type", with_attribute(f'"rank": {-(2**63) - 1}')),
    "an integer beyond all floats": ("attribute_type", with_attribute('"score": 1' + "0" * 400)),
    "naive time": ("event_time", f'{{{VECTOR}, "event_time": "2023-11-14T00:00:00"}}'),
    "year 9999": ("event_time", f'{{{VECTOR}, "event_time": "9999-12-31T23:59:59-14:00"}}'),
    "year 1": ("event_time", f'{{{VECTOR}, "event_time": "0001-01-01T00:00:00+14:00"}}'),
    "negative ttl": ("ttl", f'{{{VECTOR}, "ttl_s": -1}}'),
    "zero ttl": ("ttl", f'{{{VECTOR}, "ttl_s": 0}}'),
    "endless ttl": ("ttl", f'{{{VECTOR}, "ttl_s": 1e300}}'),
    "large payload": ("payload_size", f'{{{VECTOR}, "payload": "{"x" * record.PAYLOAD_BYTES_MAX}"}}'),
    "large event": ("event_size", f'{{{VECTOR}, "text": "{"x" * decoder.EVENT_BYTES_MAX}"}}'),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_value_is_refused_with_its_reason(name):
    """Each bad value raises InvalidRecord, and its reason is the one that operators and replays know."""
    expected, value = BAD[name]

    assert expected == reason(DECODER.decode, message(value), 0)


@pytest.mark.parametrize(
    ("expected", "key"),
    [
        ("id_missing", None),
        ("id_size", b""),
        ("id_size", b"a" * 513),
        ("id_size", "é".encode() * 257),
        ("id_control", b"a\x00"),
        ("id_control", b"a\nb"),
        ("id_control", "\x85".encode()),
        ("id_not_utf8", b"\xff\xfe"),
        ("id_not_utf8", b"\xed\xa0\x80"),  # a surrogate, as CESU-8 writes it
    ],
)
@pytest.mark.parametrize("value", [None, "{" + VECTOR + "}"])
def test_a_bad_key_is_refused_with_its_reason(expected, key, value):
    """An upsert or a delete whose key cannot be an id is refused."""
    assert expected == reason(DECODER.decode, message(value, key), 0)


@pytest.mark.parametrize("kind", [b"text/plain", b"", b"application/msgpackx", b"\xff", b"application/jsonx", b" ;"])
def test_an_unknown_content_type_is_refused(kind):
    """What says that it is not JSON is not read as JSON."""
    expected = "content_type" if kind else None  # an empty header says nothing

    if expected is None:
        assert events.JSON_TYPE == decoder.kind_of([("content-type", kind)])
    else:
        assert expected == reason(decoder.kind_of, [("content-type", kind)])


@pytest.mark.parametrize("kind", [b"application/json", b"Application/JSON; charset=utf-8", None])
def test_json_is_what_says_so_or_nothing(kind):
    """The type may have a charset and any case; a header without a value is as none."""
    assert events.JSON_TYPE == decoder.kind_of([("ce_type", None), ("content-type", kind)])


@QUICK
@given(st.binary(max_size=60), st.binary(max_size=20) | st.none())
def test_noise_is_refused(value, key):
    """Random bytes are applied or refused, and never end the process."""
    reason = refusal(DECODER.decode, message(value, key), 0)

    assert reason is None or re.fullmatch("[a-z0-9_]+", reason)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "vector": JSON | st.lists(st.floats(), min_size=2, max_size=2),
            "vector_b64": JSON,
            "payload": JSON,
            "attributes": JSON | st.dictionaries(st.sampled_from([*ATTRIBUTES, "x"]), JSON, max_size=4),
            "event_time": JSON | st.datetimes().map(str) | st.datetimes(timezones=st.just(UTC)).map(datetime.isoformat),
            "ttl_s": JSON,
        },
    )
)
def test_any_json_is_applied_or_refused(value):
    """Whatever the fields hold, the row that comes out fits the schema, or there is a reason and no other error."""

    def applied(value) -> None:
        row = DECODER.decode(message(json.dumps(value)), 0)
        assert row.id == record.row_at(record.to_batch([row], record.schema(2, ATTRIBUTES)), 0).id

    assert (refusal(applied, value) or "applied").isidentifier()


# -- good ------------------------------------------------------------------------------------------------------------


def test_a_delete_is_a_tombstone_at_its_offset():
    """A null value is a deletion: no vector, no payload, the message's time, whatever its headers say."""
    row = DECODER.decode(message(None, headers=[("content-type", b"text/plain")]), 3)

    assert (record.pack_version(3, 5), NOW_MS, None, b"", True) == (
        row.version,
        row.event_time,
        row.vector,
        row.payload,
        row.deleted,
    )


FINITE = st.floats(-1e6, 1e6, width=32).filter(lambda value: abs(value) > 1e-3)
#: Times within what an event may say, as the log's clock stands.
TIMES = st.integers(NOW_MS - decoder.PAST_MS_MAX, NOW_MS + decoder.FUTURE_MS_MAX)


@settings(max_examples=150, deadline=None)
@given(
    st.tuples(FINITE, FINITE),
    st.none() | JSON,
    st.fixed_dictionaries(
        {},
        optional={
            "user": st.text(max_size=8),
            "rank": st.integers(-(2**63), 2**63 - 1),
            "score": st.floats(allow_nan=False, allow_infinity=False),
            "seen": st.booleans(),
        },
    ),
    st.none() | TIMES,
    st.none() | st.floats(0.001, 1e6),
)
def test_what_is_encoded_is_decoded(floats, payload, attributes, event_time, ttl_s):
    """An event that `encode_event` wrote is decoded to exactly what it was given, with any field left out."""
    vector = np.array(floats, np.float32)
    when = None if event_time is None else datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=event_time)
    value = events.encode_event(vector, payload, attributes, when, ttl_s)
    row = DECODER.decode(message(value), 0)

    assert vector.tolist() == row.vector.tolist()
    assert (b"" if payload is None else msgspec.json.encode(payload)) == row.payload
    assert attributes == row.attributes
    assert (NOW_MS if event_time is None else event_time) == row.event_time
    assert (None if ttl_s is None else NOW_MS + int(ttl_s * 1000)) == row.expires_at


def test_a_vector_may_be_a_list_or_base64():
    """Both forms give the same vector."""
    rows = [DECODER.decode(message(v), 0) for v in ('{"vector": [0.5, -2]}', f'{{"vector_b64": "{b64(0.5, -2)}"}}')]

    assert [[0.5, -2.0]] * 2 == [row.vector.tolist() for row in rows]


def test_text_is_embedded_where_there_is_an_embedder():
    """A node with an embedder turns text into the vector, and checks it like any other."""
    embedding = EventDecoder(2, {}, lambda texts: np.array([[len(texts[0]), 0]], np.float32))

    assert [5.0, 0.0] == embedding.decode(message('{"text": "hello"}'), 0).vector.tolist()
    assert "vector_zero" == reason(embedding.decode, message('{"text": ""}'), 0)


def test_a_null_attribute_is_an_absent_one():
    """Null stands for no value, of any declared attribute."""
    assert {"rank": 1} == DECODER.decode(message(with_attribute('"rank": 1, "user": null')), 0).attributes


def test_event_time_may_lie_ten_years_back_and_a_day_ahead():
    """The bounds of event_time are inclusive, and beyond them it is refused."""
    for bound, step in ((NOW_MS - decoder.PAST_MS_MAX, -1), (NOW_MS + decoder.FUTURE_MS_MAX, 1)):
        when = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=bound)
        value = events.encode_event(np.ones(2, np.float32), event_time=when)
        assert bound == DECODER.decode(message(value), 0).event_time
        beyond = events.encode_event(np.ones(2, np.float32), event_time=when + timedelta(milliseconds=step))
        assert "event_time" == reason(DECODER.decode, message(beyond), 0)


# -- tokens and cursors ----------------------------------------------------------------------------------------------


@QUICK
@given(st.dictionaries(st.integers(0, 1_000), st.integers(0, record.OFFSET_MAX), max_size=8), st.integers(0, 63))
def test_token_round_trip(positions, epoch):
    """A token gives back its offsets and epoch, and is safe in a URL."""
    token = events.encode_token(positions, epoch)

    assert (positions, epoch) == events.decode_token(token)
    assert set(token) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")


def as_token(text: str | bytes) -> str:
    return base64.urlsafe_b64encode(text if isinstance(text, bytes) else text.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "token",
    [
        "",
        "a",
        "é",
        "####",
        as_token(b"\xff\xfe"),
        as_token("null"),
        as_token("[]"),
        as_token("{}"),
        as_token('{"e": 0}'),
        as_token('{"e": 0, "p": []}'),
        as_token('{"e": 0, "p": {"x": 1}}'),
        as_token('{"e": 0, "p": {"0": null}}'),
        as_token('{"e": "x", "p": {}}'),
        as_token('{"e": 0, "p": {"0": 1e999}}'),
        as_token("[" * TOO_DEEP),
    ],
)
def test_what_is_no_token_is_refused(token):
    """A token that this system did not write is an InvalidRecord, so that the gateway answers 400 and not 500."""
    assert "token" == reason(events.decode_token, token)


@QUICK
@given(st.text(max_size=40))
def test_noise_is_no_token(text):
    """Random text is refused or, if it happens to be one, a token."""
    assert refusal(events.decode_token, text) in {None, "token"}


@QUICK
@given(st.dictionaries(st.integers(0, 1_000), st.integers(0, 2**41), min_size=1, max_size=8))
def test_cursor_round_trip(positions):
    """A cursor gives back its offsets."""
    assert positions == decode_cursor(encode_cursor(positions))


@pytest.mark.parametrize("text", ["", ",", "0", "0:", ":1", "0:1:2", "a:1", "0:1,", "0:1;1:2", "0:" + "9" * 5_000])
def test_what_is_no_cursor_is_refused(text):
    """A cursor that the feed did not give is an InvalidRecord."""
    assert "cursor" == reason(decode_cursor, text)


# -- advice and changes ----------------------------------------------------------------------------------------------

ACCESSES = st.lists(
    st.tuples(IDS, st.integers(0, 3), st.integers(1, 2**31 - 1), st.integers(0, 2**62)), min_size=1, max_size=5
)


@QUICK
@given(ACCESSES)
def test_access_round_trip(rows):
    """Access advice is read as it was written."""
    batch = pa.RecordBatch.from_pylist(
        [dict(zip(events.ACCESS.names, row, strict=True)) for row in rows], schema=events.ACCESS
    )

    assert batch.equals(events.decode_arrow(events.encode_arrow(batch), events.ACCESS))


@QUICK
@given(st.lists(st.tuples(IDS, st.integers(0, 2**62), st.integers(0, 2), st.integers(0, 2**40)), max_size=5))
def test_age_round_trip(rows):
    """Age advice is read as it was written, no rows included."""
    listed = [
        {"id": i, "version": v, "tier": t, "age_ms": ms, "idle_ms": ms, "heat": 0.5, "reason": "age"}
        for i, v, t, ms in rows
    ]
    batch = pa.RecordBatch.from_pylist(listed, schema=events.AGE)

    assert batch.equals(events.decode_arrow(events.encode_arrow(batch), events.AGE))


def one_access() -> bytes:
    row = {"id": "a", "tier": 1, "count": 2, "last": 3}
    return events.encode_arrow(pa.RecordBatch.from_pylist([row], schema=events.ACCESS))


def test_advice_of_another_shape_is_refused():
    """Nothing, noise, another schema and nulls are refused as advice."""
    nulls = pa.RecordBatch.from_pylist([{"id": "a"}], schema=events.ACCESS)
    given = [None, b"", b"noise", one_access()[:-20] + b"\xff" * 20, events.encode_arrow(nulls)]

    assert ["arrow"] * 2 == [reason(events.decode_arrow, one_access(), events.AGE)] * 2
    assert ["arrow"] * 3 == [reason(events.decode_arrow, value, events.ACCESS) for value in given[:3]]
    assert "arrow" == reason(events.decode_arrow, given[4], events.ACCESS)


def test_a_flipped_bit_in_advice_is_refused_or_harmless():
    """No single flipped bit makes the decoder raise anything but InvalidRecord, or yield rows that cannot be read."""
    value = one_access()
    for bit in range(8 * len(value)):
        broken = bytearray(value)
        broken[bit // 8] ^= 1 << bit % 8
        read = bytes(broken)
        assert refusal(lambda given=read: events.decode_arrow(given, events.ACCESS).to_pylist()) in {None, "arrow"}


def change(**fields) -> Change:
    given = {"kind": "home", "source": "hot", "target": "warm", "reason": "age", "policy": "p", "at": 1}
    return Change(**(given | {"ids": ["a", "é"], "versions": ["0.1.0", "0.2.0"]} | fields))


@pytest.mark.parametrize("fields", [{}, {"source": None}, {"target": None}, {"ids": [], "versions": []}])
def test_change_round_trip(fields):
    """A change is read as it was written; its JSON says `from` and `to`."""
    value = events.encode_change(change(**fields))

    assert change(**fields) == events.decode_change(value)
    assert {"from", "to"} <= set(json.loads(value))


@pytest.mark.parametrize("value", [None, b"", b"{}", b"[]", b"\xff", b'{"kind": "\xff"}', b'{"x": ' + b"[" * TOO_DEEP])
def test_what_is_no_change_is_refused(value):
    """A message of the changes topic that nobody of us wrote is an InvalidRecord."""
    assert "change" == reason(events.decode_change, value)


# -- dead letters ----------------------------------------------------------------------------------------------------


def letter_of(given: Message) -> tuple[bytes | None, bytes | None, dict[str, bytes]]:
    key, value, headers = letters.encode("t.memories", 3, Letter(given, InvalidRecord("json", "not \ud800 JSON")))
    return key, value, dict(headers)


def test_a_letter_holds_its_message_and_its_place():
    """Key, value and headers are kept; topic, partition, offset and reason are said."""
    key, value, headers = letter_of(message(b"bad", headers=[("h", b"1"), ("none", None)]))

    assert (b"a", b"bad") == (key, value)
    assert [b"t.memories", b"3", b"5", b"json", b"1"] == [
        headers[name]
        for name in ("isotherm-topic", "isotherm-partition", "isotherm-offset", "isotherm-reason", "original-h")
    ]


@pytest.mark.parametrize(
    "given",
    [
        message(b"x" * 1_000_001),
        message(b"x", headers=[("h", b"x" * 1_000_001)]),
        message(b"x", headers=[("h", b"")] * 50_000),
        message(b"x", headers=[("é" * 10, b"x")] * 30_000),
    ],
    ids=["value", "header", "many headers", "long names"],
)
def test_a_letter_always_fits_a_message(given):
    """Of a message that would not fit with what a letter adds, the hash and the place are kept."""
    key, value, headers = letters.encode("t.memories", 3, Letter(given, InvalidRecord("json", "x" * 10_000)))

    assert (None, b"") == (key, value)
    assert 64 == len(dict(headers)["isotherm-sha256"])
    assert 2_000 > sum(len(name) + len(item) for name, item in headers)


@QUICK
@given(st.integers(0, 40_000), st.integers(0, 30), st.integers(0, 1_000_000))
def test_whole_letters_stay_below_the_brokers_limit(count, size, rest):
    """A letter that keeps its message is at most what the producer may send at once, headers and lengths included."""
    given = message(b"x" * rest, headers=[("h" * size, b"y")] * count)
    key, value, headers = letters.encode("t.memories", 3, Letter(given, InvalidRecord("json", "x" * 10_000)))
    framed = sum(len(name.encode()) + len(item or b"") + 10 for name, item in headers)

    assert len(key or b"") + len(value or b"") + framed < 1_048_576 - 1_024
