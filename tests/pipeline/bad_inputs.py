"""Bad inputs as data: what a foreign client sends, and what becomes of it.

`python -m tests.pipeline.bad_inputs` prints docs/bad-input.md; a test sends every line through a live node and holds
the document equal.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from producers.events import ARROW_TYPE, JSON_TYPE, MSGPACK_TYPE
from tests.nodes import DIM
from tiers import record

ATTRIBUTES = {"user": "string", "rank": "int", "score": "float", "seen": "bool", "at": "timestamp"}
PARTITIONS = 4
P = 0  # where Arrow messages go; their good rows' ids belong there
NAN, INF = float("nan"), float("inf")
GOOD = [1.0, *[0.5] * (DIM - 1)]
VECTOR = pa.list_(pa.float32(), DIM)
DEEP = 100_000


def key_in(partition: int, name: str) -> str:
    """Return an id that begins with a name and belongs to a partition."""
    return next(f"{name}-{at}" for at in range(10_000) if record.partition(f"{name}-{at}", PARTITIONS) == partition)


class Bad(NamedTuple):
    """One bad message. `partition` None: as the murmur2 partitioner says; "crc32": as librdkafka's default says."""

    name: str
    reason: str
    value: bytes | None
    kind: str | None = JSON_TYPE
    key: bytes | None = b"bad"
    rows: Sequence[int | None] = (0,)  # of the letters; None is the whole message
    good: Sequence[str] = ()  # ids of the rows that are applied all the same
    partition: int | str | None = None
    timestamp_ms: int = 0


def event(**fields: Any) -> bytes:
    """Return a JSON event with these fields instead of the good ones; None leaves one out."""
    given = {"vector": GOOD, "payload": {"n": 1}} | fields
    return json.dumps({name: value for name, value in given.items() if value is not None}).encode()


def text(value: str) -> bytes:
    """Return a JSON event written by hand: VECTOR stands for a good vector."""
    return value.replace("VECTOR", '"vector": ' + json.dumps(GOOD)).encode()


def b64(floats: Sequence[float]) -> str:
    """Return floats as vector_b64."""
    return base64.b64encode(np.array(floats, "<f4").tobytes()).decode()


def packed(**fields: Any) -> bytes:
    """Return a msgpack event."""
    return msgspec.msgpack.encode({"vector": GOOD} | fields)


IDS = [key_in(P, f"row{at}") for at in range(3)]


def arrow(compression: str | None = None, **given: pa.Array | None) -> bytes:
    """Return an Arrow message of three rows; a column given replaces the good one, None leaves it out."""
    good = {"id": pa.array(IDS), "vector": pa.array([GOOD] * 3, VECTOR)}
    batch = pa.record_batch({name: column for name, column in (good | given).items() if column is not None})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def of_rows(name: str, reason: str, rows: Sequence[int], **given: pa.Array) -> Bad:
    """Return an Arrow message of which these rows are bad."""
    good = [IDS[at] for at in range(3) if at not in rows]
    return Bad(name, reason, arrow(**given), ARROW_TYPE, None, tuple(rows), good, P)


def of_message(name: str, reason: str, value: bytes) -> Bad:
    """Return an Arrow message that is bad as a whole."""
    return Bad(name, reason, value, ARROW_TYPE, None, (None,), (), P)


def corrupt() -> bytes:
    """Return a stream whose offsets point outside of their data."""
    value = bytearray(arrow())
    sizes = np.cumsum([0, *map(len, IDS)]).tolist()
    at = value.index(struct.pack("<4i", *sizes))
    value[at + 4 : at + 8] = struct.pack("<i", 1_000_000)
    return bytes(value)


def crc32_key() -> bytes:
    """Return a key that librdkafka's default partitioner puts elsewhere than murmur2 does."""
    import zlib

    names = (f"crc-{at}" for at in range(100))
    return next(n.encode() for n in names if zlib.crc32(n.encode()) % PARTITIONS != record.partition(n, PARTITIONS))


def vectors(middle: Sequence[float | None] | None, kind: pa.DataType = VECTOR) -> pa.Array:
    """Return three vectors of which the second is this one."""
    return pa.array([GOOD, middle, GOOD], kind)


JSON = [
    Bad("vector one float short", "vector_dim", event(vector=GOOD[:-1])),
    Bad("vector one float long", "vector_dim", event(vector=[*GOOD, 1.0])),
    Bad("vector empty", "vector_dim", event(vector=[])),
    Bad("vector_b64 of odd size", "vector_dim", event(vector=None, vector_b64="AAAA")),
    Bad("vector_b64 no base64", "json", event(vector=None, vector_b64="####")),
    Bad("NaN literal", "json", event(vector=[NAN, *GOOD[1:]])),
    Bad("Infinity literal", "json", event(vector=[INF, *GOOD[1:]])),
    Bad("NaN in vector_b64", "vector_not_finite", event(vector=None, vector_b64=b64([NAN, *GOOD[1:]]))),
    Bad("infinity in vector_b64", "vector_not_finite", event(vector=None, vector_b64=b64([-INF, *GOOD[1:]]))),
    Bad("beyond float32 (1e39)", "vector_not_finite", event(vector=[1e39, *GOOD[1:]])),
    Bad("length beyond float32 (1e30)", "vector_not_finite", event(vector=[1e30, *GOOD[1:]])),
    Bad("zero vector", "vector_zero", event(vector=[0.0] * DIM)),
    Bad("zero in float32 (1e-60)", "vector_zero", event(vector=[1e-60] * DIM)),
    Bad("vector of text", "json", event(vector=["1"] * DIM)),
    Bad("no vector", "vector_missing", event(vector=None)),
    Bad("vector and vector_b64 both", "vector_missing", event(vector_b64=b64(GOOD))),
    Bad("text where no embedder is", "text_without_embedder", event(vector=None, text="hello")),
    Bad("null key", "id_missing", event(), key=None, partition=P),
    Bad("delete without a key", "id_missing", None, key=None, partition=P),
    Bad("empty key", "id_size", event(), key=b"", partition=P),
    Bad("key of 513 bytes", "id_size", event(), key=b"k" * 513),
    Bad("key that begins with a slash", "id_namespace", event(), key=b"/a"),
    Bad("delete of a key that begins with a slash", "id_namespace", None, key=b"/a"),
    Bad("key with a newline", "id_control", event(), key=b"a\nb"),
    Bad("key with NUL", "id_control", event(), key=b"a\x00b"),
    Bad("key not UTF-8", "id_not_utf8", event(), key=b"\xff\xfe"),
    Bad("delete of a key not UTF-8", "id_not_utf8", None, key=b"\xed\xa0\x80"),
    Bad("value empty", "json", b""),
    Bad("value cut short", "json", event()[:-20]),
    Bad("value not UTF-8", "json", b'{"text": "\xff"}'),
    Bad("a list", "json", b"[]"),
    Bad("two values", "json", event() + b" {}"),
    Bad("unknown field", "json", event(vektor=1)),
    Bad("nested 100,000 deep", "json", text('{VECTOR, "payload": ' + "[" * DEEP + "]" * DEEP + "}")),
    Bad("a key twice", "duplicate_key", text("{VECTOR, VECTOR}")),
    Bad("a key twice, once escaped", "duplicate_key", text('{VECTOR, "\\u0076ector": [1]}')),
    Bad("an attribute twice", "duplicate_key", text('{VECTOR, "attributes": {"rank": 1, "rank": 2}}')),
    Bad("payload of 256 KiB and more", "payload_size", event(payload="x" * (256 * 1024))),
    Bad("event of more than 1 MB", "event_size", event(text="x" * 1_000_000), partition=P),
    Bad("unknown attribute", "attribute_unknown", event(attributes={"colour": "red"})),
    Bad("text for an int", "attribute_type", event(attributes={"rank": "1"})),
    Bad("bool for an int", "attribute_type", event(attributes={"rank": True})),
    Bad("2^63 for an int", "attribute_type", event(attributes={"rank": 2**63})),
    Bad("a list for a text", "attribute_type", event(attributes={"user": ["u"]})),
    Bad("no time for a timestamp", "attribute_type", event(attributes={"at": "noon"})),
    Bad("time without zone for a timestamp", "attribute_type", event(attributes={"at": "2026-01-01T00:00:00"})),
    Bad("text attribute of 16 KiB and more", "attribute_size", event(attributes={"user": "x" * 16_385})),
    Bad("event_time without zone", "event_time", event(event_time="2026-01-01T00:00:00")),
    Bad("event_time in the year 1", "event_time", event(event_time="0001-01-01T00:00:00Z")),
    Bad("event_time in the year 9999", "event_time", event(event_time="9999-12-31T00:00:00Z")),
    Bad("event_time no time", "json", event(event_time="yesterday")),
    Bad("message of 1970, event of today", "event_time", event(event_time="2026-11-01T00:00:00Z"), timestamp_ms=1),
    Bad("ttl_s of zero", "ttl", event(ttl_s=0)),
    Bad("ttl_s of a thousand years", "ttl", event(ttl_s=3.2e10)),
    Bad("content type text/plain", "content_type", event(), "text/plain"),
    Bad("content type not ASCII", "content_type", event(), "json\xff"),
    Bad("JSON that says it is msgpack", "msgpack", event(), MSGPACK_TYPE),
    Bad("CRC32 partitioner", "wrong_partition", event(), key=crc32_key(), partition="crc32"),
]

MSGPACK = [
    Bad("noise", "msgpack", b"\xc1\xff\x00", MSGPACK_TYPE),
    Bad("cut short", "msgpack", packed()[:-3], MSGPACK_TYPE),
    Bad("bytes after the end", "msgpack", packed() + b"\x00", MSGPACK_TYPE),
    Bad("a map that says 2^32 - 1 keys", "msgpack", b"\xdf\xff\xff\xff\xff", MSGPACK_TYPE),
    Bad("a key twice", "duplicate_key", b"\x82\xa5ttl_s\x01\xa5ttl_s\x02", MSGPACK_TYPE),
    Bad("NaN", "vector_not_finite", packed(vector=[NAN, *GOOD[1:]]), MSGPACK_TYPE),
    Bad("vector bytes of odd size", "vector_dim", packed(vector=b"12345"), MSGPACK_TYPE),
    Bad("NaN attribute", "attribute_not_finite", packed(attributes={"score": NAN}), MSGPACK_TYPE),
    Bad("2^64 - 1 for an int", "attribute_type", packed(attributes={"rank": 2**64 - 1}), MSGPACK_TYPE),
    Bad("payload of an extension type", "msgpack", packed(payload=msgspec.msgpack.Ext(9, b"x")), MSGPACK_TYPE),
]

BOMB = pa.array([b"\0" * 30_000_000] * 3, pa.binary())
ELSEWHERE = key_in(1, "elsewhere")

ARROW = [
    of_rows("a NaN in one row", "vector_not_finite", [1], vector=vectors([NAN, *GOOD[1:]])),
    of_rows("a null float in one row", "vector_not_finite", [1], vector=vectors([None, *GOOD[1:]])),
    of_rows("a zero vector in one row", "vector_zero", [1], vector=vectors([0.0] * DIM)),
    of_rows("no vector in one row", "vector_missing", [1], vector=vectors(None)),
    of_rows("one vector short", "vector_dim", [1], vector=vectors(GOOD[1:], pa.list_(pa.float32()))),
    of_rows(
        "all vectors of another dimension",
        "vector_dim",
        [0, 1, 2],
        vector=pa.array([[1.0, 2.0]] * 3, pa.list_(pa.float32(), 2)),
    ),
    of_rows("a deleted row with a vector", "tombstone", [2], deleted=pa.array([False, False, True])),
    of_rows("no id in one row", "id_missing", [1], id=pa.array([IDS[0], None, IDS[2]])),
    of_rows("two empty ids", "id_size", [0, 1], id=pa.array(["", "", IDS[2]])),
    of_rows("an id of 513 bytes", "id_size", [0], id=pa.array(["x" * 513, *IDS[1:]])),
    of_rows("an id that begins with a slash", "id_namespace", [0], id=pa.array(["/a", *IDS[1:]])),
    of_rows("a control character in an id", "id_control", [0], id=pa.array(["a\tb", *IDS[1:]])),
    of_rows(
        "an id not UTF-8",
        "id_not_utf8",
        [0],
        id=pa.array([b"\xff", *map(str.encode, IDS[1:])], pa.binary()).view(pa.string()),
    ),
    of_rows("an id of another partition", "wrong_partition", [0], id=pa.array([ELSEWHERE, *IDS[1:]])),
    of_rows("an oversize payload in one row", "payload_size", [1], payload=pa.array([b"1", b"x" * 262_145, None])),
    of_rows(
        "an event_time of 1970", "event_time", [1], event_time=pa.array([None, 0, None], pa.timestamp("us", "UTC"))
    ),
    of_rows(
        "an expires_at of the year 2200",
        "ttl",
        [1],
        expires_at=pa.array([None, 7_258_118_400, None], pa.timestamp("s", "UTC")),
    ),
    of_rows(
        "an infinite attribute",
        "attribute_not_finite",
        [1],
        attributes=pa.array([{"score": x} for x in (1.0, INF, None)]),
    ),
    of_message("noise", "arrow", b"\x00" * 100),
    of_message("empty", "arrow", b""),
    of_message("cut short", "arrow", arrow()[:-50]),
    of_message("corrupt offsets", "arrow", corrupt()),
    of_message("an Arrow file", "arrow", b"ARROW1\0\0" + arrow()),
    of_message("dictionary-encoded ids", "arrow", arrow(id=pa.array(IDS).dictionary_encode())),
    of_message("no id column", "arrow_schema", arrow(id=None)),
    of_message("ids of numbers", "arrow_schema", arrow(id=pa.array([1, 2, 3]))),
    of_message("unknown column", "arrow_schema", arrow(colour=pa.array([1, 2, 3]))),
    of_message("times without zone", "arrow_schema", arrow(event_time=pa.array([1, 2, 3], pa.timestamp("ms")))),
    of_message("unknown attribute", "attribute_unknown", arrow(attributes=pa.array([{"colour": 1}] * 3))),
    of_message("attribute of another type", "attribute_type", arrow(attributes=pa.array([{"rank": "1"}] * 3))),
    of_message("zstd bomb: 90 MB in 8 KB", "arrow_size", arrow("zstd", payload=BOMB)),
    of_message("lz4 bomb: 90 MB in 400 KB", "arrow_size", arrow("lz4", payload=BOMB)),
    of_message("70,000 rows", "arrow_size", arrow(id=pa.array([IDS[0]] * 70_000), vector=None)),
]

KAFKA = {"JSON": JSON, "msgpack": MSGPACK, "Arrow": ARROW}


# -- HTTP ------------------------------------------------------------------------------------------------------------


class BadRequest(NamedTuple):
    """Bytes on a socket; `status` is that of the answer, 0 where the connection just ends."""

    name: str
    status: int
    request: bytes
    field: str | None = None  # what the problem names
    position: int | None = None


def post(body: bytes, *headers: str, length: int | None = None, kind: str = JSON_TYPE) -> bytes:
    """Return a POST of memories."""
    lines = ["POST /v1/memories HTTP/1.1", "Host: localhost", "Connection: close", f"Content-Type: {kind}", *headers]
    if not any("transfer-encoding" in header.lower() for header in headers):
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def memory(identifier: Any = "http-1", **fields: Any) -> dict[str, Any]:
    """Return a memory as the gateway takes it."""
    return {"id": identifier, "vector": GOOD} | fields


def many(*memories: Any) -> bytes:
    """Return memories as JSON."""
    return json.dumps(list(memories)).encode()


CHUNKED = "Transfer-Encoding: chunked"
HTTP = [
    BadRequest("garbage request line", 400, b"\x16\x03\x01 GARBAGE\r\n\r\n"),
    BadRequest("chunk size no number", 400, post(b"zz\r\n{}\r\n0\r\n\r\n", CHUNKED)),
    BadRequest("chunk longer than its size", 400, post(b"2\r\n{}{}{}\r\n0\r\n\r\n", CHUNKED)),
    BadRequest("content-length no number", 400, post(b"{}", "Content-Length: abc")),
    BadRequest("two content-lengths", 400, post(b"{}", "Content-Length: 3")),
    BadRequest("content-length longer than the body", 0, post(many(memory()), length=10_000)),
    BadRequest("content-length shorter than the body", 400, post(many(memory()), length=10), "body"),
    BadRequest("content-length of 1 GB", 413, post(b"", length=10**9), "body"),
    BadRequest(
        "body of 9 MB in chunks", 413, post(b"900000\r\n" + b" " * 0x900000 + b"\r\n0\r\n\r\n", CHUNKED), "body"
    ),
    BadRequest("content-encoding gzip", 415, post(b"\x1f\x8b", "Content-Encoding: gzip"), "content-encoding"),
    BadRequest("content-type text/html", 415, post(b"<p>", kind="text/html"), "content-type"),
    BadRequest("empty body", 400, post(b""), "json", 0),
    BadRequest("no JSON", 400, post(b"{nonsense"), "json", 0),
    BadRequest("body not UTF-8", 400, post(b'[{"id": "\xff"}]'), "json", 0),
    BadRequest("nested 100,000 deep", 400, post(b"[" * DEEP), "body"),
    BadRequest("an empty list", 400, post(b"[]"), "body"),
    BadRequest("1,001 memories", 400, post(b"[" + b"{}," * 1000 + b"{}]"), "body"),
    BadRequest("the third without an id", 400, post(many(memory("a"), memory("b"), {"vector": GOOD})), "json", 2),
    BadRequest("the second of another dimension", 400, post(many(memory(), memory(vector=[1.0]))), "vector", 1),
    BadRequest(
        "a key twice in the second",
        400,
        post(b"[" + json.dumps(memory()).encode() + b',{"id":"a","id":"b"}]'),
        "duplicate",
        1,
    ),
    BadRequest("id with a newline", 400, post(many(memory("a\nb"))), "id", 0),
    BadRequest("id that begins with a slash", 400, post(many(memory("/a"))), "id", 0),
    BadRequest("id a number", 400, post(many(memory(7))), "id", 0),
    BadRequest("unknown attribute", 400, post(many(memory(attributes={"colour": 1}))), "attributes", 0),
    BadRequest("oversize payload", 400, post(many(memory(payload="x" * 262_144))), "payload", 0),
    BadRequest(
        "NDJSON, second line broken",
        400,
        post(json.dumps(memory()).encode() + b"\n{\n", kind="application/x-ndjson"),
        "json",
        1,
    ),
    BadRequest("msgpack noise", 400, post(b"\xc1", kind=MSGPACK_TYPE), "body"),
    BadRequest("msgpack without an id", 400, post(packed(), kind=MSGPACK_TYPE), "msgpack", 0),
    BadRequest(
        "Arrow, a NaN in the second row",
        400,
        post(arrow(vector=vectors([NAN, *GOOD[1:]])), kind=ARROW_TYPE),
        "vector",
        1,
    ),
    BadRequest("Arrow, unknown column", 400, post(arrow(colour=pa.array([1, 2, 3])), kind=ARROW_TYPE), "arrow_schema"),
    BadRequest("Arrow, zstd bomb", 400, post(arrow("zstd", payload=BOMB), kind=ARROW_TYPE), "arrow_size"),
    BadRequest("Arrow, cut short", 400, post(arrow()[:-50], kind=ARROW_TYPE), "arrow"),
]


# -- the document ----------------------------------------------------------------------------------------------------

HEAD = """# Bad input

What a client can send that cannot be applied, and what becomes of it. The tables are the data of a test
(`tests/pipeline/test_bad_input.py`) that sends every line through a live node with confluent-kafka and plain sockets,
several times, and checks: as many dead letters as bad rows, each with the reason below and the place it came from; the
next good record of the same partition is found; the rows beside a bad one are found; memory stays flat. Written by
`python -m tests.pipeline.bad_inputs > docs/bad-input.md`; a test holds it equal.

## From Kafka

Each bad message, or bad row of an Arrow message, becomes a letter on `<prefix>.dead-letters` with its reason, topic,
partition, offset and row in the headers (`isotherm-reason`, …), and the partition goes on. The letter holds the message
as it came, headers and key too; of a bad row it holds that row alone, as an Arrow stream; of more than 1 MB only the
hash. `isotherm dead-letters list`, `show` and `replay` look at them and send them again once what was wrong is right.

A key that comes twice is refused, in an event and in its attributes: JSON parsers disagree on which one counts. A
payload is the sender's own business: it is kept byte for byte, duplicate keys and integers beyond 2^53 included. An
integer attribute is a 64-bit one.

Kafka's own compression: the broker's `max.message.bytes` bounds a batch as it is sent, and aiokafka unpacks it whole,
without a limit (1 MB of zstd may become gigabytes). Therefore the node creates the memories topic with
`compression.type=uncompressed`: the broker unpacks, and refuses to its producer (`MSG_SIZE_TOO_LARGE`) what is then
beyond its limit, so that such a batch never lies in the log, where every restart would meet it again. What is left: the
broker unpacks in its own heap, and a topic that somebody else created, or set otherwise, has no such guard.
"""

HTTP_HEAD = """
## Over HTTP

A body is checked whole before anything is published: all of it, or nothing. A problem object names the position of the
memory in the body (from 0), the field and the reason. Status 0: the connection ended before the body did, so there is
nobody to answer.
"""


def rows_word(bad: Bad) -> str:
    """Return which rows became letters."""
    return "the message" if bad.kind == ARROW_TYPE and None in bad.rows else ", ".join(map(str, bad.rows))


def render() -> str:
    """Return docs/bad-input.md."""
    lines = [HEAD]
    for form, table in KAFKA.items():
        arrow_form = form == "Arrow"
        lines += [f"\n### {form}\n", "| input | reason |" + (" letters: rows | rows applied |" if arrow_form else "")]
        lines.append("|---|---|" + ("---|---|" if arrow_form else ""))
        for bad in table:
            more = f" {rows_word(bad)} | {len(bad.good)} |" if arrow_form else ""
            lines.append(f"| {bad.name} | `{bad.reason}` |{more}")
    lines += [HTTP_HEAD, "| request | status | field | position |", "|---|---|---|---|"]
    for request in HTTP:
        position = "" if request.position is None else request.position
        field = f"`{request.field}`" if request.field else ""
        lines.append(f"| {request.name} | {request.status} | {field} | {position} |")
    total = sum(map(len, KAFKA.values()))
    lines.append(f"\n{total} bad messages and {len(HTTP)} bad requests.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(render(), end="")  # noqa: T201 - it is what the module is run for
