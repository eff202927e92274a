"""The checker is checked: each wrong that it knows is planted and must be counted, and what is right must not be."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.demo_checks import Physical
from tests.chaos import audit, points
from tests.chaos.checker import Checker
from tests.chaos.ledger import Ledger, Pen
from tests.chaos.producer import value_of, vector_of

pytestmark = pytest.mark.unit


def checker_of(events: str, acknowledged: int | None = None) -> Checker:
    """A checker of one id "a" of which these events were sent, one a second from 0: put or delete."""
    ledger = Ledger(Path("/nowhere"))
    for n, kind in enumerate(events):
        ledger.take(("s", n, "a", kind == "d", float(n)))
        if acknowledged is None or n < acknowledged:
            ledger.take(("a", n, "a", 0, 10 + n, n + 0.5))
    return Checker(ledger)


@pytest.mark.parametrize(
    ("events", "shown", "kind"),
    [
        ("pp", [1, 0], "stale"),
        ("pd", [0, None, 0], "resurrected"),
        ("pdp", [2, 0], "resurrected"),
        ("pp", [0, None], "invisible"),
        ("pdp", [2, None], "invisible"),
        ("p", [5], "lost"),
        ("pd", [1], "lost"),
    ],
)
def test_each_wrong_answer_is_counted(events: str, shown: list[int | None], kind: str) -> None:
    """Answers one after another, of which the last is wrong in one way."""
    checker = checker_of(events)
    for at, n in enumerate(shown):
        assert checker.clean
        checker.seen("a", n, 100.0 + at, 100.5 + at)
    assert {kind: 1} == dict(checker.counts)
    assert checker.wrong[0].startswith(f"{kind}: a: ")


@pytest.mark.parametrize(
    ("events", "shown"),
    [
        ("pp", [0, 1, 1]),
        ("pd", [0, None, None]),
        ("pdp", [0, None, 2]),
        ("pdp", [0, 2]),
        ("p", [None, 0]),  # not applied yet, and nothing was asked for
    ],
)
def test_right_answers_are_not(events: str, shown: list[int | None]) -> None:
    """Newer and newer, and nothing after a deletion."""
    checker = checker_of(events)
    for at, n in enumerate(shown):
        checker.seen("a", n, 100.0 + at, 100.5 + at)
    assert checker.clean


def test_answers_at_the_same_time_are_not_held_against_each_other() -> None:
    """Which of two that overlap looked first is unknown; one that begins after both is held against both."""
    checker = checker_of("pp")
    checker.seen("a", 1, 100.0, 101.0)
    checker.seen("a", 0, 100.5, 101.5)
    assert checker.clean
    checker.seen("a", 0, 102.0, 102.5)
    assert 1 == checker.counts["stale"]


@pytest.mark.parametrize(("n", "kind"), [(0, "stale"), (None, "invisible")])
def test_a_read_that_waits_for_an_event_must_show_it(n: int | None, kind: str) -> None:
    """With `at_least` an acknowledged event counts, though no answer has shown it."""
    checker = checker_of("pp")
    checker.seen("a", n, 100.0, 100.5, asked_for=1)
    assert {kind: 1} == dict(checker.counts)


def test_a_delete_sent_after_the_answer_excuses_nothing() -> None:
    """Nothing was shown at second 3; the delete was sent at second 4."""
    checker = checker_of("ppppd")
    checker.seen("a", 3, 3.1, 3.2)
    checker.seen("a", None, 3.3, 3.4)
    assert 1 == checker.counts["invisible"]


@pytest.mark.parametrize(
    ("events", "acknowledged", "there", "kind"),
    [
        ("p", None, None, "lost"),
        ("pp", None, 0, "stale"),
        ("pd", None, 0, "resurrected"),
        ("pdp", None, 0, "resurrected"),
        ("p", None, 3, "lost"),
        ("pp", None, 1, ""),
        ("pd", None, None, ""),
        ("pp", 1, 1, ""),  # sent, never answered: it may be there
        ("pp", 1, 0, ""),
        ("pd", 1, None, ""),
        ("ppp", 2, 0, "stale"),
    ],
)
def test_what_is_there_at_the_end(events: str, acknowledged: int | None, there: int | None, kind: str) -> None:
    """The newest acknowledged event, or one sent after it whose outcome nobody knows."""
    checker = checker_of(events, acknowledged=acknowledged)
    checker.settled("a", there, "end")
    assert ({kind: 1} if kind else {}) == dict(checker.counts)


def row(n: int, version: int, *, deleted: bool = False) -> Physical:
    """A row as it lies in a tier."""
    payload = b"" if deleted else b'{"n":%d}' % n
    return Physical(version, deleted, payload, None if deleted else vector_of("a", n))


@pytest.mark.parametrize(
    ("value", "rows", "dirty", "kind"),
    [
        (value_of("a", 1), [], set(), "lost"),
        (value_of("a", 1), [], {"a"}, ""),
        (value_of("a", 1), [row(0, 1 << 16)], set(), "lost"),
        (value_of("a", 1), [row(0, 2 << 16)], set(), "lost"),  # the version, and another's content
        (value_of("a", 1), [row(1, 2 << 16)], set(), ""),
        (None, [row(0, 1 << 16)], set(), "resurrected"),
        (None, [row(0, 1 << 16), row(1, 2 << 16, deleted=True)], set(), ""),
        (None, [], set(), ""),
    ],
)
def test_what_lies_in_the_stores(value: bytes | None, rows: list[Physical], dirty: set[str], kind: str) -> None:
    """The newest version of an id is in a tier, as it was sent, or above the committed offset; a deleted one is not."""
    checker = checker_of("p")
    audit.tiers(checker, {"a": (2 << 16, value)}, dirty, {"cold": [("a", each) for each in rows]})
    assert ({kind: 1} if kind else {}) == dict(checker.counts)


def test_a_row_that_nobody_sent_is_counted() -> None:
    """Whatever lies in a tier was sent."""
    checker = checker_of("p")
    audit.tiers(checker, {}, set(), {"warm": [("b", row(0, 1))]})
    assert 1 == checker.counts["lost"]


def test_a_ledger_is_read_as_it_grows(tmp_path: Path) -> None:
    """A line that is half written is taken in when it is whole."""
    file = tmp_path / "ledger"
    pen, ledger = Pen(file), Ledger(file)
    pen.write([("s", 0, "a", False, 1.0), ("a", 0, "a", 2, 7, 1.5)], durable=True)
    with file.open("ab") as out:
        out.write(b'["s", 1, "a", ')
    ledger.read()
    assert (1, {2: 8}) == (ledger.acknowledged, ledger.ends)
    with file.open("ab") as out:
        out.write(b"true, 2.0]\n")
    ledger.read()
    assert [False, True] == [event.deleted for event in ledger.events["a"]]


def test_every_point_of_the_product_is_known() -> None:
    """Each move has its six steps between each pair of tiers, and no place is named twice with another meaning."""
    every = points.everything()
    assert len(every) == len(set(every))
    assert 24 == sum(point.startswith("move.") for point in every)
    assert 90 <= len(every)
