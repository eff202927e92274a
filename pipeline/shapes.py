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
    """What a search did: counts, rows fetched by tier, and ms by step."""

    looks: int
    segments: int
    by_vector: int
    by_code: int
    candidates: int
    reranked: int
    rechecked: int
    bytes_read: int
    fetched: Counts
    steps_ms: dict[str, float]


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


class Tiers(_Answer):
    """What each tier holds against its limits, and what moves between them. `at` in s since 1970."""

    tiers: dict[str, TierState]
    archive: Census
    moved: list[Flow]
    copies: Copies
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
    next: NextMove
    policy: PolicySettings
    superseded: list[Superseded]
    history: list[Step]
    looked: Looked
