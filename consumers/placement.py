"""Where the changes say that records are: the fold that every subscriber needs, and the one rule in it.

Delivery is at least once, and a message of a node that died may land behind what its successor has told. So the last
change told is not the truth. What is: a version only goes down (hot, warm, cold, glacier, nowhere), and a newer version
ends what is told of an older one. Of each id the newest version counts, and of that the deepest place told. Pure.
"""

from __future__ import annotations

from collections import OrderedDict

from consumers.selection import part
from producers.events import Change
from tiers import record
from tiers.errors import InvalidRecord
from tiers.tier import TierName

#: Places by depth, as changes name them; None is nowhere: a dropped tombstone, a cleared tier.
PLACES: tuple[str | None, ...] = (*(tier.word for tier in TierName), None)
DEPTHS = {place: depth for depth, place in enumerate(PLACES)}


class Placement:
    """The homes of the `ids_max` ids told of last; what is forgotten begins anew with the next change of it."""

    def __init__(self, ids_max: int) -> None:
        self._ids_max = ids_max
        self._homes: OrderedDict[str, tuple[int, int]] = OrderedDict()  # version, depth

    def __len__(self) -> int:
        return len(self._homes)

    def home(self, identifier: str) -> tuple[int, str | None] | None:
        """Return (version, place) of what was told of an id; None where nothing was. A newer version is in hot."""
        if identifier not in self._homes:
            return None
        version, depth = self._homes[identifier]
        return version, PLACES[depth]

    def clear(self) -> None:
        """Forget everything."""
        self._homes.clear()

    def advance(self, change: Change) -> Change | None:
        """Return the change with the ids whose home it moves on, None when there are none; copies are always told.

        A repeat moves nothing on, nor does what a dead node's late message tells. InvalidRecord("change").
        """
        if change.kind != "home":
            return change
        try:
            depth, versions = DEPTHS[change.target], [record.parse_version(text) for text in change.versions]
        except (KeyError, ValueError) as error:
            raise InvalidRecord("change", f"not a change: {error!r}") from error
        moved = []
        for at, (identifier, version) in enumerate(zip(change.ids, versions, strict=True)):
            if (version, depth) > self._homes.get(identifier, (-1, 0)):
                self._homes[identifier] = version, depth
                self._homes.move_to_end(identifier)
                moved.append(at)
        while len(self._homes) > self._ids_max:
            self._homes.popitem(last=False)
        return part(change, moved)
