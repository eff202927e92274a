"""A gateway with keys, and every way to ask it: for the tests that try to get in, and out of a namespace."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import msgspec

from pipeline import MemoryManager, keys
from pipeline.auth import SCOPES
from pipeline.key_file import KeyFiles, chance
from pipeline.keys import Asked
from pipeline.routes import Gateway
from pipeline.serve import HttpService
from pipeline.settings import Settings
from tests.nodes import DIM

VECTOR = [1.0] * DIM


def operations(gateway: Gateway) -> Iterator[tuple[str, str]]:
    """Yield (method, path) of every route."""
    for route in gateway.edge.routes:
        for method in route.methods:
            yield method, route.path


def request_for(method: str, path: str, identifier: str) -> dict[str, Any]:
    """Return a request that the route would answer, about this id; httpx's arguments."""
    memory = {"id": identifier, "vector": VECTOR}
    bodies: dict[str, Any] = {
        "/v1/memories": memory,
        "/v1/search": {"id": identifier, "k": 3},
        "/v1/retrieve": {"ids": [identifier]},
        "/v1/sql": {"query": "SELECT 1"},
    }
    url = path.replace("{id:path}", identifier).replace("{tier}", "hot")
    asked: dict[str, Any] = {"method": method, "url": url}
    if method == "POST" and path in bodies:
        asked["json"] = bodies[path]
    return asked


class Keyed:
    """A ready node whose gateway wants keys."""

    def __init__(self, settings: Settings, memory: MemoryManager, gateway: Gateway, http: httpx.AsyncClient) -> None:
        self.settings, self.memory, self.gateway, self.http = settings, memory, gateway, http

    def key(self, *spaces: str, scopes: tuple[str, ...] = SCOPES, **more: Any) -> dict[str, str]:
        """Return the headers of a new key of these namespaces (none: of all)."""
        made = bearer(make_key(self.settings, *spaces, scopes=scopes, **more))
        self.look()
        return made

    def look(self) -> None:
        """Let the gateway look at its key file now, and not when a second has passed."""
        self.gateway.keyring._look()

    async def ask(self, headers: dict[str, str], method: str, path: str, identifier: str = "a/1") -> httpx.Response:
        """Ask one operation about an id."""
        asked = request_for(method, path, identifier)
        return await self.http.request(**asked, headers=headers)


def files_of(settings: Settings) -> KeyFiles:
    """Return where the keys of a node lie."""
    return KeyFiles.under(settings.data, settings.gateway.keys_file, settings.gateway.pepper_file)


def make_key(settings: Settings, *spaces: str, scopes: tuple[str, ...] = SCOPES, **more: Any) -> str:
    """Put a new key into the file; returns its text."""
    files = files_of(settings)
    with files.changing() as known:
        asked = Asked("test", scopes, spaces or None, **more)
        several, token = keys.create(known, asked, chance(), files.ensure_pepper(), datetime.now(UTC))
        files.write(several)
    return token.text()


def revoke_key(settings: Settings, text: str) -> None:
    """Revoke a key."""
    token = keys.parse_token(text.removeprefix("Bearer "))
    assert token is not None
    files = files_of(settings)
    with files.changing() as known:
        files.write(keys.revoke(known, token.id, datetime.now(UTC)))


def bad_keys(settings: Settings) -> dict[str, dict[str, str]]:
    """Return the headers of every kind of key that lets nobody in."""
    now, hour = datetime.now(UTC), timedelta(hours=1)
    revoked, good = make_key(settings), make_key(settings)
    revoke_key(settings, revoked)
    expired = make_key(settings)
    files = files_of(settings)
    with files.changing() as known:  # `create` makes no key that is expired already
        files.write([*known[:-1], msgspec.structs.replace(known[-1], expires=now)])
    return {
        "no key": {},
        "basic": {"authorization": "Basic dXNlcjpwYXNz"},
        "empty": {"authorization": "Bearer"},
        "no token": {"authorization": "Bearer hello"},
        "unknown id": bearer("iso_" + "0" * 12 + good[16:]),
        "wrong secret": bearer(good[:-1] + ("A" if good[-1] != "A" else "B")),
        "cut short": bearer(good[:-1]),
        "another case": bearer(good.swapcase()),
        "expired": bearer(expired),
        "revoked": bearer(revoked),
        "not yet valid": bearer(make_key(settings, not_before=now + hour)),
    }


def bearer(text: str) -> dict[str, str]:
    """Return the headers of a key."""
    return {"authorization": f"Bearer {text}"}


@asynccontextmanager
async def keyed(settings: Settings) -> AsyncIterator[Keyed]:
    """Run a node with a gateway; a key must have been made before, or there are none."""
    service = HttpService(settings)
    async with MemoryManager.open(settings, service) as memory:
        gateway = service.gateway = Gateway(memory)
        await memory.ready()
        async with httpx.AsyncClient(base_url=service.address, timeout=15) as client:
            yield Keyed(settings, memory, gateway, client)
