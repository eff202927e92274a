"""Documents that a gateway makes once and keeps: each is answered with an ETag, under a policy for browsers."""

from __future__ import annotations

import hashlib

from starlette.requests import Request
from starlette.responses import Response


class Held:
    """One document; `answer` is 304 for whoever has it already."""

    def __init__(self, content: bytes, media_type: str, policy: str) -> None:
        self._content, self._media_type = content, media_type
        self._tag = f'"{hashlib.blake2b(content, digest_size=12).hexdigest()}"'
        self._headers = {
            "ETag": self._tag,
            "Cache-Control": "no-cache",
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }

    async def answer(self, request: Request) -> Response:
        """Answer a GET."""
        known = request.headers.get("if-none-match", "")
        if known == "*" or self._tag in [each.strip().removeprefix("W/") for each in known.split(",")]:
            return Response(None, 304, self._headers)
        return Response(self._content, 200, self._headers, self._media_type)
