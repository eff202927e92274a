"""The four tiers and what they share.

record, codec, packed, policy, score: pure. tier, errors: the words. index (segment, view, queue): where everything is;
rebuild: it made anew; read: a query answered (reading, scan, search, rerank, listing). alone: a tier used by itself.
worker: one thread that owns one handle. hot: columns, slab, copies; device, host, and for a GPU cuda, staging, kernels
(device is the only import of CuPy). warm: valkey, warm_keys, warm_rows, warm_scripts. cold: cold_table and cold_file
(DuckDB), side (packed rows), slots, cold_rows (both together). glacier: glacier_settings, files, layout, parquet,
recent, rewrite, retired, census; archive, deltalog, replay (the Delta commit path); storage (the one seam) with disk
and bucket (asking, credentials, ranges).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tiers.cold import ColdMemory as ColdMemory
    from tiers.cold_settings import ColdSettings as ColdSettings
    from tiers.glacier import GlacierMemory as GlacierMemory
    from tiers.glacier_settings import GlacierSettings as GlacierSettings
    from tiers.hot import HotMemory as HotMemory
    from tiers.hot import HotSettings as HotSettings
    from tiers.record import Row as Row
    from tiers.tier import Hit as Hit
    from tiers.tier import Location as Location
    from tiers.tier import Query as Query
    from tiers.tier import Receipt as Receipt
    from tiers.tier import Result as Result
    from tiers.tier import TierName as TierName
    from tiers.tier import Usage as Usage
    from tiers.warm import WarmMemory as WarmMemory
    from tiers.warm_settings import WarmSettings as WarmSettings

_HOMES = {
    "ColdMemory": "tiers.cold",
    "ColdSettings": "tiers.cold_settings",
    "GlacierMemory": "tiers.glacier",
    "GlacierSettings": "tiers.glacier_settings",
    "Hit": "tiers.tier",
    "HotMemory": "tiers.hot",
    "HotSettings": "tiers.hot",
    "Location": "tiers.tier",
    "Query": "tiers.tier",
    "Receipt": "tiers.tier",
    "Result": "tiers.tier",
    "Row": "tiers.record",
    "TierName": "tiers.tier",
    "Usage": "tiers.tier",
    "WarmMemory": "tiers.warm",
    "WarmSettings": "tiers.warm_settings",
}

__all__ = [
    "ColdMemory",
    "ColdSettings",
    "GlacierMemory",
    "GlacierSettings",
    "Hit",
    "HotMemory",
    "HotSettings",
    "Location",
    "Query",
    "Receipt",
    "Result",
    "Row",
    "TierName",
    "Usage",
    "WarmMemory",
    "WarmSettings",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
