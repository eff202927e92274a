"""Announces moves on the changes topic: in order within a partition, at least once, before a home is rewritten (R4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from producers import events
from producers.publisher import Publisher
from tiers import record
from tiers.record import Int64s
from tiers.steps import turn
from tiers.tier import TierName

IDS_MAX = 1000
POLICY = "age-heat-2"  # the name of the rules in tiers/policy.py, for whoever replays the ledger


class Changes:
    """Publishes `Change` events."""

    def __init__(self, publisher: Publisher, topic: str, now_ms: Callable[[], int]) -> None:
        self._publisher, self._topic, self._now_ms = publisher, topic, now_ms

    async def publish(
        self,
        partition: int,
        source: TierName | None,
        target: TierName | None,
        reason: str,
        ids: Sequence[str],
        versions: Int64s,
        kind: str = "home",
        *,
        insist: bool = False,
    ) -> int:
        """Announce that these rows' home (copy) went from `source` to `target`; returns its time in ms.

        `insist` as in `Publisher.enqueue`.
        """
        at_ms = self._now_ms()
        sent = []
        for start in range(0, len(ids), IDS_MAX):
            if start:
                await turn()  # a message is a step of the loop
            change = events.Change(
                kind=kind,
                source=source.word if source is not None else None,
                target=target.word if target is not None else None,
                reason=reason,
                policy=POLICY,
                at=at_ms,
                ids=list(ids[start : start + IDS_MAX]),
                versions=record.version_texts(versions[start : start + IDS_MAX]),
            )
            value = events.encode_change(change)
            sent.append(await self._publisher.enqueue(self._topic, value, partition=partition, insist=insist))
        for confirmed in sent:
            await confirmed
        return at_ms
