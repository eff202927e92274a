"""Which conditional deletes count: a fold over the log, that comes out the same however often it is done. Pure.

A conditional delete at offset o counts if the newest version of its id before o, itself decided so, is the one that it
names. On replay the index, rebuilt from the tiers, may know a version from beyond o: then the delete is old news either
way. If what it knows is older than o, then that is what was the newest before o, or what was is in the log between
(R1): replayed before, or earlier in the same batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tiers.index import Entry


class Finds(Protocol):
    """What knows the newest version of an id."""

    def find(self, identifier: str) -> Entry | None:
        """Return the entry of an id; a tombstone is an entry too."""


def met(
    ids: Sequence[str], versions: Sequence[int], conditions: Mapping[int, int | None], index: Finds
) -> npt.NDArray[np.bool_]:
    """Return which rows of a batch, in log order, count: those without a condition, and those whose condition is met.

    `conditions` are by the version of the delete that has it. A delete that is itself the newest version known was
    counted before, and is a replayed row like any other.
    """
    concerned = {identifier for identifier, version in zip(ids, versions, strict=True) if version in conditions}
    newest = {identifier: entry.version for identifier in concerned if (entry := index.find(identifier)) is not None}
    keep = np.ones(len(ids), bool)
    for at, (identifier, version) in enumerate(zip(ids, versions, strict=True)):
        if identifier not in concerned:
            continue
        known = newest.get(identifier, -1)
        if version in conditions and known not in (conditions[version], version):
            keep[at] = False
        else:
            newest[identifier] = max(known, version)
    return keep
