"""A change stream as an HTTP answer: server-sent events that a client can resume, and that end with a word.

`change` carries a Change; its id resumes after it. `dropped` says that the client was too slow or the log is lost, and
`closing` that the node stops; both carry where to resume. While nothing happens a comment shows that the stream lives,
with the id that is by now the place to resume at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from consumers.selection import Visible
from pipeline.audience import GONE, STOPPING, Client
from pipeline.bounds import ABORT
from pipeline.feed import ChangeFeed
from pipeline.operation import SSE_TYPE
from pipeline.settings import GatewaySettings

Put = Callable[[bytes], Awaitable[None]]


class ChangeStream(Response):
    """The stream of one client; what cannot begin raises before anything is sent."""

    media_type = SSE_TYPE

    def __init__(self, feed: ChangeFeed, limits: GatewaySettings, start: str, visible: Visible) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._feed, self._limits, self._start, self._visible = feed, limits, start, visible

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Join the feed, and write until the client, the node or Kafka ends it."""
        if scope["method"] == "HEAD":
            await super().__call__(scope, receive, send)
            return
        async with self._feed.joined(self._start, self._visible) as (client, catch_up):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with asyncio.TaskGroup() as group:
                beside = [
                    group.create_task(_hung_up(receive, client), name="stream-hung-up"),
                    group.create_task(_run(catch_up), name="stream-catch-up"),
                ]
                try:
                    await self._write(client, send)
                except TimeoutError:  # it takes nothing at all: there is no way left to tell it
                    scope.get("extensions", {}).get(ABORT, lambda: None)()
                for task in beside:
                    task.cancel()

    async def _write(self, client: Client, send: Send) -> None:
        async def put(data: bytes, *, more: bool = True) -> None:
            async with asyncio.timeout(self._limits.stream_stall_s):
                await send({"type": "http.response.body", "body": data, "more_body": more})

        await put(b"retry: 1000\nid: %s\n\n" % client.cursor.encode())
        while client.ended is None or client.waiting:
            told = client.cursor
            item = await client.take(self._limits.stream_keepalive_s)
            if item is not None:
                await put(b"id: %s\nevent: change\ndata: %s\n\n" % (item.cursor.encode(), item.data))
            elif client.ended is None:
                at = b"id: %s\n" % client.cursor.encode() if client.cursor != told else b""
                await put(b": keep-alive\n%s\n" % at)
        if client.ended != GONE:
            await put(_last(client), more=True)
            await put(b"", more=False)


def _last(client: Client) -> bytes:
    """Return the event that ends a stream."""
    assert client.ended is not None, "a stream ends with its client"
    name = b"closing" if client.ended == STOPPING else b"dropped"
    said: dict[str, Any] = {"reason": client.ended, "resume": client.cursor}
    return b"event: %s\ndata: %s\n\n" % (name, msgspec.json.encode(said))


async def _run(catch_up: Callable[[], Awaitable[None]]) -> None:
    await catch_up()


async def _hung_up(receive: Receive, client: Client) -> None:
    """End the client's stay when its connection has ended."""
    while (await receive())["type"] != "http.disconnect":
        pass
    client.end(GONE)
