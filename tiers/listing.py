"""Every record that meets the criteria, in the order of ids, page by page.

By id, because nothing else stays: a record keeps its place whatever is updated, moved or restarted meanwhile, so one
that is there throughout a listing comes exactly once.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from tiers.criteria import Criteria
from tiers.deadline import Deadline
from tiers.errors import InvalidRecord, TierUnavailable
from tiers.reading import Reading
from tiers.scan import Scanner
from tiers.segment import View
from tiers.tier import Hit, Query, Result

IDS_MAX = 65_536  # ids looked up in one pass over the index
PAGE_BYTES = 16_777_216  # of payload: a page ends early there
FETCH_ROWS = 64  # rows fetched together: with the largest payloads 16 MB


async def page(reading: Reading, scanner: Scanner) -> Result:
    """Return the next `limit` records, fewer where they are large; InvalidRecord("cursor") for a foreign cursor.

    Where the deadline leaves segments unread no place in the order is certain: the answer is empty, incomplete, and
    goes on where it stood.
    """
    query = reading.query
    views = reading.views(facts=True)
    after = decode_cursor(query.cursor, query)
    ids, whole = await _ids(reading, scanner, views, after, query.limit + 1)
    live = sum(int(view.mask.sum()) for view in views)
    if not whole:
        reading.missed.update(reading.tiers)
        return Result([], cursor=query.cursor or encode_cursor("", query), of=live)
    hits: list[Hit] = []
    done = 0
    while done < min(len(ids), query.limit) and sum(len(hit.row.payload) for hit in hits) < PAGE_BYTES:
        hits += await _fetch(reading, ids[done : min(done + FETCH_ROWS, query.limit)])
        done = min(done + FETCH_ROWS, query.limit, len(ids))
    return Result(hits, cursor=encode_cursor(ids[done - 1], query) if done < len(ids) else None, scanned=live, of=live)


async def _fetch(reading: Reading, ids: Sequence[str]) -> list[Hit]:
    """Return these records, in this order; what was deleted meanwhile is left out."""
    rows = await reading.resolve(ids)
    return [Hit(*rows[identifier]) for identifier in ids if identifier in rows]


async def everything(reading: Reading, scanner: Scanner) -> AsyncIterator[list[Hit]]:
    """Yield every record that meets the criteria, some at a time; TierUnavailable when a tier does not answer."""
    after, more = "", True
    while more:
        views = reading.views(facts=True)
        ids, _ = await _ids(reading, scanner, views, after, IDS_MAX)
        more = len(ids) == IDS_MAX
        for start in range(0, len(ids), FETCH_ROWS):
            hits = await _fetch(reading, ids[start : start + FETCH_ROWS])
            if reading.missed:
                names = ", ".join(sorted(name.word for name in reading.missed))
                raise TierUnavailable(f"{names} did not answer: the listing cannot be complete")
            yield hits
        after = ids[-1] if ids else after


async def _ids(reading: Reading, scanner: Scanner, views: list[View], after: str, count: int) -> tuple[list[str], bool]:
    """Return the first `count` ids beyond `after`, in order, and whether every segment was read."""
    deadline = reading.deadline
    job = partial(_first, views, reading.criteria, after, count, deadline)
    (found,) = await scanner.on_threads(deadline, [job])
    return sorted(identifier for ids in found for identifier in ids)[:count], len(found) == len(views)


def _first(
    views: Sequence[View], criteria: Criteria | None, after: str, count: int, deadline: Deadline
) -> Iterator[list[str]]:
    """Yield each segment's first `count` ids beyond `after`."""
    for view in views:
        if deadline.passed:
            return
        assert view.facts is not None, "a listing asks for facts"
        mask = view.mask if criteria is None else view.mask & criteria.mask(view.facts, view.event_time)
        ids = view.facts.column("id").filter(pa.array(mask))
        ids = ids.filter(pc.greater(ids, after))
        if len(ids) > count:
            ids = ids.take(pc.select_k_unstable(ids, count, sort_keys=[("id", "ascending")]))
        yield ids.to_pylist()


# -- cursors -----------------------------------------------------------------------------------------------------------


def encode_cursor(after: str, query: Query) -> str:
    """Return the place after an id in the listing that `query` asks for."""
    body = msgspec.json.encode([after, _fingerprint(query)])
    return base64.urlsafe_b64encode(body).decode().rstrip("=")


def decode_cursor(cursor: str | None, query: Query) -> str:
    """Return the id after which to go on, "" at the beginning; InvalidRecord("cursor") for a foreign cursor."""
    if cursor is None:
        return ""
    try:
        body = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        after, fingerprint = msgspec.json.decode(body, type=tuple[str, str])
    except (ValueError, msgspec.DecodeError, RecursionError) as error:
        raise InvalidRecord("cursor", "the cursor is not one that this listing gave") from error
    if fingerprint != _fingerprint(query):
        raise InvalidRecord(
            "cursor", "the cursor belongs to another question: filter, times and tiers must be the same"
        )
    return after


def _fingerprint(query: Query) -> str:
    spaces = None if query.namespaces is None else sorted(query.namespaces)
    asked = (query.filter, query.time_from_ms, query.time_to_ms, sorted(query.tiers), spaces)
    return hashlib.blake2b(repr(asked).encode("utf-8", "replace"), digest_size=6).hexdigest()
