"""What `verify` says is wrong, and its look at the log: the topic that was read, and the offsets committed in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from consumers import log_faults
from pipeline.log_identity import identity

if TYPE_CHECKING:
    from pipeline.app import Node


class Problem(msgspec.Struct, kw_only=True):
    """One thing that is wrong. `kind`: missing, damaged, orphan, side, cache, file, log, offsets or count."""

    kind: str
    tier: str = ""
    id: str = ""
    version: str = ""
    partition: int = -1
    detail: str = ""
    repaired: bool = False


async def log_problems(node: Node) -> list[Problem]:
    """Return what makes the topic another log than the one that was read."""
    found = await identity(node.settings.kafka, node.topics.memories)
    fault = log_faults.fault(found, node.manifest.topic, node.manifest.partitions)
    return [Problem(kind="log", detail=fault)] if fault else []


async def offset_problems(node: Node) -> list[Problem]:
    """Check begin <= committed <= watermark <= end of the log, by partition."""
    marks = node.ingest.watermarks
    before = {partition: mark.value for partition, mark in marks.items()}
    problems: list[Problem] = []
    for partition, (begin, committed, end) in (await node.reader.positions()).items():
        facts = {"begin": begin, "committed": committed, "watermark": marks[partition].value, "end": end}
        least = begin if committed is None else committed
        if not (begin <= least <= marks[partition].value and before[partition] <= end):
            detail = ", ".join(f"{name} {value}" for name, value in facts.items())
            problems.append(Problem(kind="offsets", partition=partition, detail=detail))
    return problems
