"""A TCP proxy that delays what a server answers, cuts an answer in two, or loses one whose request was carried out."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from typing import Self

PIECE = 65_536


class Proxy:
    """Forwards to `port` of the loopback. `fault` is "", "delay", "cut" or "drop", and may be set at any time.

    "delay" holds each piece of an answer back for `delay_s`; "cut" passes half of a piece on and ends the connection;
    "drop" ends it without the piece. `done` counts them.
    """

    def __init__(self, port: int = 0, delay_s: float = 0.3) -> None:
        self.target, self.fault, self.delay_s = port, "", delay_s
        self.done: Counter[str] = Counter()
        self._serving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        ends = [writer]
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.target)
            ends.append(server_writer)
            forth = asyncio.create_task(self._forward(reader, server_writer))
            back = asyncio.create_task(self._answer(server_reader, writer))
            try:
                await asyncio.wait({forth, back}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in (forth, back):
                    way.cancel()
                await asyncio.gather(forth, back, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass  # the server is down, or we are: the client sees its connection end
        finally:
            for end in ends:
                with suppress(Exception):
                    end.transport.abort()
            self._serving.discard(task)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(PIECE):
            writer.write(piece)
            await writer.drain()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(PIECE):
            fault = self.fault
            if fault:
                self.done[fault] += 1
            if fault == "delay":
                await asyncio.sleep(self.delay_s)
            elif fault == "cut":
                writer.write(piece[: len(piece) // 2])
                await writer.drain()
                return
            elif fault == "drop":
                return
            writer.write(piece)
            await writer.drain()
