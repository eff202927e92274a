"""Events decoded together are decoded as each is alone: the same rows, the same letters, at the same places."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producers import events, singles, wire
from producers.decoder import EventDecoder, check_vector, kind_of
from producers.events import JSON_TYPE, MSGPACK_TYPE, Message
from tests.tiers.rows import NOW_MS
from tiers import record
from tiers.errors import InvalidRecord

pytestmark = pytest.mark.unit

DIM = 2
DECLARED = {"user": "string", "rank": "int", "score": "float", "done": "bool", "at": "timestamp"}
DECODER = EventDecoder(DIM, DECLARED)
SHAPE = record.schema(DIM, DECLARED)
PLACE = wire.Place(0, 1, 2)
WHEN = datetime.fromtimestamp(NOW_MS / 1000, UTC)
HEADERS = {kind: (("content-type", kind.encode()),) for kind in (JSON_TYPE, MSGPACK_TYPE)}

Told = list[tuple[int, int | None, str, str]]


def alone(messages: list[Message]) -> tuple[pa.RecordBatch, Told]:
    """Return the rows and letters as `EventDecoder` has them, one message after the other."""
    rows, letters = [], []
    for message in messages:
        try:
            kind = JSON_TYPE if message.value is None else kind_of(message.headers)
            events.condition(message)
            row = DECODER.decode(message, PLACE.epoch, kind, measure=False)
            if row.vector is not None:
                check_vector(row.vector, DIM)
            home = record.partition(row.id, PLACE.partitions)
            if home != PLACE.partition:
                raise wire._wrong(home)
            rows.append(row)
        except InvalidRecord as error:
            letters.append((message.offset, 0, error.reason, str(error)))
    return record.to_batch(rows, SHAPE), letters


def together(messages: list[Message], few: int = 0) -> tuple[pa.RecordBatch, Told]:
    """Return the same, of one poll; up to `few` messages are taken one by one there too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "FEW", few)
        found = wire.decode(DECODER, SHAPE, PLACE, messages, 100)
    told = [(letter.message.offset, letter.row, letter.error.reason, str(letter.error)) for letter in found.letters]
    return found.batch, sorted(told)


def agree(messages: list[Message]) -> None:
    with np.errstate(over="ignore"):
        expected, refused = alone(messages)
    for few in (0, len(messages)):
        found, told = together(messages, few)

        assert refused == told
        assert expected.schema == found.schema
        assert expected.drop_columns("vector").to_pylist() == found.drop_columns("vector").to_pylist()
        assert record.vectors_of(expected).tobytes() == record.vectors_of(found).tobytes()
        assert expected["vector"].is_valid() == found["vector"].is_valid()


# -- what may be said ------------------------------------------------------------------------------------------------

FLOATS = [1.0, -0.5, 0.0, 1e30, 3e38, float("nan"), float("inf")]
PACKED = [b"", b"1234567", b"\0" * 12, *(np.array([x, y], "<f4").tobytes() for x in FLOATS for y in FLOATS)]
TIMES = [
    WHEN, WHEN + timedelta(microseconds=1_999), WHEN - timedelta(days=3_700), WHEN + timedelta(days=2),
    WHEN.replace(tzinfo=None), WHEN.astimezone(timezone(timedelta(hours=5, minutes=30))), None,
]  # fmt: skip
ATTRIBUTES: dict[str, list[Any]] = {
    "user": ["u", "", "é", '"', "x" * 16_384, "x" * 16_385, "é" * 8_193, 1, b"u", [], None],
    "rank": [1, -5, 2**63 - 1, 2**63, -(2**63), True, 1.0, "1", None],
    "score": [1.5, -0.0, 1, 2**60 + 1, 2**63, float("nan"), float("inf"), True, "x", None],
    "done": [True, False, 1, "true", None],
    "at": ["2023-11-14T00:00:00Z", "2023-11-14T00:00:00.123999+02:00", "2023-11-14T00:00:00", 'a"', 5, WHEN, None],
    "colour": ["red", None],
}
PAYLOADS = [1, None, {"a": '"'}, "x", b"x", [], {"text": 'with "marks"'}, "x" * (record.PAYLOAD_BYTES_MAX + 1)]
TTLS = [1, 0.5, 0.0015, 0, -1, 1e9, float("nan"), None]
FIELDS: dict[str, list[Any]] = {"payload": PAYLOADS, "event_time": TIMES, "ttl_s": TTLS}
KEYS = [None, b"", b"/a", b"a/b", b"x" * 513, b"\xff", "\x85".encode(), "\xa0\xc2".encode(), b"a\x7f", "é€".encode()]
STAMPS = [-1, 0, 2**62]


def as_json(fields: dict[str, Any]) -> bytes:
    """Return an event as JSON; what JSON has no word for becomes text."""
    told = {name: item.isoformat() if isinstance(item, datetime) else item for name, item in fields.items()}
    packed = told.pop("vector", None)
    vector = {} if packed is None else {"vector_b64": base64.b64encode(packed).decode()}
    return json.dumps(vector | told, default=str, separators=(",", ":")).encode()


ENCODERS = {JSON_TYPE: as_json, MSGPACK_TYPE: msgspec.msgpack.encode}
#: Keys that come twice: of an event, of its attributes, and of a payload, which is the sender's own business.
TWICE = {
    JSON_TYPE: [
        b'{"vector_b64":"AACAPwAAgD8=","ttl_s":1,"ttl_s":1}',
        b'{"vector_b64":"AACAPwAAgD8=","attributes":{"rank":1,"rank":1}}',
        b'{"vector_b64":"AACAPwAAgD8=","attributes":{"rank":1},"attributes":{"rank":1}}',
        b'{"vector_b64":"AACAPwAAgD8=","payload":{"a":1,"a":1}}',
        b'{"payload":1,"vector_b64":"AACAPwAAgD8=","payload":1}',
    ],
    MSGPACK_TYPE: [
        b"\x83\xa6vector\xc4\x08" + PACKED[-1] + b"\xa5ttl_s\x01\xa5ttl_s\x01",
        b"\x82\xa6vector\xc4\x08" + np.ones(DIM, "<f4").tobytes() + b"\xaaattributes\x82\xa4rank\x01\xa4rank\x01",
        b"\x82\xa6vector\xc4\x08" + np.ones(DIM, "<f4").tobytes() + b"\xa7payload\x82\xa1a\x01\xa1a\x01",
    ],
}

GIVEN = st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in ATTRIBUTES.items()})
DRAWN = {"attributes": st.one_of(st.just({"user": "u", "rank": 1}), GIVEN)}
DRAWN |= {name: st.sampled_from(values) for name, values in FIELDS.items()}
NAMED = st.integers(0, 60).map(lambda n: f"id-{n}".encode())
KEYED = st.one_of(NAMED, NAMED, st.text(min_size=1, max_size=5).map(str.encode), st.sampled_from(KEYS))


@st.composite
def json_values(draw: st.DrawFn) -> bytes:
    """An event as JSON, its keys in any order, at times twice."""
    fields = draw(st.fixed_dictionaries({}, optional=DRAWN))
    pairs = [(name, json.dumps(item, default=str)) for name, item in fields.items()]
    vector = ("vector_b64", json.dumps(base64.b64encode(draw(st.sampled_from(PACKED))).decode()))
    pairs.insert(draw(st.sampled_from([0, 0, len(pairs)])), vector)
    others = [("vector", "[1, 2]"), ("vector", "null"), ("text", '"a"'), ("colour", "1"), ("vector_b64", '"AA=="')]
    if draw(st.integers(0, 3)) == 0:
        pairs.insert(draw(st.integers(0, len(pairs))), draw(st.sampled_from([*others, *pairs])))
    space = draw(st.sampled_from(["", "", " "]))
    return ("{" + f",{space}".join(f'"{name}":{space}{item}' for name, item in pairs) + "}").encode()


@st.composite
def msgpack_values(draw: st.DrawFn) -> bytes:
    """An event as msgpack, payloads of any kind, at times with a key twice or a map that says its size at length."""
    fields = draw(st.fixed_dictionaries({"vector": st.sampled_from(PACKED)}, optional=DRAWN))
    extra = draw(
        st.sampled_from([{}, {}, {"text": None}, {"text": "a"}, {"vector": [1.0, 2.0]}, {"ttl_s": float("nan")}])
    )
    value = msgspec.msgpack.encode(fields | extra)
    count = len(fields | extra)
    match draw(st.integers(0, 8)):
        case 0:
            return bytes([0x80 | count + 1]) + value[1:] + b"\xa5ttl_s\x01"
        case 1:
            return b"\xde\x00" + bytes([count]) + value[1:]
        case 2:
            twice = b"\x82\xa4rank\x01\xa4rank\x02"
            return bytes([0x80 | count + 1]) + value[1:] + b"\xaaattributes" + twice
    return value


VALUES = st.one_of(
    st.tuples(st.just(JSON_TYPE), json_values()),
    st.tuples(st.just(MSGPACK_TYPE), msgpack_values()),
    st.tuples(st.just(JSON_TYPE), st.sampled_from([None, None, b"", b"{", b"1", b'{"vector_b64":"!!"}'])),
    st.tuples(st.just(MSGPACK_TYPE), st.binary(max_size=6)),
)
ASKED = st.sampled_from([()] * 5 + [((events.IF_VERSION, b"0.1.0"),), (("content-type", b"a/b"),), (("h", b""),)])


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(VALUES, KEYED, st.sampled_from([NOW_MS] * 6 + STAMPS), ASKED, st.booleans()), max_size=12))
def test_a_poll_is_decoded_as_its_messages_are_alone(drawn):
    """Whatever came before or after a message, what becomes of it is what would have become of it alone."""
    agree([
        Message(key, value, asked + HEADERS[kind] if late else HEADERS[kind] + asked, stamp, offset)
        for offset, ((kind, value), key, stamp, asked, late) in enumerate(drawn)
    ])  # fmt: skip


@pytest.mark.parametrize("kind", [JSON_TYPE, MSGPACK_TYPE])
def test_one_thing_that_is_not_plain_is_all_that_changes(kind):
    """Of plain events that differ in one thing each, every one is taken, or refused for that thing, as it is alone."""
    good = {"vector": np.ones(DIM, "<f4").tobytes(), "payload": {"n": 1}, "attributes": {"user": "u", "rank": 1}}
    others = [good | {"vector": packed} for packed in PACKED]
    others += [good | {name: value} for name, values in FIELDS.items() for value in values]
    others += [good | {"attributes": {"user": "u", name: x}} for name, values in ATTRIBUTES.items() for x in values]
    others += [{name: item for name, item in good.items() if name != left_out} for left_out in good]
    others += [
        good | extra for extra in ({"text": "a"}, {"text": None}, {"attributes": None}, {"attributes": {}}, {"x": 1})
    ]
    names = [f"id-{n}".encode() for n in range(999) if record.partition(f"id-{n}", 2) == 1]
    messages = [
        Message(names[at], ENCODERS[kind](fields), HEADERS[kind], NOW_MS, at) for at, fields in enumerate(others)
    ]
    messages += [messages[2]._replace(key=key, value=ENCODERS[kind](good)) for key in KEYS]
    messages += [messages[2]._replace(value=value) for value in TWICE[kind]]
    messages += [messages[2]._replace(timestamp_ms=stamp) for stamp in STAMPS]
    messages = [message._replace(offset=at) for at, message in enumerate(messages)]
    agree(messages)
    for message in messages:
        agree([message])


# -- and what is not alone looked at ---------------------------------------------------------------------------------


def plain(offset: int, **fields: Any) -> Message:
    name = [f"id-{n}" for n in range(99) if record.partition(f"id-{n}", 2) == 1][offset]
    given_fields = {"payload": {"n": offset}, "attributes": {"user": "u", "rank": offset, "score": 1.5}} | fields
    return Message(name.encode(), events.encode_event(np.ones(DIM), **given_fields), HEADERS[JSON_TYPE], NOW_MS, offset)


def test_plain_events_are_not_looked_at_one_by_one(monkeypatch):
    """What a poll usually brings never meets the decoder of single events."""
    messages = [plain(0), plain(1, event_time=WHEN, ttl_s=5), plain(2, attributes=None), plain(3, payload=None)]
    packed = {"vector": np.ones(DIM, "<f4").tobytes(), "payload": b"1", "attributes": {"user": "u"}, "event_time": WHEN}
    messages.append(plain(4)._replace(value=msgspec.msgpack.encode(packed), headers=HEADERS[MSGPACK_TYPE]))
    messages.append(plain(5)._replace(value=None))
    monkeypatch.setattr(EventDecoder, "decode", None)

    assert list(range(6)) == record.offsets(record.versions_of(together(messages)[0])).tolist()


def test_a_few_messages_are_decoded_one_by_one(monkeypatch):
    """Columns of a few events cost more than the events do; which way it goes is decided by how many there are."""
    monkeypatch.setattr(singles, "decode", None)

    assert 3 == together([plain(at) for at in range(3)], few=3)[0].num_rows
    with pytest.raises(TypeError):
        together([plain(at) for at in range(4)], few=3)


def test_a_vector_that_comes_twice_is_not_hidden_by_its_own_text():
    """The marks of a first vector's text are looked for where that of the second is long enough to be the first's."""
    long = EventDecoder(64, {})
    text = base64.b64encode(np.ones(64, "<f4").tobytes()).decode()
    for first in ("AA==", "", text[:80]):
        value = f'{{"vector_b64":"{first}","vector_b64":"{text}"}}'.encode()
        message = Message(b"a", value, HEADERS[JSON_TYPE], NOW_MS, 0)
        found = singles.decode(long, record.schema(64, {}), 0, [message], [JSON_TYPE])

        assert [(0, "duplicate_key")] == [(at, error.reason) for at, error in found.errors]
