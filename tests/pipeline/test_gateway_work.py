"""What the gateway does for a request, counted and not timed: a limit that is passed says that a layer has come back.

Counted are calls of Python and of C out of Python (`sys.setprofile`): of a read by id from the bytes that came to those
that are written, the server's protocol included; of a search from the ASGI application on, without the search.
"""

from __future__ import annotations

import base64
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from tests.pipeline.hot_gateway import DIM, Wire, asked, hot_gateway, rows_of, scope_of, settings_of
from tiers.tier import Hit, Query, Result, TierName

pytestmark = pytest.mark.unit

READ_CALLS = (86, 72)  # of Python, and of C
SEARCH_CALLS = (162, 133)  # with ten hits


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Count the calls that are made inside."""
    seen: Counter[str] = Counter()

    def count(_frame: FrameType, event: str, _argument: Any) -> None:
        seen[event] += 1

    sys.setprofile(count)
    try:
        yield seen
    finally:
        sys.setprofile(None)


async def test_a_read_by_id_takes_so_many_calls(tmp_path: Path) -> None:
    """From the bytes that come to the bytes that go."""
    wire = Wire(await hot_gateway(settings_of(tmp_path)))
    for number in range(4):  # the first pay for what is made once
        wire.get(f"/v1/memories/id-{4 * number}")
    with counting() as seen:
        answer = wire.get("/v1/memories/id-20")

    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert seen["call"] <= READ_CALLS[0], seen
    assert seen["c_call"] <= READ_CALLS[1], seen


async def test_a_search_takes_so_many_calls_beside_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands around `MemoryManager.retrieve`, for ten hits with payload and attributes."""
    gateway = await hot_gateway(settings_of(tmp_path))
    hits = [Hit(row, TierName.HOT, 0.5) for row in rows_of()[:40:4]]

    async def found(_: Query) -> Result:
        return Result(hits, scanned=64, of=64)

    monkeypatch.setattr(gateway._manager, "retrieve", found)
    vector = base64.b64encode(np.ones(DIM, np.float32).tobytes())
    body = b'{"vector_b64": "%s", "k": 10}' % vector
    for _ in range(3):
        await asked(gateway, scope_of("/v1/search", "POST", content_type="application/json"), body)
    scope = scope_of("/v1/search", "POST", content_type="application/json")
    with counting() as seen:
        status, _, answer = await asked(gateway, scope, body)

    assert (200, 10) == (status, answer.count(b'"score"'))
    assert seen["call"] <= SEARCH_CALLS[0], seen
    assert seen["c_call"] <= SEARCH_CALLS[1], seen
