"""What the doctor looks at on this machine: packages, data directory, memory, descriptors, device, embedder, port."""

from __future__ import annotations

import asyncio
import os
import platform
import resource
import shutil
import socket
import tempfile
from importlib import metadata
from pathlib import Path

import httpx

from pipeline import manifest
from pipeline.doctor_finding import Finding
from pipeline.embed import load_embedder
from pipeline.settings import Settings
from tiers import device as devices
from tiers.errors import SettingsError

GIB = 1 << 30
CONNECT_S = 3.0
PROCESS_BYTES = 400 << 20  # interpreter, libraries, buffers: measured on an empty node
FILES_MIN, FILES_GOOD = 256, 4096
FREE_GOOD = 4  # times the reserve
LIBRARIES = (
    "aiokafka",
    "redis",
    "duckdb",
    "pyarrow",
    "faiss-cpu",
    "deltalake",
    "obstore",
    "numpy",
    "msgspec",
    "uvicorn",
)


async def packages(_: Settings) -> list[Finding]:
    """Look for the libraries, and which versions they are."""
    name = "packages"
    absent = [library for library in LIBRARIES if _version(library) is None]
    python = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if absent:
        return [
            Finding.error(name, f"missing: {', '.join(absent)}", "install isotherm again in an environment of its own")
        ]
    return [Finding.ok(name, f"{python}; " + ", ".join(f"{each} {_version(each)}" for each in LIBRARIES))]


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


async def data(settings: Settings) -> list[Finding]:
    """Look at the data directory: writable, with room, of these settings, and who holds it."""
    return await asyncio.to_thread(_data, settings)


def _data(settings: Settings) -> list[Finding]:
    path = Path(settings.data).absolute()
    found = room("data", path, settings.cold.reserve_bytes, "data")
    if path.is_dir():
        try:
            manifest.held(path, settings)
        except SettingsError as error:
            found.append(Finding.error("data", str(error)))
        found += [Finding.ok("data", f"in use by {holder}") for holder in lock_holders(path / "lock")]
    return found


def room(check: str, path: Path, reserve: int, key: str) -> list[Finding]:
    """Return whether a directory can be written to and has room; one that is not there yet counts by its parent."""
    path = path.absolute()
    standing = next(level for level in (path, *path.parents) if level.exists())
    try:
        if not standing.is_dir():
            raise NotADirectoryError(f"{standing} is a file")
        with tempfile.TemporaryFile(dir=standing) as probe:
            probe.write(b"1")
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        fix = f"let user {os.getuid()} write there, or name another directory with {key}"
        return [Finding.error(check, f"{path} cannot be written: {error.strerror or error}", fix)]
    free = shutil.disk_usage(standing).free
    text = f"{path}: {free / GIB:.1f} GiB free"
    if free <= reserve:
        fix = "make room, or lower cold.reserve_bytes"
        return [
            Finding.error(check, f"{text}, {reserve / GIB:.1f} GiB of it kept in reserve: nothing can be stored", fix)
        ]
    if free < FREE_GOOD * reserve:
        return [Finding.warning(check, f"{text}: little beyond the reserve of {reserve / GIB:.1f} GiB", "make room")]
    return [Finding.ok(check, text)]


def lock_holders(file: Path) -> list[str]:
    """Return the processes that hold a file's lock, as the kernel tells (Linux)."""
    try:
        inode = file.stat().st_ino
        held = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return []
    pids = {int(words[4]) for words in held if len(words) > 5 and words[5].rpartition(":")[2] == str(inode)}
    return [f"process {pid} ({_command(pid)})" for pid in sorted(pids)]


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "of another namespace"
    return " ".join(Path(word).name if "/" in word else word for word in words[:4]).strip()


async def memory(settings: Settings) -> list[Finding]:
    """Hold what the settings may take against what this process may have."""
    limit, of = memory_limit()
    hot = settings.hot.capacity_rows * settings.dim * 4
    parts = {
        "hot": 0 if settings.hot.device == "cuda" else hot,
        "index": settings.index.bytes_limit,
        "cold": settings.cold.memory_limit_mb << 20,
        "glacier cache": settings.glacier.cache_bytes,
        "process": PROCESS_BYTES,
    }
    total, at_once = sum(parts.values()), parts["hot"] + PROCESS_BYTES
    listed = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items())
    text = f"the settings allow {total / GIB:.1f} GiB ({listed}); {of} is {limit / GIB:.1f} GiB"
    if at_once > limit:
        return [Finding.error("memory", f"{text}: hot alone does not fit", "lower hot.capacity_rows")]
    if total > limit:
        fix = "lower index.bytes_limit, hot.capacity_rows or cold.memory_limit_mb, before the kernel ends the process"
        return [Finding.warning("memory", text, fix)]
    return [Finding.ok("memory", text)]


def memory_limit() -> tuple[int, str]:
    """Return the bytes that this process may use and what says so: its cgroup, or the machine."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(file).read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < machine:
            return int(text), "the limit of its cgroup"
    return machine, "the machine's memory"


async def open_files(settings: Settings) -> list[Finding]:
    """Count descriptors: a segment of the side file, a connection and a change stream take one each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"{soft} descriptors (hard limit {hard})"
    need = FILES_MIN + settings.warm.connections + 4 * settings.gateway.streams_max
    fix = f"raise the limit: ulimit -n {FILES_GOOD}, or LimitNOFILE in the unit"
    if soft < need:
        return [Finding.error("open files", f"{text}: a node needs {need} and one a 256 MiB of cold", fix)]
    if soft < FILES_GOOD:
        return [Finding.warning("open files", f"{text}: enough for a small node", fix)]
    return [Finding.ok("open files", text)]


async def device(settings: Settings) -> list[Finding]:
    """Try the array library that would run hot."""
    found = await asyncio.to_thread(devices.choose, settings.hot.device)
    await asyncio.to_thread(found.check, settings.hot.shape(settings.dim, settings.metric))
    size = settings.hot.capacity_rows * settings.dim * 4
    said = (
        f"{found.name}, {settings.hot.capacity_rows:,} rows, {size / GIB:.2f} GiB (hot.device = {settings.hot.device})"
    )
    if found.name == "numpy" and settings.hot.device == "auto" and shutil.which("nvidia-smi"):
        fix = "install isotherm[gpu-cuda12] (or 13), or set hot.device = 'cpu'"
        return [Finding.warning("hot", f"there is a GPU's driver, and hot runs on NumPy: {said}", fix)]
    return [Finding.ok("hot", said)]


async def embedder(settings: Settings) -> list[Finding]:
    """Try the model that turns words into vectors."""
    if not settings.embedder:
        return [Finding.ok("embedder", "none: records and questions bring vectors, not words")]
    await asyncio.to_thread(load_embedder, settings.embedder, settings.dim)
    return [Finding.ok("embedder", f"{settings.embedder}, {settings.dim} floats")]


async def anyone(host: str, port: int) -> bool:
    """Say whether anybody takes a connection there."""
    try:
        async with asyncio.timeout(CONNECT_S):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


async def gateway(settings: Settings) -> list[Finding]:
    """Look whether the port is free, or a node's own."""
    host, port = settings.gateway.host, settings.gateway.port
    where = f"{host}:{port}"
    if port == 0:
        return [Finding.ok("gateway", f"a free port of {host}")]
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return [Finding.ok("gateway", f"{where} is free")]
    except OSError as error:
        taken = error.strerror
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{where}"
    try:
        async with httpx.AsyncClient(timeout=2, trust_env=False) as http:
            answer = await http.get(f"{url}/healthz")
            ready = await http.get(f"{url}/readyz")
    except httpx.HTTPError:
        answer = None
    if answer is not None and answer.text == "ok\n":
        state = "is ready" if ready.status_code == 200 else "is replaying the log"
        return [Finding.ok("gateway", f"a node listens at {where} and {state}")]
    fix = "stop it, or set gateway.port (0 picks a free one)"
    return [Finding.error("gateway", f"{where} is taken by something that is no gateway ({taken})", fix)]
