"""A tally counts what a histogram of the library counts, whether one by one or by the batch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram

from producers.tally import SECONDS, Tally

pytestmark = pytest.mark.unit


@given(st.lists(st.floats(0, 100) | st.sampled_from(SECONDS)))
def test_one_by_one_and_by_the_batch_is_what_the_library_counts(values):
    """Bounds belong to their own bucket, and what is above all of them to +Inf."""
    single, batch = Tally(), Tally()
    theirs = Histogram("h", "h", registry=CollectorRegistry(), buckets=SECONDS)
    for value in values:
        single.add(value)
        theirs.observe(value)
    batch.add_all(np.array(values, float))

    expected = {s.labels["le"]: s.value for s in next(iter(theirs.collect())).samples if s.name == "h_bucket"}
    assert expected == dict(single.buckets())
    assert expected == dict(batch.buckets())
    assert pytest.approx(sum(values)) == single.sum == pytest.approx(batch.sum)
    assert len(values) == len(single)
