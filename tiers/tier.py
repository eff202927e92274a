"""What every tier is (the protocol), and the small values that pass between tiers and those who use them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from itertools import compress
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tiers.record import Floats, Int64s, Row
from tiers.trace import Trace


class TierName(IntEnum):
    """The four temperatures, top down; the number is what the index stores."""

    HOT = 0
    WARM = 1
    COLD = 2
    GLACIER = 3

    @property
    def word(self) -> str:
        """The name as users write it."""
        return WORDS[self]  # `name.lower()` costs five times that, and an answer has one for each hit


WORDS = tuple(tier.name.lower() for tier in TierName)
#: A slot for what has none: warm finds a row by its id.
NO_SLOT = -1


@dataclass(frozen=True, slots=True)
class Location:
    """Where one physical row lies. `slot` is the tier's own number (array row, table slot, file and row)."""

    id: str
    version: int
    partition: int
    slot: int = NO_SLOT


@dataclass(frozen=True, slots=True, eq=False)
class Places(Sequence[Location]):
    """Where many physical rows lie, column by column: what moves or searches thousands has no object for each."""

    ids: Sequence[str]
    versions: Int64s
    partitions: npt.NDArray[Any]
    slots: Int64s

    @classmethod
    def of(cls, locations: Sequence[Location]) -> Places:
        """Return locations as columns; those that are columns already as they are."""
        if isinstance(locations, Places):
            return locations
        columns = [[getattr(where, name) for where in locations] for name in ("version", "partition", "slot")]
        return cls([where.id for where in locations], *(np.array(column, np.int64) for column in columns))

    @classmethod
    def joined(cls, parts: Sequence[Places]) -> Places:
        """Return places one after another."""
        if len(parts) == 1:
            return parts[0]
        none = np.zeros(0, np.int64)
        columns = ([none, *(getattr(part, name) for part in parts)] for name in ("versions", "partitions", "slots"))
        return cls([identifier for part in parts for identifier in part.ids], *map(np.concatenate, columns))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return Places(self.ids[at], self.versions[at], self.partitions[at], self.slots[at])
        return Location(self.ids[at], int(self.versions[at]), int(self.partitions[at]), int(self.slots[at]))

    def __iter__(self) -> Iterator[Location]:
        columns = (self.versions.tolist(), self.partitions.tolist(), self.slots.tolist())
        return (Location(*at) for at in zip(self.ids, *columns, strict=True))

    @property
    def keys(self) -> tuple[Sequence[str], list[int]]:
        """The ids and versions."""
        return self.ids, self.versions.tolist()

    def those(self, chosen: npt.NDArray[np.bool_]) -> Places:
        """Return the chosen ones, in order."""
        if chosen.all():
            return self
        ids = list(compress(self.ids, chosen.tolist()))
        return Places(ids, self.versions[chosen], self.partitions[chosen], self.slots[chosen])

    def without_slots(self) -> Places:
        """Return the same rows as they are known before they lie somewhere."""
        return replace(self, slots=np.full(len(self), NO_SLOT, np.int64))


#: In place of a vector that was left out: reading it would have passed a bound.
SKIPPED: Floats = np.empty(0, np.float32)


AT_ONCE_ROWS = 256  # read within one loop step at most: half a millisecond


class Vectors(NamedTuple):
    """float32[dim] for each place, None where another version or nothing lies there now, or SKIPPED.

    They may share memory with what they were read from. `row_groups` is how many were read from files for it.
    """

    found: list[Floats | None]
    row_groups: int = 0


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof that each (id, version) is durable in `tier`; the only thing that lets a source be evicted.

    `ids[i]`, `versions[i]` and `slots[i]` belong together: one entry for each distinct id of the stored batch.
    `held[i]` is the version that the tier now holds of it: higher than `versions[i]` where put-if-newer kept another.
    `proof` says what was waited for, in words ("fdatasync of the WAL", "reply under appendfsync always", …).
    """

    tier: TierName
    ids: Sequence[str]
    versions: Int64s
    slots: Int64s
    held: Int64s
    proof: str


#: What an answer may carry of a record beside its id, version and times.
FIELDS = frozenset({"payload", "attributes", "vector"})
WHOLE = frozenset({"payload", "attributes"})  # of these, what only a whole row has


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """What to retrieve: by `ids`, the `k` nearest to `vector`, or else every record that meets the criteria, by id.

    The criteria are `filter` (SQL over id, event_time and attributes), the range of event time [from, to) in ms since
    1970, and `namespaces`; they and `tiers` hold for all three kinds. An `exact` search scores every vector instead of
    relying on codes. A listing comes in pages of `limit`; `cursor` goes on after the last one. `deadline_ms` bounds the
    answer: what was not reached by then is named in it. `include` says what the rows of the answer must have beside
    id, version and times; what is not wanted need not be fetched.
    """

    ids: Sequence[str] | None = None
    vector: Floats | None = None
    k: int = 10
    exact: bool = False
    filter: str | None = None
    time_from_ms: int | None = None
    time_to_ms: int | None = None
    limit: int = 100
    cursor: str | None = None
    tiers: frozenset[TierName] = frozenset(TierName)
    namespaces: frozenset[str] | None = None
    deadline_ms: float | None = None
    at_least: str | None = None
    include: frozenset[str] = FIELDS
    explain: bool = False


@dataclass(frozen=True, slots=True)
class Hit:
    """One record found; `score` is None for a lookup by id."""

    row: Row
    tier: TierName
    score: float | None = None


@dataclass(slots=True)
class Result:
    """What was found, and how complete the answer is (R7)."""

    hits: list[Hit]
    complete: bool = True
    searched: dict[str, dict[str, float]] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)
    scanned: int = 0
    of: int = 0
    freshness: dict[str, Any] = field(default_factory=dict)
    took_ms: float = 0.0
    cursor: str | None = None  # of a listing: where the next page begins; None on the last
    trace: Trace | None = field(default=None, repr=False, compare=False)
    explain: dict[str, Any] | None = None  # what the read did (tiers/trace.py), if the query asked


@dataclass(frozen=True, slots=True)
class Usage:
    """Rows and bytes held, and the limits (0 = none set)."""

    rows: int
    bytes: int
    rows_limit: int = 0
    bytes_limit: int = 0

    @property
    def fraction(self) -> float:
        """How full, as the larger of the two fractions; 0.0 where no limit is set."""
        by_rows = self.rows / self.rows_limit if self.rows_limit else 0.0
        by_bytes = self.bytes / self.bytes_limit if self.bytes_limit else 0.0
        return max(by_rows, by_bytes)


class Tier(Protocol):
    """The five promised verbs (store, retrieve, retrieve_all, clear, cleanup) and what movement needs."""

    name: TierName

    async def store(self, batch: pa.RecordBatch) -> Receipt:
        """Put each row if newer than what the tier holds of its id; return only when durable."""

    async def retrieve(self, query: Query) -> Result:
        """Return what this tier alone knows of the query."""

    def retrieve_all(self) -> AsyncIterator[pa.RecordBatch]:
        """Yield every physical row, tombstones and superseded rows too, with its slot in a last column `slot`."""

    async def clear(self) -> None:
        """Delete everything the tier holds, durably."""

    async def cleanup(self) -> None:
        """Release threads, files and connections; the data stays."""

    async def get(self, locations: Sequence[Location]) -> list[Row | None]:
        """Return the rows at these locations; None where another version, or nothing, lies there now."""

    async def sizes(self, places: Places) -> Int64s:
        """Return about how many bytes the row at each place has, 0 where there is none: what a move of it holds."""

    async def gather(self, places: Places) -> tuple[pa.RecordBatch, npt.NDArray[np.bool_]]:
        """Return the rows that lie at these places as one batch, in order, and at which places there are any.

        What `get` gives, for moves: columns, and no view of each row.
        """

    async def vectors(self, places: Places, *, spent: int | None = 0) -> Vectors:
        """Return the vectors of the rows at these places, most wanted first; what would cost too much is skipped.

        `spent` row groups of files were read for the same query already; None: there is no bound. Tombstones have none.
        """

    def vectors_at_once(self, places: Places) -> Vectors | None:
        """Return what `vectors` would, in this loop step; None: it would have to wait for a disk, a server or a thread.

        At most AT_ONCE_ROWS: a loop step is not to last.
        """

    async def evict(self, keys: Sequence[Location], receipt: Receipt | None) -> int:
        """Drop exactly these rows, durably; without a receipt the caller vouches that they are superseded.

        Idempotent: what is not there (any more) is skipped. Returns how many rows were dropped.
        """

    async def usage(self) -> Usage:
        """Return rows and bytes held, with the limits."""
