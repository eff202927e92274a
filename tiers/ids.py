"""Ids as bytes, all rows of a column at once: which partition each belongs to, which have control characters. Pure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]

SLASH = ord("/")
_CONTROL = r"[\x00-\x1f\x7f\x{80}-\x{9f}]"
_TAIL = np.array([0, 0xFF, 0xFFFF, 0xFFFFFF], np.uint32)  # the bytes of a word that 0 to 3 bytes fill


def content(ids: pa.Array) -> tuple[npt.NDArray[np.int64], Bytes]:
    """Return where each value begins and ends in the bytes of all, int64[rows + 1], and these bytes."""
    if not len(ids):
        return np.zeros(1, np.int64), np.zeros(0, np.uint8)
    _, ends, data = ids.buffers()
    at = np.frombuffer(ends, np.int32)[ids.offset : ids.offset + len(ids) + 1].astype(np.int64)
    return at - at[0], np.frombuffer(data or b"", np.uint8)[at[0] : at[-1]]


def partitions(ids: pa.Array, count: int) -> npt.NDArray[np.int32]:
    """Return the Kafka partition of each id: murmur2 of its UTF-8 bytes, sign bit off, modulo `count`.

    Source: org.apache.kafka.common.utils.Utils.murmur2, run over all rows at once, four bytes a step.
    """
    at, data = content(ids)
    padded = np.append(data, np.zeros(4, np.uint8))  # lets every word of four bytes lie inside
    words = np.ndarray((len(data) + 1,), "<u4", padded.tobytes(), strides=(1,)).copy()  # one that begins at each byte
    start, size = at[:-1], np.diff(at)
    multiplier = np.uint32(0x5BD1E995)
    state = np.uint32(0x9747B28C) ^ size.astype(np.uint32)
    least = int(size.min()) if len(size) else 0
    for word in range(int(size.max(initial=0)) // 4):
        rows = slice(None) if least >= 4 * word + 4 else np.flatnonzero(size >= 4 * word + 4)
        key = words[start[rows] + 4 * word] * multiplier
        key ^= key >> np.uint32(24)
        key *= multiplier
        state[rows] = (state[rows] * multiplier) ^ key
    left = size & 3
    tail = state ^ (words[start + (size & ~3)] & _TAIL[left])
    state = np.where(left > 0, tail * multiplier, state)
    state = (state ^ (state >> np.uint32(13))) * multiplier
    state ^= state >> np.uint32(15)
    return ((state & np.uint32(0x7FFFFFFF)) % np.uint32(count)).astype(np.int32)


def ascii_only(column: pa.Array) -> bool:
    """Say whether no byte of a binary column without nulls is beyond ASCII: it is text, and need not be validated."""
    data = content(column)[1]
    return not len(data) or bool(data.max() < 0x80)


def partition(identifier: str, count: int) -> int:
    """Return the partition of one id."""
    return int(partitions(pa.array([identifier], pa.string()), count)[0])


def controlled(ids: pa.Array) -> Bools:
    """Return which ids have control characters; a pattern is matched only where a byte of one could be."""
    _, data = content(ids)
    printable = not len(data) or (data.min() >= 0x20 and data.max() < 0x7F)
    if printable or not ((data < 0x20) | (data == 0x7F) | (data == 0xC2)).any():  # U+0080 to U+009F are C2 80 to C2 9F
        return np.zeros(len(ids), bool)
    found: Bools = pc.match_substring_regex(ids, _CONTROL).fill_null(False).to_numpy(zero_copy_only=False)  # noqa: FBT003
    return found
