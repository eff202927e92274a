"""Events that came one a message, many at once: a batch of the plain ones, and which are not. Pure.

A *plain* event has one vector in bytes, attributes of the declared types, and nothing that could be wrong: its columns
are made together, with no call of Python for a row. Of every other one nothing is said here: `EventDecoder` looks at it
alone, and takes it or says what is wrong with it. So this may doubt too much; it must never take what that would not,
or take it otherwise, and a test holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import repeat
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from producers import plain
from producers.decoder import EVENT_BYTES_MAX, TIMESTAMP_MS_MAX, EventDecoder
from producers.events import JSON_TYPE, MSGPACK_TYPE, Event, Message
from tiers import ids, record
from tiers.errors import InvalidRecord
from tiers.ids import Bools
from tiers.record import Int64s

_FIXMAP = 0x80  # a msgpack map of fewer than 16 pairs begins with this, and their number


class _Packed(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """PackedEvent, where vector and payload are bytes."""

    vector: bytes | None = None
    text: str | None = None
    payload: bytes | msgspec.UnsetType = msgspec.UNSET
    attributes: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    event_time: datetime | None = None
    ttl_s: float | None = None


_event = msgspec.json.Decoder(Event)
_packed = msgspec.msgpack.Decoder(_Packed)
_mapping = msgspec.msgpack.Decoder(dict[str, Any])
_NO_EVENT, _NO_PACKED, _NOTHING = Event(), _Packed(), msgspec.Raw(b"\x80")
_VECTOR_FIRST = b'{"vector_b64":"'
_NOT_ONE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError, ValueError)


class _Said(NamedTuple):
    """What events say, a list a field."""

    vectors: Sequence[bytes | None]
    payloads: Sequence[bytes]
    attributes: plain.Attributes
    event_times: Sequence[datetime | None]
    ttls_s: Sequence[float | None]


class Found(NamedTuple):
    """Rows in the order of their messages, the position of each one's message, and what is wrong with the others."""

    batch: pa.RecordBatch
    positions: npt.NDArray[np.intp]
    errors: list[tuple[int, InvalidRecord]]


def decode(
    decoder: EventDecoder, shape: pa.Schema, epoch: int, messages: Sequence[Message], kinds: Sequence[str]
) -> Found:
    """Return the rows of messages of these content types; what their vectors are worth is left to the caller."""
    parts, places, suspects = [], [], []
    of = [None if message.value is None else kind for message, kind in zip(messages, kinds, strict=True)]
    for kind in dict.fromkeys(of):
        at = np.flatnonzero([one == kind for one in of])
        some = messages if len(at) == len(messages) else [messages[position] for position in at.tolist()]
        part, suspect = tombstones(shape, epoch, some) if kind is None else batch(decoder, shape, epoch, kind, some)
        if suspect.any():
            part = part.filter(pa.array(~suspect))
            suspects += at[suspect].tolist()
        parts.append(part)
        places.append(at[~suspect])
    errors: list[tuple[int, InvalidRecord]] = []
    if suspects or not parts:
        part, at, errors = one_by_one(decoder, shape, epoch, messages, kinds, sorted(suspects))
        parts.append(part)
        places.append(at)
    if len(parts) == 1:
        return Found(parts[0], places[0], errors)
    order = np.argsort(np.concatenate(places))
    return Found(pa.concat_batches(parts).take(pa.array(order)), np.concatenate(places)[order], errors)


def one_by_one(
    decoder: EventDecoder,
    shape: pa.Schema,
    epoch: int,
    messages: Sequence[Message],
    kinds: Sequence[str],
    positions: Sequence[int],
) -> Found:
    """Return the rows of the messages at these positions, decoded alone: exact, and the quicker way for a few."""
    rows, at, errors = [], [], []
    with np.errstate(over="ignore"):  # what is infinite in float32 is found by its length
        for position in positions:
            try:
                rows.append(decoder.decode(messages[position], epoch, kinds[position], measure=False))
                at.append(position)
            except InvalidRecord as error:
                errors.append((position, error))
    return Found(record.to_batch(rows, shape), np.array(at, np.intp), errors)


def batch(
    decoder: EventDecoder, shape: pa.Schema, epoch: int, kind: str, messages: Sequence[Message]
) -> tuple[pa.RecordBatch, Bools]:
    """Return the rows of messages of content type `kind`, and which are suspect: those have no meaning.

    Whether vectors are finite and not zero is left to the caller.
    """
    suspect = np.zeros(len(messages), bool)
    values = [message.value or b"" for message in messages]
    suspect |= plain.lengths(values) > EVENT_BYTES_MAX
    said = _SAID[kind](values, decoder, suspect)
    size = 4 * decoder.dim
    suspect |= np.array([vector is None or len(vector) != size for vector in said.vectors], bool)
    sent_ms = _sent(messages, suspect)
    columns = {
        "id": _ids(messages, suspect),
        "version": _versions(messages, epoch),
        "event_time": pa.array(plain.event_times(said.event_times, sent_ms, suspect)).cast(pa.timestamp("ms", "UTC")),
        "expires_at": plain.expiries(said.ttls_s, sent_ms, suspect),
        "payload": plain.binary(said.payloads),
        "attributes": said.attributes.column,
        "deleted": pa.array(np.zeros(len(messages), bool)),
    }
    suspect |= plain.lengths(said.payloads) > record.PAYLOAD_BYTES_MAX
    vectors = b"".join(plain.instead(said.vectors, suspect, bytes(size)))  # the one copy before hot's
    columns["vector"] = record.vector_array(np.frombuffer(vectors, "<f4").reshape(-1, decoder.dim))
    return pa.RecordBatch.from_arrays([columns[name] for name in shape.names], schema=shape), suspect


def tombstones(shape: pa.Schema, epoch: int, messages: Sequence[Message]) -> tuple[pa.RecordBatch, Bools]:
    """Return the rows of messages without a value, and which are suspect."""
    count, suspect = len(messages), np.zeros(len(messages), bool)
    sent_ms = _sent(messages, suspect)
    dim, deleted = shape.field("vector").type.list_size, np.ones(count, bool)
    columns = {
        "id": _ids(messages, suspect),
        "version": _versions(messages, epoch),
        "event_time": pa.array(sent_ms).cast(pa.timestamp("ms", "UTC")),
        "expires_at": pa.nulls(count, pa.timestamp("ms", "UTC")),
        "vector": record.vector_array(np.zeros((count, dim), np.float32), deleted),
        "payload": plain.binary([b""] * count),
        "attributes": plain.without(shape.field("attributes").type, count),
        "deleted": pa.array(deleted),
    }
    return pa.RecordBatch.from_arrays([columns[name] for name in shape.names], schema=shape), suspect


def _sent(messages: Sequence[Message], suspect: Bools) -> Int64s:
    """Return the messages' own times."""
    sent_ms = np.array([message.timestamp_ms for message in messages], np.int64)
    wrong = (sent_ms < 0) | (sent_ms > TIMESTAMP_MS_MAX)
    suspect |= wrong
    return np.where(wrong, 0, sent_ms) if wrong.any() else sent_ms


def _versions(messages: Sequence[Message], epoch: int) -> pa.Array:
    offsets = np.array([message.offset for message in messages], np.int64)
    if len(offsets):
        record.pack_version(epoch, int(offsets.min()))  # ValueError where there is no such version
        record.pack_version(epoch, int(offsets.max()))
    return pa.array(record.pack_version(epoch, 0) | offsets << record.ROW_BITS)


def _ids(messages: Sequence[Message], suspect: Bools) -> pa.Array:
    keys = [message.key or b"" for message in messages]
    sizes = plain.lengths(keys)
    suspect |= (sizes < 1) | (sizes > record.ID_BYTES_MAX)
    found = plain.text(keys, suspect)
    suspect |= ids.controlled(found)
    suspect |= np.fromiter(map(bytes.startswith, keys, repeat(b"/")), bool, len(keys))
    return found


def _json(values: Sequence[bytes], decoder: EventDecoder, suspect: Bools) -> _Said:
    """See `duplicates`: each key has two quotation marks, and so has each text; more of them is a doubt.

    To find none is ten times as fast as to count: of a vector that comes first, 85 % of the bytes, that is asked. One
    pass, while an event is in the processor's cache: a second look at 2,000 of them costs more than the first.
    """
    decode, unset, text = _event.decode, msgspec.UNSET, len(_VECTOR_FIRST)
    after = text + 4 * decoder.dim * 4 // 3
    rows = []
    for value in values:
        try:
            event = decode(value)
        except _NOT_ONE:
            event = _NO_EVENT
        given, payload = event.attributes, event.payload
        if value.startswith(_VECTOR_FIRST) and value.find(b'"', text, after) < 0:
            marks = value.count(b'"', after) - 1
        else:
            marks = value.count(b'"') - 4
        kept = b""
        if payload is not unset:
            kept = bytes(payload)
            marks -= kept.count(b'"') + 2
        if given is None:
            given = {}
        else:
            marks -= 2
        vector = event.vector_b64 if event.vector is None and event.text is None else None
        rows.append((vector, kept, given, event.event_time, event.ttl_s, marks))
    vectors, payloads, attributes, times, ttls_s, surplus = zip(*rows, strict=True)
    columns = plain.attributes(decoder.attributes, attributes, suspect)
    explained = 2 * columns.keys + 2 * columns.texts + 4 * plain.given(times) + 2 * plain.given(ttls_s)
    suspect |= np.array(surplus) != explained
    return _Said(vectors, payloads, columns, times, ttls_s)


def _msgpack(values: Sequence[bytes], decoder: EventDecoder, suspect: Bools) -> _Said:
    """Each map says how many pairs it has; more of them than were read is a doubt. One pass, as for JSON."""
    decode, mapping, unset = _packed.decode, _mapping.decode, msgspec.UNSET
    rows = []
    for value in values:
        try:
            event = decode(value)
            pairs = value[0] - _FIXMAP - 1
            raw, payload = event.attributes, event.payload
            if raw is unset:
                given, doubled = {}, 0
            else:
                given = mapping(raw)
                doubled = bytes(raw)[0] - _FIXMAP - len(given)
                pairs -= 1
        except _NOT_ONE:
            event, pairs, given, doubled, payload = _NO_PACKED, 0, {}, 0, b""
        if payload is unset:
            payload = b""
        else:
            pairs -= 1
        vector = event.vector if event.text is None and not doubled else None
        rows.append((vector, payload, given, event.event_time, event.ttl_s, pairs))
    vectors, payloads, attributes, times, ttls_s, surplus = zip(*rows, strict=True)
    columns = plain.attributes(decoder.attributes, attributes, suspect)
    explained = plain.given(times).astype(np.int64) + plain.given(ttls_s)
    suspect |= np.array(surplus) != explained
    return _Said(vectors, payloads, columns, times, ttls_s)


_SAID: dict[str, Callable[[Sequence[bytes], EventDecoder, Bools], _Said]] = {
    JSON_TYPE: _json,
    MSGPACK_TYPE: _msgpack,
}
