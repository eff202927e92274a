"""A load on a server, from a process of its own: connections that each send a request when the last one is answered.

    python -m benchmarks.serving.load HOST PORT

Lines of JSON on stdin and stdout: the plan comes, "ready" goes; "go" comes, and when it is done "done" goes, and then
what was seen: answers, failures, and the ms of each (at most SAMPLES of them). So whoever asks can leave out of what it
measures what it takes to start a process. The plan says what to send, as text of whole requests taken in turn, over how
many connections and for how many seconds.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from itertools import cycle
from typing import Any, cast

import uvloop

SAMPLES = 20_000
HEAD_END = b"\r\n\r\n"


class Connection(asyncio.Protocol):
    """Sends the next request as soon as one is answered, until `until`; answers have a content-length."""

    def __init__(self, requests: Iterator[bytes], until: float, seen: list[float], failed: list[bytes]) -> None:
        self._requests, self._until, self._seen, self._failed = requests, until, seen, failed
        self._buffer, self._wanted, self._sent = b"", -1, 0.0
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass
        self._send()

    def _send(self) -> None:
        self._sent = time.perf_counter()
        if self._sent >= self._until:
            self._transport.close()
        else:
            self._transport.write(next(self._requests))

    def data_received(self, data: bytes) -> None:
        """Take what comes; a whole answer is counted."""
        self._buffer += data
        if self._wanted < 0 and (end := self._buffer.find(HEAD_END)) >= 0:
            head = self._buffer[:end].lower()
            length = head.split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0]
            self._wanted = end + len(HEAD_END) + int(length)
        if 0 <= self._wanted <= len(self._buffer):
            self._seen.append((time.perf_counter() - self._sent) * 1000)
            if not self._buffer.startswith(b"HTTP/1.1 200"):
                self._failed.append(self._buffer[:200])
            self._buffer, self._wanted = b"", -1
            self._send()

    def connection_lost(self, error: Exception | None) -> None:
        """Say that it is over; before the time that is a failure."""
        if time.perf_counter() < self._until:
            self._failed.append(repr(error).encode())
        self.closed.set_result(None)


async def load(host: str, port: int, plan: dict[str, Any]) -> dict[str, Any]:
    """Do what the plan says; returns what was seen."""
    requests = cycle([text.encode() for text in plan["requests"]])
    seen: list[float] = []
    failed: list[bytes] = []
    loop, began = asyncio.get_running_loop(), time.perf_counter()
    connections = [
        (await loop.create_connection(lambda: Connection(requests, began + plan["seconds"], seen, failed), host, port))[
            1
        ]
        for _ in range(plan["connections"])
    ]
    await asyncio.gather(*(connection.closed for connection in connections))
    return {
        "answers": len(seen),
        "seconds": round(time.perf_counter() - began, 4),
        "failed": [each.decode("latin-1") for each in failed[:5]],
        "samples_ms": [round(each, 4) for each in seen[:: max(1, -(-len(seen) // SAMPLES))]],
    }


if __name__ == "__main__":
    given = json.loads(sys.stdin.readline())
    print('"ready"', flush=True)
    assert json.loads(sys.stdin.readline()) == "go"
    found = uvloop.run(load(sys.argv[1], int(sys.argv[2]), given))
    print('"done"', flush=True)
    print(json.dumps(found))
