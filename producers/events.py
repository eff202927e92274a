"""The contracts of all topics: names, message shapes, encode, decode. Pure.

| topic         | value                                        | key  |
|---------------|----------------------------------------------|------|
| memories      | JSON (`Event`) or msgpack (`PackedEvent`), one record; null deletes | id |
|               | (a null with the header IF_VERSION deletes that version or nothing) |    |
| memories      | Arrow stream, many rows of one partition (`columns`)                | any |
| access        | Arrow stream of ACCESS, advice               | null |
| age           | Arrow stream of AGE, advice                  | null |
| changes       | JSON `Change`                                | null |
| dead-letters  | the bad input whole (`letters`)              | as it came |
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import Meta

from tiers import record
from tiers.errors import InvalidRecord
from tiers.record import Floats
from tiers.tier import TierName

JSON_TYPE = "application/json"
MSGPACK_TYPE = "application/msgpack"
ARROW_TYPE = "application/vnd.apache.arrow.stream"
EVENT_TYPE = "io.isotherm.memory"

IF_VERSION = "isotherm-if-version"  # header of a delete: "epoch.offset.row", the version that it deletes or nothing

# What schemas say and decoding does not ask: whoever reads a topic must outlive what a stranger wrote there.
TIME = {"format": "date-time"}
TIER = {"enum": [None, *(tier.word for tier in TierName)]}
VERSION = {"pattern": r"^\d+\.\d+\.\d+$"}

Headers = Sequence[tuple[str, bytes]]


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

    vector: Annotated[list[float] | None, Meta(description="Finite floats, not all zero")] = None
    vector_b64: Annotated[bytes | None, Meta(description="Little-endian float32")] = None
    text: Annotated[str | None, Meta(description="Words, where the node has an embedder")] = None
    payload: Annotated[msgspec.Raw | msgspec.UnsetType, Meta(description="Any JSON, at most 256 KiB")] = msgspec.UNSET
    attributes: Annotated[dict[str, Any] | None, Meta(description="Those that the settings declare")] = None
    event_time: Annotated[
        datetime | None, Meta(description="With a time zone; now if absent", extra_json_schema=TIME)
    ] = None
    ttl_s: Annotated[float | None, Meta(description="Seconds until it expires, at most ten years")] = None


class PackedEvent(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """An upsert as msgpack. `vector` is a list of floats or the bytes of little-endian float32; not with `text`.

    A payload of bytes is kept as it is, any other value becomes JSON; times are RFC 3339 text or msgpack timestamps.
    """

    vector: list[float] | bytes | None = None
    text: str | None = None
    payload: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    attributes: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    event_time: datetime | None = None
    ttl_s: float | None = None


class Message(NamedTuple):
    """What of a Kafka message decides how it is decoded."""

    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int
    offset: int


_encode = msgspec.json.Encoder().encode


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


def event_headers(source: str, identifier: str, kind: str = JSON_TYPE) -> list[tuple[str, bytes]]:
    """Return the CloudEvents (binary mode) headers of an event; (source, identifier) name no other one."""
    return [
        ("content-type", kind.encode()),
        ("ce_id", identifier.encode()),
        ("ce_specversion", b"1.0"),
        ("ce_type", EVENT_TYPE.encode()),
        ("ce_source", source.encode()),
    ]


def condition_headers(source: str, identifier: str, version: int) -> list[tuple[str, bytes]]:
    """Return the headers of a delete that counts only while `version` is the newest of its id."""
    text = record.version_text(version)
    return [*event_headers(source, f"{identifier}@{text}"), (IF_VERSION, text.encode())]


def condition(message: Message) -> int | None:
    """Return the version that a delete is conditional on, if any; InvalidRecord("if_version") where that is unclear."""
    given = [value for name, value in message.headers if name == IF_VERSION]
    if not given:
        return None
    try:
        text = given[0].decode("ascii")
        version = record.parse_version(text)
        if len(given) == 1 and message.value is None and record.version_text(version) == text:
            return version
    except (ValueError, AttributeError) as error:  # a header may be null
        raise InvalidRecord("if_version", f"{IF_VERSION} is an epoch.offset.row, such as 0.123.0") from error
    raise InvalidRecord("if_version", f"{IF_VERSION} belongs once on a delete, as epoch.offset.row")


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


USAGE = b"isotherm-usage"  # of an age event: JSON, how full each tier was when it was written, 0 to 1


def with_usage(batch: pa.RecordBatch, fractions: Mapping[str, float]) -> pa.RecordBatch:
    """Return an age event that says how full the tiers are: what pressure, and the choice of a target, depend on."""
    return batch.replace_schema_metadata({USAGE: _encode({name: round(of, 4) for name, of in fractions.items()})})


def usage_of(batch: pa.RecordBatch) -> dict[str, float] | None:
    """Return how full the tiers were when an age event was written; None where it does not say."""
    try:
        return msgspec.json.decode((batch.schema.metadata or {}).get(USAGE, b""), type=dict[str, float])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


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

    `source` is null for nothing, `target` null when the row is gone for good (a dropped tombstone, a cleared tier). A
    copy goes from its home to hot, and from hot to nothing; its home stays. Copies end, unannounced, with their node.
    """

    kind: Annotated[str, Meta(extra_json_schema={"enum": ["home", "copy"]})]
    source: Annotated[str | None, Meta(extra_json_schema=TIER)] = msgspec.field(name="from")
    target: Annotated[str | None, Meta(extra_json_schema=TIER)] = msgspec.field(name="to")
    reason: str
    policy: Annotated[str, Meta(description="The name of the rules that decided")]
    at: Annotated[int, Meta(description="ms since 1970")]
    ids: Annotated[list[str], Meta(extra_json_schema={"maxItems": 1000})]
    versions: Annotated[
        list[Annotated[str, Meta(extra_json_schema=VERSION)]], Meta(extra_json_schema={"maxItems": 1000})
    ]


_change = msgspec.json.Decoder(Change)


def encode_change(change: Change) -> bytes:
    """Return the JSON of a change."""
    return _encode(change)


def decode_change(value: bytes | None) -> Change:
    """Return the change; InvalidRecord("change") when it is none."""
    try:
        change = _change.decode(value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRecord("change", f"not a change: {error}") from error
    if len(change.ids) != len(change.versions):
        raise InvalidRecord("change", f"{len(change.ids)} ids have {len(change.versions)} versions")
    return change
