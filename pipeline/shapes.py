"""What answers look like: structs for the OpenAPI document alone.

The routes write plain values, because a hot search must not pay for structs; tests hold what they write against these
(`tests/pipeline/test_openapi.py`), so that neither can change without the other.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from producers.events import TIME
from tiers.census import Census
from tiers.policy import PolicySettings

Version = Annotated[str, Meta(description="log epoch.offset.row: comparable within one id", pattern=r"^\d+\.\d+\.\d+$")]
Token = Annotated[str, Meta(description="Opaque: give it as `at_least`, and a read sees this write")]
Tier = Literal["hot", "warm", "cold", "glacier"]
When = Annotated[datetime, Meta(extra_json_schema=TIME)]
Counts = dict[str, int]


class _Answer(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """An object with exactly these fields."""


class Problem(msgspec.Struct, kw_only=True):
    """RFC 9457. `type` is stable; `field` names what is wrong with a request, `position` which memory of a body."""

    type: Annotated[str, Meta(description="urn:isotherm:…, stable")]
    title: str
    status: int
    detail: Annotated[str, Meta(description="A sentence for people")]
    field: str | UnsetType = UNSET
    reason: Annotated[str, Meta(description="Why a memory was refused: a stable short code")] | UnsetType = UNSET
    position: Annotated[int, Meta(description="Of the refused memory, from 0")] | UnsetType = UNSET
    missed: Annotated[list[Tier], Meta(description="Tiers that did not answer")] | UnsetType = UNSET
    partitions: list[int] | UnsetType = UNSET
    request_id: Annotated[str, Meta(description="What to search the node's log for")] | UnsetType = UNSET


class Published(_Answer):
    """Everything is in the log."""

    token: Token
    published: int


class Deleted(_Answer):
    """The tombstone is in the log."""

    token: Token


class Memory(_Answer):
    """One memory. `payload` is what was published; base64 text where it is no JSON; null where there is none."""

    id: str
    tier: Annotated[Tier, Meta(description="Where it was read")]
    version: Version
    event_time: When
    expires_at: When | UnsetType = UNSET
    payload: Any | UnsetType = UNSET
    attributes: dict[str, Any] | UnsetType = UNSET
    vector: list[float] | UnsetType = UNSET
    truncated: (
        Annotated[
            Literal[True],
            Meta(description="payload, attributes and vector were left out: the answer is at answer_bytes_max"),
        ]
        | UnsetType
    ) = UNSET


class Hit(Memory, kw_only=True, forbid_unknown_fields=True):
    """A memory that was found, and its score."""

    score: float


class Searched(_Answer):
    """What a tier had to do with a search."""

    rows: int
    took_ms: float


class Freshness(_Answer):
    """The offsets applied, by partition, and how many ms the slowest partition is behind the log."""

    applied: Counts
    lag_ms: int


class Explanation(_Answer):
    """What a search did: counts, vectors and rows fetched by tier, and ms by step.

    A key of some namespaces is not told what counts others' records too.
    """

    looks: int
    candidates: int
    reranked: int
    rechecked: int
    fetched: Counts
    steps_ms: dict[str, float]
    shared: Annotated[int, Meta(description="Other questions that the scan answered too")] | UnsetType = UNSET
    segments: int | UnsetType = UNSET
    by_vector: int | UnsetType = UNSET
    by_code: int | UnsetType = UNSET
    skipped: Annotated[int, Meta(description="Candidates left out at glacier.search_groups_max")] | UnsetType = UNSET
    row_groups: Annotated[int, Meta(description="Read from files beyond the cache")] | UnsetType = UNSET
    rows: Annotated[int, Meta(description="Fetched whole, for the answer")] | UnsetType = UNSET
    bytes_read: int | UnsetType = UNSET


class Completeness(_Answer):
    """How complete an answer is. `missed` names tiers of which something was not looked at."""

    complete: bool
    searched: dict[str, Searched]
    missed: list[Tier]
    scanned: Annotated[int, Meta(description="Records looked at…")]
    of: Annotated[int, Meta(description="…of those in the tiers asked")]
    freshness: Freshness
    took_ms: float
    truncated: Annotated[int, Meta(description="Hits shown without their fields, at answer_bytes_max")] | UnsetType = (
        UNSET
    )
    explain: Explanation | UnsetType = UNSET


class SearchAnswer(Completeness, kw_only=True, forbid_unknown_fields=True):
    """The nearest, best first."""

    hits: list[Hit]


class SearchAnswers(_Answer):
    """An answer to each of `queries`, in their order."""

    results: list[SearchAnswer]


class Page(Completeness, kw_only=True, forbid_unknown_fields=True):
    """Memories by id, or a page of a listing; `cursor` is null on the last page."""

    hits: list[Memory]
    cursor: str | None


class TierState(_Answer):
    """What a tier holds; limits of 0 are none."""

    records: int
    tombstones: int
    queued: Annotated[int, Meta(description="Superseded rows that wait for their eviction")]
    rows: int
    bytes: int
    rows_limit: int
    bytes_limit: int


class Flow(_Answer):
    """Records moved since the start."""

    source: str | None = msgspec.field(name="from")
    target: str | None = msgspec.field(name="to")
    records: int


class Copies(_Answer):
    """Promoted copies in hot."""

    records: int
    records_max: int
    promoted: int
    evicted: Counts


class Progress(_Answer):
    """How many segments have codes by the new codebook, of how many."""

    segments: int
    of: int


class Codes(_Answer):
    """`codebook` is its name, null before one is trained. `coded` rows are scanned by code, `waiting` by vector.

    `bytes` are those of both, `bytes_limit` 0 = none; `kept` codes are in the file for the next start; `recall` is of
    sampled questions, null before the first.
    """

    codebook: str | None
    coded: int
    waiting: int
    bytes: int
    bytes_limit: int
    kept: int
    recall: float | None
    reindex: Progress | None


class Live(_Answer):
    """How many live records a key's namespaces have in a tier."""

    records: int


class TiersOfNamespaces(_Answer):
    """What a key of some namespaces is told: its own records by the tier they are read in. `at` in s since 1970."""

    namespaces: list[str]
    tiers: dict[str, Live]
    replaying: list[int]
    freshness: Freshness
    at: float


class Tiers(_Answer):
    """What each tier holds against its limits, and what moves between them. `at` in s since 1970."""

    tiers: dict[str, TierState]
    archive: Census
    moved: list[Flow]
    copies: Copies
    codes: Codes
    reads: Counts
    ingested: int
    dead_letters: Counts
    dirty: Counts
    watermark: Counts
    paused: list[int]
    replaying: list[int]
    freshness: Freshness
    at: float


class Cleared(_Answer):
    """How many records were deleted for good."""

    tier: Tier
    cleared: int


class Hinted(_Answer):
    """What was hinted. Not `certain`: the policy decides."""

    id: str
    tier: Tier
    hint: str
    certain: Literal[False]


class LastMove(_Answer):
    """The move that brought a record where it is; `from` is null where it is not known."""

    source: Tier | None = msgspec.field(name="from")
    target: Tier | None = msgspec.field(name="to")
    reason: str
    at: When


class NextMove(_Answer):
    """Which rule moves a record next, and in how many seconds at the earliest if nobody reads it."""

    rule: str
    target: Tier | None = msgspec.field(name="to")
    in_s: float | None
    text: str


class Superseded(_Answer):
    """An older version that waits for its eviction."""

    tier: Tier
    version: Version


class Step(_Answer):
    """One move of a record, as the changes topic tells it."""

    at: When
    kind: Literal["home", "copy"]
    source: Tier | None = msgspec.field(name="from")
    target: Tier | None = msgspec.field(name="to")
    reason: str
    version: Version
    offset: int


class Looked(_Answer):
    """How far back the changes topic was looked at."""

    from_offset: int
    to_offset: int
    begin_offset: int
    complete: bool
    took_ms: float


class Decided(_Answer):
    """What the last move was decided by, as the age topic told it then; `usage` is how full each tier was."""

    at: When
    reason: str
    age_s: float
    idle_s: float
    heat: float
    usage: dict[str, float]


class Why(_Answer):
    """Where a record is, which rule put it there, and which will move it next."""

    id: str
    partition: int
    version: Version
    deleted: bool
    tier: Tier
    copy_in_hot: bool
    event_time: When
    expires_at: When | None
    last_read: When
    age_s: float
    idle_s: float
    heat: float
    because: str
    last_move: LastMove | None
    decided: Decided | None
    usage: Annotated[dict[str, float], Meta(description="How full each tier is")]
    next: NextMove
    policy: PolicySettings
    superseded: list[Superseded]
    history: list[Step]
    looked: Looked


class KeyRights(_Answer):
    """What a key may do; `namespaces` null means all, `key_id` "" whoever is trusted without a key."""

    key_id: str
    scopes: list[Literal["read", "write", "operate"]]
    namespaces: list[str] | None


class ShownLetter(_Answer):
    """An input that could not be applied. `row` of an Arrow message (null: the whole); `sha256` where it was too large.

    `value` is how its `bytes` begin, as text; null where there are none.
    """

    position: Annotated[str, Meta(description="partition:offset of the dead-letter topic")]
    at: When
    reason: str
    error: str
    topic: str
    partition: int
    offset: int
    row: int | None
    key: str | None
    namespace: str | None
    headers: dict[str, str]
    bytes: int
    sha256: str | None
    replayed: Annotated[bool, Meta(description="It was sent again")]
    value: str | None


class Letters(_Answer):
    """The newest dead letters, of the newest `scanned` messages of each partition of their topic."""

    letters: list[ShownLetter]
    scanned: int


class Table(_Answer):
    """What a statement found; `truncated` when sql.rows_max or sql.bytes_max cut it."""

    columns: list[str]
    types: list[str]
    rows: list[list[Any]]
    row_count: int
    truncated: bool
    snapshot_age_ms: Annotated[int, Meta(description="How long ago the snapshot was made that this is of")]


class Snapshot(_Answer):
    """A backup on the node's machine: `offsets` say by partition where the log goes on."""

    name: str
    path: str
    moved: Annotated[int, Meta(description="Records moved to glacier for it")]
    files: int
    rows: int
    bytes: int
    copied_bytes: int
    delta_version: int
    offsets: Counts


class Fault(_Answer):
    """One thing that is wrong."""

    kind: Literal["missing", "damaged", "orphan", "side", "cache", "file", "log", "offsets", "count"]
    tier: str
    id: str
    version: str
    partition: int
    detail: str
    repaired: bool


class Verified(_Answer):
    """What was looked at and what is wrong; `ok` when nothing is (any more)."""

    ok: bool
    checked: Counts
    looked_again: int
    problems_total: int
    problems: list[Fault]
    took_ms: float
