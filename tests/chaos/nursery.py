"""Starts nodes quickly: imports the product once, then forks a process for each node, which runs `armed.main`.

An interpreter with DuckDB, Arrow, FAISS and delta-rs takes over a second of processor time to start; a thousand kills
would mostly measure that. What a node has at its birth is imported modules and nothing else: no loop, no thread, no
connection, no file.

    in    {"arguments": [...], "environment": {...}, "log": path}      one JSON line each
    out   {"pid": n} when it was born, {"pid": n, "status": s} when it is dead (negative: the signal)
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
import traceback
from typing import Any

# Whatever a node imports on its way, so that it need not.
import aiokafka  # noqa: F401
import deltalake  # noqa: F401
import duckdb  # noqa: F401
import faiss  # noqa: F401
import redis.asyncio  # noqa: F401
import uvicorn.protocols.http.httptools_impl  # noqa: F401

import pipeline.serve  # noqa: F401
from tests.chaos import armed

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve until standard input ends; then every child dies."""
    wakes, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    say({"ready": True})
    waiting = b""
    while True:
        readable, _, _ = select.select([0, wakes], [], [])
        if wakes in readable:
            os.read(wakes, 4_096)
            bury()
        if 0 in readable:
            data = os.read(0, 65_536)
            if not data:
                return
            *lines, waiting = (waiting + data).split(b"\n")
            for line in lines:
                say({"pid": bear(json.loads(line))})


def bear(wanted: dict[str, Any]) -> int:
    """Fork a node; returns its process id, in the parent."""
    parent = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setpgrp()
        log = os.open(wanted["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number in (1, 2):
            os.dup2(log, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(wanted["environment"])
        sys.argv = ["isotherm", *wanted["arguments"]]
        armed.main()
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(end.code if isinstance(end.code, int) else int(bool(end.code)))
    except BaseException:  # noqa: BLE001 - the end of a process: nothing may pass back into the nursery
        traceback.print_exc()
        os._exit(70)
    os._exit(0)


def bury() -> None:
    """Say of each child that has died how it did."""
    while True:
        try:
            child, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not child:
            return
        say({"pid": child, "status": os.waitstatus_to_exitcode(status)})


def say(what: dict[str, Any]) -> None:
    """Write one line."""
    os.write(1, json.dumps(what).encode() + b"\n")


if __name__ == "__main__":
    main()
