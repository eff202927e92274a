"""A stop over real HTTP: requests in flight end well, new ones are refused, and the process ends with 0."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline import MemoryManager
from pipeline.demo_node import NodeProcess
from pipeline.routes import Gateway
from pipeline.serve import HttpService
from pipeline.settings import Settings
from pipeline.stack import Stack
from tests.live import live
from tests.nodes import DIM, small
from tiers.errors import Fenced


def test_a_request_in_flight_is_answered_and_a_new_one_refused(stack: Stack, prefix: str, tmp_path: Path) -> None:
    """A body half sent when the stop begins is read to its end and published; what comes meanwhile is not begun."""
    with live(small(stack, prefix, tmp_path / "node", policy__hot_age_s=3_600.0)) as node:
        host, port = node.address.removeprefix("http://").split(":")
        body = b'{"id": "late", "vector": [%s]}' % b",".join([b"1"] * DIM)
        with (
            socket.create_connection((host, int(port)), timeout=20) as late,
            socket.create_connection((host, int(port)), timeout=20) as idle,
        ):
            head = b"POST /v1/memories HTTP/1.1\r\nhost: localhost\r\n"
            head += b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n"
            late.sendall(head % len(body))
            assert b" 100 " in late.recv(1_000)[:20], "its body is being read"
            late.sendall(body[:10])
            stopping = threading.Thread(target=node.do, args=(node.http.drain(),))
            stopping.start()
            assert b"" == idle.recv(1_000), "a connection without a request is closed"
            refused = False
            while not refused:
                try:
                    assert 503 == httpx.get(f"{node.address}/readyz").status_code
                except httpx.TransportError:
                    refused = True
            late.sendall(body[10:])
            answer = b"".join(iter(lambda: late.recv(65_536), b""))
            stopping.join(20)
        assert b" 202 " in answer[:20]
        assert b"token" in answer
        assert not node.memory.node.replaying()  # the node itself still runs


async def test_a_request_that_a_failing_node_cannot_answer_is_told_to_ask_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service fails while a request is on its way, and what it needs is closed: 503, not an internal error."""
    asked, closed = asyncio.Event(), asyncio.Event()

    class Failing:
        name = "failing"

        async def run(self, _: asyncio.Event) -> None:
            await asked.wait()
            raise Fenced("another owner")

    async def late(*_: object) -> None:
        asked.set()
        await closed.wait()
        raise RuntimeError("cannot schedule new futures after shutdown")

    service = HttpService(settings)

    async def fail() -> None:
        async with MemoryManager.open(settings, service, Failing()) as memory:
            service.gateway = Gateway(memory)
            await memory.ready()
            monkeypatch.setattr(memory, "delete", late)
            requests.append(asyncio.create_task(http.delete("/v1/memories/x")))
            await asyncio.Event().wait()

    requests: list[asyncio.Task[httpx.Response]] = []
    async with httpx.AsyncClient(base_url=service.address, timeout=30) as http:
        with pytest.raises(BaseExceptionGroup, match="unhandled errors"):
            await fail()
        closed.set()
        response = await requests[0]

    assert (503, "urn:isotherm:stopping") == (response.status_code, response.json()["type"])


def test_sigterm_while_asked_ends_in_order(stack: Stack, prefix: str, tmp_path: Path) -> None:
    """A real process under questions: each has a good answer, a 503 or no connection; no broken one; exit 0."""
    answers: list[Any] = []

    def ask(address: str, asked: threading.Event) -> None:
        vector = [1.0] * 256
        with httpx.Client(base_url=address, timeout=20) as http:
            while True:
                try:
                    answers.append(http.post("/v1/search", json={"vector": vector, "k": 3}).status_code)
                    asked.set()
                except httpx.ConnectError:
                    return
                except httpx.TransportError as error:
                    answers.append(error)
                    return

    async def work() -> int:
        node = NodeProcess(tmp_path, stack, {"kafka.prefix": prefix, "warm.prefix": prefix, "embedder": ""})
        address = await node.start()
        clients = [(asked := threading.Event(), threading.Thread(target=ask, args=(address, asked))) for _ in range(3)]
        for asked, client in clients:
            client.start()
            await asyncio.to_thread(asked.wait, 20)
        began = time.monotonic()
        await node.stop()
        assert time.monotonic() - began < 15
        for _, client in clients:
            await asyncio.to_thread(client.join, 20)
        return 0

    assert 0 == asyncio.run(work())
    broken = [each for each in answers if each not in (200, 503)]
    assert all(isinstance(each, httpx.RemoteProtocolError | httpx.ReadError) for each in broken)
    assert len(broken) <= 3, "at most the one request that a client had just sent on a closing connection"
    assert 200 in answers
