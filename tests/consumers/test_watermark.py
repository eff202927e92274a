"""The watermark against a model that keeps every dirty row."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.watermark import Watermark

pytestmark = pytest.mark.unit


#: Runs as (offsets left out before it, length, where its dirty rows lie, several at one offset for an Arrow message).
RUNS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6), st.lists(st.integers(0, 5), max_size=8)), max_size=8)


def settle(mark: Watermark, offsets: list[int]) -> None:
    mark.settle(np.array(offsets, np.int64))


@settings(max_examples=150, deadline=None)
@given(RUNS, st.integers(0, 50), st.integers(0, 2**32))
def test_the_value_is_the_first_offset_of_the_oldest_dirty_run(runs, start, seed):
    """In any order of settling, the watermark is where the oldest run with a dirty row begins, and never falls."""
    random = Random(seed)
    mark = Watermark(start)
    model: dict[int, list[int]] = {}  # first offset of a run -> offsets of its dirty rows
    end = highest = start

    def agrees() -> None:
        nonlocal highest
        dirty_runs = [first for first, rows in model.items() if rows]
        assert min(dirty_runs, default=end) == mark.value
        assert sum(map(len, model.values())) == mark.dirty
        assert (end, True) == (mark.end, mark.value >= highest)
        highest = mark.value

    for gap, length, wanted in runs:
        first = end + gap
        end = first + length
        model[first] = [first + at % length for at in wanted]
        mark.open(first, end, len(wanted))
        agrees()
        while random.random() < 0.5 and (dirty := [(f, o) for f, rows in model.items() for o in rows]):
            chosen = random.sample(dirty, random.randint(1, len(dirty)))
            for run, offset in chosen:
                model[run].remove(offset)
            settle(mark, [offset for _, offset in chosen])
            agrees()
    for run in sorted(model, key=lambda _: random.random()):
        settle(mark, model[run])
        model[run] = []
        agrees()

    assert (end, 0) == (mark.value, mark.dirty)


def test_a_run_without_dirty_rows_moves_the_watermark():
    """A poll of nothing but repeats and dead letters already answered is done at once."""
    mark = Watermark(5)
    mark.open(5, 9, 0)

    assert (mark.value, mark.end, mark.dirty) == (9, 9, 0)


def test_a_row_settled_twice_is_an_error():
    """Settling more rows than are dirty stops the process rather than let the watermark run ahead."""
    mark = Watermark(0)
    mark.open(0, 4, 1)
    settle(mark, [2])
    with pytest.raises(AssertionError, match="settled again"):
        settle(mark, [2])


def test_more_rows_than_are_dirty_is_an_error():
    """Two rows of a run with one dirty row cannot be settled."""
    mark = Watermark(0)
    mark.open(0, 4, 1)
    with pytest.raises(AssertionError, match="more rows"):
        settle(mark, [1, 2])


def test_runs_come_in_order():
    """A run that begins before the end of the last one was read twice, and is an error."""
    mark = Watermark(0)
    mark.open(0, 4, 1)
    with pytest.raises(AssertionError, match="run"):
        mark.open(3, 6, 1)


def test_settling_nothing_changes_nothing():
    """An empty answer is allowed, on an empty watermark too."""
    mark = Watermark(7)
    settle(mark, [])

    assert mark.value == 7
