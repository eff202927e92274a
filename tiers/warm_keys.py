"""The names of warm's keys, and which of them may travel in one script call. Pure.

    {prefix:partition:bucket}:<id>      a row
    {prefix:partition:bucket}!epoch     the ownership epoch; one a bucket, so that every script finds it in its slot
    {prefix}!layout                     partitions and buckets: the two numbers that the other names depend on

What stands in braces is Redis's hash tag: keys with the same one live in the same slot of a cluster.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tiers import packed
from tiers.record import Int64s
from tiers.valkey import Bulk

PREFIX = re.compile(r"[A-Za-z0-9._-]{1,64}")  # nothing that has a meaning in a pattern or a hash tag


class Call(NamedTuple):
    """Rows of one bucket: the key of its epoch, theirs, and which rows of the caller's sequence they are."""

    partition: int
    epoch: bytes
    keys: Bulk
    rows: Int64s


@dataclass(frozen=True)
class Keys:
    """The names under one prefix."""

    prefix: str
    partitions: int
    buckets: int
    _row: re.Pattern[bytes] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Compile what recognises a row."""
        pattern = rb"(\{%b:(\d+):\d+\}):(.+)" % re.escape(self.prefix).encode()
        object.__setattr__(self, "_row", re.compile(pattern, re.DOTALL))

    @property
    def layout(self) -> str:
        """The key that records the numbers, beside `layout_text`, its value."""
        return f"{{{self.prefix}}}!layout"

    @property
    def layout_text(self) -> str:
        """The numbers that the names depend on."""
        return f"partitions={self.partitions} buckets={self.buckets}"

    @property
    def rows_pattern(self) -> str:
        """A pattern for SCAN that matches every row; `parse` tells rows from the rest."""
        return f"{{{self.prefix}:[0-9]*:[0-9]*}}:*"

    def row(self, partition: int, identifier: str) -> bytes:
        """Return the key of a row."""
        packed = identifier.encode()
        return b"%b:%b" % (self._tag(partition, zlib.crc32(packed) % self.buckets), packed)

    def rows(self, ids: Sequence[str], partitions: npt.NDArray[np.int32], rows_max: int) -> list[Bulk]:
        """Return the keys of many rows, at most `rows_max` together."""
        keys, _ = self._bulk(ids, partitions)
        return [_piece(keys.slice(start, rows_max)) for start in range(0, len(keys), rows_max)]

    def _bulk(self, ids: Sequence[str], partitions: npt.NDArray[np.int32]) -> tuple[pa.Array, Int64s]:
        """Return the keys as arguments in the protocol, and the number of each one's bucket among all partitions'."""
        encoded = [identifier.encode() for identifier in ids]
        bucket = np.fromiter(map(zlib.crc32, encoded), np.int64, len(encoded)) % self.buckets
        slot = partitions * np.int64(self.buckets) + bucket
        numbers, which = np.unique(slot, return_inverse=True)
        heads = pa.array([self._tag(*divmod(number, self.buckets)) + b":" for number in numbers.tolist()], packed.BYTES)
        keys = packed.joined(heads.take(pa.array(which)), pa.array(encoded, packed.BYTES))
        return packed.bulk(keys), slot

    def id_of(self, key: bytes) -> bytes:
        """Return the id in the key of a row."""
        return key.partition(b"}:")[2]

    def partition_of(self, key: bytes) -> int:
        """Return the partition in the key of a row."""
        return int(key[len(self.prefix) + 2 :].partition(b":")[0])

    def epochs(self, partition: int) -> list[bytes]:
        """Return the epoch keys of a partition."""
        return [self._tag(partition, bucket) + b"!epoch" for bucket in range(self.buckets)]

    @property
    def is_row(self) -> Callable[[bytes], object]:
        """What says of a key whether it is a row's, as `parse` does."""
        return self._row.fullmatch

    def parse(self, key: bytes) -> tuple[bytes, int, bytes] | None:
        """Return (tag, partition, id) of a row's key, None for any other key."""
        found = self._row.fullmatch(key)
        return (found[1], int(found[2]), found[3]) if found else None

    def calls(self, ids: Sequence[str], partitions: npt.NDArray[np.int32], rows_max: int) -> list[Call]:
        """Cut rows into calls of at most `rows_max`, each of one bucket."""
        keys, slot = self._bulk(ids, partitions)
        order = np.argsort(slot, kind="stable").astype(np.int64)
        keys, slot = keys.take(pa.array(order)), slot[order]
        found: list[Call] = []
        for group in np.split(np.arange(len(order)), np.flatnonzero(np.diff(slot)) + 1) if len(order) else ():
            for first in range(int(group[0]), int(group[-1]) + 1, rows_max):
                end = min(first + rows_max, int(group[-1]) + 1)
                owner, bucket = divmod(int(slot[first]), self.buckets)
                epoch = self._tag(owner, bucket) + b"!epoch"
                found.append(Call(owner, epoch, _piece(keys.slice(first, end - first)), order[first:end]))
        return found

    def calls_of(self, keys: Iterable[bytes]) -> Iterator[tuple[int, list[bytes]]]:
        """Group keys of rows by bucket: (partition, the epoch's key and theirs)."""
        by_tag: dict[tuple[bytes, int], list[bytes]] = {}
        for key in keys:
            found = self.parse(key)
            if found:
                by_tag.setdefault(found[:2], []).append(key)
        for (tag, partition), group in by_tag.items():
            yield partition, [tag + b"!epoch", *group]

    def _tag(self, partition: int, bucket: int) -> bytes:
        return b"{%b:%d:%d}" % (self.prefix.encode(), partition, bucket)


def _piece(keys: pa.Array) -> Bulk:
    return Bulk(len(keys), packed.content(keys))
