"""What is true, by the log alone: for each id its versions in order, as a fold over what was appended (R2, R5).

Nothing here is the product's: offsets become versions, conditional deletes count or do not, and what an operator
cleared may be gone. Everything else is compared with this.
"""

from __future__ import annotations

from typing import NamedTuple

from producers import events
from producers.events import Message
from tests.simulation.log import TOPICS
from tiers import record


class State(NamedTuple):
    """One version of an id; `expires_at` in ms, 0 for never. `repeats`: the tombstone that it deletes, if any."""

    version: int
    offset: int
    deleted: bool
    expires_at: int
    repeats: int | None = None


class Model:
    """`history` by id, oldest first. `reached` by partition: the offset below which some life has applied the log."""

    def __init__(self, partitions: int) -> None:
        self.history: dict[str, list[State]] = {}
        self.partition: dict[str, int] = {}
        self.reached = dict.fromkeys(range(partitions), 0)
        self.expiring: dict[tuple[int, int], int] = {}  # (partition, offset) -> expires_at, of upserts about to come
        self.bad: set[tuple[int, int]] = set()
        self.may_be_cleared: set[tuple[str, int]] = set()
        self.gone: set[tuple[str, int]] = set()  # cleared, and seen to be

    def appended(self, topic: str, partition: int, message: Message) -> None:
        """Take in a message as it enters the log."""
        if topic == TOPICS.changes and message.value is not None:
            change = events.decode_change(message.value)
            if change.reason == "cleared" and change.kind == "home":
                versions = map(record.parse_version, change.versions)
                self.may_be_cleared |= set(zip(change.ids, versions, strict=True))
        if topic != TOPICS.memories or (partition, message.offset) in self.bad or message.key is None:
            return
        name = message.key.decode()
        past = self.history.setdefault(name, [])
        self.partition[name] = partition
        condition = events.condition(message) if message.value is None else None
        if condition is not None and (not past or past[-1].version != condition):
            return
        version = record.pack_version(0, message.offset)
        expires_at = self.expiring.get((partition, message.offset), 0)
        repeats = condition if condition is not None and past[-1].deleted else None
        past.append(State(version, message.offset, message.value is None, expires_at, repeats))

    def at(self, name: str, applied: int) -> int:
        """Return how many versions of an id the log has below an offset."""
        past = self.history[name]
        count = len(past)
        while count and past[count - 1].offset >= applied:
            count -= 1
        return count

    def newest(self, name: str, applied: int) -> State | None:
        """Return the newest version of an id below an offset."""
        count = self.at(name, applied)
        return self.history[name][count - 1] if count else None
