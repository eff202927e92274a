"""What the gateway says of itself: /openapi.json, /asyncapi.json and /docs. Made once; they hold no data."""

from __future__ import annotations

import hashlib

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from pipeline import openapi, reference
from pipeline.edge import Handler
from pipeline.operation import HTML_TYPE
from pipeline.settings import Settings
from producers import asyncapi
from producers.events import JSON_TYPE

#: Nothing comes from elsewhere, and nothing runs: the page has no script.
POLICY = "default-src 'self'; script-src 'none'; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"


class Descriptions:
    """The documents of one gateway."""

    def __init__(self, settings: Settings) -> None:
        document = openapi.document(settings)
        topics = asyncapi.document(settings.kafka, settings.dim, settings.attributes)
        self._texts = {
            "openapi": (msgspec.json.encode(document), JSON_TYPE),
            "asyncapi": (msgspec.json.encode(topics), JSON_TYPE),
            "docs": (reference.page(document).encode(), HTML_TYPE),
        }

    def handlers(self) -> dict[str, Handler]:
        """Return the handlers by operation."""
        return {name: self._handler(name) for name in self._texts}

    def _handler(self, name: str) -> Handler:
        text, kind = self._texts[name]
        tag = f'"{hashlib.blake2b(text, digest_size=12).hexdigest()}"'
        headers = {"ETag": tag, "Cache-Control": "no-cache", "Content-Security-Policy": POLICY}
        headers["X-Content-Type-Options"] = "nosniff"

        async def answer(request: Request) -> Response:
            known = request.headers.get("if-none-match", "")
            if known == "*" or tag in [each.strip().removeprefix("W/") for each in known.split(",")]:
                return Response(None, 304, headers)
            return Response(text, 200, headers, kind)

        return answer
