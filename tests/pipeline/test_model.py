"""The whole against a dictionary: Hypothesis drives a node on real servers and shrinks what goes wrong.

Rules are every operation there is: publish in four ways, delete, delete if unchanged, expire, move any record one hop
or more through its lane, put copies into hot and take them away, clear a tier, clean up, compact, reindex, restart in
order and without a goodbye. After each, every kind of read says what the dictionary says.
"""

from __future__ import annotations

import time
import uuid
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from pipeline import Query
from pipeline.stack import Stack
from tests.nodes import small
from tests.pipeline import memory_model as node
from tests.pipeline.memory_model import TTL_S, Life, Model
from tiers import TierName, record

NAMES = [f"m/{n}" for n in range(6)]
MANY = [f"n/{n}" for n in range(24)]  # so many vectors that codes are made of them
IDS = st.sampled_from(NAMES)
SOME = st.sets(IDS, min_size=1).map(sorted)
BELOW = st.sampled_from(list(TierName)[1:])


def machine(stack: Stack, directory: Path) -> type[RuleBasedStateMachine]:
    """Return the state machine over this stack."""

    class Memory(RuleBasedStateMachine):
        @initialize()
        def begin(self) -> None:
            prefix = f"t-{uuid.uuid4().hex[:12]}"
            # Nothing moves by itself: what lies in a tier when it is cleared is what lay there when it was looked at.
            more = {"age__interval_ms": 3_600_000, "move__upkeep_ms": 3_600_000, "index__train_rows": 16}
            self.settings = small(stack, prefix, directory / prefix, expiry__interval_ms=50, **more)
            self.model, self.life = Model(), Life()
            self.memory = self.life.do(self.life.open(self.settings))

        def _applied(self, token: str) -> None:
            self.life.do(self.memory.retrieve(Query(ids=[], at_least=token)))

        # -- publishing ----------------------------------------------------------------------------------------------

        @rule(identifiers=st.lists(IDS, min_size=1, max_size=4))
        def store(self, identifiers: list[str]) -> None:
            self._applied(self.life.do(self.memory.store([self.model.row(i) for i in identifiers])))

        @rule(identifier=IDS, ttl_s=st.sampled_from([None, 3_600.0]))
        def send(self, identifier: str, ttl_s: float | None) -> None:
            self._applied(self.life.do(node.send(self.memory, identifier, self.model.make(identifier), ttl_s)))

        @rule(identifiers=st.lists(IDS, min_size=1, max_size=4), below=BELOW)
        def send_batch(self, identifiers: list[str], below: TierName) -> None:
            """Many rows in one message, most of which go down at once."""
            shape = record.schema(self.settings.dim, self.settings.attributes)
            rows = [self.model.row(i) for i in [*MANY, *identifiers]]
            self._applied(self.life.do(self.memory.node.producer.send_batch(record.to_batch(rows, shape))))
            self.life.do(node.demote(self.memory, MANY, below))

        @rule(identifier=IDS)
        def delete(self, identifier: str) -> None:
            self.model.known.pop(identifier, None)
            self._applied(self.life.do(self.memory.delete(identifier)))

        @rule(identifier=IDS, meant=st.booleans())
        def delete_if(self, identifier: str, meant: bool) -> None:
            """A delete of a version: the one there is, or one that is not."""
            entry = self.memory.node.index.find(identifier)
            if entry is not None:
                version = entry.version if meant else entry.version - 1
                self._applied(self.life.do(node.delete_if(self.memory, identifier, version)))
                if meant:
                    self.model.known.pop(identifier, None)

        @rule(identifier=IDS)
        def expire(self, identifier: str) -> None:
            """A record whose time comes at once, whether or not its tombstone is there yet."""
            self._applied(self.life.do(node.send(self.memory, identifier, self.model.make(identifier), TTL_S)))
            time.sleep(TTL_S + 0.002)  # for its time to come, not for a result
            del self.model.known[identifier]

        # -- moving --------------------------------------------------------------------------------------------------

        @rule(identifiers=SOME, below=BELOW)
        def demote(self, identifiers: list[str], below: TierName) -> None:
            self.life.do(node.demote(self.memory, identifiers, below))

        @rule(identifiers=SOME)
        def promote(self, identifiers: list[str]) -> None:
            self.life.do(node.promote(self.memory, identifiers))

        @rule(identifiers=SOME)
        def cool(self, identifiers: list[str]) -> None:
            self.life.do(node.cool(self.memory, identifiers))

        @rule(tier=st.sampled_from(list(TierName)))
        def clear(self, tier: TierName) -> None:
            """What is at home in a tier is gone for good; what is elsewhere stays."""
            find = self.memory.node.index.find
            gone = [i for i in self.model.known if (entry := find(i)) is not None and entry.home == tier]
            self.life.do(self.memory.clear(tier))
            for identifier in gone:
                del self.model.known[identifier]

        @rule()
        def clean(self) -> None:
            self.life.do(self.memory.cleanup())

        @rule()
        def compact(self) -> None:
            self.life.do(node.compact(self.memory))

        @rule()
        def reindex(self) -> None:
            self.life.do(node.reindex(self.memory))

        # -- ending --------------------------------------------------------------------------------------------------

        @rule()
        def restart(self) -> None:
            self.life.do(self.life.close())
            self.memory = self.life.do(self.life.open(self.settings))

        @rule()
        def crash(self) -> None:
            self.life.do(self.life.crash())
            self.memory = self.life.do(self.life.open(self.settings))

        @invariant()
        def reads_are_right(self) -> None:
            if hasattr(self, "memory"):
                self.life.do(node.agrees(self.memory, self.model, NAMES + MANY))

        def teardown(self) -> None:
            if hasattr(self, "life"):
                self.life.do(self.life.close())
                self.life.end()

    return Memory


# A crash without a goodbye leaves what it was doing to the collector of garbage, which complains.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.timeout(300)
def test_the_whole_behaves_like_a_dictionary(stack: Stack, tmp_path: Path) -> None:
    """Whatever is done to a node in any order, reads say what a dict says."""
    quick = settings(max_examples=6, stateful_step_count=14, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(machine(stack, tmp_path), settings=quick)
