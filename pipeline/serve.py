"""Runs a node with its gateway: uvicorn in the same loop, signals ours, one orderly stop (the gateway first)."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import structlog
import uvicorn

from pipeline import threads
from pipeline.bounds import bounded
from pipeline.guard import check_exposed
from pipeline.manager import MemoryManager
from pipeline.routes import Gateway
from pipeline.settings import Settings
from tiers.errors import IsothermError, ServiceMissing
from tiers.tier import TierName

log = structlog.get_logger()


class Server(uvicorn.Server):
    """uvicorn without its own signal handlers: the node decides when everything stops."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


class HttpService:
    """The gateway as a service of the node; `address` is known once it listens (port 0 picks a free one)."""

    name = "gateway"

    def __init__(self, settings: Settings) -> None:
        check_exposed(settings)
        self._settings = settings.gateway
        family = socket.AF_INET6 if ":" in self._settings.host else socket.AF_INET
        # The protocol is named, or asyncio leaves Nagle on: 40 ms an answer on a kept connection (uvloop never does).
        self._socket = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((self._settings.host, self._settings.port))
        except OSError as error:
            self._socket.close()
            raise ServiceMissing(
                f"the gateway cannot listen on {self._settings.host}:{self._settings.port} ({error.strerror}); "
                "stop what does, or set gateway.port (0 picks a free one)"
            ) from error
        self.address = f"http://{self._settings.host}:{self._socket.getsockname()[1]}"
        self.gateway: Gateway | None = None
        self._drain, self._drained = asyncio.Event(), asyncio.Event()

    def listen(self) -> None:
        """Take connections from now on; they are answered once `run` serves."""
        self._socket.listen()

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until stopped; requests in flight are finished first."""
        assert self.gateway is not None, "the gateway is attached once the manager is open"
        gateway, drain_s = self.gateway, self._settings.drain_s
        config = uvicorn.Config(
            gateway.app,
            http=bounded(self._settings, gateway.app.at_once),
            ws="none",
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=math.ceil(drain_s),
        )
        server = Server(config)

        async def watch() -> None:
            stopped = group.create_task(stop.wait(), name="node-stop")
            asked = group.create_task(self._drain.wait(), name="gateway-drain")
            await asyncio.wait({stopped, asked}, return_when=asyncio.FIRST_COMPLETED)
            asked.cancel()
            gateway.stop()
            server.should_exit = True

        try:
            async with asyncio.TaskGroup() as group:
                watcher = group.create_task(watch(), name="gateway-stop")
                feed = group.create_task(gateway.feed.run(), name="change-feed")
                await server.serve(sockets=[self._socket])
                feed.cancel()
                watcher.cancel()
                self._drained.set()
                await stop.wait()  # a service that ends before the node does is a failure
        finally:  # where another service failed, the server did not end in order
            gateway.stop()  # what is still on its way is told why it is not answered
            for listening in getattr(server, "servers", ()):
                listening.close()

    async def drain(self) -> None:
        """Finish the requests in flight, take no more, and return; the node still runs."""
        self._drain.set()
        await self._drained.wait()


CLOSE_S = 5.0  # what closing may take once everything has ended


class Ending:
    """Ends the process when its end, orderly or not, takes longer than it may.

    The loop cannot do that by itself: what does not end may be a thread, and closing waits for those. Nothing was
    committed then that is not durable, and the next start replays the rest (R1).
    """

    name = "ending"

    def __init__(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._end, [seconds])
        self._timer.daemon = True
        self._begun = False

    async def run(self, stop: asyncio.Event) -> None:
        """Count from when the node is told to stop, or a part of it has failed."""
        try:
            await stop.wait()
        finally:
            self.begin()

    def begin(self) -> None:
        """Count from now, if it has not begun before."""
        if not self._begun:
            self._begun = True
            self._timer.start()

    def cancel(self) -> None:
        """Count no more: it has ended."""
        self._timer.cancel()

    @staticmethod
    def _end(seconds: float) -> None:
        log.critical("node.overdue", seconds=seconds, hint="it ends without committing; the next start replays")
        os._exit(1)


async def serve(settings: Settings, started: Callable[[MemoryManager, str], None] | None = None) -> None:
    """Run a node and its gateway until SIGTERM or SIGINT; a second signal ends the process at once."""
    threads.own()
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            raise SystemExit(130)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        await _serve(settings, stop, started)
    except BaseException as error:
        log_failure(error)
        raise


async def _serve(settings: Settings, stop: asyncio.Event, started: Callable[[MemoryManager, str], None] | None) -> None:
    http = HttpService(settings)
    ending = Ending(settings.gateway.drain_s + settings.node.drain_s + CLOSE_S)
    with ExitStack() as stack:
        stack.callback(ending.cancel)
        async with MemoryManager.open(settings, http, ending) as manager:
            http.gateway = Gateway(manager)
            threads.opened()
            http.listen()  # `run` has not come to it yet, and whoever reads the next line may connect at once
            log.info("gateway.listening", address=http.address)
            if started is not None:
                started(manager, http.address)
            await stop.wait()
            ending.begin()
            log.info("node.stopping")
            await http.drain()  # while everything that an answer needs still runs
    census = manager.node.index.census()
    log.info("node.stopped", records={tier.word: int(census[tier, 0]) for tier in TierName})


def log_failure(error: BaseException) -> None:
    """Say why the node ends: each failure of a group, with its traceback where it is none that we know."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            log_failure(each)
    elif isinstance(error, Exception):
        log.critical("node.failed", error=repr(error), exc_info=None if isinstance(error, IsothermError) else error)
