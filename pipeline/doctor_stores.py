"""What the doctor asks of the stores below hot: warm's server, cold's directory, glacier's directory or bucket."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import msgspec
import redis.exceptions as wrong
from redis.asyncio import Redis

from pipeline.doctor_finding import Finding
from pipeline.doctor_machine import anyone, room
from pipeline.settings import Settings
from tiers import glacier_settings, valkey
from tiers.glacier_settings import S3
from tiers.warm_keys import Keys

SKEW_S_MAX = 2.0
SAMPLE = 1_000  # keys looked at
FULL = 0.9


async def warm(settings: Settings) -> list[Finding]:
    """Ask the server: reachable, durable, ours, with room, and on our clock."""
    given = settings.warm
    client = valkey.connect(given.url, connections=2, timeout_ms=given.timeout_ms, **given.security())
    where = valkey.address(client)
    try:
        try:
            await cast("Any", client.ping())
        except (wrong.AuthenticationError, wrong.NoPermissionError, wrong.ResponseError):
            pass  # somebody is there: `check` says what is wrong
        except (wrong.RedisError, OSError) as error:
            fix = "start a Redis >= 7.0 or Valkey there, or set warm.url (rediss:// where it speaks TLS)"
            return [Finding.error("warm", f"{where} does not answer: {error}", fix, unreachable=True)]
        await valkey.check(client)
        found = [Finding.ok("warm", f"{where} keeps every write (appendfsync always, noeviction)")]
        return found + await _rights(client, settings) + await _room(client, settings) + await _ours(client, settings)
    finally:
        await client.aclose()


async def _rights(client: Redis, settings: Settings) -> list[Finding]:
    """Try each command that a node uses, on a key that is not there, so that nothing changes."""
    key = f"{{{settings.warm.prefix}:doctor}}:absent"
    script = valkey.Script("return 1")
    commands: list[tuple[str | int, ...]] = [
        ("EXISTS", key), ("GET", key), ("MGET", key), ("GETRANGE", key, 0, 1), ("SET", key, "x", "XX"), ("UNLINK", key),
        ("DEL", key), ("PTTL", key), ("PEXPIRE", key, 1), ("SCAN", 0, "COUNT", 1), ("SCRIPT", "LOAD", script.text),
        ("EVALSHA", script.sha, 0),
    ]  # fmt: skip
    refused = []
    for command in commands:
        try:
            await client.execute_command(*command)  # type: ignore[no-untyped-call]
        except wrong.NoPermissionError:
            refused.append(str(command[0]))
        except wrong.ResponseError:
            pass  # it may, and something else is wrong, such as memory
    if refused:
        fix = "docs/security.md has the ACL that a node needs"
        return [Finding.error("warm", f"this user may not use {', '.join(refused)} under {settings.warm.prefix}", fix)]
    return []


async def _room(client: Redis, settings: Settings) -> list[Finding]:
    info = await client.info("memory")
    used, limit = int(info["used_memory"]), int(info.get("maxmemory", 0))
    if limit and used > FULL * limit:
        text = f"the server holds {used:,} of its maxmemory of {limit:,} bytes"
        return [Finding.error("warm", text, "raise maxmemory: at it nothing moves down from hot any more")]
    if not limit and not settings.warm.bytes_limit:
        text = "neither the server's maxmemory nor warm.bytes_limit bounds warm"
        return [Finding.warning("warm", text, "set one, so that records go on to cold before the machine is full")]
    return [Finding.ok("warm", f"{used >> 20} MiB in use of {(limit or settings.warm.bytes_limit) >> 20} MiB")]


async def _ours(client: Redis, settings: Settings) -> list[Finding]:
    """Look at what lies under our prefix: laid out for these settings, and not about to expire."""
    given = settings.warm
    keys = Keys(given.prefix, settings.kafka.partitions, given.buckets)
    held = await client.get(keys.layout)
    found: list[Finding] = []
    if held is not None and (text := str(held, "utf-8") if isinstance(held, bytes) else str(held)) != keys.layout_text:
        fix = "set these again, or another warm.prefix"
        found.append(Finding.error("warm", f"the rows there are laid out for {text}, not {keys.layout_text}", fix))
    rows, expiring = 0, 0
    async for key in client.scan_iter(match=keys.rows_pattern, count=SAMPLE):
        rows += 1
        expiring += int(await client.pttl(key)) >= 0
        if rows >= SAMPLE:
            break
    if expiring:
        text = f"{expiring} of {rows} rows looked at have a TTL: the server will delete records"
        found.append(Finding.error("warm", text, "find what sets it; redis-cli PERSIST <key> keeps a row"))
    try:
        seconds, micros = await cast("Any", client.time())
    except wrong.NoPermissionError:  # not a right that a node needs
        return found
    skew = time.time() - (seconds + micros / 1e6)
    if abs(skew) > SKEW_S_MAX:
        text = f"this clock and the server's differ by {skew:.1f} s: age, expiry and leases go by them"
        found.append(Finding.warning("warm", text, "run NTP on both"))
    return found


async def cold(settings: Settings) -> list[Finding]:
    """Look at the directory: writable, with room."""
    path = Path(settings.cold.path or Path(settings.data) / "cold")
    return await asyncio.to_thread(room, "cold", path, settings.cold.reserve_bytes, "cold.path")


async def glacier(settings: Settings) -> list[Finding]:
    """Look at the directory, or write into the bucket and see that it honours If-None-Match."""
    path = settings.glacier.path or str(Path(settings.data) / "glacier")
    given = msgspec.structs.replace(settings.glacier, path=path)
    glacier_settings.check(given)
    if S3.fullmatch(path) is None:
        return await asyncio.to_thread(room, "glacier", Path(path), 0, "glacier.path")
    bucket = glacier_settings.storage(given)
    url = urlsplit(given.endpoint)
    if url.hostname and not await anyone(url.hostname, url.port or (443 if url.scheme == "https" else 80)):
        text = f"{given.endpoint} does not answer"
        return [Finding.error("glacier", text, "start the S3 server there, or set glacier.endpoint", unreachable=True)]
    await asyncio.to_thread(bucket.prepare)
    return [Finding.ok("glacier", f"{bucket.uri} takes writes, and refuses a second one of the same name")]
