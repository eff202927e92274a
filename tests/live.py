"""A node with its gateway on a loop of its own, for tests that ask it from outside: sockets, clients, fuzzers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from pipeline import MemoryManager
from pipeline.routes import Gateway
from pipeline.serve import HttpService
from pipeline.settings import Settings


class Live:
    """The node's `address`, `gateway` and `memory`; `do` runs a coroutine on its loop, `call` a function."""

    def __init__(self, http: HttpService, memory: MemoryManager, loop: asyncio.AbstractEventLoop) -> None:
        assert http.gateway is not None
        self.http, self.memory, self.gateway, self.address = http, memory, http.gateway, http.address
        self._loop = loop

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the node's loop and return what it returns."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def call(self, function: Callable[[], Any]) -> Any:
        """Run a function on the node's loop and return what it returns."""

        async def work() -> Any:
            return function()

        return self.do(work())


@contextmanager
def live(settings: Settings) -> Iterator[Live]:
    """Run a node that has replayed its log, and stop it in order."""
    began: list[Live] = []
    failed: list[BaseException] = []
    ready, stop = threading.Event(), asyncio.Event()

    async def run() -> None:
        http = HttpService(settings)
        async with MemoryManager.open(settings, http) as memory:
            http.gateway = Gateway(memory)
            http.listen()
            await memory.ready()
            began.append(Live(http, memory, asyncio.get_running_loop()))
            ready.set()
            await stop.wait()
            await http.drain()

    def guarded() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:  # noqa: BLE001 - handed to the test's thread
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=guarded, name="node")
    thread.start()
    ready.wait(60)
    try:
        if began:
            yield began[0]
    finally:
        if began and not failed:
            began[0].call(stop.set)
        thread.join(60)
    if failed:
        raise failed[0]
