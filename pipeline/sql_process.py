"""Runs one statement in a child process (sql_worker) and kills it at its deadline. Blocking: on a thread of its own.

With `subprocess` and not the loop's own child processes: nothing here may hold the loop, and uvloop's pipes have closed
descriptors that were another's. The child has no environment of ours (it holds secrets), no descriptor of ours, a
session of its own so that a kill gets all of it, and ends with this process.
"""

from __future__ import annotations

import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec

from tiers.errors import InvalidRecord, IsothermError

FRAME = struct.Struct("<cI")  # as in sql_worker, which this process does not load
FRAME_BYTES_MAX = 1 << 20
STEP_S = 0.1  # between two looks whether the caller has gone
GRACE_S = 0.3  # beyond the deadline, in which the child may say by itself that it was too slow
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC", "HOME": "/", "MALLOC_ARENA_MAX": "2"}
INHERITED = ("LD_LIBRARY_PATH", "SYSTEMROOT")  # without which an interpreter of that system does not start
MAIN = "import sys; sys.path.insert(0, sys.argv[1]); from pipeline.sql_worker import main; main(int(sys.argv[2]))"
SOURCE = str(Path(__file__).parent.parent)
KINDS = {"deadline": (504, "sql-deadline"), "memory": (413, "sql-memory"), "failed": (500, "sql-failed")}


class SqlFailed(IsothermError):
    """A statement could not be answered; `status` and `kind` are those of its problem object."""

    def __init__(self, status: int, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.status, self.kind = status, kind
        self.retriable = status in (429, 503, 504)


@dataclass(frozen=True, slots=True)
class Ran:
    """What the child answered: `parts` are bytes of the form that was asked for.

    `peak_bytes` is the peak of its resident memory, 0 where that cannot be known. `confined` says whether it had no
    network, and no file beside the snapshot.
    """

    columns: list[dict[str, str]]
    parts: list[bytes]
    rows: int
    truncated: bool
    peak_bytes: int
    confined: dict[str, bool]


class Statement:
    """One run; `cancel` from any thread ends it."""

    def __init__(self, job: dict[str, Any], directory: Path) -> None:
        self._job, self._directory = job, directory
        self._cancelled = threading.Event()
        self._parts: list[bytes] = []
        self._size = 0
        self.pid = 0

    def cancel(self) -> None:
        """Kill the child soon: whoever asked has gone."""
        self._cancelled.set()

    def run(self) -> Ran:
        """Run to the end and return the answer; SqlFailed, InvalidRecord. No process is left."""
        ends = time.monotonic() + self._job["deadline_ms"] / 1000 + GRACE_S
        with tempfile.TemporaryFile() as given:
            given.write(msgspec.json.encode(self._job))
            given.seek(0)
            child = self._start(given)
        self.pid = child.pid
        try:
            assert child.stdout is not None, "asked for"
            header, end = self._converse(child.stdout.fileno(), ends)
        finally:
            self._end(child)
        return Ran(header["columns"], self._parts, end["rows"], end["truncated"], end["peak_bytes"], header["confined"])

    def _start(self, given: IO[bytes]) -> subprocess.Popen[bytes]:
        environment = ENVIRONMENT | {name: os.environ[name] for name in INHERITED if name in os.environ}
        return subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-I", "-c", MAIN, SOURCE, str(os.getpid())],
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd=self._directory,
            start_new_session=True,
        )

    def _end(self, child: subprocess.Popen[bytes]) -> None:
        """Kill whatever is left, and wait until it is gone."""
        if child.stdout is not None:
            child.stdout.close()
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # not reaped yet, so the number is still its own
        child.wait()

    def _converse(self, descriptor: int, ends: float) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read frames up to the last; returns the header and the end."""
        header: dict[str, Any] | None = None
        for kind, body in self._frames(descriptor, ends):
            if kind == b"X":
                raise _failure(msgspec.json.decode(body))
            if kind == b"H":
                header = msgspec.json.decode(body)
            elif kind == b"D":
                self._size += len(body)
                if self._size > self._job["bytes_max"] + FRAME_BYTES_MAX:
                    break
                self._parts.append(body)
            elif kind == b"E" and header is not None:
                return header, msgspec.json.decode(body)
            else:
                break
        raise SqlFailed(413, "sql-memory", "the statement ended its process: it needed more than sql.memory_bytes")

    def _frames(self, descriptor: int, ends: float) -> Iterator[tuple[bytes, bytes]]:
        """Yield frames until the child closes its end."""
        held = bytearray()
        while True:
            while len(held) >= FRAME.size:
                kind, size = FRAME.unpack_from(held)
                if size > FRAME_BYTES_MAX:
                    return
                if len(held) < FRAME.size + size:
                    break
                yield kind, bytes(held[FRAME.size : FRAME.size + size])
                del held[: FRAME.size + size]
            more = self._read(descriptor, ends)
            if not more:
                return
            held += more

    def _read(self, descriptor: int, ends: float) -> bytes:
        """Return what has come, b"" at the end; SqlFailed at the deadline, or when nobody waits any more."""
        poll = select.poll()
        poll.register(descriptor, select.POLLIN | select.POLLHUP)
        while True:
            left_s = ends - time.monotonic()
            if left_s <= 0 or self._cancelled.is_set():
                raise SqlFailed(*KINDS["deadline"], f"the statement took longer than {self._job['limit_ms']:g} ms")
            if poll.poll(min(left_s, STEP_S) * 1000):
                return os.read(descriptor, 1 << 16)


def _failure(said: dict[str, str]) -> IsothermError:
    """Return the error that the child tells of."""
    if said["kind"] in KINDS:
        return SqlFailed(*KINDS[said["kind"]], said["detail"])
    return InvalidRecord("query", said["detail"])
