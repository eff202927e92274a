"""The one place that talks to a Redis or Valkey server: connect, check, run a script, say what its answer means.

A script is sent once and by nobody twice (R4): the connection is taken from the pool by hand, so that a failure before
the first byte left (`TierUnavailable`: nothing happened) is told from one after it (`OutcomeUnknown`). The client's own
retries are off. So are its maintenance notifications: with them the pool hands out connections that the server has
closed meanwhile, and every restart of the server would look like an unknown outcome.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import redis.exceptions as wrong
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from tiers.errors import Fenced, OutcomeUnknown, ServiceMissing, TierCorrupt, TierError, TierFull, TierUnavailable

Argument = bytes | str | int

OLDEST = (7, 0)  # script flags, several names in one CONFIG GET
#: Error codes with which a server refuses a command before it has done anything, and that pass by themselves.
REFUSALS = frozenset({"LOADING", "READONLY", "BUSY", "MISCONF", "CLUSTERDOWN", "MASTERDOWN", "NOREPLICAS", "TRYAGAIN"})
#: What durability needs of the server's configuration (§5).
REQUIRED = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",  # else `always` is not always: no fsync while the file is rewritten
    "maxmemory-policy": "noeviction",
}


def connect(url: str, *, connections: int, timeout_ms: int, **security: Any) -> Redis:
    """Return a client that has not connected yet; at most `connections`, each wait bounded by `timeout_ms`.

    `security` are redis-py's username, password and ssl_* arguments; what stands in the URL wins.
    """
    timeout_s = timeout_ms / 1000
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=connections,
        timeout=timeout_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
        protocol=3,
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
        **security,
    )
    return Redis.from_pool(pool)


def address(client: Redis) -> str:
    """Return where the client connects to, without credentials."""
    given = client.connection_pool.connection_kwargs
    return str(given.get("path") or f"{given.get('host', 'localhost')}:{given.get('port', 6379)}")


class Script:
    """A Lua script and the name under which the server keeps it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    async def load(self, client: Redis) -> None:
        """Tell the server the script; it forgets it when it restarts."""
        await send(client, "SCRIPT", "LOAD", self.text)

    async def run(
        self, client: Redis, keys: Sequence[bytes], *arguments: Argument, answer_s: float | None = None
    ) -> Any:
        """Run it once and return its reply; one that the server did not know is loaded first, nothing ran then."""
        try:
            return await send(client, "EVALSHA", self.sha, len(keys), *keys, *arguments, answer_s=answer_s)
        except wrong.NoScriptError:
            await self.load(client)
            return await send(client, "EVALSHA", self.sha, len(keys), *keys, *arguments, answer_s=answer_s)


async def send(client: Redis, *command: Argument, answer_s: float | None = None) -> Any:
    """Send one command that may write, once, and return its reply; every failure as what the caller may conclude.

    `answer_s` is waited for instead of the client's own timeout: what was sent has an outcome, and a server that is
    slow will tell it. A caller that is cancelled meanwhile knows nothing of the outcome, as with OutcomeUnknown.
    """
    pool = cast("BlockingConnectionPool", client.connection_pool)
    with reading(client):  # until here nothing has left
        connection = await pool.get_connection()  # type: ignore[no-untyped-call]
    usual_s = connection.socket_timeout
    connection.socket_timeout = usual_s if answer_s is None else answer_s
    try:
        await connection.send_command(*command)
        return await connection.read_response()
    except wrong.NoScriptError:
        raise
    except (wrong.ResponseError, wrong.BusyLoadingError, wrong.AuthenticationError) as error:
        raise meaning(error, address(client)) from error
    except (wrong.RedisError, OSError) as error:
        raise OutcomeUnknown(f"{address(client)} did not answer a {command[0]!s}: {error}") from error
    finally:
        connection.socket_timeout = usual_s
        await pool.release(connection)


def meaning(error: wrong.RedisError, where: str) -> TierError | Fenced | ServiceMissing:
    """Return what an error reply means for the caller. Pure."""
    text = str(error)
    code = error.status_code or text.partition(" ")[0]
    if isinstance(error, wrong.OutOfMemoryError):
        return TierFull(f"{where} is at its maxmemory; nothing was stored")
    if isinstance(error, wrong.NoPermissionError):
        return ServiceMissing(f"{where}: {text}; docs/security.md has the ACL that a node needs")
    if code == "FENCED":
        return Fenced(f"{where}: {text.removeprefix('FENCED ')}")
    if code in ("CORRUPT", "WRONGTYPE"):
        return TierCorrupt(f"{where}: {text}")
    if code in REFUSALS or isinstance(error, (wrong.BusyLoadingError, wrong.ReadOnlyError)):
        return TierUnavailable(f"{where} refused, {code}: {text}")
    return TierError(f"{where}: {text}")


@contextmanager
def reading(client: Redis) -> Iterator[None]:
    """Translate the failures of commands that change nothing."""
    try:
        yield
    except (wrong.ResponseError, wrong.BusyLoadingError, wrong.AuthenticationError) as error:
        raise meaning(error, address(client)) from error
    except (wrong.RedisError, OSError) as error:
        raise TierUnavailable(f"{address(client)} does not answer: {error}") from error


async def claim(client: Redis, key: str, value: str) -> str:
    """Return what is held under `key`, which is `value` if nothing was."""
    held = await send(client, "GET", key) or await send(client, "SET", key, value, "NX", "GET")
    return value if held is None else _text(held)


async def check(client: Redis) -> None:
    """Raise ServiceMissing with the fix unless every reply of the server means durable."""
    where = address(client)
    try:
        with reading(client):
            info = await client.info("all")
            given = await cast("Awaitable[Mapping[Any, Any]]", client.config_get(*REQUIRED))
    except TierError as error:
        raise ServiceMissing(f"{error}; {_fix(error)}") from error
    settings = {_text(key): _text(value) for key, value in given.items()}
    fault = _fault(info, settings)
    if fault:
        raise ServiceMissing(f"{where}: {fault}")


def _fix(error: TierError) -> str:
    """Return what to do about a server that does not let us in. Pure, but for the chain of the error."""
    causes: list[BaseException] = [error]
    while (next_one := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(next_one)
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return "set warm.ca_file to the authority that signed its certificate, and warm.url to the name it is for"
        if isinstance(cause, ssl.SSLError):
            return "it may speak no TLS (redis:// in warm.url), or want a client certificate (warm.cert_file)"
        if isinstance(cause, wrong.AuthenticationError):
            return "set warm.username and warm.password (ISOTHERM_WARM__PASSWORD) or warm.password_file"
    return "start a Redis >= 7.0 or Valkey there, or set warm.url (rediss:// where it speaks TLS)"


def _fault(info: Mapping[str, Any], settings: Mapping[str, str]) -> str | None:
    """Return what is wrong with the server, and the fix. Pure."""
    version = str(info.get("redis_version", "0.0"))
    faults = {
        f"the server is version {version}; 7.0 is the oldest that will do": _numbers(version) < OLDEST,
        "the server runs in cluster mode; warm needs a single server of its own": bool(info.get("cluster_enabled")),
        "the server is a replica; set warm.url to its primary": info.get("role") != "master",
        "the last write to its append-only file failed; check its disk": info.get("aof_last_write_status") != "ok",
        "appendonly was switched on just now and its first file is not complete; start again in a moment": bool(
            info.get("aof_rewrite_in_progress") and not info.get("aof_base_size")
        ),
    }
    for name, value in REQUIRED.items():
        if settings.get(name) != value:
            found, fix = settings.get(name), f"redis-cli CONFIG SET {name} {value}"
            return f"{name} is {found!r} and must be {value!r}; run `{fix}` and put it into the server's file"
    return next((fault for fault, present in faults.items() if present), None)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
