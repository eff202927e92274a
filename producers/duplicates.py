"""Duplicate keys: the JSON parser keeps the last value silently, and a message that says two things is refused.

Exact and nearly free: every key has two quotation marks. A decoded event says how many its bytes must have (payload
apart, which is opaque and counted as it came); when the bytes have more, a slow parser that sees every key decides.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from producers.events import Event
from tiers.errors import InvalidRecord


def refuse(value: bytes, event: Event, identifier: str | None = None) -> None:
    """Raise InvalidRecord("duplicate_key") when a key comes twice in an event's JSON or its attributes.

    `identifier` is the value of a further key `id` (HTTP).
    """
    if value.count(b'"') != _quotes(event, identifier):
        _look(value)


def _quotes(event: Event, identifier: str | None) -> int:
    """Return how many quotation marks the JSON of this event has when no key comes twice; -1 when that is not sure."""
    marks = 0 if event.vector is None else 2
    if event.vector_b64 is not None:
        marks += 4
    if event.event_time is not None:
        marks += 4
    if event.ttl_s is not None:
        marks += 2
    if event.payload is not msgspec.UNSET:
        marks += 2 + bytes(event.payload).count(b'"')
    for text in (event.text, identifier):
        if text is not None:
            marks += 4
            if '"' in text:  # as \" or as \u0022: not sure
                return -1
    return marks if event.attributes is None else _with_attributes(marks + 2, event.attributes)


def _with_attributes(marks: int, attributes: Mapping[str, Any]) -> int:
    for name, item in attributes.items():
        marks += 2
        if isinstance(item, str):
            marks += 2
            if '"' in item:
                return -1
        elif isinstance(item, list | dict):
            return -1
        if '"' in name:
            return -1
    return marks


class _Pairs(list[tuple[str, Any]]):
    """An object as the parser found it."""


def _look(value: bytes) -> None:
    try:
        whole = json.loads(value, object_pairs_hook=_Pairs, parse_int=len, parse_float=len)
    except RecursionError as error:
        raise InvalidRecord("json", "the event is nested too deeply") from error
    _once(whole)
    for name, item in whole:
        if name == "attributes" and isinstance(item, _Pairs):
            _once(item)


def _once(pairs: Sequence[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise InvalidRecord("duplicate_key", f"{name[:64]!r} comes twice; the event does not say what it means")
        seen.add(name)


def refuse_packed(value: bytes, known: int) -> None:
    """Raise InvalidRecord("duplicate_key") when a msgpack map that was read as `known` keys has more than those."""
    said = _pairs_of(value)
    if said != known and len(msgspec.msgpack.decode(value, type=dict[str, msgspec.Raw])) != said:
        raise InvalidRecord("duplicate_key", "a key comes twice; the event does not say what it means")


def _pairs_of(value: bytes) -> int:
    """Return how many pairs the msgpack map has that these bytes begin with."""
    first = value[0]
    return first & 0x0F if first & 0xF0 == 0x80 else int.from_bytes(value[1 : 3 if first == 0xDE else 5], "big")
