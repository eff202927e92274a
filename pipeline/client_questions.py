"""What can be asked of the gateway and published to it, and how that is written on the wire. Pure."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypedDict

import numpy as np

from tiers.errors import InvalidRecord
from tiers.record import Floats

_NAMES = {"time_from": "from", "time_to": "to"}


class Criteria(TypedDict, total=False):
    """Which memories: a SQL condition, tiers by name, event times [from, to); and what of them to show."""

    filter: str | None
    tiers: Sequence[str] | None
    time_from: datetime | None
    time_to: datetime | None
    include: Sequence[str] | None


class Reading(Criteria, total=False):
    """A question with a deadline of the gateway's (ms) and the token of a write that it has to see."""

    deadline_ms: float | None
    at_least: str | None


class Searching(Reading, total=False):
    """The `k` nearest to exactly one of a vector, words, or the memory `id`."""

    vector: Floats | Sequence[float] | None
    text: str | None
    id: str | None
    k: int
    exact: bool
    explain: bool


class Retrieving(Reading, total=False):
    """Memories by `ids`, or a page of at most `limit` of those that meet the criteria; `cursor` goes on after one."""

    ids: Sequence[str] | None
    limit: int
    cursor: str | None


class Publishing(TypedDict, total=False):
    """What a memory carries beside id and vector (or text); `payload` anything that JSON can say."""

    text: str | None
    payload: Any
    attributes: Mapping[str, Any] | None
    event_time: datetime | None
    ttl_s: float | None


def vector_b64(vector: Floats | Sequence[float]) -> str:
    """Return a vector as base64 of little-endian float32; InvalidRecord for what is no row of numbers."""
    try:
        floats = np.asarray(vector, "<f4")
    except (ValueError, TypeError) as error:
        raise InvalidRecord("vector", f"a vector is a row of numbers: {error}") from error
    if floats.ndim != 1:
        raise InvalidRecord("vector", f"a vector is a row of numbers; this has the shape {floats.shape}")
    return base64.b64encode(floats.tobytes()).decode()


def question(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return a question as the gateway takes it; what is None was not asked."""
    given = {_NAMES.get(name, name): value for name, value in asked.items() if value is not None}
    if "vector" in given:
        given["vector_b64"] = vector_b64(given.pop("vector"))
    for name, value in given.items():
        if isinstance(value, datetime) and value.tzinfo is None:
            raise InvalidRecord(name, f"{name} needs a time zone, such as datetime.UTC")
    return given


def params_of(asked: Mapping[str, Any]) -> dict[str, str]:
    """Return criteria as a query string's parameters."""
    return {name: _text(value) for name, value in question(asked).items()}


def _text(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    return value if isinstance(value, str) else ",".join(value) if isinstance(value, Iterable) else str(value)
