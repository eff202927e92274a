"""What the operating system keeps from a process that runs a stranger's SQL. For the child alone (sql_worker).

Limits of memory, processor time, file size (none may be written) and open files always hold. Beyond them, as far as the
kernel allows it: no network (a namespace of its own), no file outside the snapshot (chroot), no new rights. `confine`
says which of these it got.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import signal
from contextlib import suppress
from pathlib import Path
from typing import IO

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
FILES_MAX = 1_024  # open at once: Parquet files, most of all
NICE = 10  # the gateway's loop comes first

_status: IO[str] | None = None


def bind(parent: int) -> None:
    """End with the parent: killed by the kernel where it can, at once where the parent has gone already."""
    library = ctypes.CDLL(None)
    if hasattr(library, "prctl"):
        library.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        library.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def cut_network() -> bool:
    """Leave the network; before there is a second thread. A user namespace first, or alone as root."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "unshare"):
        return False
    return any(int(library.unshare(flags)) == 0 for flags in (CLONE_NEWUSER | CLONE_NEWNET, CLONE_NEWNET))


def confine(memory_bytes: int, cpu_s: int) -> bool:
    """Set the limits and see nothing but the working directory; says whether the latter could be."""
    global _status  # noqa: PLW0603 - the one process that loads this has one
    with suppress(OSError):
        _status = Path("/proc/self/status").open()  # noqa: SIM115 - read until the end
    os.nice(NICE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write is an error and not the end
    limits = {
        resource.RLIMIT_AS: mapped_bytes() + memory_bytes,
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,  # a core would hold records
        resource.RLIMIT_NOFILE: FILES_MAX,
    }
    for which, limit in limits.items():
        hard = resource.getrlimit(which)[1]
        most = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(which, (most, most))
    try:
        os.chroot(".")
    except OSError:
        return False
    os.chdir("/")
    return True


def peak_bytes() -> int:
    """Return the most memory that was resident, bytes; 0 where /proc could not be kept."""
    if _status is None:
        return 0
    _status.seek(0)
    found = re.search(r"VmHWM:\s+(\d+) kB", _status.read())
    return int(found[1]) * 1024 if found else 0


def mapped_bytes() -> int:
    """Return the bytes of address space in use: libraries, most of all."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return 1 << 29  # no /proc: more than the libraries take
    return pages * resource.getpagesize()
