"""What reads from Kafka, and what it sets in motion.

reader: the only poll loop. ingest, heat, demote: its three handlers. watermark, lane, mover, commit, upkeep, clearing:
how rows move and offsets are committed. lease: who owns a partition. subscribe, selection, placement: the change feed,
for users.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consumers.placement import Placement as Placement
    from consumers.selection import Selection as Selection
    from consumers.subscribe import subscribe_changes as subscribe_changes

_HOMES = {
    "Placement": "consumers.placement",
    "Selection": "consumers.selection",
    "subscribe_changes": "consumers.subscribe",
}

__all__ = [
    "Placement",
    "Selection",
    "subscribe_changes",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
