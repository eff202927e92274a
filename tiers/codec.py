"""The packed row: one little-endian binary form of a record, used as the Redis value and in the cold side file.

    magic  2s "IR" | format u8 = 1 | flags u8 (1 deleted, 2 expires) | dim u16 | id bytes u16 | version i64
    event_time i64 | expires_at i64 | attributes bytes u32 | payload bytes u32          (HEADER, 40 bytes)
    id, vector (dim x float32; absent when deleted), attributes (msgpack map), payload
    crc32c u32 of all that precedes

Golden files in tests/tiers/golden guard it: a change needs a new format number and a reader for the old one.
The version's place is fixed (VERSION_AT) because warm's script compares it without unpacking the rest.
"""

from __future__ import annotations

import struct
from typing import Any

import google_crc32c
import msgspec
import numpy as np

from tiers.errors import TierCorrupt
from tiers.record import Floats, Row

HEADER = struct.Struct("<2sBBHHqqqII")
CRC = struct.Struct("<I")
MAGIC, FORMAT = b"IR", 1
MAGIC_FORMAT = MAGIC + bytes([FORMAT])
DELETED, EXPIRES = 1, 2
DIM_AT, ATTRIBUTES_AT = 4, 32  # likewise to the floats and id bytes (u16 each), and to the attributes' bytes
VERSION_AT = 8  # bytes from the start of a packed row to its version, int64 little-endian

encode_attributes = msgspec.msgpack.Encoder().encode
_decode_attributes = msgspec.msgpack.Decoder(dict[str, Any]).decode


def encode(row: Row) -> bytes:
    """Return the packed form of one row."""
    identifier = row.id.encode()
    vector = b"" if row.vector is None else np.ascontiguousarray(row.vector, "<f4").tobytes()
    attributes = encode_attributes(row.attributes) if row.attributes else b""
    flags = (DELETED if row.deleted else 0) | (EXPIRES if row.expires_at is not None else 0)
    head = HEADER.pack(
        MAGIC,
        FORMAT,
        flags,
        len(vector) // 4,
        len(identifier),
        row.version,
        row.event_time,
        row.expires_at or 0,
        len(attributes),
        len(row.payload),
    )
    body = b"".join((head, identifier, vector, attributes, row.payload))
    return body + CRC.pack(google_crc32c.value(body))


def decode_vector(packed: bytes, identifier: str, version: int) -> Floats | None:
    """Return the vector of a row, sharing its memory; None for another id or version, and for a tombstone.

    TierCorrupt when bytes do not add up. A third of what `decode` takes.
    """
    _check(packed)
    _, _, flags, dim, id_size, found, *_ = HEADER.unpack_from(packed)
    at_vector = HEADER.size + id_size
    if found != version or flags & DELETED or packed[HEADER.size : at_vector] != identifier.encode():
        return None
    return np.frombuffer(packed, "<f4", dim, at_vector)


def _check(body: bytes) -> None:
    """Raise TierCorrupt unless these bytes are a packed row as it was written."""
    if len(body) < HEADER.size + CRC.size or body[:3] != MAGIC_FORMAT:
        raise TierCorrupt("these bytes are not a packed row")
    if google_crc32c.value(body[: -CRC.size]) != CRC.unpack_from(body, len(body) - CRC.size)[0]:
        raise TierCorrupt("a packed row does not match its checksum")


def decode(packed: bytes | memoryview) -> Row:
    """Return the row; its vector shares the memory of `packed`. TierCorrupt when bytes do not add up."""
    body = bytes(packed)
    _check(body)
    _, _, flags, dim, id_size, version, event_time, expires, attributes_size, payload_size = HEADER.unpack_from(body)
    at_vector = HEADER.size + id_size
    at_attributes = at_vector + 4 * dim
    at_payload = at_attributes + attributes_size
    if at_payload + payload_size + CRC.size != len(body):
        raise TierCorrupt("a packed row's lengths do not add up")
    return Row(
        id=body[HEADER.size : at_vector].decode(),
        version=version,
        event_time=event_time,
        expires_at=expires if flags & EXPIRES else None,
        vector=None if flags & DELETED else np.frombuffer(body, "<f4", dim, at_vector),
        payload=body[at_payload : at_payload + payload_size],
        attributes=_decode_attributes(body[at_attributes:at_payload]) if attributes_size else {},
        deleted=bool(flags & DELETED),
    )
