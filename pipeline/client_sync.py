"""The blocking client: drives calls and exchanges over httpx. Its verbs are those of `client_async`, one for one."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
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


class Client:
    """A gateway from elsewhere. Each verb answers with plain values or raises an error of `client_errors`.

    `key` is an API key (ISOTHERM_KEY where it is not given); `timeout_s` bounds a call with all its tries; `retries`
    are tries after the first, of what may be tried again. Use it as a context manager, from one thread or many.
    """

    def __init__(
        self, url: str = GATEWAY, *, key: str | None = None, timeout_s: float = TIMEOUT_S, retries: int = RETRIES
    ) -> None:
        self.url = base_of(url)
        self._limits = Limits(retries, timeout_s)
        self._http = httpx.Client(base_url=self.url, headers=headers_of(key), limits=LIMITS, verify=verify_of(self.url))

    def __repr__(self) -> str:
        return f"<Client of {self.url}>"

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close its connections."""
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    # -- writing -------------------------------------------------------------------------------------------------------

    def store(self, memories: pa.RecordBatch | pa.Table | Iterable[Mapping[str, Any]]) -> str:
        """Publish memories in one request, all or none; returns the token for `at_least`.

        Mappings have `id`, `vector` (any row of numbers) or `text`, and what `publish` takes; Arrow has the columns of
        an Arrow event. Refused names the position. Never sent twice: NoAnswer where it is not known what became of it.
        """
        return self._ask(calls.store(memories))

    def publish(
        self, identifier: str, vector: Floats | Iterable[float] | None = None, **more: Unpack[Publishing]
    ) -> str:
        """Publish one memory, by its vector or by `text`; returns the token."""
        return self._ask(calls.store([{"id": identifier, "vector": vector, **more}]))

    def publish_body(self, body: bytes, kind: str) -> str:
        """Publish an encoded body of content type `kind` (JSON, NDJSON, msgpack or Arrow); returns the token."""
        return self._ask(calls.publish_body(body, kind))

    def delete(self, identifier: str) -> str:
        """Publish a delete; returns the token."""
        return self._ask(calls.delete(identifier))

    def promote(self, identifier: str) -> dict[str, Any]:
        """Hint that a memory is wanted in hot; NotFound."""
        return self._ask(calls.hint(identifier, "promote"))

    def demote(self, identifier: str) -> dict[str, Any]:
        """Hint that a memory may go down; NotFound, Conflict in the lowest tier."""
        return self._ask(calls.hint(identifier, "demote"))

    def clear(self, tier: str) -> int:
        """Delete, for good, every memory whose home is this tier; returns how many."""
        return self._ask(calls.clear(tier))

    # -- asking --------------------------------------------------------------------------------------------------------

    def get(self, identifier: str, **asked: Unpack[Reading]) -> Memory | None:
        """Return the newest version of a memory, None where there is none."""
        return self._ask(calls.get(identifier, asked))

    def search(self, *, arrow: bool = False, **asked: Unpack[Searching]) -> Result:
        """Return the nearest memories; `arrow` asks for an Arrow answer, which `to_arrow()` then gives as it came."""
        return self._ask(calls.search(asked, arrow=arrow))

    def search_many(self, asked: Iterable[Searching]) -> list[Result]:
        """Return the answers of several searches, asked at once, in their order."""
        return self._ask(calls.search_many(asked))

    def retrieve(self, *, arrow: bool = False, **asked: Unpack[Retrieving]) -> Result:
        """Return memories by `ids`, or one page of those that meet the criteria."""
        return self._ask(calls.retrieve(asked, arrow=arrow))

    def retrieve_all(self, **asked: Unpack[Criteria]) -> Iterator[Memory]:
        """Yield every memory that meets the criteria, by id, as they arrive. ServiceMissing where it breaks off."""
        return self._stream(calls.everything(asked, arrow=False), Lines())

    def retrieve_batches(self, **asked: Unpack[Criteria]) -> Iterator[pa.RecordBatch]:
        """Yield the same as Arrow batches with the record columns and `tier`: the way to volume."""
        return self._stream(calls.everything(asked, arrow=True), Batches())

    def sql(self, query: str, deadline_ms: float | None = None, *, arrow: bool = False) -> SqlResult:
        """Return the answer to one read-only statement, and how old the snapshot is that it comes from."""
        return self._ask(calls.sql(query, deadline_ms, arrow=arrow))

    def snapshot(self, name: str) -> dict[str, Any]:
        """Back the node up under a name, however long that takes; returns what was written."""
        return self._ask(calls.operate("snapshots", {"name": name}))

    def verify(self, *, repair: bool = False) -> dict[str, Any]:
        """Cross-check all tiers, however long that takes; `repair` mends what is derived. Returns what was found."""
        return self._ask(calls.operate("verify", {"repair": repair}))

    def reindex(self) -> dict[str, Any]:
        """Ask for a new codebook; returns what is said of the codes. Progress is in `tiers()["codes"]`."""
        return self._ask(calls.operate("index:reindex", {}))

    def tiers(self) -> dict[str, Any]:
        """Return what each tier holds against its limits, and what moves between them."""
        return self._ask(calls.tiers())

    def why(self, identifier: str) -> dict[str, Any] | None:
        """Return where a memory is, which rule put it there and what moves it next; None where there is none."""
        return self._ask(calls.why(identifier))

    def changes(self, start: str = "end", *, reconnect_s: float = 60.0) -> Iterator[Announced]:
        """Yield tier changes as they are announced, across lost connections: each goes on after the last cursor.

        `start` is "beginning", "end" or a cursor. ServiceMissing, which names the cursor, when no gateway was there for
        `reconnect_s`.
        """
        feed, limits = Feed(start, self.url), self._limits
        while True:
            try:
                with self._open(calls.changes(feed.params(), feed.headers()), limits, read_s=None) as response:
                    feed.connected()
                    for part in response.iter_bytes():
                        yield from feed.take(part)
            except httpx.TransportError:
                pass  # the feed goes on where it was
            except IsothermError as error:
                raise feed.given_up(error) from error
            time.sleep(feed.pause_s)
            limits = Limits(AGAIN_MAX, reconnect_s)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _ask(self, call: Call[T]) -> T:
        return self._drive(call, self._limits.of(call), self._try)

    def _drive(self, call: Call[T], limits: Limits, send: Callable[[Attempt], Answer | Fault]) -> T:
        steps = exchange(call, self.url, limits, time.monotonic, random.random)
        outcome: Answer | Fault | None = None
        try:
            while True:
                step = steps.send(outcome)
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                else:
                    outcome = send(step)
        except StopIteration as done:
            value: T = done.value
            return value

    def _try(self, attempt: Attempt) -> Answer | Fault:
        """Send once and read the whole answer, which must not take longer than the attempt may."""
        until = time.monotonic() + attempt.left_s
        try:
            response = self._http.send(self._request(attempt, attempt.left_s), stream=True)
            try:
                parts = []
                for part in response.iter_bytes():
                    parts.append(part)
                    if time.monotonic() > until:
                        raise httpx.ReadTimeout("the answer did not end in time")
            finally:
                response.close()
        except (httpx.TransportError, httpx.DecodingError) as error:
            return fault_of(error)
        return Answer(response.status_code, response.headers, b"".join(parts))

    def _request(self, attempt: Attempt, read_s: float | None) -> httpx.Request:
        call = attempt.call
        timeout = httpx.Timeout(attempt.left_s, read=read_s, connect=min(CONNECT_S, attempt.left_s))
        return self._http.build_request(
            call.method, call.path, params=call.params, headers=call.headers, content=call.content, timeout=timeout
        )

    @contextmanager
    def _open(self, call: Call[httpx.Response], limits: Limits, read_s: float | None) -> Iterator[httpx.Response]:
        """Yield the open response of a call that streams; `read_s` bounds the silence between two parts of it."""

        def send(attempt: Attempt) -> Answer | Fault:
            try:
                response = self._http.send(self._request(attempt, read_s), stream=True)
                if response.is_success:
                    return Answer(response.status_code, response.headers, b"", response)
                try:
                    return Answer(response.status_code, response.headers, response.read())
                finally:
                    response.close()
            except httpx.TransportError as error:
                return fault_of(error)

        response = self._drive(call, limits, send)
        try:
            yield response
        finally:
            response.close()

    def _stream(self, call: Call[httpx.Response], reader: Taking[T]) -> Iterator[T]:
        with self._open(call, self._limits, self._limits.deadline_s) as response, cut_short(self.url):
            for part in response.iter_bytes():
                yield from reader.take(part)
            reader.end()
