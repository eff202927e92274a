"""An answer that streams ends when what allowed it does: as if its client had gone, and without another byte.

The route is told by `http.disconnect`, for which it has to be ready anyway: a generator that is cut off inside `send`
would hold its Kafka consumer until it is collected. One that goes on all the same gets an error from `send`. The server
closes the connection, because the answer was never completed: nobody takes it for whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tiers.errors import IsothermError


class Ended(IsothermError):
    """An answer goes on after its end."""


async def until_ended(app: ASGIApp, scope: Scope, receive: Receive, send: Send, still: Callable[[], bool]) -> bool:
    """Run the application while `still`, which is asked before each part of a stream; returns whether it was cut."""
    ended, asked = asyncio.Event(), False

    async def watched(message: Message) -> None:
        if ended.is_set():
            raise Ended("this answer has ended")
        if message.get("more_body") and not still():
            ended.set()
            return
        await send(message)

    async def heard() -> Message:
        nonlocal asked
        if not asked:
            message = await receive()
            asked = not message.get("more_body")
            return message
        waits = asyncio.ensure_future(receive()), asyncio.ensure_future(ended.wait())
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return waits[0].result() if waits[0].done() else {"type": "http.disconnect"}

    try:
        await app(scope, heard, watched)
    except Exception:
        if not ended.is_set():
            raise
    return ended.is_set()
