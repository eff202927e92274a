"""What the gateway says of itself: /openapi.json, /asyncapi.json and /docs. Made once; they hold no data."""

from __future__ import annotations

import msgspec

from pipeline import openapi, reference
from pipeline.held import Held
from pipeline.operation import HTML_TYPE
from pipeline.paths import Handler
from pipeline.settings import Settings
from producers import asyncapi
from producers.events import JSON_TYPE

#: Nothing comes from elsewhere, and nothing runs: the page has no script.
POLICY = "default-src 'self'; script-src 'none'; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"


def descriptions(settings: Settings) -> dict[str, Handler]:
    """Return the handlers by operation."""
    document = openapi.document(settings)
    topics = asyncapi.document(settings.kafka, settings.dim, settings.attributes)
    texts = {
        "openapi": (msgspec.json.encode(document), JSON_TYPE),
        "asyncapi": (msgspec.json.encode(topics), JSON_TYPE),
        "docs": (reference.page(document).encode(), HTML_TYPE),
    }
    return {name: Held(text, kind, POLICY).answer for name, (text, kind) in texts.items()}
