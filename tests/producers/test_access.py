"""Reading costs no write: accesses are folded in memory, bounded, and lost harmlessly (R11)."""

from __future__ import annotations

import pytest

from producers import events
from producers.access import Access, AccessSettings
from tests.tiers.rows import row
from tiers.errors import LogUnavailable
from tiers.tier import Hit, TierName

pytestmark = pytest.mark.unit


class Log:
    """A publisher that keeps what is sent, or refuses it."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.sent: list[bytes] = []
        self.refuses = refuses

    async def send(self, topic, value, *, partition):
        if self.refuses:
            raise LogUnavailable("no broker")
        self.sent.append(value)


def folded(log: Log, ids_max: int = 100) -> Access:
    return Access(AccessSettings(ids_max=ids_max), log, "t.access", 4, lambda: 7)


def hits(*names: str) -> list[Hit]:
    return [Hit(row(name, 1), TierName.WARM) for name in names]


async def test_many_reads_become_one_row_an_id():
    """Nothing is sent before the flush; then each id has its count, tier and last access."""
    log = Log()
    access = folded(log)
    for _ in range(50):
        access.note(hits("a", "b"))
    access.note(hits("a"))
    assert [] == log.sent

    await access.flush()

    batches = [events.decode_arrow(value, events.ACCESS).to_pylist() for value in log.sent]
    found = {line["id"]: line for batch in batches for line in batch}
    assert {"a": 51, "b": 50} == {name: line["count"] for name, line in found.items()}
    assert {(1, 7)} == {(line["tier"], line["last"]) for line in found.values()}


async def test_ids_beyond_the_bound_are_counted_as_uncounted():
    """The fold is bounded: what does not fit is not kept, and said."""
    log = Log()
    access = folded(log, ids_max=2)
    access.note(hits("a", "b", "c", "a"))

    await access.flush()

    assert 1 == access.uncounted
    assert 2 == sum(events.decode_arrow(value, events.ACCESS).num_rows for value in log.sent)


async def test_a_log_that_refuses_costs_the_advice_and_nothing_else():
    """A flush that fails drops the fold; the next reads are folded as before."""
    log = Log(refuses=True)
    access = folded(log)
    access.note(hits("a"))
    await access.flush()
    log.refuses = False
    access.note(hits("b"))

    await access.flush()

    assert ["b"] == [line["id"] for v in log.sent for line in events.decode_arrow(v, events.ACCESS).to_pylist()]
