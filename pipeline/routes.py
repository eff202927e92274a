"""The gateway: HTTP over one MemoryManager. Handlers take and return Starlette's; msgspec structs parse bodies.

The table in `pipeline.operations` says which routes there are; `pipeline.edge` makes them and checks what comes against
it. Questions, publishing and operating have their own modules: `routes_read`, `routes_publish`, `routes_operate`.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from consumers.selection import Selection
from consumers.subscribe import decode_cursor
from pipeline.answers import answer_json
from pipeline.app import now_ms
from pipeline.auth import SCOPES, principal_of
from pipeline.body import read_body
from pipeline.dashboard import dashboard
from pipeline.descriptions import descriptions
from pipeline.edge import Edge
from pipeline.feed import ChangeFeed
from pipeline.guard import Guard, keyring_of
from pipeline.http_seen import Seen
from pipeline.manager import MemoryManager
from pipeline.metrics import Metrics
from pipeline.operation import METRICS_TYPE
from pipeline.problems import problem
from pipeline.routes_letters import Letterbox
from pipeline.routes_operate import Operator
from pipeline.routes_publish import Publishing
from pipeline.routes_read import Reads
from pipeline.routes_snapshot import Keeping
from pipeline.routes_sql import sql_handlers
from pipeline.streams import ChangeStream
from pipeline.visible import visible_change, visible_tiers
from producers.decoder import EventDecoder
from producers.events import Change
from tiers.errors import InvalidRecord
from tiers.tier import TierName


class Gateway:
    """The routes; `app` is the ASGI application."""

    def __init__(self, manager: MemoryManager) -> None:
        self._manager = manager
        self._settings = manager.node.settings
        self.feed = ChangeFeed(self._settings)
        self._metrics = Metrics(manager, self.feed)
        self._decoder = EventDecoder(self._settings.dim, self._settings.attributes, manager.node.embed)
        publishing = Publishing(manager, self._decoder)
        reads = Reads(manager, self._metrics, self._decoder, self._body)
        self.keyring = keyring_of(self._settings)
        self.edge = Edge(
            {
                "publish": publishing.publish,
                "deleteMemory": publishing.delete,
                **reads.handlers,
                **sql_handlers(manager, self._body),
                "tiers": self.tiers,
                "changes": self.changes,
                **Operator(manager).handlers(),
                **Keeping(manager, self._body).handlers(),
                "healthz": self.healthz,
                "readyz": self.readyz,
                "metrics": self.metrics,
                "key": self.key,
                **Letterbox(self._settings).handlers(),
                **descriptions(self._settings),
                **dashboard(),
            },
            Guard(self._settings.gateway, self.keyring),
            {"getMemory": reads.peek},
        )
        verbose = self._settings.log.level == "debug"
        self.app = Seen(self.edge, self._metrics.http, manager.node.tracing, verbose=verbose)

    def stop(self) -> None:
        """Take no more requests, and let the change streams end with a word."""
        self.edge.stopping = True
        self.feed.end()

    # -- looking -----------------------------------------------------------------------------------------------------

    async def tiers(self, request: Request) -> Response:
        """GET /v1/tiers: occupancy, limits and flow; of a key with some namespaces, what these have where."""
        return answer_json(await visible_tiers(self._manager, principal_of(request), now_ms()))

    async def changes(self, request: Request) -> Response:
        """GET /v1/changes: tier changes as server-sent events; resume with Last-Event-ID, or ?from=beginning."""
        start = request.headers.get("last-event-id") or request.query_params.get("from", "end")
        if start not in ("beginning", "end"):
            decode_cursor(start)
        wanted, namespaces = selection_of(request), principal_of(request).namespaces

        def shown(change: Change) -> Change | None:
            allowed = visible_change(change, namespaces)
            return None if allowed is None else wanted(allowed)

        return ChangeStream(self.feed, self._settings.gateway, start, shown)

    async def key(self, request: Request) -> Response:
        """GET /v1/key: what the key of this request may do."""
        principal = principal_of(request)
        spaces = None if principal.namespaces is None else sorted(principal.namespaces)
        return answer_json(
            {"key_id": principal.key_id, "scopes": [s for s in SCOPES if s in principal.scopes], "namespaces": spaces}
        )

    # -- the process -------------------------------------------------------------------------------------------------

    async def healthz(self, _: Request) -> Response:
        """GET /healthz: the process runs its loop."""
        return PlainTextResponse("ok\n")

    async def readyz(self, _: Request) -> Response:
        """GET /readyz: 200 once every partition has replayed its log."""
        replaying = self._manager.node.replaying()
        if replaying:
            return problem(503, "replaying", f"partitions {replaying} are replaying the log", partitions=replaying)
        return PlainTextResponse("ready\n")

    async def metrics(self, _: Request) -> Response:
        """GET /metrics: Prometheus text."""
        return Response(await self._metrics.render(), media_type=METRICS_TYPE)

    async def _body(self, request: Request) -> bytes:
        limits = self._settings.gateway
        return await read_body(request, limits.body_bytes_max, limits.request_s)


def selection_of(request: Request) -> Selection:
    """Return which changes a request wants; InvalidRecord names a list that has something unknown in it."""
    known = {"kinds": ("home", "copy"), "tiers": tuple(tier.word for tier in TierName)}
    chosen: dict[str, frozenset[str]] = {}
    for name in ("kinds", "tiers", "reasons", "namespaces"):
        if (text := request.query_params.get(name)) is None:
            continue
        chosen[name] = frozenset(text.split(","))
        for word in chosen[name]:
            if word not in known.get(name, (word,)) or not word:
                raise InvalidRecord(name, f"{word[:64]!r} is none of the {name}: {', '.join(known.get(name, ()))}")
    return Selection(**chosen)
