"""Lets a node know of a GPU that failed for good, whoever met it, so that the process ends and a restart heals (R9)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from tiers.errors import DeviceLost


class DeviceWatch:
    """A service that ends with the error of a device that is lost; a search that meets it has an answer of its own."""

    name = "device"

    def __init__(self) -> None:
        self.lost: Future[None] = Future()

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Note that the device is lost, should that come out of here."""
        try:
            yield
        except DeviceLost as error:
            if not self.lost.done():
                self.lost.set_exception(error)
            raise

    async def run(self, stop: asyncio.Event) -> None:
        """Wait for either; DeviceLost."""
        ended = asyncio.Event()
        lost = asyncio.wrap_future(self.lost)
        lost.add_done_callback(lambda _: ended.set())
        stopped = asyncio.create_task(stop.wait(), name="device-stop")
        stopped.add_done_callback(lambda _: ended.set())
        try:
            await ended.wait()
        finally:
            stopped.cancel()
        if lost.done():
            lost.result()
