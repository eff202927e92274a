"""Which changes a subscriber wants to see. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from producers.events import Change
from tiers import record

#: What of a change someone may or wants to see: it whole, a part of its ids, or None.
Visible = Callable[[Change], Change | None]


def part(change: Change, keep: Sequence[int]) -> Change | None:
    """Return the change with the ids at these places only; itself when they are all, None when there are none."""
    if len(keep) == len(change.ids):
        return change
    if not keep:
        return None
    ids, versions = [change.ids[at] for at in keep], [change.versions[at] for at in keep]
    return msgspec.structs.replace(change, ids=ids, versions=versions)


@dataclass(frozen=True, slots=True)
class Selection:
    """A change passes when it is of one of the `kinds`, goes from or to one of the `tiers`, and for one of the
    `reasons`; of its ids those in one of the `namespaces` remain. None passes everything.
    """  # noqa: D205 - one sentence of four conditions

    kinds: frozenset[str] | None = None
    tiers: frozenset[str] | None = None
    reasons: frozenset[str] | None = None
    namespaces: frozenset[str] | None = None

    def __call__(self, change: Change) -> Change | None:
        """Return what passes of a change, None where nothing does."""
        if self.kinds is not None and change.kind not in self.kinds:
            return None
        if self.reasons is not None and change.reason not in self.reasons:
            return None
        if self.tiers is not None and self.tiers.isdisjoint((change.source or "", change.target or "")):
            return None
        if self.namespaces is None:
            return change
        return part(change, [at for at, i in enumerate(change.ids) if record.namespace(i) in self.namespaces])
