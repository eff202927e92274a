"""The queue's groups: rows of a move are queued together, and are rows like others for whoever asks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tiers.queue import Group, Key, Queue
from tiers.tier import NO_SLOT, Location, Places, TierName

pytestmark = pytest.mark.unit

IDS = ("a", "b", "c", "d")
TIERS = st.sampled_from([TierName.WARM, TierName.COLD])
SLOTS = st.sampled_from([NO_SLOT, 1, 2])
CHOSEN = st.lists(st.sampled_from(IDS), unique=True, min_size=1)


def places(ids: list[str], slot: int) -> Places:
    return Places(ids, np.ones(len(ids), np.int64), np.zeros(len(ids), np.int64), np.full(len(ids), slot))


def keys(tier: TierName, ids: list[str], slot: int) -> set[Key]:
    return {Key(tier, identifier, 1, slot) for identifier in ids}


class Machine(RuleBasedStateMachine):
    """The queue against sets: of single rows, and one for each group."""

    def __init__(self) -> None:
        super().__init__()
        self.queue, self.rows = Queue(), set[Key]()
        self.groups: list[tuple[Group, set[Key], set[Key]]] = []  # each with its rows, as long as it is one, and ever

    @rule(tier=TIERS, identifier=st.sampled_from(IDS), slot=SLOTS)
    def add(self, tier, identifier, slot):
        key = Key(tier, identifier, 1, slot)
        known = key in self.everything()

        assert known is not self.queue.add(tier, Location(identifier, 1, 0, slot))
        if not known:
            self.rows.add(key)

    @rule(tier=TIERS, identifier=st.sampled_from(IDS), slot=SLOTS)
    def remove(self, tier, identifier, slot):
        self.queue.remove(tier, Location(identifier, 1, 0, slot))
        self.forget({Key(tier, identifier, 1, slot)})

    @rule(tier=TIERS, ids=CHOSEN, slot=SLOTS)
    def remove_all(self, tier, ids, slot):
        self.queue.remove_all(tier, 0, places(ids, slot))
        self.forget(keys(tier, ids, slot))

    @rule(tier=TIERS, ids=CHOSEN, slot=SLOTS)
    def enter(self, tier, ids, slot):
        group = self.queue.enter(tier, 0, places(ids, slot))
        self.groups.append((group, keys(tier, ids, slot), keys(tier, ids, slot)))

    @rule(tier=TIERS, identifier=st.sampled_from(IDS), old=SLOTS, new=SLOTS)
    def follow(self, tier, identifier, old, new):
        self.queue.follow(tier, identifier, 1, old, new)
        known = Key(tier, identifier, 1, old) in self.everything()
        self.forget({Key(tier, identifier, 1, old)})
        if known and Key(tier, identifier, 1, new) not in self.everything():
            self.rows.add(Key(tier, identifier, 1, new))

    @rule(at=st.integers(0, 9), end=st.booleans())
    def end(self, at, end):
        if not self.groups:
            return
        group, members, ever = self.groups.pop(at % len(self.groups))
        if end:
            grouped = group in self.queue._groups
            self.queue.leave(group)
            self.forget(set() if grouped else ever)
        else:
            self.queue.part(group)
            self.rows |= members

    def forget(self, gone: set[Key]) -> None:
        """Groups of which a row is treated alone become rows."""
        for group, members, _ in self.groups:
            if group not in self.queue._groups:
                self.rows |= members
                members.clear()
        self.rows -= gone

    def everything(self) -> set[Key]:
        return self.rows.union(*(members for _, members, _ in self.groups))

    @invariant()
    def the_same_is_queued(self):
        for identifier in IDS:
            found = self.queue.of(identifier)
            assert len(found) == len(set(found))
            assert {key for key in self.everything() if key.id == identifier} == set(found)
        for tier in (TierName.WARM, TierName.COLD):
            listed = {where.id for where in self.queue.list(0, tier, 99)}
            alone = {key.id for key in self.rows if key.tier == tier and (tier == TierName.WARM or key.slot != NO_SLOT)}
            assert alone == listed
            lying = {key.id for key in self.everything() if key.tier == tier and key.slot != NO_SLOT}
            assert lying <= {one for one, there in zip(IDS, self.queue.lying(tier, IDS), strict=True) if there}


TestQueue = Machine.TestCase
TestQueue.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_a_group_that_was_treated_row_by_row_still_leaves_whole():
    """A move that ends takes all of its rows out, whatever became of single ones meanwhile."""
    queue = Queue()
    group = queue.enter(TierName.COLD, 0, places(["a", "b"], 1))
    queue.remove(TierName.COLD, Location("a", 1, 0, 1))

    assert [Key(TierName.COLD, "b", 1, 1)] == queue.of("b")
    queue.leave(group)
    assert 0 == len(queue)


def test_a_row_of_a_group_is_followed_to_where_its_file_was_rewritten():
    """It is queued at its new place, once, and the others of its move are still queued where they lie."""
    queue = Queue()
    queue.enter(TierName.GLACIER, 0, places(["a", "b"], 1))
    queue.follow(TierName.GLACIER, "a", 1, 1, 2)

    assert [Key(TierName.GLACIER, "a", 1, 2)] == queue.of("a")
    assert [Key(TierName.GLACIER, "b", 1, 1)] == queue.of("b")
