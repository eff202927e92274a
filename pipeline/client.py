"""The gateway from elsewhere: a thin client on httpx, and how its answers look on a terminal."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx
from rich.console import Console
from rich.live import Live
from rich.table import Table

from tiers.errors import InvalidRecord, IsothermError, ServiceMissing

TIMEOUT_S = 30.0


class GatewayError(IsothermError):
    """The gateway answered with a problem object; `problem` holds it."""

    def __init__(self, problem: dict[str, Any]) -> None:
        super().__init__(f"{problem.get('title')}: {problem.get('detail')}")
        self.problem = problem
        self.retriable = problem.get("status") in (429, 503, 504)


class Refused(InvalidRecord):
    """The gateway refused what it was sent; `position` is that of the memory in the body, None where it is the body."""

    def __init__(self, problem: dict[str, Any]) -> None:
        super().__init__(problem.get("reason") or problem.get("field", "invalid"), problem["detail"])
        self.position: int | None = problem.get("position")


class Client:
    """Verbs of the gateway, each answering with plain values; ServiceMissing, InvalidRecord, GatewayError."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.Client(base_url=self.url, timeout=TIMEOUT_S)

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close its connections."""
        self._http.close()

    def publish(self, memories: list[dict[str, Any]]) -> str:
        """Publish memories; returns the token."""
        return str(self._ask("POST", "/v1/memories", json=memories)["token"])

    def publish_body(self, body: bytes, kind: str) -> str:
        """Publish an encoded body (JSON, NDJSON, msgpack or Arrow); returns the token. Refused names the position."""
        return str(self._ask("POST", "/v1/memories", content=body, headers={"content-type": kind})["token"])

    def delete(self, identifier: str) -> str:
        """Publish a delete; returns the token."""
        return str(self._ask("DELETE", f"/v1/memories/{quote(identifier)}")["token"])

    def get(self, identifier: str, at_least: str | None = None) -> dict[str, Any] | None:
        """Return the newest version of a memory, or None."""
        params = {"at_least": at_least} if at_least else None
        found: dict[str, Any] | None = self._ask("GET", f"/v1/memories/{quote(identifier)}", params=params, absent=True)
        return found

    def search(self, **asked: Any) -> dict[str, Any]:
        """Return the answer of POST /v1/search."""
        return dict(self._ask("POST", "/v1/search", json=asked))

    def tiers(self) -> dict[str, Any]:
        """Return the answer of GET /v1/tiers."""
        return dict(self._ask("GET", "/v1/tiers"))

    def why(self, identifier: str) -> dict[str, Any] | None:
        """Return the answer of GET /v1/why/{id}, or None."""
        told: dict[str, Any] | None = self._ask("GET", f"/v1/why/{quote(identifier)}", absent=True)
        return told

    def changes(self, start: str = "end") -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (cursor, change) for as long as the gateway lives; ServiceMissing names the cursor to go on from."""
        cursor = start
        try:
            with self._http.stream("GET", "/v1/changes", params={"from": start}, timeout=None) as response:
                if not response.is_success:
                    response.read()
                    raise self._failure(response)
                name = ""
                for line in response.iter_lines():
                    if line.startswith("id: "):
                        cursor = line[4:]
                    elif line.startswith("event: "):
                        name = line[7:]
                    elif line.startswith("data: ") and name == "change":
                        yield cursor, json.loads(line[6:])
                    elif line.startswith("data: "):  # dropped or closing: the last that comes
                        why = json.loads(line[6:])["reason"]
                        raise self._missing(f"it has ended the stream ({why}); go on with --from {cursor}")
        except httpx.TransportError as error:
            raise self._missing(f"{error}; go on with --from {cursor}") from error
        raise self._missing(f"it has ended the stream; go on with --from {cursor}")

    def _ask(self, method: str, path: str, *, absent: bool = False, **more: Any) -> Any:
        try:
            response = self._http.request(method, path, **more)
        except httpx.TransportError as error:
            raise self._missing(error) from error
        if absent and response.status_code == 404:
            return None
        if response.is_success:
            return response.json()
        raise self._failure(response)

    def _failure(self, response: httpx.Response) -> IsothermError:
        """Return what a problem object means; what is none does not come from a gateway."""
        try:
            problem = dict(response.json())
        except ValueError:
            return self._missing(f"it says {response.status_code}, and not as a gateway does")
        return Refused(problem) if response.status_code in (400, 413, 415) else GatewayError(problem)

    def _missing(self, error: object) -> ServiceMissing:
        return ServiceMissing(
            f"the gateway does not answer at {self.url} ({error}); start one with `isotherm up`, or name it with --url"
        )


def table_of_hits(answer: dict[str, Any]) -> None:
    """Print hits as a table, and how complete the answer is."""
    table = Table("score", "tier", "id", "payload")
    for hit in answer["hits"]:
        table.add_row(f"{hit['score']:.3f}", hit["tier"], hit["id"], str(hit.get("payload"))[:70])
    console = Console()
    console.print(table)
    missed = f", missed {', '.join(answer['missed'])}" if answer["missed"] else ""
    console.print(f"{answer['scanned']} of {answer['of']} records scanned in {answer['took_ms']:.1f} ms{missed}")


def tier_table(answer: dict[str, Any]) -> Table:
    """Return what `/v1/tiers` says as a table."""
    table = Table("tier", "records", "tombstones", "queued", "bytes", "arrived", title="where memories are")
    arrived = {move["to"]: 0 for move in answer["moved"]}
    for move in answer["moved"]:
        arrived[move["to"]] += move["records"]
    arrived["hot"] = answer["ingested"]
    for name, tier in answer["tiers"].items():
        numbers = (tier["records"], tier["tombstones"], tier["queued"], tier["bytes"], arrived.get(name, 0))
        table.add_row(name, *(f"{number:,}" for number in numbers))
    return table


def show_tiers(client: Client, *, watch: bool) -> None:
    """Print the tiers once, or live until Ctrl-C."""
    if not watch:
        Console().print(tier_table(client.tiers()))
        return
    with Live(tier_table(client.tiers()), refresh_per_second=2) as live:
        while True:
            time.sleep(0.5)
            live.update(tier_table(client.tiers()))
