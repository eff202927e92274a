"""The gateway from elsewhere: `Client` blocks, `AsyncClient` awaits; the same verbs, typed errors, safe retries.

    with Client("http://127.0.0.1:8080") as client:
        token = client.publish("id-1", vector, payload={"text": "…"})
        for hit in client.search(vector=vector, k=5, at_least=token).hits: ...

Both are thin shells around what does no I/O: client_calls (what a verb sends, how its answer is read), client_exchange
(when it is sent again), client_streams (server-sent events, JSON lines, Arrow), client_errors, client_results.
"""

from __future__ import annotations

from pipeline.client_async import AsyncClient
from pipeline.client_errors import (
    Conflict,
    DeadlineExceeded,
    Failed,
    Forbidden,
    GatewayError,
    NoAnswer,
    NotFound,
    Refused,
    Replaying,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from pipeline.client_results import Memory, Result, SqlResult
from pipeline.client_streams import Announced
from pipeline.client_sync import Client
from tiers.errors import ServiceMissing

__all__ = [
    "Announced",
    "AsyncClient",
    "Client",
    "Conflict",
    "DeadlineExceeded",
    "Failed",
    "Forbidden",
    "GatewayError",
    "Memory",
    "NoAnswer",
    "NotFound",
    "Refused",
    "Replaying",
    "Result",
    "ServiceMissing",
    "SqlResult",
    "TooManyRequests",
    "Unauthorized",
    "Unavailable",
]
