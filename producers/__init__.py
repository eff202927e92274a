"""What writes to Kafka.

events: the contracts of all topics; decoder: from a message to a valid row (both pure). publisher: the one way into
the log. memories: MemoryProducer, for users. age, access, changes: the node's own events. ticks: doing it regularly.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from producers.events import Topics as Topics
    from producers.memories import MemoryProducer as MemoryProducer
    from producers.publisher import KafkaSettings as KafkaSettings

_HOMES = {
    "KafkaSettings": "producers.publisher",
    "MemoryProducer": "producers.memories",
    "Topics": "producers.events",
}

__all__ = [
    "KafkaSettings",
    "MemoryProducer",
    "Topics",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
