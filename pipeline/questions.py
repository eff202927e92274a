"""What requests ask: the structs that parse their bodies, and that the OpenAPI document shows.

Bounds that the settings decide (`k`, `limit`, floats in a vector) are checked where the question is asked, and put into
the document by `pipeline.openapi`; what is said of a field here is only said once.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from producers.events import TIME, Event
from tiers.tier import TierName

FIELDS = ("payload", "attributes", "vector")
DEFAULT_FIELDS = ("payload", "attributes")

_TIER = Annotated[str, Meta(extra_json_schema={"enum": [tier.word for tier in TierName]})]
_FIELD = Annotated[str, Meta(extra_json_schema={"enum": list(FIELDS)})]
#: 1 to 512 bytes of UTF-8; a pattern cannot count bytes.
ID_SCHEMA = {"minLength": 1, "maxLength": 512, "pattern": "^[^\\x00-\\x1f\\x7f-\\x9f]+$"}

Id = Annotated[str, Meta(description="1 to 512 bytes of UTF-8 without control characters", extra_json_schema=ID_SCHEMA)]
Filter = Annotated[
    str | None,
    Meta(description="A SQL condition over id, event_time and the declared attributes", examples=["score > 0.5"]),
]
From = Annotated[datetime | None, Meta(description="Event time, inclusive, with a time zone", extra_json_schema=TIME)]
To = Annotated[datetime | None, Meta(description="Event time, exclusive, with a time zone", extra_json_schema=TIME)]
Tiers = Annotated[list[_TIER] | None, Meta(description="Where to look, one at least; everywhere if absent")]
DeadlineMs = Annotated[
    float | None, Meta(description="ms that the answer may take: what was not reached is named in it")
]
AtLeast = Annotated[str | None, Meta(description="A token of a publish or a delete: wait until that write is applied")]
Include = Annotated[tuple[_FIELD, ...], Meta(description="What to show of each memory")]


class NewMemory(Event, kw_only=True):
    """One memory to publish. Exactly one of `vector`, `vector_b64` (little-endian float32) and `text` is given."""

    id: Id


class Asked(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What every question may say: which records, from which tiers, by when, and what of them to show."""

    filter: Filter = None
    time_from: From = msgspec.field(default=None, name="from")
    time_to: To = msgspec.field(default=None, name="to")
    tiers: Tiers = None
    deadline_ms: DeadlineMs = None
    at_least: AtLeast = None
    include: Include = DEFAULT_FIELDS


class Search(Asked, kw_only=True, forbid_unknown_fields=True):
    """The k nearest to exactly one of `vector`, `vector_b64`, `text` or the record `id`."""

    vector: Annotated[list[float] | None, Meta(description="Finite floats, not all zero")] = None
    vector_b64: Annotated[bytes | None, Meta(description="Little-endian float32")] = None
    text: Annotated[str | None, Meta(description="Words, where the node has an embedder")] = None
    id: Annotated[str | None, Meta(description="A memory that is there: search from its vector")] = None
    k: Annotated[int, Meta(description="How many", extra_json_schema={"minimum": 1})] = 10
    exact: Annotated[bool, Meta(description="Score every record that passes, rather than rely on codes")] = False
    explain: Annotated[bool, Meta(description="Say what was scanned and fetched, and how long each step took")] = False


class Searches(Search, kw_only=True, forbid_unknown_fields=True):
    """One search, or several as `queries` (and then nothing beside them)."""

    queries: Annotated[list[Search] | None, Meta(description="Several questions, answered in their order")] = None


class Retrieve(Asked, kw_only=True, forbid_unknown_fields=True):
    """Records by `ids`, or a page of those that meet the criteria; `cursor` goes on after the last page."""

    ids: Annotated[list[str] | None, Meta(description="The memories to look up; absent ones are left out")] = None
    limit: Annotated[int, Meta(description="Memories of a page", extra_json_schema={"minimum": 1})] = 100
    cursor: Annotated[str | None, Meta(description="Of the page before, with the same question")] = None


class SqlAsked(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One statement, and the ms it may take (at most sql.deadline_ms)."""

    query: Annotated[
        str, Meta(description="One SELECT", examples=["SELECT tier, count(*) FROM memories GROUP BY tier"])
    ]
    deadline_ms: DeadlineMs = None


class SnapshotAsked(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The name of the snapshot to make."""

    name: Annotated[str, Meta(description="1 to 64 letters, digits, dots, dashes or underscores")]


class VerifyAsked(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Whether to put right what is derived."""

    repair: Annotated[bool, Meta(description="Put right what is derived: side file, index")] = False
