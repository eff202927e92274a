"""From a message of the memories topic to a valid row, or an InvalidRecord with a stable reason. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
import numpy as np

from producers.events import JSON_TYPE, Event, Message, condition
from tiers import record
from tiers.errors import InvalidRecord
from tiers.record import Floats, Row

EVENT_BYTES_MAX = 1_000_000
PAST_MS_MAX = 10 * 366 * 86_400_000  # an event time may lie ten years back
FUTURE_MS_MAX = 86_400_000  # and one day ahead of the log's clock

Embed = Callable[[Sequence[str]], Floats]

_event = msgspec.json.Decoder(Event)
_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "int": (int,),
    "float": (float, int),
    "bool": (bool,),
    "timestamp": (str,),
}


@dataclass(frozen=True)
class EventDecoder:
    """Turns messages of the memories topic into rows; raises InvalidRecord with a stable reason."""

    dim: int
    attributes: Mapping[str, str]
    embed: Embed | None = None

    def decode(self, message: Message, epoch: int) -> Row:
        """Return the row of one message at its place in log incarnation `epoch`."""
        identifier = self._id(message.key)
        version = record.pack_version(epoch, message.offset)
        condition(message)  # ingest looks at it; a bad one is refused here
        if message.value is None:
            return Row(identifier, version, message.timestamp_ms, None, None, b"", {}, deleted=True)
        self._check_envelope(message)
        try:
            event = _event.decode(message.value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidRecord("json", f"the value is not a valid event: {error}") from error
        return self.row(identifier, version, event, message.timestamp_ms)

    def row(self, identifier: str, version: int, event: Event, timestamp_ms: int) -> Row:
        """Return the validated row of an event."""
        payload = b"" if event.payload is msgspec.UNSET else bytes(event.payload)
        if len(payload) > record.PAYLOAD_BYTES_MAX:
            raise InvalidRecord("payload_size", f"a payload has at most {record.PAYLOAD_BYTES_MAX} bytes")
        event_time = self._time(event.event_time, timestamp_ms)
        expires_at = None
        if event.ttl_s is not None:
            if not 0 < event.ttl_s < PAST_MS_MAX / 1000:
                raise InvalidRecord("ttl", "ttl_s is a positive number of seconds, at most ten years")
            expires_at = timestamp_ms + int(event.ttl_s * 1000)
        attributes = self._attributes(event.attributes or {})
        return Row(identifier, version, event_time, expires_at, self._vector(event), payload, attributes)

    @staticmethod
    def _id(key: bytes | None) -> str:
        if key is None:
            raise InvalidRecord("id_missing", "the message has no key; the key is the record's id")
        try:
            return record.check_id(key.decode())
        except UnicodeDecodeError as error:
            raise InvalidRecord("id_not_utf8", "the key is not UTF-8") from error

    @staticmethod
    def _check_envelope(message: Message) -> None:
        kind = (dict(message.headers).get("content-type") or JSON_TYPE.encode()).decode("ascii", "replace")
        if kind.partition(";")[0].strip().lower() != JSON_TYPE:
            raise InvalidRecord("content_type", f"content-type {kind[:100]!r} is not known; use {JSON_TYPE}")
        if len(message.value or b"") > EVENT_BYTES_MAX:
            raise InvalidRecord("event_size", f"an event has at most {EVENT_BYTES_MAX} bytes")

    def _vector(self, event: Event) -> Floats:
        given = [name for name in ("vector", "vector_b64", "text") if getattr(event, name) is not None]
        if len(given) != 1:
            raise InvalidRecord("vector_missing", f"give exactly one of vector, vector_b64 and text, not {given}")
        if event.vector_b64 is not None:
            if len(event.vector_b64) != 4 * self.dim:
                raise InvalidRecord(
                    "vector_dim", f"vector_b64 holds {len(event.vector_b64) / 4:g} floats, not {self.dim}"
                )
            vector = np.frombuffer(event.vector_b64, "<f4")
        elif event.vector is not None:
            with np.errstate(over="ignore"):
                vector = np.array(event.vector, np.float32)
        elif self.embed is None:
            raise InvalidRecord("text_without_embedder", "this node has no embedder; send a vector, or set embedder")
        else:
            vector = self.embed([event.text or ""])[0]
        return check_vector(vector, self.dim)

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


def _cast(name: str, kind: str, value: Any) -> Any:
    if kind == "float":
        try:
            return float(value)
        except OverflowError as error:
            raise InvalidRecord("attribute_type", f"attribute {name!r} does not fit a 64-bit float") from error
    if kind == "int" and not -(2**63) <= value < 2**63:
        raise InvalidRecord("attribute_type", f"attribute {name!r} does not fit 64 bits")
    if kind == "timestamp":
        try:
            return msgspec.convert(value, datetime)
        except msgspec.ValidationError as error:
            raise InvalidRecord("attribute_type", f"attribute {name!r} is not an RFC 3339 time") from error
    return value


def check_vector(vector: Floats, dim: int) -> Floats:
    """Return the vector, or raise InvalidRecord: it has `dim` finite floats and a length that float32 can say."""
    if vector.shape != (dim,):
        raise InvalidRecord("vector_dim", f"the vector has {vector.size} floats, not {dim}")
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        squares = float(np.vecdot(vector, vector))  # in float32, as every score is computed
    if not math.isfinite(squares):
        raise InvalidRecord("vector_not_finite", "the vector, or its length, is not finite in float32")
    if squares == 0.0:
        raise InvalidRecord("vector_zero", "the zero vector has no direction and cannot be searched")
    return vector
