"""The operator's routes: clear a tier, hint at a move, ask why a record is where it is.

Who may is asked before a request comes here (`pipeline/guard.py`); which records, in `_facts`.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from consumers.history import History, history
from pipeline import why
from pipeline.app import now_ms
from pipeline.auth import principal_of
from pipeline.codes import codes
from pipeline.manager import MemoryManager
from pipeline.paths import Handler
from pipeline.problems import problem
from pipeline.why import Facts, time_text
from tiers import record
from tiers.tier import TierName

PROMOTE_READS = (
    100  # reads that an operator's hint counts for: far above what admits a copy, and it fades like any heat
)
HISTORY_S = 2.0  # what a look at the changes topic may take…
HISTORY_MESSAGES = 20_000  # …and read
HISTORIES = 4  # looks at once; each has a Kafka consumer

_encode = msgspec.json.Encoder().encode


class Operator:
    """Handlers over one manager; `handlers` are mounted by the gateway."""

    def __init__(self, manager: MemoryManager) -> None:
        self._manager = manager
        self._histories = asyncio.Semaphore(HISTORIES)

    def handlers(self) -> dict[str, Handler]:
        """Return the handlers by operation."""
        return {
            "clear": self.clear,
            "reindex": self.reindex,
            "promote": self.promote,
            "demote": self.demote,
            "why": self.why,
        }

    # -- changing ----------------------------------------------------------------------------------------------------

    async def clear(self, request: Request) -> Response:
        """POST /v1/tiers/{tier}:clear: delete, for good, every record whose home is that tier."""
        tier = request.path_params["tier"]
        return _json({"tier": tier, "cleared": await self._manager.clear(tier)})

    async def reindex(self, _: Request) -> Response:
        """POST /v1/index:reindex: train the codebook anew and code everything by it, in the background; 202."""
        node = self._manager.node
        if not node.coder.reindex.request():
            detail = "there is no codebook yet: one is trained once index.train_rows vectors lie below hot"
            return problem(409, "no-codebook", detail)
        return _json(codes(node), 202)

    async def promote(self, request: Request) -> Response:
        """POST /v1/memories/{id}:promote: a hint on the access topic; 202."""
        what = await self._hinted(request)
        if isinstance(what, Response):
            return what
        topic = self._manager.node.topics.access
        await self._manager.node.access.hint(what.id, PROMOTE_READS)
        hint = (
            f"counted as {PROMOTE_READS} reads on {topic}: the policy gives it a copy in hot if there is room for one"
        )
        if what.tier is TierName.HOT or what.copy:
            hint = f"it is in hot already; counted as {PROMOTE_READS} reads on {topic}, so that it stays wanted"
        return self._hint(what, hint)

    async def demote(self, request: Request) -> Response:
        """POST /v1/memories/{id}:demote: a hint on the age topic; 202, or 409 in glacier.

        A record with a copy in hot loses the copy; another goes down.
        """
        what = await self._hinted(request)
        if isinstance(what, Response):
            return what
        if what.tier is TierName.GLACIER and not what.copy:
            return problem(409, "lowest-tier", f"{what.id!r} is in glacier: there is no tier below")
        topic = self._manager.node.topics.age
        await self._manager.node.age.hint(what.id)
        goes = "its copy in hot goes" if what.copy else "it goes down when its lane has time, where the policy has room"
        return self._hint(what, f"named on {topic}: {goes}")

    async def _hinted(self, request: Request) -> Facts | Response:
        """Return what is known of the record that a hint is about, or the refusal."""
        identifier = record.check_id(request.path_params["id"])
        self._manager.check_ready()
        what = self._facts(request, identifier)
        if what is None or what.deleted:
            return problem(404, "not-found", f"no memory {identifier!r}")
        return what

    @staticmethod
    def _hint(what: Facts, hint: str) -> Response:
        return _json({"id": what.id, "tier": what.tier.word, "hint": hint, "certain": False}, 202)

    # -- looking -----------------------------------------------------------------------------------------------------

    async def why(self, request: Request) -> Response:
        """GET /v1/why/{id}: where a record is, which rule put it there, and which will move it next."""
        identifier = record.check_id(request.path_params["id"])
        self._manager.check_ready()
        what = self._facts(request, identifier)
        if what is None:
            return problem(404, "not-found", f"no memory {identifier!r}")
        async with self._histories:
            kafka = self._manager.node.settings.kafka
            past = await history(
                kafka,
                what.partition,
                identifier,
                deadline_s=HISTORY_S,
                messages_max=HISTORY_MESSAGES,
                version=record.version_text(what.version),
            )
        what = self._facts(request, identifier) or what  # it may have moved while the topic was read
        usages = await self._manager.node.usages()
        settings, queue = self._manager.node.settings, self._manager.node.index.queue
        last = why.last_move(what, past)
        ahead = why.outlook(what, usages, settings.policy, settings.age.glacier_flush_s)
        answer = {
            **_shown(what),
            "because": why.because(what, last, settings.policy),
            "last_move": last,
            "decided": why.decided(what, past),
            "usage": {name.word: round(usage.fraction, 4) for name, usage in usages.items()},
            "next": {"rule": ahead.rule, "to": _word(ahead.target), "in_s": ahead.in_s, "text": ahead.text},
            "policy": settings.policy,
            "superseded": [
                {"tier": key.tier.word, "version": record.version_text(key.version)} for key in queue.of(identifier)
            ],
            **_told(past),
        }
        return _json(answer)

    def _facts(self, request: Request, identifier: str) -> Facts | None:
        """Return what is known of a record; what the caller may not see is not known (R12)."""
        if not principal_of(request).sees(identifier):
            return None
        node = self._manager.node
        return why.facts(node.index, identifier, node.settings.policy.heat_half_life_s, now_ms())


def _shown(what: Facts) -> dict[str, Any]:
    """Return the facts as the API shows them."""
    return {
        "id": what.id,
        "partition": what.partition,
        "version": record.version_text(what.version),
        "deleted": what.deleted,
        "tier": what.tier.word,
        "copy_in_hot": what.copy,
        "event_time": time_text(what.event_time),
        "expires_at": time_text(what.expires_at) if what.expires_at else None,
        "last_read": time_text(what.used),
        "age_s": what.age_ms / 1000,
        "idle_s": what.idle_ms / 1000,
        "heat": round(what.heat, 4),
    }


def _told(past: History) -> dict[str, Any]:
    """Return what the changes topic said, and how far it was looked at."""
    return {
        "history": [
            {
                "at": time_text(step.at),
                "kind": step.kind,
                "from": step.source,
                "to": step.target,
                "reason": step.reason,
                "version": step.version,
                "offset": step.offset,
            }
            for step in past.steps
        ],
        "looked": {
            "from_offset": past.looked_from,
            "to_offset": past.end,
            "begin_offset": past.begin,
            "complete": past.complete,
            "took_ms": round(past.took_ms, 1),
        },
    }


def _word(tier: TierName | None) -> str | None:
    return None if tier is None else tier.word


def _json(body: object, status: int = 200) -> Response:
    return Response(_encode(body), status, media_type="application/json")
