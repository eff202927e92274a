"""A node and everything around it.

settings, manifest, topics, app (wiring and supervision), manager (MemoryManager). routes, metrics, log: the gateway.
client (Client, AsyncClient), agents (MCP): the gateway from elsewhere. cli, demo, stack, keeper, doctor: the command
line and the local servers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.manager import MemoryManager as MemoryManager
    from pipeline.settings import Settings as Settings
    from tiers.record import Row as Row
    from tiers.tier import Query as Query

_HOMES = {
    "MemoryManager": "pipeline.manager",
    "Query": "tiers.tier",
    "Row": "tiers.record",
    "Settings": "pipeline.settings",
}

__all__ = [
    "MemoryManager",
    "Query",
    "Row",
    "Settings",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
