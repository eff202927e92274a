"""Judges every answer by what was acknowledged and by what answers before it have shown. Pure: no I/O, no clock.

An id's events are numbered as they were sent, and one producer sends them in order, so a number is a version. What an
answer shows of an id is event n, or nothing. Of two answers of which one had ended before the other began, the later
must not show less (R6: what a read returns was the newest at some moment during it):

    stale        an older event than an answer has shown before, or than was acknowledged when the read asked for that
    resurrected  an event older than a deletion that an answer has shown
    invisible    nothing, although an answer has shown a record and nothing that deletes it was sent since
    lost         at the end: what was acknowledged last is not there (`Checker.settled`), or is not what was sent

Answers that say of themselves that they are not complete are no evidence of absence (R7).
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from tests.chaos.ledger import Event, Ledger

KINDS = ("lost", "stale", "resurrected", "invisible")
REMEMBERED = 16  # answers by id that a later one is held against
SHOWN = 50


@dataclass(slots=True)
class Checker:
    """`counts` by kind; `wrong` tells of the first of them."""

    ledger: Ledger
    counts: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    _elsewhere: int = 0
    #: Of each id, (when the answer had ended, event that was the least it can have been), both only grow.
    _shown: dict[str, deque[tuple[float, int]]] = field(default_factory=dict)

    def seen(
        self, identifier: str, n: int | None, began: float, ended: float, *, asked_for: int = -1, how: str = "read"
    ) -> None:
        """Judge a complete answer that showed event `n` of an id (None: nothing), between two moments.

        `asked_for` is an event that the read was to wait for (`at_least`), -1 for none.
        """
        self.answers[how] += 1
        events = self.ledger.events.get(identifier, [])
        floor = max(asked_for, self._floor(identifier, began))
        if n is None:
            self._absent(identifier, events, floor, began, ended, how)
        elif n >= len(events) or events[n].deleted or events[n].sent > ended:
            self.note("lost", identifier, f"{how} showed event {n}, which was never sent as a record")
        else:
            if n < floor:
                kind = "resurrected" if any(event.deleted for event in events[n + 1 : floor + 1]) else "stale"
                self.note(kind, identifier, f"{how} showed event {n} after {floor} ({began:.3f} to {ended:.3f})")
            self._show(identifier, ended, n)

    def _absent(self, identifier: str, events: list[Event], floor: int, began: float, ended: float, how: str) -> None:
        if floor < 0:
            return
        deletes = (event.n for event in events[floor:] if event.deleted and event.sent <= ended)
        least = next(deletes, None)
        if least is None:
            self.note("invisible", identifier, f"{how} showed nothing after {floor} ({began:.3f} to {ended:.3f})")
        else:
            self._show(identifier, ended, least)

    def settled(self, identifier: str, n: int | None, how: str) -> None:
        """Judge what is there of an id once nothing is sent and nothing moves any more."""
        self.answers[how] += 1
        events, newest = self.ledger.events.get(identifier, []), self.ledger.newest.get(identifier)
        if newest is None:
            if n is not None and n >= len(events):
                self.note("lost", identifier, f"{how}: event {n}, which was never sent")
            return
        open_ended = [event for event in events[newest.n :] if event is newest or event.offset is None]
        if any((None if event.deleted else event.n) == n for event in open_ended):
            return  # one that was sent and never answered may be in the log too
        if n is None or n > newest.n:
            self.note("lost", identifier, f"{how}: {n} is there, {newest.n} was acknowledged")
        else:
            kind = "resurrected" if any(event.deleted for event in events[n + 1 : newest.n + 1]) else "stale"
            self.note(kind, identifier, f"{how}: {n} is there, {newest.n} was acknowledged")

    def _floor(self, identifier: str, began: float) -> int:
        return max((n for ended, n in self._shown.get(identifier, ()) if ended < began), default=-1)

    def _show(self, identifier: str, ended: float, n: int) -> None:
        shown = self._shown.setdefault(identifier, deque(maxlen=REMEMBERED))
        if not shown or shown[-1][1] < n:
            shown.append((ended, n))

    def note(self, kind: str, identifier: str, what: str) -> None:
        self.counts[kind] += 1
        if len(self.wrong) < SHOWN:
            self.wrong.append(f"{kind}: {identifier}: {what}")

    def take(self, other: Checker) -> None:
        """Count what another checker, of another ledger, has found."""
        self.counts += other.counts
        self.answers += other.answers
        self.wrong += other.wrong
        self._elsewhere += other.acknowledged

    @property
    def acknowledged(self) -> int:
        """How many events were acknowledged."""
        return self.ledger.acknowledged + self._elsewhere

    @property
    def clean(self) -> bool:
        """Whether nothing was wrong."""
        return not any(self.counts.values())
