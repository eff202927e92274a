"""How full the tiers are, for decisions that must not wait: of a tier that does not say in time, what it last said.

The poll loop and the age monitor ask twice a second. A store that hangs would hold them up, and one that is gone would
end them; what they decide is advice, and a usage some seconds old is good enough for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Self

import structlog

from tiers.errors import TierError
from tiers.tier import Tier, TierName, Usage

log = structlog.get_logger()

WAIT_S = 0.25


class Usages:
    """Call it to ask. One question at a time is on its way to each tier."""

    def __init__(self, tiers: Mapping[TierName, Tier], known: Mapping[TierName, Usage]) -> None:
        self._tiers, self._known = tiers, dict(known)
        self._asked: dict[TierName, asyncio.Task[Usage]] = {}

    @classmethod
    async def open(cls, tiers: Mapping[TierName, Tier]) -> Self:
        """Ask every tier once, and wait for it: TierError when one cannot say."""
        return cls(tiers, {name: await tier.usage() for name, tier in tiers.items()})

    async def __call__(self) -> Mapping[TierName, Usage]:
        """Return what each tier says within WAIT_S, or what it last said. Raises nothing."""
        for name, tier in self._tiers.items():
            if name not in self._asked:
                self._asked[name] = asyncio.create_task(tier.usage(), name=f"usage-{name.word}")
        done, _ = await asyncio.wait(self._asked.values(), timeout=WAIT_S)
        for name, task in list(self._asked.items()):
            if task in done:
                del self._asked[name]
                try:
                    self._known[name] = task.result()
                except TierError as error:
                    log.warning("usage.unknown", tier=name.word, error=str(error))
        return dict(self._known)

    async def close(self) -> None:
        """Ask no more."""
        asked, self._asked = list(self._asked.values()), {}
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
