"""From a message of the memories topic to a valid row, or an InvalidRecord with a stable reason. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
import numpy as np

from producers import duplicates
from producers.events import ARROW_TYPE, JSON_TYPE, MSGPACK_TYPE, Event, Headers, Message, PackedEvent
from tiers import record
from tiers.errors import InvalidRecord
from tiers.record import Floats, Row

EVENT_BYTES_MAX = 1_000_000
PAST_MS_MAX = 10 * 366 * 86_400_000  # an event time may lie ten years back
FUTURE_MS_MAX = 86_400_000  # and one day ahead of the log's clock
TIMESTAMP_MS_MAX = 250_000_000_000_000  # of a message: the year 9892, so that all that follows from it is a date
ATTRIBUTE_BYTES_MAX = 16 * 1024  # of one text; they live in the index, in memory

Embed = Callable[[Sequence[str]], Floats]

_event = msgspec.json.Decoder(Event)
_packed = msgspec.msgpack.Decoder(PackedEvent)
_mapping = msgspec.msgpack.Decoder(dict[str, Any])
_any = msgspec.msgpack.Decoder()
_to_json = msgspec.json.Encoder().encode
_KINDS = {b"": JSON_TYPE} | {kind.encode(): kind for kind in (JSON_TYPE, MSGPACK_TYPE, ARROW_TYPE)}
_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "int": (int,),
    "float": (float, int),
    "bool": (bool,),
    "timestamp": (str, datetime),
}


@dataclass(frozen=True)
class EventDecoder:
    """Turns messages of the memories topic into rows; raises InvalidRecord with a stable reason."""

    dim: int
    attributes: Mapping[str, str]
    embed: Embed | None = None

    def decode(self, message: Message, epoch: int, kind: str = JSON_TYPE, *, measure: bool = True) -> Row:
        """Return the row of one message of content type `kind` at its place in log incarnation `epoch`.

        `measure=False` leaves it to the caller, who has many, to see that the vectors are finite and not zero, and to
        silence NumPy about floats beyond float32.
        """
        identifier = self._id(message.key)
        version = record.pack_version(epoch, message.offset)
        check_timestamp(message.timestamp_ms)
        if message.value is None:
            return Row(identifier, version, message.timestamp_ms, None, None, b"", {}, deleted=True)
        if len(message.value) > EVENT_BYTES_MAX:
            raise InvalidRecord("event_size", f"an event has at most {EVENT_BYTES_MAX} bytes")
        event = event_of(kind, message.value)
        return self.row(identifier, version, event, message.timestamp_ms, measure=measure)

    def row(self, identifier: str, version: int, event: Event, timestamp_ms: int, *, measure: bool = True) -> Row:
        """Return the validated row of an event; `measure` as in `decode`."""
        payload = b"" if event.payload is msgspec.UNSET else bytes(event.payload)
        if len(payload) > record.PAYLOAD_BYTES_MAX:
            raise InvalidRecord("payload_size", f"a payload has at most {record.PAYLOAD_BYTES_MAX} bytes")
        event_time = self._time(event.event_time, timestamp_ms)
        expires_at = None
        if event.ttl_s is not None:
            if not 0 < event.ttl_s < PAST_MS_MAX / 1000:
                raise InvalidRecord("ttl", "ttl_s is a positive number of seconds, at most ten years")
            expires_at = timestamp_ms + int(event.ttl_s * 1000)
        attributes = self._attributes(event.attributes) if event.attributes else {}
        vector = self.vector(event)
        if measure:
            check_vector(vector, self.dim)
        elif vector.shape != (self.dim,):
            raise InvalidRecord("vector_dim", f"the vector has {vector.size} floats, not {self.dim}")
        return Row(identifier, version, event_time, expires_at, vector, payload, attributes)

    @staticmethod
    def _id(key: bytes | None) -> str:
        if key is None:
            raise InvalidRecord("id_missing", "the message has no key; the key is the record's id")
        try:
            return record.check_id(key.decode())
        except UnicodeDecodeError as error:
            raise InvalidRecord("id_not_utf8", "the key is not UTF-8") from error

    def vector(self, event: Event) -> Floats:
        """Return the vector of an event; `check_vector` says whether it will do."""
        if (event.vector is not None) + (event.vector_b64 is not None) + (event.text is not None) != 1:
            raise InvalidRecord("vector_missing", "give exactly one of vector, vector_b64 and text")
        if event.vector_b64 is not None:
            if len(event.vector_b64) != 4 * self.dim:
                raise InvalidRecord(
                    "vector_dim", f"the bytes hold {len(event.vector_b64) / 4:g} floats, not {self.dim}"
                )
            return np.frombuffer(event.vector_b64, "<f4")
        if event.vector is not None:
            with np.errstate(over="ignore"):  # what is infinite in float32 is found by its length
                return np.array(event.vector, np.float32)
        if self.embed is None:
            raise InvalidRecord("text_without_embedder", "this node has no embedder; send a vector, or set embedder")
        vector: Floats = self.embed([event.text or ""])[0]
        return vector

    @staticmethod
    def _time(given: datetime | None, timestamp_ms: int) -> int:
        if given is None:
            return timestamp_ms
        if given.tzinfo is None:
            raise InvalidRecord("event_time", "event_time needs a time zone, such as a final Z")
        event_time = math.floor(given.timestamp() * 1000)
        if not timestamp_ms - PAST_MS_MAX <= event_time <= timestamp_ms + FUTURE_MS_MAX:
            raise InvalidRecord("event_time", "event_time lies more than ten years back or a day ahead")
        return event_time

    def _attributes(self, given: Mapping[str, Any]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for name, value in given.items():
            kind = self.attributes.get(name)
            if kind is None:
                raise InvalidRecord("attribute_unknown", f"attribute {name[:64]!r} is not declared; see [attributes]")
            if value is None:
                continue
            if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "bool"):
                raise InvalidRecord("attribute_type", f"attribute {name!r} is declared {kind}")
            out[name] = _cast(name, kind, value)
        return out


def kind_of(headers: Headers) -> str:
    """Return the content type of a message, JSON when it says none; InvalidRecord when it is not ours."""
    for name, value in headers:
        if name == "content-type":
            kind = _KINDS.get(value or b"")
            if kind is None:  # with parameters, or in capitals
                word = value.decode("ascii", "replace").partition(";")[0].strip().lower()
                kind = _KINDS.get(word.encode()) if word else None
            if kind is None:
                known = f"{JSON_TYPE}, {MSGPACK_TYPE} and {ARROW_TYPE}"
                raise InvalidRecord("content_type", f"content-type {value[:100]!r} is not known; use {known}")
            return kind
    return JSON_TYPE


def event_of(kind: str, value: bytes) -> Event:
    """Return the one event that a value of this content type holds."""
    if kind == MSGPACK_TYPE:
        return unpack(value)
    try:
        event = _event.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRecord("json", f"the value is not a valid event: {error}") from error
    duplicates.refuse(value, event)
    return event


def unpack(value: bytes) -> Event:
    """Return the event of a msgpack map; a payload of bytes is kept, any other becomes JSON."""
    try:
        given = _packed.decode(value)
        duplicates.refuse_packed(value, sum(getattr(given, name) not in _NOT_GIVEN for name in _FIELDS))
        attributes = payload = None
        if given.attributes is not msgspec.UNSET:
            attributes = _mapping.decode(given.attributes)
            duplicates.refuse_packed(bytes(given.attributes), len(attributes))
        if given.payload is not msgspec.UNSET:
            payload = _any.decode(given.payload)
            payload = payload if isinstance(payload, bytes) else _to_json(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError, ValueError) as error:
        raise InvalidRecord("msgpack", f"the value is not a valid event: {error}") from error
    packed = isinstance(given.vector, bytes)
    return Event(
        vector=None if packed else given.vector,  # type: ignore[arg-type]
        vector_b64=given.vector if packed else None,  # type: ignore[arg-type]
        text=given.text,
        payload=msgspec.UNSET if payload is None else msgspec.Raw(payload),
        attributes=attributes,
        event_time=given.event_time,
        ttl_s=given.ttl_s,
    )


_FIELDS = PackedEvent.__struct_fields__
_NOT_GIVEN = (None, msgspec.UNSET)


def check_timestamp(timestamp_ms: int) -> None:
    """Raise InvalidRecord for a message whose own time is no date: other times are held against it."""
    if not 0 <= timestamp_ms <= TIMESTAMP_MS_MAX:
        raise InvalidRecord("timestamp", f"the message's timestamp is {timestamp_ms} ms since 1970")


def _cast(name: str, kind: str, value: Any) -> Any:
    if kind == "string" and len(value) * 4 > ATTRIBUTE_BYTES_MAX and len(value.encode()) > ATTRIBUTE_BYTES_MAX:
        raise InvalidRecord("attribute_size", f"attribute {name!r} has more than {ATTRIBUTE_BYTES_MAX} bytes")
    if kind == "float":
        try:
            number = float(value)
        except OverflowError as error:
            raise InvalidRecord("attribute_type", f"attribute {name!r} does not fit a 64-bit float") from error
        if not math.isfinite(number):
            raise InvalidRecord("attribute_not_finite", f"attribute {name!r} is not a finite number")
        return number
    if kind == "int" and not -(2**63) <= value < 2**63:
        raise InvalidRecord("attribute_type", f"attribute {name!r} does not fit 64 bits")
    if kind == "timestamp":
        try:
            when = msgspec.convert(value, datetime)
        except msgspec.ValidationError as error:
            raise InvalidRecord("attribute_type", f"attribute {name!r} is not an RFC 3339 time") from error
        if when.tzinfo is None:
            raise InvalidRecord("attribute_type", f"attribute {name!r} needs a time zone, such as a final Z")
        return when
    return value


NOT_FINITE = "vector_not_finite", "the vector, or its length, is not finite in float32"
ZERO = "vector_zero", "the zero vector has no direction and cannot be searched"


def squares(vectors: Floats) -> Floats:
    """Return the squared lengths of float32[..., dim], in float32, as every score is computed."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        found: Floats = np.vecdot(vectors, vectors)
    return found


def check_vector(vector: Floats, dim: int) -> Floats:
    """Return the vector, or raise InvalidRecord: it has `dim` finite floats and a length that float32 can say."""
    if vector.shape != (dim,):
        raise InvalidRecord("vector_dim", f"the vector has {vector.size} floats, not {dim}")
    length = float(squares(vector))
    if not math.isfinite(length):
        raise InvalidRecord(*NOT_FINITE)
    if length == 0.0:
        raise InvalidRecord(*ZERO)
    return vector
