"""An HTTP server that does, connection by connection, exactly what a test says: answer, lie, cut off, be slow."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Self

Action = Callable[[socket.socket], None]


def answer(status: int, body: bytes = b"{}", *headers: str, kind: str = "application/json") -> Action:
    """Answer whole, and close."""
    head = [
        f"HTTP/1.1 {status} X",
        f"content-length: {len(body)}",
        f"content-type: {kind}",
        "connection: close",
        *headers,
    ]
    return raw("\r\n".join(head).encode() + b"\r\n\r\n" + body)


def raw(data: bytes) -> Action:
    """Send these bytes and close."""
    return lambda connection: connection.sendall(data)


def silent(release: threading.Event) -> Action:
    """Answer nothing until the test lets go."""
    return lambda _: (release.wait(20), None)[1]


def dripping(release: threading.Event) -> Action:
    """Begin an answer, and never end it, a byte at a time."""

    def drip(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
        with suppress(OSError):
            while not release.wait(0.02):
                connection.sendall(b" ")

    return drip


CUT = raw(b'HTTP/1.1 200 OK\r\ncontent-length: 1000\r\ncontent-type: application/json\r\n\r\n{"hits":')
HANG_UP = raw(b"")
GARBAGE = raw(b"\x00\xffnot HTTP at all\r\n\r\n")


class Scripted:
    """Serves `actions`, the last of them for ever; `requests` are the request lines and heads that it has read."""

    def __init__(self, *actions: Action) -> None:
        self._actions = list(actions)
        self.port = 0
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._listening = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()

    def _serve(self) -> None:
        at = 0
        with suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                with connection, suppress(OSError):
                    connection.settimeout(10)
                    if not self._read(connection):
                        continue
                    self._actions[min(at, len(self._actions) - 1)](connection)
                    at += 1

    def _read(self, connection: socket.socket) -> bool:
        data = b""
        while b"\r\n\r\n" not in data:
            part = connection.recv(65_536)
            if not part:
                return False
            data += part
        head, _, body = data.partition(b"\r\n\r\n")
        lines = head.decode().lower().split("\r\n")
        length = next((int(line.split(":")[1]) for line in lines if line.startswith("content-length:")), 0)
        while len(body) < length:
            body += connection.recv(65_536)
        self.requests.append(head.decode())
        return True
