"""The dead letters over HTTP: the newest, as `isotherm dead-letters list` shows them, and how each value begins."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pipeline import dead_letters
from pipeline.answers import answer_json
from pipeline.dead_letters import Listed
from pipeline.operation import LETTERS_MAX
from pipeline.paths import Handler
from pipeline.settings import Settings
from pipeline.why import time_text
from tiers.errors import InvalidRecord

SCANNED = 1_000  # messages of each partition that one look reads, the newest
LOOKS = 2  # at once; each has a Kafka consumer
VALUE_CHARS = 2_000


class Letterbox:
    """The dead-letter topic of one installation."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._looks = asyncio.Semaphore(LOOKS)

    def handlers(self) -> dict[str, Handler]:
        """Return the handlers by operation."""
        return {"deadLetters": self.newest}

    async def newest(self, request: Request) -> Response:
        """GET /v1/dead-letters: the newest, newest first."""
        limit = _limit(request.query_params.get("limit", "20"))
        async with self._looks:
            found = await dead_letters.newest(self._settings, limit, SCANNED, request.query_params.get("reason"))
        return answer_json({"letters": [_shown(each) for each in reversed(found)], "scanned": SCANNED})


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= LETTERS_MAX):
        raise InvalidRecord("limit", f"limit is 1 to {LETTERS_MAX}")
    return int(text)


def _shown(listed: Listed) -> dict[str, Any]:
    value = listed.letter.value
    text = None if value is None else value[: 4 * VALUE_CHARS].decode("utf-8", "backslashreplace")[:VALUE_CHARS]
    return {**dead_letters.shown(listed), "at": time_text(listed.at), "value": text}
