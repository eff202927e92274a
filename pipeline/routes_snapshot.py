"""The operator's routes for backup and for looking whether all is well."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from pipeline.answers import answer_json
from pipeline.manager import MemoryManager
from pipeline.paths import Handler
from pipeline.questions import SnapshotAsked, VerifyAsked
from pipeline.routes_read import decoded
from pipeline.snapshot import Snapshots
from pipeline.verify import Verify


class Keeping:
    """Handlers over one manager; `body` reads a request's body within its bounds."""

    def __init__(self, manager: MemoryManager, body: Callable[[Request], Awaitable[bytes]]) -> None:
        settings = manager.node.settings
        directory = Path(settings.snapshot.path or Path(settings.data) / "snapshots").absolute()
        self._manager, self._body = manager, body
        self._snapshots = Snapshots(manager.node, directory)
        self._turn = asyncio.Lock()  # one look at a time: each reads everything

    def handlers(self) -> dict[str, Handler]:
        """Return the handlers by operation."""
        return {"createSnapshot": self.create, "verify": self.verify}

    async def create(self, request: Request) -> Response:
        """POST /v1/snapshots: move everything to glacier and put its files aside."""
        asked = decoded(await self._body(request), SnapshotAsked)
        return answer_json(await self._snapshots.create(asked.name), 201)

    async def verify(self, request: Request) -> Response:
        """POST /v1/verify: cross-check everything; 200 with what was found, also when it is bad."""
        asked = decoded(await self._body(request), VerifyAsked)
        async with self._turn:
            return answer_json(await Verify(self._manager.node, repair=asked.repair).run())
