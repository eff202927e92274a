"""The operator's routes for backup and for looking whether all is well."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline.answers import answer_json
from pipeline.manager import MemoryManager
from pipeline.routes_read import decoded
from pipeline.snapshot import Snapshots
from pipeline.verify import Verify


class SnapshotAsked(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The name of the snapshot to make."""

    name: str


class VerifyAsked(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Whether to put right what is derived."""

    repair: bool = False


def keeping_routes(manager: MemoryManager, body: Callable[[Request], Awaitable[bytes]]) -> list[Route]:
    """Return the routes; `body` reads a request's body within its bounds."""
    settings = manager.node.settings
    directory = Path(settings.snapshot.path or Path(settings.data) / "snapshots").absolute()
    snapshots = Snapshots(manager.node, directory)

    turn = asyncio.Lock()  # one look at a time: each reads everything

    async def create(request: Request) -> Response:
        """POST /v1/snapshots: move everything to glacier and put its files aside."""
        asked = decoded(await body(request), SnapshotAsked)
        return answer_json(await snapshots.create(asked.name), 201)

    async def verify(request: Request) -> Response:
        """POST /v1/verify: cross-check everything; 200 with what was found, also when it is bad."""
        asked = decoded(await body(request) or b"{}", VerifyAsked)
        async with turn:
            return answer_json(await Verify(manager.node, repair=asked.repair).run())

    return [Route("/v1/snapshots", create, methods=["POST"]), Route("/v1/verify", verify, methods=["POST"])]
