"""The client for asyncio: drives calls and exchanges over httpx. Its verbs are those of `client_sync`, one for one."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx
import pyarrow as pa

from pipeline import client_calls as calls
from pipeline.client_exchange import Answer, Attempt, Call, Fault, Limits, Pause, exchange, fault_of
from pipeline.client_questions import Criteria, Publishing, Reading, Retrieving, Searching
from pipeline.client_results import Memory, Result, SqlResult
from pipeline.client_settings import CONNECT_S, GATEWAY, LIMITS, RETRIES, TIMEOUT_S, base_of, headers_of, verify_of
from pipeline.client_streams import AGAIN_MAX, Announced, Batches, Feed, Lines, Taking, cut_short
from tiers.errors import IsothermError
from tiers.record import Floats

T = TypeVar("T")


class AsyncClient:
    """A gateway from elsewhere. Each verb answers with plain values or raises an error of `client_errors`.

    `key` is an API key (ISOTHERM_KEY where it is not given); `timeout_s` bounds a call with all its tries; `retries`
    are tries after the first, of what may be tried again. Use it as an async context manager; calls may run at once.
    """

    def __init__(
        self, url: str = GATEWAY, *, key: str | None = None, timeout_s: float = TIMEOUT_S, retries: int = RETRIES
    ) -> None:
        self.url = base_of(url)
        self._limits = Limits(retries, timeout_s)
        self._http = httpx.AsyncClient(
            base_url=self.url, headers=headers_of(key), limits=LIMITS, verify=verify_of(self.url)
        )

    def __repr__(self) -> str:
        return f"<AsyncClient of {self.url}>"

    async def __aenter__(self) -> Self:
        """Return the client."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close its connections."""
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    # -- writing -------------------------------------------------------------------------------------------------------

    async def store(self, memories: pa.RecordBatch | pa.Table | Iterable[Mapping[str, Any]]) -> str:
        """Publish memories in one request, all or none; returns the token for `at_least`.

        Mappings have `id`, `vector` (any row of numbers) or `text`, and what `publish` takes; Arrow has the columns of
        an Arrow event. Refused names the position. Never sent twice: NoAnswer where it is not known what became of it.
        """
        return await self._ask(calls.store(memories))

    async def publish(
        self, identifier: str, vector: Floats | Iterable[float] | None = None, **more: Unpack[Publishing]
    ) -> str:
        """Publish one memory, by its vector or by `text`; returns the token."""
        return await self._ask(calls.store([{"id": identifier, "vector": vector, **more}]))

    async def publish_body(self, body: bytes, kind: str) -> str:
        """Publish an encoded body of content type `kind` (JSON, NDJSON, msgpack or Arrow); returns the token."""
        return await self._ask(calls.publish_body(body, kind))

    async def delete(self, identifier: str) -> str:
        """Publish a delete; returns the token."""
        return await self._ask(calls.delete(identifier))

    async def promote(self, identifier: str) -> dict[str, Any]:
        """Hint that a memory is wanted in hot; NotFound."""
        return await self._ask(calls.hint(identifier, "promote"))

    async def demote(self, identifier: str) -> dict[str, Any]:
        """Hint that a memory may go down; NotFound, Conflict in the lowest tier."""
        return await self._ask(calls.hint(identifier, "demote"))

    async def clear(self, tier: str) -> int:
        """Delete, for good, every memory whose home is this tier; returns how many."""
        return await self._ask(calls.clear(tier))

    # -- asking --------------------------------------------------------------------------------------------------------

    async def get(self, identifier: str, **asked: Unpack[Reading]) -> Memory | None:
        """Return the newest version of a memory, None where there is none."""
        return await self._ask(calls.get(identifier, asked))

    async def search(self, *, arrow: bool = False, **asked: Unpack[Searching]) -> Result:
        """Return the nearest memories; `arrow` asks for an Arrow answer, which `to_arrow()` then gives as it came."""
        return await self._ask(calls.search(asked, arrow=arrow))

    async def search_many(self, asked: Iterable[Searching]) -> list[Result]:
        """Return the answers of several searches, asked at once, in their order."""
        return await self._ask(calls.search_many(asked))

    async def retrieve(self, *, arrow: bool = False, **asked: Unpack[Retrieving]) -> Result:
        """Return memories by `ids`, or one page of those that meet the criteria."""
        return await self._ask(calls.retrieve(asked, arrow=arrow))

    def retrieve_all(self, **asked: Unpack[Criteria]) -> AsyncGenerator[Memory, None]:
        """Yield every memory that meets the criteria, by id, as they arrive. ServiceMissing where it breaks off."""
        return self._stream(calls.everything(asked, arrow=False), Lines())

    def retrieve_batches(self, **asked: Unpack[Criteria]) -> AsyncGenerator[pa.RecordBatch, None]:
        """Yield the same as Arrow batches with the record columns and `tier`: the way to volume."""
        return self._stream(calls.everything(asked, arrow=True), Batches())

    async def sql(self, query: str, deadline_ms: float | None = None, *, arrow: bool = False) -> SqlResult:
        """Return the answer to one read-only statement, and how old the snapshot is that it comes from."""
        return await self._ask(calls.sql(query, deadline_ms, arrow=arrow))

    async def snapshot(self, name: str) -> dict[str, Any]:
        """Back the node up under a name, however long that takes; returns what was written."""
        return await self._ask(calls.operate("snapshots", {"name": name}))

    async def verify(self, *, repair: bool = False) -> dict[str, Any]:
        """Cross-check all tiers, however long that takes; `repair` mends what is derived. Returns what was found."""
        return await self._ask(calls.operate("verify", {"repair": repair}))

    async def reindex(self) -> dict[str, Any]:
        """Ask for a new codebook; returns what is said of the codes. Progress is in `tiers()["codes"]`."""
        return await self._ask(calls.operate("index:reindex", {}))

    async def tiers(self) -> dict[str, Any]:
        """Return what each tier holds against its limits, and what moves between them."""
        return await self._ask(calls.tiers())

    async def why(self, identifier: str) -> dict[str, Any] | None:
        """Return where a memory is, which rule put it there and what moves it next; None where there is none."""
        return await self._ask(calls.why(identifier))

    async def changes(self, start: str = "end", *, reconnect_s: float = 60.0) -> AsyncGenerator[Announced, None]:
        """Yield tier changes as they are announced, across lost connections: each goes on after the last cursor.

        `start` is "beginning", "end" or a cursor. ServiceMissing, which names the cursor, when no gateway was there for
        `reconnect_s`.
        """
        feed, limits = Feed(start, self.url), self._limits
        while True:
            try:
                async with self._open(calls.changes(feed.params(), feed.headers()), limits, read_s=None) as response:
                    feed.connected()
                    async for part in response.aiter_bytes():
                        for announced in feed.take(part):
                            yield announced
            except httpx.TransportError:
                pass  # the feed goes on where it was
            except IsothermError as error:
                raise feed.given_up(error) from error
            await asyncio.sleep(feed.pause_s)
            limits = Limits(AGAIN_MAX, reconnect_s)

    # -- inside --------------------------------------------------------------------------------------------------------

    async def _ask(self, call: Call[T]) -> T:
        return await self._drive(call, self._limits.of(call), self._try)

    async def _drive(self, call: Call[T], limits: Limits, send: Callable[[Attempt], Awaitable[Answer | Fault]]) -> T:
        steps = exchange(call, self.url, limits, time.monotonic, random.random)
        outcome: Answer | Fault | None = None
        try:
            while True:
                step = steps.send(outcome)
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                else:
                    outcome = await send(step)
        except StopIteration as done:
            value: T = done.value
            return value

    async def _try(self, attempt: Attempt) -> Answer | Fault:
        """Send once and read the whole answer within the time of the attempt."""
        try:
            async with asyncio.timeout(attempt.left_s):
                response = await self._http.send(self._request(attempt, attempt.left_s), stream=True)
                try:
                    body = await response.aread()
                finally:
                    await response.aclose()
        except (httpx.TransportError, httpx.DecodingError, TimeoutError) as error:
            return fault_of(error)
        return Answer(response.status_code, response.headers, body)

    def _request(self, attempt: Attempt, read_s: float | None) -> httpx.Request:
        call = attempt.call
        timeout = httpx.Timeout(attempt.left_s, read=read_s, connect=min(CONNECT_S, attempt.left_s))
        return self._http.build_request(
            call.method, call.path, params=call.params, headers=call.headers, content=call.content, timeout=timeout
        )

    @asynccontextmanager
    async def _open(
        self, call: Call[httpx.Response], limits: Limits, read_s: float | None
    ) -> AsyncIterator[httpx.Response]:
        """Yield the open response of a call that streams; `read_s` bounds the silence between two parts of it."""

        async def send(attempt: Attempt) -> Answer | Fault:
            try:
                response = await self._http.send(self._request(attempt, read_s), stream=True)
                if response.is_success:
                    return Answer(response.status_code, response.headers, b"", response)
                try:
                    return Answer(response.status_code, response.headers, await response.aread())
                finally:
                    await response.aclose()
            except httpx.TransportError as error:
                return fault_of(error)

        response = await self._drive(call, limits, send)
        try:
            yield response
        finally:
            await response.aclose()

    async def _stream(self, call: Call[httpx.Response], reader: Taking[T]) -> AsyncGenerator[T, None]:
        async with self._open(call, self._limits, self._limits.deadline_s) as response:
            with cut_short(self.url):
                async for part in response.aiter_bytes():
                    for each in reader.take(part):
                        yield each
                reader.end()
