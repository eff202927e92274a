"""Local servers that outlive the command that started them: a keeper process holds the stack of a data directory.

The keeper locks `keeper.lock` for as long as it lives and writes what runs where into `keeper.json`; so whoever looks
sees whether it lives by the lock, and never by a process id that may be another's by now. A keeper that is killed takes
its servers with it (see `child`).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import msgspec

from pipeline.stack import Service, Stack
from tiers.errors import ServiceMissing, TierUnavailable

START_S = 90.0
STOP_S = 40.0
POLL_S = 0.05
HOLD_S = 2.0


class Kept(msgspec.Struct, kw_only=True):
    """What a keeper runs: `pid` is its own, `settings` what a node needs to be told."""

    pid: int
    data: str
    services: list[Service]
    settings: dict[str, str]


def up(data: Path, *, s3: bool) -> tuple[Kept, bool]:
    """Start a keeper unless one runs; returns what it runs, and whether it is new. ServiceMissing says why not."""
    if (kept := running(data)) is not None:
        return kept, False
    (data / "logs").mkdir(parents=True, exist_ok=True)
    log = data / "logs" / "keeper.log"
    with log.open("wb") as out:
        command = [sys.executable, "-m", "pipeline.keeper", str(data), *(["s3"] if s3 else [])]
        keeper = subprocess.Popen(  # noqa: S603 - ourselves
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    until = time.monotonic() + START_S
    while time.monotonic() < until and keeper.poll() is None:
        if (kept := running(data)) is not None:
            return kept, True
        time.sleep(POLL_S)
    keeper.terminate()
    keeper.wait(STOP_S)
    last = log.read_text(errors="replace").strip().splitlines()
    raise ServiceMissing(f"the local servers did not start: {last[-1] if last else 'they took too long'} (see {log})")


def running(data: Path) -> Kept | None:
    """Return what runs in a data directory, None where nothing does (or not yet)."""
    try:
        with (data / "keeper.lock").open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return msgspec.json.decode((data / "keeper.json").read_bytes(), type=Kept)
    except FileNotFoundError:
        pass
    return None


def down(data: Path) -> Kept | None:
    """Stop what runs in a data directory, in order; returns what that was. TierUnavailable when it does not end."""
    kept = running(data)
    if kept is None:
        return None
    os.kill(kept.pid, signal.SIGTERM)
    until = time.monotonic() + STOP_S
    while running(data) is not None:
        if time.monotonic() > until:
            raise TierUnavailable(
                f"the keeper (process {kept.pid}) did not stop within {STOP_S:g} s; its log is in {data}/logs"
            )
        time.sleep(POLL_S)
    return kept


async def keep(data: Path, *, s3: bool) -> None:
    """Run the servers until SIGTERM."""
    data = data.absolute()  # noqa: ASYNC240 - once, at the start
    data.mkdir(parents=True, exist_ok=True)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    note = data / "keeper.json"
    with (data / "keeper.lock").open("ab") as lock:
        await _hold(lock, data)
        note.unlink(missing_ok=True)
        async with Stack(data, s3=s3) as stack:
            kept = Kept(pid=os.getpid(), data=str(data), services=stack.services, settings=settings_of(stack))
            fresh = note.with_suffix(".new")
            fresh.write_bytes(msgspec.json.encode(kept))
            fresh.replace(note)
            await stop.wait()
        note.unlink()


async def _hold(lock: IO[bytes], data: Path) -> None:
    """Take the lock; whoever only looks holds it for a moment, another keeper for as long as it lives."""
    until = time.monotonic() + HOLD_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise ServiceMissing(f"another keeper runs the servers of {data}") from None
            await asyncio.sleep(POLL_S)
        else:
            return


def settings_of(stack: Stack) -> dict[str, str]:
    """Return what a node has to be told to use these servers."""
    told = {"kafka.bootstrap": stack.kafka, "warm.url": stack.redis}
    if stack.s3:
        told |= {
            "glacier.path": "s3://isotherm/archive",
            "glacier.endpoint": stack.s3,
            "glacier.allow_http": "true",
            "glacier.credentials_file": str(stack.credentials),
        }
    return told


if __name__ == "__main__":
    try:
        asyncio.run(keep(Path(sys.argv[1]), s3="s3" in sys.argv[2:]))
    except ServiceMissing as error:
        sys.exit(str(error))
