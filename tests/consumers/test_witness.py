"""What a commit says of the messages that were applied."""

from __future__ import annotations

import pytest

from consumers import witness
from consumers.witness import Witness, Witnesses
from producers.events import Message

pytestmark = pytest.mark.unit

P = 0


def message(offset: int, value: bytes | None = b"x", at: int = 7) -> Message:
    return Message(b"key", value, (), at, offset)


def offsets(text: str) -> list[int]:
    found = [Witness.parse(part) for part in text.split()]
    return [each.offset for each in found if each is not None]


def test_a_witness_knows_its_message_and_no_other():
    """Offset, time, key and value: one that differs in any of them is another message."""
    one = Witness.of(message(3))

    assert one == Witness.parse(str(one)) == Witness.of(message(3))
    others = [message(4), message(3, b"y"), message(3, None), message(3, at=8), message(3)._replace(key=None)]
    assert one not in [Witness.of(other) for other in others]


@pytest.mark.parametrize("text", ["", "x", "1:2", "1:2:z", "-1:2:3", "1:2:3:4", "a note of somebody"])
def test_what_somebody_else_has_written_is_no_witness(text):
    """Metadata is free text."""
    assert Witness.parse(text) is None


def test_a_commit_says_the_last_below_the_watermark_and_the_newest():
    """Both are of messages applied; before there is one below the watermark it says nothing."""
    kept = Witnesses()
    assert "" == kept.text(P, 5)
    for offset in (4, 9, 14):
        kept.add(P, message(offset))

    assert "" == kept.text(P, 4)
    assert [4, 14] == offsets(kept.text(P, 5))
    assert [4, 14] == offsets(kept.text(P, 9))
    assert [9, 14] == offsets(kept.text(P, 10))
    assert [14, 14] == offsets(kept.text(P, 15))


def test_what_is_remembered_is_bounded(monkeypatch):
    """However far the watermark lags, so many; the oldest and the newest stay, and each is below its watermark."""
    monkeypatch.setattr(witness, "KEPT_MAX", 8)
    kept = Witnesses()
    for offset in range(1_000):
        kept.add(P, message(offset))
        assert [0, offset] == offsets(kept.text(P, 1))
        assert len(kept._kept[P]) <= 9
    below, newest = offsets(kept.text(P, 500))
    assert below < 500
    assert 999 == newest
