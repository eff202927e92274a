"""What a principal with some namespaces sees of answers that are about the whole node (R12). Pure but for the index.

What is shared and stays visible: positions in the log and in the change feed (`freshness`, tokens, cursors), which tell
how much is written by all, and how full a tier is where `why` says what moves a record. No id, no content, no count.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from pipeline.auth import Principal
from pipeline.manager import MemoryManager
from producers.events import Change
from tiers.tier import Result, TierName

#: Of `explain`: what counts the caller's own records; the rest counts what the scan passed over, others' too.
OWN_COUNTS = frozenset({"looks", "candidates", "reranked", "rechecked", "fetched", "steps_ms"})


def visible_change(change: Change, namespaces: frozenset[str] | None) -> Change | None:
    """Return the change with the ids of these namespaces (None: all), None when nothing is left."""
    if namespaces is None:
        return change
    principal = Principal("", frozenset(), namespaces)
    kept = [at for at, identifier in enumerate(change.ids) if principal.sees(identifier)]
    if not kept:
        return None
    ids, versions = ([values[at] for at in kept] for values in (change.ids, change.versions))
    return msgspec.structs.replace(change, ids=ids, versions=versions)


def visible_result(result: Result, principal: Principal) -> Result:
    """Return the answer without counts of others' records; a search's are by namespace already."""
    if principal.namespaces is not None and result.explain is not None:
        result.explain = {name: value for name, value in result.explain.items() if name in OWN_COUNTS}
    return result


async def visible_tiers(manager: MemoryManager, principal: Principal, now_ms: int) -> Mapping[str, Any]:
    """Return /v1/tiers: everything, or, of some namespaces, their live records by the tier they are read in."""
    if principal.namespaces is None:
        return await manager.tiers()
    views = manager.node.index.views(TierName, principal.namespaces, now_ms=now_ms)
    live = sum((view.live for view in views), np.zeros(len(TierName), np.int64))
    return {
        "namespaces": sorted(principal.namespaces),
        "tiers": {name.word: {"records": int(live[name])} for name in TierName},
        "replaying": manager.node.replaying(),
        "freshness": manager.freshness(),
        "at": time.time(),
    }
