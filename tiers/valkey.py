"""The one place that talks to a Redis or Valkey server: connect, check, run a script, say what its answer means.

A script is sent once and by nobody twice (R4): the connection is taken from the pool by hand, so that a failure before
the first byte left (`TierUnavailable`: nothing happened) is told from one after it (`OutcomeUnknown`). The client's own
retries are off. So are its maintenance notifications: with them the pool hands out connections that the server has
closed meanwhile, and every restart of the server would look like an unknown outcome.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import redis.exceptions as wrong
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from tiers.errors import Fenced, OutcomeUnknown, ServiceMissing, TierCorrupt, TierError, TierFull, TierUnavailable

Packed = list[bytes | memoryview]  # a command as it is sent, in pieces


class Bulk(NamedTuple):
    """So many arguments of a command as the protocol has them, end to end."""

    arguments: int
    content: memoryview


Argument = bytes | str | int | Bulk

#: What redis-py makes of an error that the server replies: it did nothing of the command.
REPLIED = (wrong.ResponseError, wrong.BusyLoadingError, wrong.AuthenticationError)
#: No answer; RuntimeError is uvloop's, of a connection that was closed under the client.
BROKEN = (wrong.RedisError, OSError, RuntimeError)

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
    """A Lua script and the name under which the server keeps it. A server that has forgotten it is told `also` too."""

    def __init__(self, text: str, *also: Script) -> None:
        self.text, self._also = text, also
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    async def load(self, client: Redis) -> None:
        """Tell the server the script; it forgets it when it restarts. Last, so that who finds it finds the others."""
        for script in (*self._also, self):
            await send(client, "SCRIPT", "LOAD", script.text)

    def command(self, keys: Sequence[bytes | Bulk], *arguments: Argument) -> Packed:
        """Return a call as it is sent."""
        return pack("EVALSHA", self.sha, sum(map(_count, keys)), *keys, *arguments)

    async def read(self, client: Redis, keys: Bulk) -> Any:
        """Run it where it changes nothing, and return its reply; one that the server did not know is loaded first."""
        asked = ("EVALSHA", self.sha, keys.arguments, keys)
        try:
            return await read(client, *asked)
        except TierUnavailable as error:
            if not isinstance(error.__cause__, wrong.NoScriptError):
                raise
            await self.load(client)
        return await read(client, *asked)

    async def run(
        self, client: Redis, keys: Sequence[bytes], *arguments: Argument, answer_s: float | None = None
    ) -> Any:
        """Run it once and return its reply; one that the server did not know is loaded first, nothing ran then."""
        (reply,) = await self.run_all(client, [self.command(keys, *arguments)], answer_s=answer_s)
        return reply

    async def run_all(self, client: Redis, commands: Sequence[Packed], *, answer_s: float | None = None) -> list[Any]:
        """Run calls, sent together, and return their replies; an error is raised when all are answered."""
        replies = await send_all(client, each(commands), answer_s=answer_s)
        unknown = [at for at, reply in enumerate(replies) if isinstance(reply, wrong.NoScriptError)]
        if unknown:
            await self.load(client)
            again = await send_all(client, each([commands[at] for at in unknown]), answer_s=answer_s)
            for at, reply in zip(unknown, again, strict=True):
                replies[at] = reply
        return good(client, replies)


async def each(commands: Iterable[Packed]) -> AsyncIterator[Packed]:
    """Yield commands that are there already."""
    for command in commands:
        yield command


def pack(*arguments: Argument) -> Packed:
    """Return a command in the server's protocol."""
    pieces: Packed = [b"*%d\r\n" % sum(map(_count, arguments))]
    plain: list[bytes] = []
    for one in arguments:
        if isinstance(one, Bulk):
            pieces += [b"".join(plain), one.content]
            plain.clear()
        else:
            value = one if isinstance(one, bytes) else str(one).encode()
            plain.append(b"$%d\r\n%b\r\n" % (len(value), value))
    return [*pieces, b"".join(plain)]


def _count(argument: Argument) -> int:
    return argument.arguments if isinstance(argument, Bulk) else 1


async def send(client: Redis, *command: Argument, answer_s: float | None = None) -> Any:
    """Send one command that may write, once, and return its reply; every failure as what the caller may conclude.

    `answer_s` is waited for instead of the client's own timeout: what was sent has an outcome, and a server that is
    slow will tell it. A caller that is cancelled meanwhile knows nothing of the outcome, as with OutcomeUnknown.
    """
    (reply,) = good(client, await send_all(client, each([pack(*command)]), answer_s=answer_s))
    return reply


async def send_all(client: Redis, commands: AsyncIterable[Packed], *, answer_s: float | None = None) -> list[Any]:
    """Send commands that may write, each once, without waiting for replies in between; returns the replies.

    Errors that the server replies are among them. OutcomeUnknown when one was not answered, within `answer_s` if given.
    """
    pool = cast("BlockingConnectionPool", client.connection_pool)
    with reading(client):  # until here nothing has left
        connection = await pool.get_connection()  # type: ignore[no-untyped-call]
    usual_s = connection.socket_timeout
    connection.socket_timeout = usual_s if answer_s is None else answer_s
    sent, replies, command = 0, list[Any](), list[Any]()
    try:
        async for command in commands:
            sent += 1
            await connection.send_packed_command(command)
        while len(replies) < sent:
            try:
                replies.append(await connection.read_response())
            except REPLIED as error:
                replies.append(error)
    except BROKEN as error:
        name = bytes(command[1]).split(b"\r\n", 2)[1].decode() if command else "command"
        raise OutcomeUnknown(f"{address(client)} did not answer a {name}: {error}") from error
    finally:
        connection.socket_timeout = usual_s
        if len(replies) < sent:  # they may still come, and would be taken for those of the next commands
            await connection.disconnect(nowait=True)
        await pool.release(connection)
    return replies


def good(client: Redis, replies: list[Any]) -> list[Any]:
    """Return the replies, or raise what the first error among them means for the caller."""
    for reply in replies:
        if isinstance(reply, wrong.RedisError):
            raise meaning(reply, address(client)) from reply
    return replies


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
    if code in REFUSALS or isinstance(error, (wrong.BusyLoadingError, wrong.ReadOnlyError, wrong.NoScriptError)):
        return TierUnavailable(f"{where} refused, {code}: {text}")
    return TierError(f"{where}: {text}")


@contextmanager
def reading(client: Redis) -> Iterator[None]:
    """Translate the failures of commands that change nothing."""
    try:
        yield
    except REPLIED as error:
        raise meaning(error, address(client)) from error
    except BROKEN as error:
        raise TierUnavailable(f"{address(client)} does not answer: {error}") from error


async def read(client: Redis, *command: Argument) -> Any:
    """Send a command that changes nothing, and return its reply."""
    pool = cast("BlockingConnectionPool", client.connection_pool)
    with reading(client):
        connection = await pool.get_connection()  # type: ignore[no-untyped-call]
        try:
            await connection.send_packed_command(pack(*command))
            return await connection.read_response()
        finally:
            await pool.release(connection)


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
