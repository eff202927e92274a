"""Where the local servers listen: free ports, chosen once and kept in their data directory."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Self

import msgspec

from pipeline import seaweed

HOST = "127.0.0.1"


class Ports(msgspec.Struct):
    """Ports of the servers of a data directory; of `s3` none until it is asked for."""

    kafka: int
    controller: int
    valkey: int
    s3: list[int] = []

    @classmethod
    def of(cls, file: Path, *, s3: bool) -> Self:
        """Return the ports that a file remembers, and free ones for what it does not, which it then does."""
        if file.exists():
            known = msgspec.json.decode(file.read_bytes(), type=cls)
        else:
            kafka, controller, valkey = _free(3)
            known = cls(kafka, controller, valkey)
        if s3 and not known.s3:
            known.s3 = _free(seaweed.PORTS)
        file.write_bytes(msgspec.json.encode(known))
        return known


def _free(count: int) -> list[int]:
    """Return ports that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind((HOST, 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports
