"""The contracts of all topics: names, message shapes, encode, decode. Pure.

| topic         | value                                        | key  |
|---------------|----------------------------------------------|------|
| memories      | JSON event (`Event`); null deletes           | id   |
| access        | Arrow stream of ACCESS, advice               | null |
| age           | Arrow stream of AGE, advice                  | null |
| changes       | JSON `Change`                                | null |
| dead-letters  | the bad input whole; position and reason in headers | as it came |
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from tiers import record
from tiers.errors import InvalidRecord
from tiers.record import Floats, Row

DEAD_LETTER_BYTES_MAX = 1_000_000  # beyond this the letter carries hash and position only
HEADER_BYTES = 19  # what a letter adds to a header: "original-" and two lengths
EVENT_BYTES_MAX = 1_000_000
PAST_MS_MAX = 10 * 366 * 86_400_000  # an event time may lie ten years back
FUTURE_MS_MAX = 86_400_000  # and one day ahead of the log's clock
JSON_TYPE = "application/json"
EVENT_TYPE = "io.isotherm.memory"

Headers = Sequence[tuple[str, bytes]]
Embed = Callable[[Sequence[str]], Floats]


class Topics(NamedTuple):
    """Topic names under one prefix."""

    memories: str
    access: str
    age: str
    changes: str
    dead_letters: str

    @classmethod
    def under(cls, prefix: str) -> Topics:
        """Return the five names for a prefix such as "isotherm"."""
        return cls(*(f"{prefix}.{name}" for name in ("memories", "access", "age", "changes", "dead-letters")))


# -- memories ------------------------------------------------------------------------------------------------------


class Event(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """An upsert as JSON. Exactly one of `vector`, `vector_b64` (little-endian float32) and `text` is given."""

    vector: list[float] | None = None
    vector_b64: bytes | None = None
    text: str | None = None
    payload: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    attributes: dict[str, Any] | None = None
    event_time: datetime | None = None
    ttl_s: float | None = None


class Message(NamedTuple):
    """What of a Kafka message decides how it is decoded."""

    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int
    offset: int


_event = msgspec.json.Decoder(Event)
_encode = msgspec.json.Encoder().encode
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


def encode_event(
    vector: Floats,
    payload: Any = None,
    attributes: Mapping[str, Any] | None = None,
    event_time: datetime | None = None,
    ttl_s: float | None = None,
) -> bytes:
    """Return the JSON of an upsert, its vector as base64."""
    return _encode(
        Event(
            vector_b64=np.ascontiguousarray(vector, "<f4").tobytes(),
            payload=msgspec.Raw(_encode(payload)) if payload is not None else msgspec.UNSET,
            attributes=dict(attributes) if attributes else None,
            event_time=event_time,
            ttl_s=ttl_s,
        )
    )


def event_headers(source: str) -> list[tuple[str, bytes]]:
    """Return the CloudEvents (binary mode) headers of an upsert."""
    return [
        ("content-type", JSON_TYPE.encode()),
        ("ce_specversion", b"1.0"),
        ("ce_type", EVENT_TYPE.encode()),
        ("ce_source", source.encode()),
    ]


# -- tokens --------------------------------------------------------------------------------------------------------


def encode_token(positions: Mapping[int, int], epoch: int) -> str:
    """Return the opaque token for "applied at least up to these offsets" (partition to offset)."""
    body = _encode({"e": epoch, "p": {str(partition): offset for partition, offset in positions.items()}})
    return base64.urlsafe_b64encode(body).decode().rstrip("=")


def decode_token(token: str) -> tuple[dict[int, int], int]:
    """Return (offsets by partition, epoch); InvalidRecord("token") for what `encode_token` did not write."""
    try:
        body = msgspec.json.decode(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        return {int(partition): int(offset) for partition, offset in body["p"].items()}, int(body["e"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:  # whatever a stranger sends
        raise InvalidRecord("token", "at_least is not a token of this system") from error


# -- advice --------------------------------------------------------------------------------------------------------

ACCESS = pa.schema([("id", pa.string()), ("tier", pa.int8()), ("count", pa.int32()), ("last", pa.int64())])
AGE = pa.schema(
    [
        ("id", pa.string()),
        ("version", pa.int64()),
        ("tier", pa.int8()),
        ("age_ms", pa.int64()),
        ("idle_ms", pa.int64()),
        ("heat", pa.float32()),
        ("reason", pa.string()),
    ]
)


def encode_arrow(batch: pa.RecordBatch) -> bytes:
    """Return a batch as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def decode_arrow(value: bytes | None, shape: pa.Schema) -> pa.RecordBatch:
    """Return the one batch of an Arrow IPC stream of this schema; InvalidRecord("arrow") otherwise."""
    try:
        with pa.ipc.open_stream(value or b"") as reader:
            if not reader.schema.equals(shape):
                raise InvalidRecord("arrow", "the stream has another schema")
            table = reader.read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise InvalidRecord("arrow", f"not an Arrow stream: {error}") from error
    if any(column.null_count for column in table.columns):
        raise InvalidRecord("arrow", "the stream has nulls")
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=shape)


# -- changes -------------------------------------------------------------------------------------------------------


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """Rows that moved together: `kind` home or copy, `at` in ms; `ids[i]` at `versions[i]` ("epoch.offset.row").

    `source` is null for nothing, `target` null when the row is gone for good (a dropped tombstone, a cleared tier).
    """

    kind: str
    source: str | None = msgspec.field(name="from")
    target: str | None = msgspec.field(name="to")
    reason: str
    policy: str
    at: int
    ids: list[str]
    versions: list[str]


_change = msgspec.json.Decoder(Change)


def encode_change(change: Change) -> bytes:
    """Return the JSON of a change."""
    return _encode(change)


def decode_change(value: bytes | None) -> Change:
    """Return the change; InvalidRecord("change") when it is none."""
    try:
        return _change.decode(value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRecord("change", f"not a change: {error}") from error


# -- dead letters --------------------------------------------------------------------------------------------------


def dead_letter(
    topic: str, partition: int, message: Message, error: InvalidRecord
) -> tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]:
    """Return (key, value, headers) of the letter for a message that cannot be applied."""
    headers = [
        ("isotherm-topic", topic.encode()),
        ("isotherm-partition", str(partition).encode()),
        ("isotherm-offset", str(message.offset).encode()),
        ("isotherm-row", b"0"),
        ("isotherm-reason", error.reason.encode()),
        ("isotherm-message", str(error).encode("utf-8", "backslashreplace")[:500]),
    ]
    value, key = message.value, message.key
    size = len(value or b"") + len(key or b"")
    size += sum(HEADER_BYTES + len(name.encode()) + len(item or b"") for name, item in message.headers)
    if size > DEAD_LETTER_BYTES_MAX:
        headers.append(("isotherm-sha256", hashlib.sha256(value or b"").hexdigest().encode()))
        return None, None, headers
    headers += [(f"original-{name}", item) for name, item in message.headers]
    return key, value, headers
