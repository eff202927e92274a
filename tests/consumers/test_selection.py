"""Which changes pass a selection."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.selection import Selection, part
from producers.events import Change
from tiers import record

pytestmark = pytest.mark.unit
TIERS = ("hot", "warm", "cold", "glacier")
words = st.sampled_from(["a", "a/b", "ab/c", "default/x", "x", "b/a/c"])
tiers = st.sampled_from([None, *TIERS])
changes = st.builds(
    lambda kind, source, target, reason, ids: Change(
        kind=kind,
        source=source,
        target=target,
        reason=reason,
        policy="p",
        at=1,
        ids=ids,
        versions=[f"0.{n}.0" for n in range(len(ids))],
    ),
    st.sampled_from(["home", "copy"]),
    tiers,
    tiers,
    st.sampled_from(["age", "idle"]),
    st.lists(words, min_size=1, max_size=5),
)
chosen = st.none() | st.frozensets(st.sampled_from(["home", "age", "hot", "cold", "a", "default", "b"]))


@given(changes, chosen, chosen, chosen, chosen)
def test_what_passes_is_what_every_condition_lets_pass(change, kinds, tiers, reasons, namespaces) -> None:
    """Of the ids those of the namespaces, with their own versions; the rest of a change is as it was."""
    shown = Selection(kinds, tiers, reasons, namespaces)(change)
    passes = (
        (kinds is None or change.kind in kinds)
        and (reasons is None or change.reason in reasons)
        and (tiers is None or bool({change.source, change.target} & tiers))
    )
    pairs = list(zip(change.ids, change.versions, strict=True))
    left = [pair for pair in pairs if namespaces is None or record.namespace(pair[0]) in namespaces] if passes else []
    assert left == ([] if shown is None else list(zip(shown.ids, shown.versions, strict=True)))
    if shown is not None:
        assert (change.kind, change.source, change.target, change.at) == (
            shown.kind,
            shown.source,
            shown.target,
            shown.at,
        )


def test_a_whole_change_is_not_copied() -> None:
    """A feed with many clients encodes it once."""
    change = Change(
        kind="home", source="hot", target="warm", reason="age", policy="p", at=1, ids=["a"], versions=["0.1.0"]
    )
    assert part(change, [0]) is change
    assert Selection()(change) is change
    assert part(change, []) is None
