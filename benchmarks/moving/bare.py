"""What a move is compared with: the store below it, given the same bytes by somebody who does nothing else with them.

Each takes one batch of rows and returns the seconds of the clock. `Sets` does what `redis-benchmark -t set -c 50 -P 16`
does, with the packed rows as values, on a server without an append-only file; written here, so that it needs no other
program. `Inserts` is one DuckDB file, a transaction for each so many rows; `Files` one Parquet file a batch, with the
codec and encoding that glacier uses, one row group of the library's own size, fsynced.
"""

from __future__ import annotations

import asyncio
import os
import selectors
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from redis.asyncio import Redis
from redis.exceptions import RedisError

from pipeline.stack import valkey_binary
from tiers import packed

CLIENTS, DEPTH = 50, 16
REPLY = b"+OK\r\n"


class Sets:
    """A Valkey of its own that keeps nothing on disk; use with `async with`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = int(free.getsockname()[1])

    async def __aenter__(self) -> Self:
        """Start the server and wait until it answers."""
        options = {"port": self._port, "bind": "127.0.0.1", "appendonly": "no", "save": "", "dir": self._folder}
        command = [valkey_binary(), *(str(part) for key, value in options.items() for part in (f"--{key}", value))]
        self._server = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: ASYNC220, S603
        async with asyncio.timeout(30), Redis(port=self._port) as client:
            while True:
                try:
                    await client.ping()
                except RedisError:
                    await asyncio.sleep(0.05)
                else:
                    return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the server."""
        self._server.terminate()
        self._server.wait()

    def write(self, batch: pa.RecordBatch) -> float:
        """Set every row, then forget all."""
        ids = batch["id"].to_pylist()
        values = packed.pack(batch).to_pylist()
        sets = [
            b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(key), key, len(value), value)
            for key, value in zip([identifier.encode() for identifier in ids], values, strict=True)
        ]
        writes = [(b"".join(part), len(part)) for at in range(0, len(sets), DEPTH) if (part := sets[at : at + DEPTH])]
        clients = [socket.create_connection(("127.0.0.1", self._port)) for _ in range(min(CLIENTS, len(writes)))]
        try:
            began = time.perf_counter()
            _drive(clients, writes)
            took_s = time.perf_counter() - began
        finally:
            for client in clients:
                client.close()
        self._flush()
        return took_s

    def _flush(self) -> None:
        with socket.create_connection(("127.0.0.1", self._port)) as client:
            client.sendall(b"FLUSHALL SYNC\r\n")
            assert client.recv(16) == REPLY


def _drive(clients: list[socket.socket], writes: list[tuple[bytes, int]]) -> None:
    """Let each client send one write after the other, each when its last one is answered."""
    left = iter(writes)
    waiting: dict[socket.socket, int] = {}
    with selectors.DefaultSelector() as ready:
        for client in clients:
            ready.register(client, selectors.EVENT_READ)
            data, count = next(left)
            client.sendall(data)
            waiting[client] = count * len(REPLY)
        while waiting:
            for key, _ in ready.select():
                client = key.fileobj
                assert isinstance(client, socket.socket)
                waiting[client] -= len(client.recv(4_096))
                if waiting[client] > 0:
                    continue
                if (following := next(left, None)) is None:
                    del waiting[client]
                    ready.unregister(client)
                else:
                    client.sendall(following[0])
                    waiting[client] = following[1] * len(REPLY)


class Inserts:
    """A DuckDB file with DuckDB's own settings, on one thread; `rows` are inserted in one transaction."""

    def __init__(self, file: Path, shape: pa.Schema, rows: int) -> None:
        self._connection = duckdb.connect(str(file), config={"threads": 1})
        self._rows = rows
        empty = shape.empty_table()  # DuckDB finds it by its name
        self._connection.register("empty", empty)
        self._connection.execute("CREATE TABLE rows AS SELECT * FROM empty")

    def write(self, batch: pa.RecordBatch) -> float:
        """Insert every row, durably."""
        began = time.perf_counter()
        for start in range(0, batch.num_rows, self._rows):
            self._connection.register("incoming", batch.slice(start, self._rows))
            self._connection.execute("INSERT INTO rows SELECT * FROM incoming")
            self._connection.unregister("incoming")
        return time.perf_counter() - began

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


class Files:
    """Parquet files in a directory, one a batch."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._number = folder, 0
        folder.mkdir()

    def write(self, batch: pa.RecordBatch) -> float:
        """Write every row to a new file, durably."""
        self._number += 1
        path = self._folder / f"{self._number}.parquet"
        began = time.perf_counter()
        leaf = "vector.list.element"
        table = pa.Table.from_batches([batch])
        pq.write_table(table, path, compression="zstd", compression_level=3, use_dictionary=False,
                       use_byte_stream_split=[leaf])  # fmt: skip
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
        took_s = time.perf_counter() - began
        path.unlink()
        return took_s
