"""One child process: started so that it cannot outlive this one, ended in order.

Whatever is cancelled, and whenever, no process stays behind without a handle.
"""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import Process
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from tiers.errors import ServiceMissing

STOP_S = 15.0
LOG_TAIL = 1_500  # characters of a server's log shown when it fails


#: Takes a process group of its own so that a Ctrl-C at the terminal reaches only us and the servers stop in order; asks
#: the kernel to end it with its parent (Linux; elsewhere the stop does it); and becomes the command. It is a program of
#: its own, and not a `preexec_fn`, because code that runs between fork and exec of a process with threads may crash:
#: loading a library there did, now and then.
BECOME = """
import ctypes, os, signal, sys
os.setpgrp()
if hasattr(ctypes.CDLL(None), "prctl"):
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() == int(sys.argv[1]):  # else the parent has gone before it could be asked for
    os.execvp(sys.argv[2], sys.argv[2:])
"""


async def launch(command: Sequence[str], *, stdout: int | IO[bytes], stderr: int | IO[bytes]) -> Process:
    """Start a process that dies with this one; cancelled half way, no process stays.

    The parent that counts is the *thread* that starts it: run the stack on a loop whose thread outlives it.
    """
    become = [sys.executable, "-I", "-S", "-c", BECOME, str(os.getpid()), *command]
    starting = asyncio.create_task(
        asyncio.create_subprocess_exec(*become, stdin=asyncio.subprocess.DEVNULL, stdout=stdout, stderr=stderr),
        name=f"launch-{Path(command[0]).name}",
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:  # the process may exist before its handle does: take the handle, then end it
        child = await starting
        child.kill()
        await child.communicate()
        raise


async def output(command: Sequence[str]) -> str:
    """Run a command to its end and return what it printed; ServiceMissing with that when it failed."""
    child = await launch(command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
    try:
        out, _ = await child.communicate()
    finally:
        if child.returncode is None:  # cancelled: nobody else knows this process
            child.kill()
            await child.communicate()
    if child.returncode:
        raise ServiceMissing(f"{command[-1]} failed: {out.decode()[-LOG_TAIL:]}")
    return out.decode()


async def end(child: Process) -> None:
    """SIGTERM, and SIGKILL past the deadline; returns when it is gone."""
    if child.returncode is None:
        child.terminate()
    try:
        async with asyncio.timeout(STOP_S):
            await child.wait()
    except TimeoutError:
        child.kill()
        await child.wait()
